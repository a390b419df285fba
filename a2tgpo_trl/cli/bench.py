"""`a2tgpo bench gain`, `credit`, `tools`, `stream`, `plan`, `python`: options in, tables out; a module each."""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .bench_credit import Comparison, Speed
    from .bench_gain import GainTimes
    from .bench_plan import Comparison as PlanComparison
    from .bench_tools import ToolTimes

# The random-weight model of `bench gain`; None on the command line, so that they are noticed beside --model.
RANDOM_MODEL = {"hidden": 1024, "layers": 2, "vocab": 8192}
PLAIN_ROLLOUTS = 64
GIB = 2**30

GAIN = """Times three passes over the same rollouts. plain: log-probabilities of the completions. packed: the same and
the value of every context, in one forward. re-prefill: the values alone, one forward per context (the prompt, then
after each tool turn) for all rollouts, each context read again from its first token."""
CREDIT = """Times turn index, credit, and advantages and clip ranges of every token, against the same rules as loops
over lists."""
TOOLS = """Times the tools of a turn, from one generation to the next, by this package and by TRL's own tool loop. The
policy reads from a script, and the tool sleeps; both ways must come to the same tokens and masks."""
STREAM = """Times rollouts whose turns and tools are long-tailed, on one colocated vLLM, with and without a barrier
after each turn. together: a turn of all rollouts in one call, then the slowest tool. stream: each rollout at its own
pace."""

PLAN = """Trains a few steps of small recipes on this CPU and sets what `a2tgpo plan` says of them beside what they
took. The plan is given the turns that the rollouts had, and a measurement of this machine right before and after."""

PYTHON = """Times calls of Python sessions, several at once, against a fresh `python -c` for each call, and what a
fresh session costs with and without warm interpreters, at each level of isolation that works here."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    benches = parser.add_subparsers(metavar="BENCH", required=True)
    for name, text, add in (
        ("gain", GAIN, _add_gain),
        ("credit", CREDIT, _add_credit),
        ("tools", TOOLS, _add_tools),
        ("stream", STREAM, _add_stream),
        ("plan", PLAN, _add_plan),
        ("python", PYTHON, _add_python),
    ):
        add(benches.add_parser(name, help=text.split(".")[0], description=text))


def at_least(lowest: int) -> Callable[[str], int]:
    """A type for argparse, which puts the name of the option before the message."""

    def whole_number(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = lowest - 1
        if number < lowest:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {lowest}, got {text!r}")
        return number

    return whole_number


def _add_numbers(parser: argparse.ArgumentParser, numbers: Iterable[tuple[str, int, int, str]]) -> None:
    for name, lowest, default, text in numbers:
        parser.add_argument(name, type=at_least(lowest), default=default, help=f"{text} (default {default})")


def _add_gain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="name or path of a causal language model (default: random weights)")
    for name, size in RANDOM_MODEL.items():
        parser.add_argument(f"--{name}", type=at_least(1), help=f"of the model with random weights (default {size})")
    parser.add_argument("--attention", default="sdpa", help="attention implementation (default sdpa)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on CUDA")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA if there is one"
    )
    parser.add_argument(
        "--turns", type=at_least(1), nargs="+", default=[4], help="tool turns of a rollout, one row each (default 4)"
    )
    numbers = (
        ("--rollouts", 1, 2, "rollouts in a batch; every forward takes them all"),
        ("--tokens", 2, 1152, "tokens of a rollout, prompt included"),
        ("--prompt-tokens", 1, 288, "tokens of its prompt"),
        ("--probe-tokens", 1, 16, "tokens of a probe; the latter half of them are the answer"),
        ("--repeats", 1, 5, "timings of each pass, in turns, after a warm-up"),
        ("--seed", 0, 0, "of weights and tokens"),
    )
    _add_numbers(parser, numbers)
    parser.set_defaults(run=run_gain)


def _add_credit(parser: argparse.ArgumentParser) -> None:
    numbers = (
        ("--rollouts", 2, 1024, "rollouts in a batch"),
        ("--tokens", 2, 8192, "completion tokens of a rollout, padding included"),
        ("--turns", 1, 7, "turns of a rollout, the answer turn included"),
        ("--group-size", 2, 16, "rollouts of one prompt"),
        ("--repeats", 1, 5, "timings of each way, in turns, after a warm-up"),
        ("--seed", 0, 0, "of masks, gains and outcomes"),
    )
    _add_numbers(parser, numbers)
    parser.add_argument(
        "--plain-rollouts",
        type=at_least(2),
        help=f"compare the ways on the first so many rollouts (default {PLAIN_ROLLOUTS}: loops over tensors take "
        "minutes for many)",
    )
    parser.set_defaults(run=run_credit)


def _add_tools(parser: argparse.ArgumentParser) -> None:
    numbers = (
        ("--rollouts", 1, 64, "rollouts in a batch; TRL calls the tool once for each, one after the other"),
        ("--turns", 1, 2, "tool turns of a rollout, with one call each"),
        ("--tool-ms", 0, 200, "milliseconds of a call"),
        ("--concurrency", 1, 64, "calls that this package makes at once"),
    )
    _add_numbers(parser, numbers)
    parser.set_defaults(run=run_tools)


def _add_stream(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="name or path of a model that vLLM can serve (default: the shipped policy)")
    numbers = (
        ("--rollouts", 1, 32, "rollouts in a batch"),
        ("--turns", 1, 4, "turns of a rollout, the answer turn included"),
        ("--tokens", 1, 32, "tokens of the median turn"),
        ("--longest", 1, 256, "tokens of a turn at most"),
        ("--tool-ms", 0, 200, "milliseconds of the median tool call"),
        ("--prompt-tokens", 1, 64, "tokens of a prompt"),
        ("--result-tokens", 1, 32, "tokens of a tool result"),
        ("--repeats", 1, 3, "timings of each way, in turns, after a warm-up"),
        ("--seed", 0, 0, "of lengths, times and tokens"),
    )
    _add_numbers(parser, numbers)
    parser.add_argument("--spread", type=float, default=1.0, help="of the logarithms of lengths and times (default 1)")
    parser.add_argument("--memory", type=float, default=0.5, help="share of the GPU's memory for vLLM (default 0.5)")
    parser.set_defaults(run=run_stream)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cases", nargs="+", metavar="CASE", help="quickstart, middle, each also -plain and -lora (all)"
    )
    _add_numbers(parser, [("--steps", 2, 4, "steps of each run; the first warms up")])
    parser.set_defaults(run=run_plan)


def _add_python(parser: argparse.ArgumentParser) -> None:
    numbers = (
        ("--sessions", 1, 4, "sessions at once"),
        ("--calls", 1, 300, "calls of each session"),
        ("--fresh", 1, 40, "sessions of one call, one after the other"),
        ("--programs", 1, 20, "runs of python -c"),
    )
    _add_numbers(parser, numbers)
    parser.set_defaults(run=run_python)


# ---- gain


def run_gain(args: argparse.Namespace) -> int:
    from . import bench_gain

    sizes = {name: getattr(args, name) for name in RANDOM_MODEL}
    if args.model and any(sizes.values()):
        named = ", ".join(f"--{name}" for name, size in sizes.items() if size)
        raise ValueError(
            f"{named}: sizes of the model with random weights, which --model replaces. Drop one or the other."
        )
    shapes = [
        bench_gain.Shape(args.rollouts, args.tokens, args.prompt_tokens, turns, args.probe_tokens)
        for turns in args.turns
    ]
    sizes = {name: size or RANDOM_MODEL[name] for name, size in sizes.items()}
    model = bench_gain.load_model(args.model, sizes, args.attention, args.dtype, args.device, args.seed)
    _print("\n".join(bench_gain.describe(model)))
    _print(
        f"{args.rollouts} rollouts of {args.tokens} tokens ({args.prompt_tokens} prompt), {args.probe_tokens} a probe"
    )
    rows = [bench_gain.measure(model, shape, repeats=args.repeats, seed=args.seed) for shape in shapes]
    _print(_gain_table(rows))
    return 0


def _gain_table(rows: "list[GainTimes]"):
    passes = {"plain": "a plain", "packed": "b packed", "prefill": "c re-prefill"}
    heads = ["tool\nturns", *(f"{title}\ns" for title in passes.values())]
    heads += ["b/a\ntime", "b/a\ntokens", "(a+c)/b\ntime", "(a+c)/b\ntokens", "b - c\nvalues", "b - a\nlog-probs"]
    on_cuda = rows[0].peak_bytes is not None
    heads += [f"{title}\npeak GiB" for title in passes.values()] if on_cuda else []
    lines = []
    for row in rows:
        line = [str(row.turns), *(f"{row.seconds(name):.4g}" for name in passes)]
        for above, below in ((("packed",), "plain"), (("plain", "prefill"), "packed")):
            line += [f"{row.time_ratio(above, below):.3f}", f"{row.token_ratio(above, below):.3f}"]
        line += [f"{row.value_difference:.1e}", f"{row.logp_difference:.1e}"]
        line += [f"{row.peak_bytes[name] / GIB:.2f}" for name in passes] if row.peak_bytes else []
        lines.append(line)
    return _table(heads, lines)


# ---- credit


def run_credit(args: argparse.Namespace) -> int:
    from . import bench_credit

    compared = min(PLAIN_ROLLOUTS, args.rollouts) if args.plain_rollouts is None else args.plain_rollouts
    if compared > args.rollouts:
        raise ValueError(f"--plain-rollouts {compared} are more than there are: --rollouts {args.rollouts}.")
    sizes = {"turns": args.turns, "group_size": args.group_size, "seed": args.seed}
    part = bench_credit.make_case(args.rollouts, args.tokens, **sizes).first(compared)
    comparisons = [
        bench_credit.compare(part, *bench_credit.over_tensors(part), repeats=1),  # long, so once is enough
        bench_credit.compare(part, *bench_credit.over_lists(part), repeats=args.repeats),
    ]
    speeds = [
        bench_credit.speed(bench_credit.make_case(args.rollouts, times * args.tokens, **sizes), args.repeats)
        for times in (1, 2, 4)
    ]
    _print(bench_credit.describe())
    _print(_comparison_table(comparisons, args.turns))
    _print("The vectorised way alone, as rollouts get longer:")
    _print(_speed_table(speeds))
    agree = all(comparison.agrees for comparison in comparisons)
    if not agree:
        print("a2tgpo bench credit: the ways disagree", file=sys.stderr)
    return 0 if agree else 1


def _comparison_table(comparisons: "list[Comparison]", turns: int):
    heads = ["loops\nover", "rollouts", "tokens", "turns", "loops\ns", "vectorised\ns", "loops /\nvectorised"]
    heads += ["turn index", "advantages\ndiffer by", "clip ranges\ndiffer by"]
    lines = [
        [
            *map(str, (found.loops_over, found.rollouts, found.tokens, turns)),
            f"{found.plain_seconds:.4g}",
            f"{found.vectorised_seconds:.4g}",
            f"{found.ratio:.1f}",
            "equal" if found.same_turns else "differs",
            f"{found.advantage_difference:.1e}",
            f"{found.range_difference:.1e}",
        ]
        for found in comparisons
    ]
    return _table(heads, lines)


def _speed_table(speeds: "list[Speed]"):
    first = speeds[0]
    lines = [
        [
            *map(str, (speed.rollouts, speed.tokens)),
            f"{speed.seconds:.4g}",
            f"{speed.per_token * 1e9:.2f}",
            f"{speed.per_token / first.per_token:.2f}",
        ]
        for speed in speeds
    ]
    return _table(["rollouts", "tokens", "vectorised\ns", "ns\na token", "a token,\nto the first"], lines)


# ---- tools


def run_tools(args: argparse.Namespace) -> int:
    from ..report.progress import quiet_libraries
    from . import bench_tools

    quiet_libraries()
    load = bench_tools.Load(args.rollouts, args.turns, args.tool_ms / 1000, args.concurrency)
    _print("\n".join(bench_tools.describe(load)))
    found = bench_tools.measure(load)
    _print(_tools_table(found))
    _print(f"TRL / ours: {found.ratio:.1f}")
    if found.differences:
        print(f"a2tgpo bench tools: the ways disagree in {', '.join(found.differences)}", file=sys.stderr)
        return 1
    _print("token ids and masks: equal")
    return 0


def _tools_table(found: "ToolTimes"):
    lines = [
        [way, f"{found.seconds(way):.4g}", f"{min(timings):.4g}", f"{max(timings):.4g}"]
        for way, timings in found.timings.items()
    ]
    return _table(["way", "a turn's\ntools, s", "fastest\nturn", "slowest\nturn"], lines)


# ---- stream


def run_stream(args: argparse.Namespace) -> int:
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise ValueError("bench stream needs vLLM: pip install 'a2tgpo_trl[vllm]'.")
    from . import bench_stream

    sizes = (args.tokens, args.longest, args.tool_ms / 1000, args.spread, args.prompt_tokens, args.result_tokens)
    load = bench_stream.Load(args.rollouts, args.turns, *sizes)
    generation = bench_stream.load_vllm(args.model, load, args.memory)
    _print("\n".join(bench_stream.describe(generation, load)))
    found = bench_stream.measure(generation, load, repeats=args.repeats, seed=args.seed)
    lines = [
        [way, f"{found.seconds(way):.4g}", f"{found.steps[way]:.0f}", f"{found.least_tool_seconds[way]:.2f}"]
        for way in bench_stream.WAYS
    ]
    _print(_table(["way", "s", "vLLM\nsteps", "tools alone\ns"], lines))
    _print(f"{found.tokens} tokens sampled; together / stream: {found.ratio:.2f}")
    return 0


# ---- plan


def run_plan(args: argparse.Namespace) -> int:
    from tempfile import TemporaryDirectory

    import torch

    from ..lookup import nearest
    from ..report.progress import quiet_libraries
    from . import bench_plan
    from .machine import device_name

    quiet_libraries()
    names = args.cases or list(bench_plan.CASES)
    for name in names:
        if name not in bench_plan.CASES:
            known = ", ".join(bench_plan.CASES)
            raise ValueError(f"--cases: there is no {name!r}.{nearest(name, bench_plan.CASES)} Known: {known}.")
    _print(device_name(torch.device("cpu")))
    with TemporaryDirectory() as folder:
        comparisons = list(bench_plan.compare(names, args.steps, Path(folder)))
    _print(_plan_table(comparisons))
    return 0


def _plan_table(comparisons: "list[PlanComparison]"):
    heads = [
        "case",
        "",
        "tensors\nMiB",
        "step\ns",
        "sampling\ns",
        "gain pass\ns",
        "loss and\nbackward s",
        "optimiser\ns",
    ]
    lines = []
    for found in comparisons:
        stages = [found.stage(name) for name in ("sampling", "gain pass", "loss and backward", "optimiser")]
        sizes = (found.planned_bytes, found.measured_bytes)
        steps = (found.planned_seconds, found.run.step_seconds[1:])
        for i, way in enumerate(("planned", "measured")):
            numbers = [sizes[i] / 2**20, statistics.median(steps[i]), *(stage[i] for stage in stages)]
            lines.append([found.name if i == 0 else "", way, *(f"{number:.3g}" for number in numbers)])
        lines.append(["", "ratio", f"{found.memory_ratio:.2f}", f"{found.time_ratio:.2f}", *[""] * len(stages)])
    return _table(heads, lines)


# ---- python


def run_python(args: argparse.Namespace) -> int:
    import torch

    from . import bench_python
    from .machine import device_name

    load = bench_python.Load(args.sessions, args.calls, args.fresh, args.programs)
    _print(device_name(torch.device("cpu")))
    program = bench_python.program_seconds(load.programs)
    heads = ["level", "calls\na second", "python -c /\na call", "fresh session,\nms", "the same,\nnone warm, ms"]
    lines = []
    for level, why in bench_python.levels().items():
        if why is not None:
            _print(f"{level}: does not work here: {why}")
            continue
        found = bench_python.measure(level, load)
        numbers = (f"{found.calls_a_second:.0f}", f"{program * found.calls_a_second:.0f}")
        lines.append([level, *numbers, f"{found.warm_seconds * 1000:.1f}", f"{found.cold_seconds * 1000:.1f}"])
    _print(f"{load.sessions} sessions of {load.calls} calls; python -c takes {program * 1000:.1f} ms")
    _print(_table(heads, lines))
    return 0


# ---- tables


def _table(heads: list[str], lines: list[list[str]]):
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    return table


def _print(what) -> None:
    from rich.console import Console

    # Away from a terminal rich assumes 80 columns and cuts cells; a file has no width.
    width = None if sys.stdout.isatty() else 1000
    Console(width=width, highlight=False, markup=False, soft_wrap=isinstance(what, str)).print(what)
