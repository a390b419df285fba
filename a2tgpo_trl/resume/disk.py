"""A full or read-only disk -> the run ends on all ranks, with a line that says what to do about it."""

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from accelerate.logging import get_logger
from safetensors import SafetensorError

from ..errors import RunStopped
from ..ranks import Ranks
from .folders import checkpoints_of
from .manifest import fault


logger = get_logger(__name__)

# Errors of writing: the system's codes, and texts of torch's errors, which have no class for it.
NO_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
WRITING_FAILED = ("PytorchStreamWriter", "inline_container", "unexpected pos")


def write_together(ranks: Ranks, folder: Path, write: Callable[[], None]) -> None:
    """Write on each rank. If it fails on any, all raise, so that none waits for the others."""
    mine: Exception | None = None
    try:
        write()
    except Exception as raised:  # told to all ranks, and raised below
        mine = raised
    why = ranks.first_text(None if mine is None else str(mine) or repr(mine))
    if why is None:
        return
    if mine is not None and not is_about_writing(mine):
        raise mine
    raise RunStopped(_not_written(f"{folder.name} could not be written", folder.parent, why)) from mine


def leave_at_once(folder: Path, error: Exception) -> NoReturn:
    """End this process. The others wait for it in vain, so ending them is left to the launcher."""
    line = _not_written(f"{folder.name} could not be written", folder.parent, str(error))
    logger.error(line, main_process_only=False)
    os._exit(1)


@contextmanager
def told_if_not_written(run: Path) -> Iterator[None]:
    """Inside, while results are written, a full or read-only disk ends the run with a line that says so."""
    try:
        yield
    except Exception as error:
        elsewhere = isinstance(error, OSError) and error.filename and not _is_below(run, error.filename)
        if elsewhere or not is_about_writing(error):
            raise
        line = _not_written("Results could not be written", run, str(error))
        if os.environ.get("RANK", "0") != "0":  # the first rank, which reports for all, may not know of it
            logger.error(line, main_process_only=False)
        raise RunStopped(line) from error


def is_about_writing(error: Exception) -> bool:
    """Whether the disk caused this error, and not the program."""
    if isinstance(error, OSError):
        return error.errno in NO_WRITING
    return isinstance(error, SafetensorError) or any(name in str(error) for name in WRITING_FAILED)


def _is_below(run: Path, file: str | bytes | int) -> bool:
    return not isinstance(file, int) and run.resolve() in Path(os.fsdecode(file)).resolve().parents


def _not_written(what: str, run: Path, error: str) -> str:
    whole = [other for other in checkpoints_of(run) if fault(other) is None]
    go_on = (
        f"{whole[0].name} is complete: resume from it (resume_from_checkpoint: true)."
        if whole
        else "There is no complete checkpoint: start a new run."
    )
    free = math.floor(shutil.disk_usage(run).free / 2**20)
    return (
        f"{what}: {error.splitlines()[0]}. {run} has {free} MiB free. Free some space there, or make it writable. "
        f"{go_on}"
    )
