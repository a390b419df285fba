"""a run's folder -> which of its files this package wrote: nothing else is ever removed or overwritten.

Each file that is written is entered in a marker beside it, with its size, its time and a digest, which identifies a
copy. A file that differs from its entry is somebody else's from then on. A file that grows while it is written
(rollouts, line by line) is entered first, without any of these, and is known by its name until it is done. A policy,
which a run must never lose, is written in a separate folder and entered before it is moved to its place.

The marker is a journal, one JSON object per line, to which every process of a run appends: an entry costs the same
however many there are, and loses none that another process makes.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

from ..errors import RecipeError


MARKER = "_a2tgpo_files.jsonl"  # names that begin with "_" are not pushed to the hub
DRAFT = "_unfinished-"
ABOUT = "Files in this folder that a2tgpo_trl wrote: size, time, digest. Others are never removed or overwritten."
MODEL_CARD = "README.md"
# Files that are loaded from a folder as parts of one policy.
LOADED = (
    *("*config.json", "*.index.json", "tokenizer.json", "vocab.*", "merges.txt", "*.model", "*.jinja"),
    *("*.safetensors*", "*.bin", "*.pt", "ref/adapter_*"),
    "additional_chat_templates/*.jinja",
)

BLOCK = 2**16  # bytes; for the digest of a larger file only BLOCKS of these are read, not tens of gigabytes
BLOCKS = 64

Entry = list[Any] | None  # size, time and digest; None: not done yet


class OwnFiles:
    """The files in a folder that this package wrote, by their names relative to it."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    # ---- which files are ours

    def owns(self, name: str) -> bool:
        """Whether this file exists and is as this package left it."""
        entries, _ = self._read()
        return name in entries and self._is_as_left(name, entries[name])

    def all(self) -> list[str]:
        """Return the names of all files that are as this package left them."""
        entries, _ = self._read()
        return sorted(name for name, entry in entries.items() if self._is_as_left(name, entry))

    def foreign(self, patterns: Iterable[str]) -> list[str]:
        """Return what matches these patterns and was not written by this package, or was changed since."""
        entries, made = self._read()
        found = {path for pattern in patterns for path in self.folder.glob(pattern)}

        def is_own(path: Path, name: str) -> bool:
            if path.is_dir():
                return name in made
            return name == MARKER or (name in entries and self._is_as_left(name, entries[name]))

        names = {path: str(path.relative_to(self.folder)) for path in found}
        return sorted(name for path, name in names.items() if not is_own(path, name))

    def folders(self) -> set[str]:
        """Return the names of the folders that were made for our files."""
        return self._read()[1]

    def refuse_foreign(self, patterns: Iterable[str], instead: str = "") -> None:
        """Raise an error if files that are not ours are in the way; it says which, and what to do about them."""
        names = self.foreign(patterns)
        if names:
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            raise RecipeError(
                f"{self.folder} holds files that this package did not write, or that were changed since: {shown}. "
                f"They are left alone. {instead or 'Name another folder (--output_dir ...), or move them away.'}"
            )

    def _is_as_left(self, name: str, entry: Entry) -> bool:
        path, root = self.folder / name, self.folder.resolve()
        # A link, or a file behind one, is somebody else's.
        if not path.is_file() or path.resolve() != root / name or root not in path.resolve().parents:
            return False
        if entry is None:
            return True
        size, time, *digest = entry
        state = path.stat()
        return state.st_size == size and (state.st_mtime_ns == time or digest == [_digest(path)])

    # ---- what is written

    def claim(self, *names: str) -> None:
        """Enter files that are about to be written; an error if somebody else's files are in their place."""
        self.refuse_foreign(map(escape, names))
        self._enter({name: None for name in names})

    @contextmanager
    def writing(self, *names: str) -> Iterator[None]:
        """Inside, these files are written."""
        self._enter({name: None for name in names})
        yield
        self.add(*names)

    def add(self, *names: str) -> None:
        """Enter files that are written; those that do not exist are no longer ours."""
        there = {name: self.folder / name for name in names if (self.folder / name).is_file()}
        self._enter({name: _now(path) for name, path in there.items()}, gone=[n for n in names if n not in there])

    @contextmanager
    def entering(self, patterns: Sequence[str]) -> Iterator[None]:
        """Inside, files that match these patterns are written: those that are new or changed afterwards are ours."""
        before = self._times(patterns)
        yield
        self.add(*(name for name, time in self._times(patterns).items() if before.get(name) != time))

    def _times(self, patterns: Sequence[str]) -> dict[str, int]:
        found = {file for pattern in patterns for file in self.folder.glob(pattern) if file.is_file()}
        return {str(file.relative_to(self.folder)): file.stat().st_mtime_ns for file in found}

    def add_folder(self, name: str) -> None:
        """Enter a folder that was made for our files."""
        self._enter({}, folders=[name])

    def draft(self) -> Path:
        """Make a new folder in this one, for files that `take` then moves."""
        draft = Path(tempfile.mkdtemp(prefix=DRAFT, dir=self.folder))
        self.add_folder(draft.name)
        return draft

    def take(self, draft: Path) -> list[str]:
        """Move what was written in a draft to its place, and return the names."""
        if self.foreign([MODEL_CARD]):
            (draft / MODEL_CARD).unlink(missing_ok=True)
        files = {str(file.relative_to(draft)): file for file in sorted(draft.rglob("*")) if file.is_file()}
        self.refuse_foreign(map(escape, files), f"What was to replace them is saved in {draft}.")
        self._enter({name: _now(file) for name, file in files.items()})
        for name, file in files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            file.replace(self.folder / name)
        for folder in sorted(draft.rglob("*"), reverse=True):
            folder.rmdir()
        draft.rmdir()
        return list(files)

    def renamed(self, old: str, new: str) -> None:
        """Enter the new name of a folder of ours, before it is renamed."""
        entries, made = self._read()
        moved = {name.replace(old, new, 1): entry for name, entry in entries.items() if name.startswith(f"{old}/")}
        if moved or old in made:
            self._enter(moved, folders=[new])

    # ---- what is removed

    def remove(self, *names: str) -> None:
        """Remove those of these files that are as we left them, and the folders that are then empty."""
        entries, made = self._read()
        ours = [name for name in names if name in entries and self._is_as_left(name, entries[name])]
        for name in ours:
            path = self.folder / name
            path.unlink()
            for above in path.relative_to(self.folder).parents[:-1]:
                try:
                    (self.folder / above).rmdir()
                except OSError:  # it is not empty, or another process was faster
                    break
        if gone := [*ours, *(name for name in made if not (self.folder / name).is_dir())]:
            self._enter({}, gone=gone)

    def remove_drafts(self) -> None:
        """Remove the drafts of runs that were killed while they saved their policy."""
        made = self.folders()
        for draft in self.folder.glob(f"{DRAFT}*"):
            if draft.name in made and draft.is_dir() and not draft.is_symlink():
                shutil.rmtree(draft)

    # ---- the marker

    def _read(self) -> tuple[dict[str, Entry], set[str]]:
        """Return the entries of files, and the names of folders."""
        marker = self.folder / MARKER
        entries: dict[str, Entry] = {}
        folders: set[str] = set()
        for line in marker.read_text(errors="replace").splitlines() if marker.is_file() else ():
            try:
                entered = json.loads(line)
            except ValueError:  # cut off, or not a line of ours: it enters nothing
                continue
            if isinstance(entered, dict):
                entries |= entered.get("files", {})
                folders |= {*entered.get("folders", [])}
                for name in entered.get("gone", []):
                    entries.pop(name, None)
                    folders.discard(name)
        return entries, folders

    def _enter(self, entries: dict[str, Entry], *, folders: Iterable[str] = (), gone: Iterable[str] = ()) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # Begins a new line, even after one that was cut off.
        line = "\n" + json.dumps({"files": entries, "folders": [*folders], "gone": [*gone]})
        with (self.folder / MARKER).open("ab", buffering=0) as marker:
            left = (line if marker.tell() else json.dumps({"about": ABOUT}) + line).encode()
            while left:  # in one piece, so that lines of others come before or after; repeats only if the disk is full
                left = left[marker.write(left) :]


def _now(path: Path) -> Entry:
    state = path.stat()
    return [state.st_size, state.st_mtime_ns, _digest(path)]


def _digest(path: Path) -> str:
    """Return a digest of a whole file, or of blocks evenly spaced from its beginning to its end."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        if size <= BLOCK * BLOCKS:
            digest.update(file.read())
        else:
            for number in range(BLOCKS):
                file.seek(number * (size - BLOCK) // (BLOCKS - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()
