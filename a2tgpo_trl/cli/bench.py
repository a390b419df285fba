"""`a2tgpo bench step` and `gain`, in one module each: options -> a table."""

import argparse
import os
import statistics
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .launching import add_recipe_argument
from .option_types import at_least


if TYPE_CHECKING:
    from .bench_gain import GainTimes
    from .bench_step import StepTimes

# Sizes of the random model of `bench gain`; options default to None, so that they are noticed beside --model.
RANDOM_MODEL = {"hidden": 1024, "layers": 2, "vocab": 8192}
RANDOM = ("random", "random-0.6b")  # instead of a recipe: sizes in bench_policy.py
GIB = 2**30

STEP = """Times the steps of a recipe and their stages in this package and in TRL's GRPOTrainer, with the same
policy, data, tools and settings, alternating in one process: averages over all steps, and their ratio."""
GAIN = """Times three passes over the same rollouts. plain: log-probabilities of the completions. packed: the same and
the value of every context, in one forward. re-prefill: only the values, one forward per context (the prompt, then
after each tool turn) for all rollouts, each context read again from its first token."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    benches = parser.add_subparsers(metavar="BENCH", required=True)
    for name, text, add in (
        ("step", STEP, _add_step),
        ("gain", GAIN, _add_gain),
    ):
        # Otherwise --seed, which is a key of the recipe, would be taken for --seeds.
        add(benches.add_parser(name, help=text.split(".")[0], description=text, allow_abbrev=False))


def add_numbers(parser: argparse.ArgumentParser, numbers: Iterable[tuple[str, int, int, str]]) -> None:
    for name, lowest, default, text in numbers:
        parser.add_argument(name, type=at_least(lowest), default=default, help=f"{text} (default {default})")


def _add_step(parser: argparse.ArgumentParser) -> None:
    add_recipe_argument(parser)
    parser.epilog = (
        "Recipe 'random': 20 million random weights, prompts of 1,400 tokens; 'random-0.6b': the same with the width, "
        f"depth and vocabulary of Qwen3-0.6B, for accelerators. {parser.epilog}"
    )
    numbers = (
        ("--steps", 1, 5, "timed steps of each per seed, after one warm-up step"),
        ("--seeds", 1, 1, "number of seeds, starting with 0; --seed names one"),
    )
    add_numbers(parser, numbers)
    parser.set_defaults(run=run_step)


def _add_gain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="name or path of a causal language model (default: random weights)")
    for name, size in RANDOM_MODEL.items():
        parser.add_argument(f"--{name}", type=at_least(1), help=f"for the model with random weights (default {size})")
    parser.add_argument("--attention", default="sdpa", help="attention implementation (default sdpa)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on CUDA")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA if there is one"
    )
    parser.add_argument(
        "--turns",
        type=at_least(1),
        nargs="+",
        default=[4],
        help="tool turns per rollout, one table row each (default 4)",
    )
    numbers = (
        ("--rollouts", 1, 2, "rollouts per batch; every forward takes all of them"),
        ("--tokens", 2, 1152, "tokens per rollout, including the prompt"),
        ("--prompt-tokens", 1, 288, "tokens of the prompt"),
        ("--probe-tokens", 1, 16, "tokens of a probe; the second half is the answer"),
        ("--repeats", 1, 5, "timings of each pass, alternating, after a warm-up"),
        ("--seed", 0, 0, "seed of weights and tokens"),
    )
    add_numbers(parser, numbers)
    parser.set_defaults(run=run_gain)


# ---- step


def run_step(args: argparse.Namespace) -> int:
    from tempfile import TemporaryDirectory

    from ..launch.processes import count_accelerators, one_gpu
    from ..report.progress import quiet_libraries
    from ..report.scores import bootstrap
    from . import bench_step
    from .bench_policy import write_recipe

    quiet_libraries()
    os.environ.update(one_gpu(os.environ, count_accelerators()))
    show(bench_step.describe())
    with TemporaryDirectory() as folder:
        recipe = write_recipe(folder, args.recipe) if args.recipe in RANDOM else args.recipe
        found = bench_step.measure(recipe, args.overrides, args.steps, args.seeds, folder)
    show(_step_table(found))
    ours, theirs = found["ours"], found["TRL"]
    by_time, by_work = (
        bootstrap([list(zip(getattr(ours, name), getattr(theirs, name), strict=True))])
        for name in ("seconds", "processor")
    )
    show(
        f"ours / TRL over {len(ours.seconds)} steps, with 95 % confidence: {by_time} of the time, {by_work} of the "
        f"processor time. Longest step of ours: {ours.longest:.1f} times the median."
    )
    return 0


def _step_table(found: "dict[str, StepTimes]"):
    from .bench_step import STAGES

    heads = ["mean of a step", "all\ns", "processor\ns", *(f"{stage}\ns" for stage in STAGES)]
    heads += ["sampled\ntokens", "a token\nms"]
    on_cuda = bool(found["ours"].peak_bytes)
    lines = []
    for way, times in found.items():
        line = [way, *(f"{statistics.mean(x):.4g}" for x in (times.seconds, times.processor, *times.stages.values()))]
        line += [f"{statistics.mean(times.sampled):.4g}", f"{1000 * sum(times.seconds) / sum(times.sampled):.3g}"]
        line += [f"{max(times.peak_bytes) / GIB:.2f}"] if on_cuda else []
        lines.append(line)
    return table([*heads, *(["peak\nGiB"] if on_cuda else [])], lines)


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
    show("\n".join(bench_gain.describe(model)))
    show(
        f"{args.rollouts} rollouts of {args.tokens} tokens ({args.prompt_tokens} prompt), {args.probe_tokens} a probe"
    )
    rows = [bench_gain.measure(model, shape, repeats=args.repeats, seed=args.seed) for shape in shapes]
    show(_gain_table(rows))
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
    return table(heads, lines)


# ---- tables


def table(heads: list[str], lines: list[list[str]]):
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    return table


def show(what) -> None:
    from rich.console import Console

    # Without a terminal rich assumes 80 columns and cuts cells; a file has no width.
    width = None if sys.stdout.isatty() else 1000
    Console(width=width, highlight=False, markup=False, soft_wrap=isinstance(what, str)).print(what)
