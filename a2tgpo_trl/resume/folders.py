"""a run's folder -> its checkpoints: where they are, which are removed, which are set aside.

A folder that is not a whole checkpoint, or is later than the one that a run resumes from, is set aside under another
name: nothing takes it for a checkpoint any more, and nothing is lost.
"""

import re
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import ResumeError
from .manifest import MANIFEST, fault, files_of, write_manifest
from .own_files import OwnFiles


logger = get_logger(__name__)

STATE = "trainer_state.json"
TORN = "torn"  # not whole when it was set aside
LEFT = "left"  # later than the checkpoint that a run went back to


def checkpoint(run: str | Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return Path(run, f"{PREFIX_CHECKPOINT_DIR}-{step}")


def step_of(folder: Path) -> int:
    """Return the step of a checkpoint's folder.

    Example: outputs/run/checkpoint-40 -> 40
    """
    return int(folder.name.rpartition("-")[2])


def checkpoints_of(run: str | Path) -> list[Path]:
    """Return the folders named like checkpoints, whole or not, the latest first."""
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-\d+")
    found = [folder for folder in Path(run).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if folder.is_dir()]
    return sorted((folder for folder in found if pattern.fullmatch(folder.name)), key=step_of, reverse=True)


def was_completed(folder: Path) -> bool:
    """Whether a run may be able to resume from a checkpoint: it has a manifest, or TRL itself finished it."""
    return (folder / MANIFEST).exists() or (folder / STATE).exists()


def set_aside(folder: Path, why: str) -> Path:
    """Give a folder a name that no checkpoint has, and return it.

    Example: checkpoint-4, "torn" -> torn-checkpoint-4; if that is taken, torn-checkpoint-4-2
    """
    number, place = 1, folder.with_name(f"{why}-{folder.name}")
    while place.exists():
        number += 1
        place = folder.with_name(f"{why}-{folder.name}-{number}")
    OwnFiles(folder.parent).renamed(folder.name, place.name)
    return folder.rename(place)


def check_writable(run: str | Path) -> None:
    """Refuse a folder that cannot be written to before anything is computed for it."""
    try:
        Path(run).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run) as file:
            file.write(b"0")
    except OSError as error:
        raise ResumeError(
            f"output_dir {run} cannot be written to: {error.strerror}. Make it writable, free some space, or name "
            "another folder (output_dir)."
        ) from error


# ---- a new checkpoint, and older ones


def make_place(folder: Path) -> None:
    """Make a new folder for a checkpoint. An existing one of this name is not removed, but set aside."""
    if folder.exists():
        place = set_aside(folder, TORN if fault(folder) else LEFT)
        logger.warning(f"{folder} already existed and was renamed to {place.name}.")
    folder.mkdir(parents=True)
    OwnFiles(folder.parent).add_folder(folder.name)


def declare_whole(folder: Path, facts: dict[str, Any]) -> None:
    """Write the manifest of a checkpoint, and enter all its files as this package's."""
    write_manifest(folder, facts)
    written = [*files_of(folder), folder / MANIFEST]
    OwnFiles(folder.parent).add(*(str(file.relative_to(folder.parent)) for file in written))


def remove_surplus(run: Path, limit: int | None, kept: Collection[Path]) -> None:
    """Remove the earliest checkpoints over the limit that this package wrote."""
    for folder in surplus(run, limit, kept):
        place = remove_checkpoint(folder)
        if place is not None:
            logger.warning(
                f"{folder} was removed in favour of later checkpoints (save_total_limit). What else was in it is "
                f"kept in {place.name}."
            )


def surplus(run: str | Path, limit: int | None, kept: Collection[Path]) -> list[Path]:
    """Return the earliest of this package's checkpoints that are over the limit; those that are kept count as well.

    Example: checkpoints 1, 2, 3 and 4, limit 2, 1 and 4 are kept -> 2 and 3
    """
    if limit is None or limit <= 0:
        return []
    own = OwnFiles(run).folders()
    written = [folder for folder in checkpoints_of(run) if folder.name in own and not folder.is_symlink()]
    removable = [folder for folder in reversed(written) if folder not in kept]
    return removable[: max(0, len(written) - max(limit, len(kept)))]


def remove_checkpoint(folder: Path) -> Path | None:
    """Remove what this package wrote in a checkpoint. Anything else in it is set aside, in the folder returned."""
    own = OwnFiles(folder.parent)
    files = [folder / MANIFEST, *files_of(folder)]  # without its manifest it is no longer a checkpoint
    own.remove(*(str(file.relative_to(folder.parent)) for file in files))
    return set_aside(folder, TORN) if folder.exists() else None
