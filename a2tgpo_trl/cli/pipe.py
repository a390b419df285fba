"""what a command prints -> its reader, until the reader closes the pipe."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from rich.table import Table

WIDEST = 120  # characters of a line of a table, at most, that does not fit the terminal


def print_table(table: "Table") -> None:
    """Print a table wider than a narrow terminal if need be: the terminal wraps lines; the table would cut numbers."""
    from rich.console import Console

    console = Console(width=max(Console().width, WIDEST), markup=False, emoji=False)
    console.print(table, highlight=False)


@contextmanager
def until_closed() -> Iterator[None]:
    """Inside, printing ends without an error when the reader closes the pipe (`| head`)."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # so that the rest is not written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
