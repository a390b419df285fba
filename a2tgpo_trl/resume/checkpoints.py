"""a run's folder -> its checkpoints, and for each whether it is whole; no models here, files alone.

A checkpoint is whole once its manifest is there: written last, when all ranks have written all of theirs, it lists
each file with its size. What was cut off while it was written has none, and what was cut short since differs from it.
Such a folder is set aside under another name, so that nothing takes it for a checkpoint, and nothing is lost either.
"""

import json
import os
import re
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import RecipeError
from .own_files import OwnFiles


MANIFEST = "manifest.json"
STATE = "trainer_state.json"
TORN = "torn"  # what it was when it was set aside
LEFT = "left"  # later than the checkpoint that a run went back to


class ResumeError(RecipeError):
    """A run cannot go on as it was asked to: the message is all a user needs."""


# ---- the folder of a run


def checkpoint(run: str | Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return Path(run, f"{PREFIX_CHECKPOINT_DIR}-{step}")


def step_of(folder: Path) -> int:
    """The step of a checkpoint's folder.

    Example: outputs/run/checkpoint-40 -> 40
    """
    return int(folder.name.rpartition("-")[2])


def checkpoints_of(run: str | Path) -> list[Path]:
    """The folders named as checkpoints are, whole or not, the latest first."""
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-\d+")
    found = [folder for folder in Path(run).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if folder.is_dir()]
    return sorted((folder for folder in found if pattern.fullmatch(folder.name)), key=step_of, reverse=True)


def was_completed(folder: Path) -> bool:
    """Whether a checkpoint may hold something to go on from: what has a manifest, or what TRL itself has finished."""
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


def surplus(run: str | Path, limit: int | None, kept: Collection[Path]) -> list[Path]:
    """Of the checkpoints that this package wrote, the earliest ones over the limit; those that are kept count as well.

    Example: checkpoints 1, 2, 3 and 4, limit 2, 1 and 4 are kept -> 2 and 3
    """
    if limit is None or limit <= 0:
        return []
    own = OwnFiles(run).folders()
    written = [folder for folder in checkpoints_of(run) if folder.name in own and not folder.is_symlink()]
    removable = [folder for folder in reversed(written) if folder not in kept]
    return removable[: max(0, len(written) - max(limit, len(kept)))]


def remove_checkpoint(folder: Path) -> Path | None:
    """Remove what this package wrote in a checkpoint. What else it holds is set aside, in the folder returned."""
    own = OwnFiles(folder.parent)
    files = [folder / MANIFEST, *files_of(folder)]  # without its manifest it is no checkpoint any more
    own.remove(*(str(file.relative_to(folder.parent)) for file in files))
    return set_aside(folder, TORN) if folder.exists() else None


def check_writable(run: str | Path) -> None:
    """Refuse a folder that cannot be written to before anything is computed for it."""
    try:
        Path(run).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run) as file:
            file.write(b"0")
    except OSError as error:
        raise ResumeError(
            f"output_dir {run} cannot be written to: {error.strerror}. Make it writable or make room, or name another "
            "folder (output_dir)."
        ) from error


# ---- the manifest


def files_of(folder: Path) -> Iterator[Path]:
    """All files of a checkpoint but its manifest, in the order of their names."""
    return (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != MANIFEST)


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Declare a checkpoint whole, with what there is to know about it. It is on the disk when this returns."""
    sizes = {}
    for file in files_of(folder):
        _flush(file)
        sizes[str(file.relative_to(folder))] = file.stat().st_size
    draft = folder / f"{MANIFEST}.draft"
    with draft.open("w") as text:
        json.dump({**facts, "files": sizes}, text, indent=2)
        text.flush()
        os.fsync(text.fileno())
    draft.replace(folder / MANIFEST)
    _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What the manifest says. None: there is none, or nothing that can be read."""
    try:
        facts = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, ValueError):  # ValueError: cut off, or no text at all
        return None
    return facts if isinstance(facts, dict) and "files" in facts else None


def fault(folder: Path) -> str | None:
    """Why a checkpoint is not whole. None: it is.

    Example: "optimizer.pt is missing", "model.safetensors has 100 bytes of 4096"
    """
    facts = read_manifest(folder)
    if facts is None:
        return "its manifest cannot be read" if (folder / MANIFEST).exists() else "it has no manifest"
    for name, size in facts["files"].items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes of {size}"
    return None
