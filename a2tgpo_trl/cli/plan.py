"""`a2tgpo plan RECIPE`: whether it fits, and what to change; on the machine that is to run it, what a step takes."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from .launching import add_recipe_argument


if TYPE_CHECKING:
    from ..plan.sharding import Sharding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_argument(parser)
    parser.add_argument(
        "--gpu",
        default="h100",
        help="kind of GPU, or a name ending in its memory (48gb); 'this' runs two batches on this machine and times "
        "them (default h100)",
    )
    parser.add_argument("--gpus", type=_count, help="number of GPUs in all (default 1, or as in --config_file)")
    parser.add_argument("--sharding", help="none, ddp, zero1, zero2, zero3 or fsdp2 (default none, or ddp)")
    parser.add_argument(
        "--config_file", help="configuration of Accelerate: a path, or a name in the package, for the sharding"
    )
    parser.add_argument(
        "--prompt_tokens", type=_count, help="tokens of the longest prompt (default: counted in the data)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run)


def _count(text: str) -> int:
    number = int(text) if text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return number


def run(args: argparse.Namespace) -> int:
    """Print the plan. Return 0 if it fits, 1 if it does not."""
    from rich.console import Console

    from ..plan.hardware import THIS, named, this_machine
    from ..plan.measured import count_steps, measure
    from ..plan.planning import Planner, read_for
    from ..plan.report import Run, as_json, as_text
    from ..recipe.recipe_file import find_launch_config
    from ..report.progress import quiet_libraries

    quiet_libraries()
    here = args.gpu.lower() == THIS
    config_file = find_launch_config(args.config_file) if args.config_file else None
    sharding = _sharding(args, config_file, here)
    device = this_machine(sharding.devices) if here else named(args.gpu)
    words = ["--config", args.recipe, *args.overrides]
    recipe = read_for(words, sharding, device)
    planner = Planner(recipe, device, sharding, args.prompt_tokens)
    plan, run_here = planner.plan(), None
    if here:
        measured = measure(recipe, words, sharding.devices, config_file)
        planned = planner.training_peak(measured.longest_completion)
        run_here = Run(measured, planned, count_steps(recipe, sharding.devices))
    if args.json:
        print(json.dumps(as_json(plan, run_here), indent=2))
    else:
        for part in as_text(plan, run_here):
            Console(highlight=False, markup=False, emoji=False, soft_wrap=isinstance(part, str)).print(part)
    return 0 if plan.fits else 1


def _sharding(args: argparse.Namespace, config_file: Path | None, here: bool) -> "Sharding":
    from ..plan.sharding import Sharding, of_accelerate

    if config_file is not None:
        if args.sharding is not None:
            raise ValueError("--sharding and --config_file say the same thing twice. Leave one out.")
        return of_accelerate(config_file, args.gpus)
    if here and args.sharding not in (None, "none", "ddp"):
        raise ValueError(
            f"--gpu {args.gpu} runs the recipe, so its sharding must come from a configuration of Accelerate: give "
            f"--config_file {args.sharding} instead of --sharding."
        )
    gpus = args.gpus or 1
    return Sharding(args.sharding or ("none" if gpus == 1 else "ddp"), gpus)
