"""what a command prints -> whoever reads it, as long as they read."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def until_closed() -> Iterator[None]:
    """Inside, where something is printed, a reader who has seen enough (`| head`) ends it without an error."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # what is left is not written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
