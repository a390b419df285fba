"""`a2tgpo check RECIPE`: what would go wrong in training, one line each, before it starts."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .launching import add_recipe_argument


if TYPE_CHECKING:
    from ..preflight import Finding
    from ..recipe.recipe import Recipe

STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_argument(parser)
    parser.add_argument(
        "--call-tools",
        action="store_true",
        help="call each tool once with arguments made up from its schema, on another thread, as training does",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the findings. Return 0 if nothing failed, 1 if something did."""
    from ..preflight import preflight
    from ..report.progress import quiet_libraries

    quiet_libraries()
    recipe, of_machine = _read(["--config", args.recipe, *args.overrides])
    findings = [*of_machine, *preflight(recipe, args.call_tools)]
    report(findings)
    return int(any(finding.status == "fail" for finding in findings))


def _read(words: Sequence[str]) -> tuple["Recipe", list["Finding"]]:
    """Return the recipe; if it needs a GPU that this machine lacks, as another machine reads it, with a warning."""
    import torch

    from ..errors import RecipeError
    from ..preflight import Finding
    from ..recipe.recipe import read_recipe

    try:
        return read_recipe(words), []
    except RecipeError as error:
        if torch.cuda.is_available():
            raise
        recipe = read_recipe([*words, "--use_cpu", "true"])
        return recipe, [
            Finding("machine", "warn", f"Checked for another machine; the recipe would not run on this one: {error}")
        ]


def report(findings: Sequence["Finding"]) -> None:
    """Print one row per finding, with long messages wrapped, and a line that counts them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for _ in range(3):
        table.add_column(overflow="fold")
    for finding in findings:
        status = Text(finding.status.upper(), style=STYLES[finding.status], no_wrap=True)
        table.add_row(status, Text(finding.name), Text(finding.message))
    console = Console(highlight=False)
    console.print(table)
    counts = {status: sum(finding.status == status for finding in findings) for status in STYLES}
    console.print(f"{counts['pass']} passed, {counts['warn']} warned, {counts['fail']} failed")
