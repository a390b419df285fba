"""`a2tgpo plan RECIPE`: whether it fits, what a step takes, and what to change, before any GPU is rented."""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .launching import add_recipe_argument


if TYPE_CHECKING:
    from ..plan.hardware import Machine
    from ..plan.lengths import Lengths
    from ..plan.policy import Policy
    from ..plan.sharding import Sharding
    from ..recipe.recipe import Recipe

PROMPT_TOKENS = 300  # where the recipe's own cannot be read
# Of rollouts, where nobody says otherwise and the recipe has room for them.
TURNS, TOKENS_PER_TURN, TOOL_TOKENS = 4.0, 200.0, 300.0
ROWS_READ = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_argument(parser)
    hardware = parser.add_argument_group("hardware")
    hardware.add_argument(
        "--gpu", default="h100", help="kind of GPU, or 'this': the processor of this machine, measured (default h100)"
    )
    hardware.add_argument("--gpus", type=_count, help="how many in all (default 1, or those of --config_file)")
    hardware.add_argument("--nodes", type=_count, help="machines that they are in (default 1)")
    hardware.add_argument("--sharding", help="none, ddp, zero1, zero2, zero3 or fsdp2 (default none, or ddp)")
    hardware.add_argument("--config_file", help="configuration of Accelerate, in place of the three above")
    hardware.add_argument("--server_gpus", type=_count, default=1, help="of a vLLM server, beside --gpus (default 1)")
    rollouts = parser.add_argument_group("rollouts, as assumed")
    rollouts.add_argument("--rollouts", type=Path, help="records of an evaluation (.jsonl), in place of assumptions")
    for name, usual, text in (
        ("--turns", TURNS, "turns of a rollout, the answer included"),
        ("--tokens_per_turn", TOKENS_PER_TURN, "tokens that the policy writes in a turn"),
        ("--tool_tokens", TOOL_TOKENS, "tokens of a turn's results"),
    ):
        rollouts.add_argument(
            name, type=_amount, help=f"{text} (default {usual:g}, less where the recipe ends sooner)"
        )
    for name, default, text in (
        ("--tool_seconds", 0.5, "seconds that a turn waits for its tools"),
        ("--spread", 1.5, "the longest of a batch, to the average"),
        ("--probe_tokens", 16.0, "tokens of an answer as the gain pass writes it"),
    ):
        rollouts.add_argument(name, type=_amount, default=default, help=f"{text} (default {default:g})")
    rollouts.add_argument("--prompt_tokens", type=_amount, help="tokens of a prompt (default: counted in the data)")
    shares = parser.add_argument_group("what a data sheet's figures come to")
    for name, default, text in (
        ("--flops_share", 0.5, "of the arithmetic, reached by matrix products"),
        ("--attention_share", 0.35, "of the arithmetic, reached by attention"),
        ("--bandwidth_share", 0.75, "of the memory bandwidth"),
        ("--link_share", 0.7, "of the links between GPUs"),
        ("--op_seconds", 9e-6, "seconds that an operation costs, however small"),
    ):
        shares.add_argument(name, type=_amount, default=default, help=f"{text} (default {default:g})")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.set_defaults(run=run)


def _count(text: str) -> int:
    number = int(text) if text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return number


def _amount(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, got {text!r}")
    return number


def run(args: argparse.Namespace) -> int:
    """0: it fits; 1: it does not."""
    from ..plan import load_policy, make_plan, read_for
    from ..plan.hardware import THIS
    from ..plan.report import as_json, as_text
    from ..report.progress import quiet_libraries

    quiet_libraries()
    sharding = _sharding(args)
    machine = _machine(args, sharding)
    accelerated = args.gpu.lower() not in THIS
    recipe = read_for(["--config", args.recipe, *args.overrides], sharding, accelerated)
    policy = load_policy(recipe, sharding, accelerated)
    lengths, notes = _lengths(args, recipe, policy)
    plan = make_plan(recipe, policy, machine, sharding, lengths, args.server_gpus)
    if args.json:
        print(json.dumps(as_json(plan, notes), indent=2))
    else:
        from rich.console import Console

        for part in as_text(plan, notes):
            Console(highlight=False, soft_wrap=isinstance(part, str)).print(part)
    return 0 if plan.fits else 1


def _machine(args: argparse.Namespace, sharding: "Sharding") -> "Machine":
    from ..plan.hardware import THIS, Shares, from_sheet

    if args.gpu.lower() in THIS:
        if sharding.devices > 1:
            raise ValueError(f"--gpu {args.gpu} measures one processor; {sharding.devices} devices need a data sheet.")
        from ..plan.calibration import measure

        return measure()
    shares = Shares(args.flops_share, args.attention_share, args.bandwidth_share, args.link_share)
    return from_sheet(args.gpu, shares, args.op_seconds)


def _sharding(args: argparse.Namespace) -> "Sharding":
    from ..plan.sharding import Sharding, of_accelerate
    from ..recipe.recipe_file import find_launch_config

    given = [f"--{name}" for name in ("gpus", "nodes", "sharding") if getattr(args, name) is not None]
    if args.config_file is not None:
        if given:
            raise ValueError(f"{', '.join(given)} and --config_file say the same thing twice. Leave one out.")
        return of_accelerate(find_launch_config(args.config_file))
    gpus = args.gpus or 1
    return Sharding(args.sharding or ("none" if gpus == 1 else "ddp"), gpus, args.nodes or 1)


def _lengths(args: argparse.Namespace, recipe: "Recipe", policy: "Policy") -> tuple["Lengths", list[str]]:
    """Lengths of rollouts, and a line for each source of them."""
    from ..plan.lengths import assumed, read_records, recorded

    if args.prompt_tokens is not None:
        prompt, longest, note = args.prompt_tokens, args.prompt_tokens, f"prompts of {args.prompt_tokens:g} tokens"
    else:
        prompt, longest, note = prompt_tokens(recipe)
    if args.rollouts is not None:
        batch = recipe.args.per_device_train_batch_size * recipe.args.steps_per_generation
        sizes: dict[str, Any] = {"prompt": prompt, "longest_prompt": longest, "probe": args.probe_tokens}
        records = read_records(args.rollouts)
        return recorded(records, batch, **sizes), [note, f"turns of the {len(records)} rollouts in {args.rollouts}"]
    turns, tokens, results = rollouts_of(args, recipe)
    lengths = assumed(
        prompt=prompt,
        longest_prompt=longest,
        turns=turns,
        tokens=tokens,
        results=results,
        tool_seconds=args.tool_seconds,
        spread=args.spread,
        probe=args.probe_tokens,
        most=recipe.args.max_completion_length,
    )
    words = (
        f"{turns:g} turns of {tokens:g} tokens, with {results:g} tokens of results and "
        f"{args.tool_seconds:g} s of tools between them; the longest of a batch {args.spread:g} times the average"
        if uses_tools(recipe)
        else f"no tools: one turn of {tokens:g} tokens, the longest {args.spread:g} times the average"
    )
    return lengths, [note, words]


def rollouts_of(args: argparse.Namespace, recipe: "Recipe") -> tuple[float, float, float]:
    """Turns, tokens of each and tokens of its results: what was given, and for the rest what the recipe has room for.

    Example: max_completion_length 512, spread 1.5: the usual 4 turns of 200 and 3 results of 300 are 1,700 tokens,
    where the longest of a batch may have 512 and the average 341: 40 and 60.
    """
    limit = recipe.args.max_tool_calling_iterations
    turns = TURNS if limit is None else min(TURNS, limit + 1.0)
    turns = 1.0 if not uses_tools(recipe) else turns if args.turns is None else args.turns
    usual = turns * TOKENS_PER_TURN + (turns - 1) * TOOL_TOKENS
    share = min(1.0, recipe.args.max_completion_length / max(args.spread, 1.0) / max(usual, 1.0))
    tokens = math.floor(share * TOKENS_PER_TURN) if args.tokens_per_turn is None else args.tokens_per_turn
    results = math.floor(share * TOOL_TOKENS) if args.tool_tokens is None else args.tool_tokens
    return turns, tokens, results


def uses_tools(recipe: "Recipe") -> bool:
    """Whether its rollouts have more than one turn."""
    return bool(recipe.task.tools) or recipe.task.environment_factory is not None


def prompt_tokens(recipe: "Recipe") -> tuple[float, float, str]:
    """Tokens of the recipe's prompts, on average and at most; assumed where the model's folder has no tokenizer."""
    from itertools import islice

    from ..preflight.loading import all_tools, load_config, load_tokenizer, make_chat

    if recipe.task.train_dataset is None:
        return PROMPT_TOKENS, PROMPT_TOKENS, f"prompts of {PROMPT_TOKENS} tokens: the environment makes them"
    try:
        chat = make_chat(recipe, load_tokenizer(recipe), load_config(recipe), all_tools(recipe.task))
        prompts = [row["prompt"] for row in islice(recipe.task.train_dataset, ROWS_READ)]
        counts = [len(ids) for ids in chat.prompt_ids(prompts)]
    except (OSError, ValueError) as error:  # a folder without a tokenizer, or without a template
        reason = str(error).partition("\n")[0].partition("!")[0]
        return PROMPT_TOKENS, PROMPT_TOKENS, f"prompts of {PROMPT_TOKENS} tokens, not counted: {reason}"
    mean = sum(counts) / len(counts)
    return mean, max(counts), f"prompts of {mean:.0f} tokens, counted in the first {len(counts)} rows"
