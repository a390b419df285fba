"""a run's folder -> which of its files this package wrote: nothing else is ever removed or written over.

What is written is entered in a marker beside it, with its size and its time. A file that differs from its entry is
somebody else's from then on. One that grows while it is written (rollouts, line by line) is entered before, without
either, and is known by its name until it is done. A policy, which a run must never lose, is written in a folder of its
own and entered before it is moved to its place.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from .recipe_file import RecipeError


MARKER = "_a2tgpo_files.json"  # what begins with "_" is not pushed to the hub
ABOUT = "Files in this folder that a2tgpo_trl wrote, with size and time. Others are never removed nor written over."
MODEL_CARD = "README.md"

Entry = list[int] | None  # size and time; None: not done yet


class OwnFiles:
    """The files in a folder that this package wrote, by their names relative to it."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    # ---- what is whose

    def owns(self, name: str) -> bool:
        """Whether there is such a file, and it is as this package left it."""
        entries, _ = self._read()
        return name in entries and self._is_as_left(name, entries[name])

    def all(self) -> list[str]:
        """The names of all that are there and as they were left."""
        entries, _ = self._read()
        return sorted(name for name, entry in entries.items() if self._is_as_left(name, entry))

    def foreign(self, patterns: Iterable[str]) -> list[str]:
        """What is there under these names, and was not written by this package or was changed since."""
        entries, made = self._read()
        found = {path for pattern in patterns for path in self.folder.glob(pattern)}
        names = {path: str(path.relative_to(self.folder)) for path in found}
        own = {name for name, entry in entries.items() if self._is_as_left(name, entry)} | {MARKER}
        return sorted(name for path, name in names.items() if name not in (made if path.is_dir() else own))

    def refuse_foreign(self, patterns: Iterable[str], instead: str = "") -> None:
        """An error that says what is in the way, and what to do about it."""
        names = self.foreign(patterns)
        if names:
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            raise RecipeError(
                f"{self.folder} holds what this package did not write, or what was changed since: {shown}. It is left "
                f"alone. {instead or 'Name another folder (--output_dir ...), or move it away.'}"
            )

    def _is_as_left(self, name: str, entry: Entry) -> bool:
        path, root = self.folder / name, self.folder.resolve()
        # A link, or what lies behind one, is somebody else's arrangement.
        if not path.is_file() or path.resolve() != root / name or root not in path.resolve().parents:
            return False
        return entry is None or entry == _now(path)

    # ---- what is written

    def claim(self, *names: str) -> None:
        """These are about to be written, where nothing of somebody else's is in their place."""
        self.refuse_foreign(map(escape, names))
        self._enter({name: None for name in names})

    @contextmanager
    def writing(self, *names: str) -> Iterator[None]:
        """What is inside writes these."""
        self._enter({name: None for name in names})
        yield
        self.add(*names)

    def add(self, *names: str) -> None:
        """These are written."""
        there = {name: self.folder / name for name in names}
        self._enter({name: _now(path) for name, path in there.items() if path.is_file()})

    def add_folder(self, name: str) -> None:
        """This folder was made for files of ours."""
        self._enter({}, [name])

    def draft(self) -> Path:
        """A new folder in this one, to write in what is then taken."""
        return Path(tempfile.mkdtemp(prefix="unfinished-", dir=self.folder))

    def take(self, draft: Path) -> list[str]:
        """Move what was written in a draft to its place, and return the names."""
        if self.foreign([MODEL_CARD]):
            (draft / MODEL_CARD).unlink(missing_ok=True)
        files = {str(file.relative_to(draft)): file for file in sorted(draft.rglob("*")) if file.is_file()}
        self.refuse_foreign(map(escape, files), f"What was to take its place is whole, in {draft}.")
        self._enter({name: _now(file) for name, file in files.items()})
        for name, file in files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            file.replace(self.folder / name)
        for folder in sorted(draft.rglob("*"), reverse=True):
            folder.rmdir()
        draft.rmdir()
        return list(files)

    def renamed(self, old: str, new: str) -> None:
        """A folder of ours is about to have another name."""
        entries, made = self._read()
        moved = {name.replace(old, new, 1): entry for name, entry in entries.items() if name.startswith(f"{old}/")}
        if moved or old in made:
            self._write(entries | moved, [*made, new])

    # ---- what is removed

    def remove(self, *names: str) -> None:
        """Those of these that are as they were left, and the folders that are empty then."""
        for name in names:
            if self.owns(name):
                path = self.folder / name
                path.unlink()
                for above in path.relative_to(self.folder).parents[:-1]:
                    if any((self.folder / above).iterdir()):
                        break
                    (self.folder / above).rmdir()
        self._enter({})

    # ---- the marker

    def _read(self) -> tuple[dict[str, Entry], list[str]]:
        try:
            marker = json.loads((self.folder / MARKER).read_text())
        except (FileNotFoundError, ValueError):  # ValueError: no marker of ours, so nothing is known to be
            return {}, []
        if not isinstance(marker, dict):
            return {}, []
        return marker.get("files", {}), marker.get("folders", [])

    def _enter(self, entries: dict[str, Entry], folders: Iterable[str] = ()) -> None:
        before, made = self._read()
        kept = {name: entry for name, entry in before.items() if (self.folder / name).is_file()}
        self._write(kept | entries, [*(name for name in made if (self.folder / name).is_dir()), *folders])

    def _write(self, entries: dict[str, Entry], folders: Iterable[str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        marker = {"about": ABOUT, "folders": sorted(set(folders)), "files": dict(sorted(entries.items()))}
        draft = self.folder / f"{MARKER}.draft"
        draft.write_text(json.dumps(marker, indent=1) + "\n")
        draft.replace(self.folder / MARKER)


def _now(path: Path) -> Entry:
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]
