"""a checkpoint's folder -> whether it is whole, and what was known when it was saved.

A checkpoint is whole once it has a manifest: this is written last, when all ranks have written their files, and lists
each file with its size. A checkpoint that was cut off while it was written has no manifest, and one that was cut short
since differs from it.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


MANIFEST = "manifest.json"
NO_MANIFEST = "it has no manifest"


def files_of(folder: Path) -> Iterator[Path]:
    """Yield all files of a checkpoint except its manifest, in the order of their names."""
    return (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != MANIFEST)


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Declare a checkpoint whole, with these facts about it. The manifest is on the disk when this returns."""
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
    """Return what the manifest says; None if there is none, or it cannot be read."""
    try:
        facts = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, ValueError):  # ValueError: cut off, or no text at all
        return None
    return facts if isinstance(facts, dict) and "files" in facts else None


def fault(folder: Path) -> str | None:
    """Return why a checkpoint is not whole; None if it is.

    Example: "optimizer.pt is missing", "model.safetensors has 100 bytes of 4096"
    """
    facts = read_manifest(folder)
    if facts is None:
        return "its manifest cannot be read" if (folder / MANIFEST).exists() else NO_MANIFEST
    for name, size in facts["files"].items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes of {size}"
    return None
