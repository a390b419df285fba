"""a corpus, a way to index it -> the folder of its index: complete or missing; an index of another corpus is refused.

An index is built in FOLDER.building, which is renamed when everything is on the disk. What a killed build leaves is
never taken for an index; the next build continues or removes it, depending on the kind of index.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from .corpus import Corpus, cut, scan, text_files
from .progress import Tell


VERSION = 1  # of a folder's format; raised when older folders can no longer be read
MANIFEST, OFFSETS, PASSAGES = "manifest.json", "offsets.npy", "passages.jsonl"

Build = Callable[[Corpus, Path, Tell], None]


def ensure_index(corpus: Path, folder: Path, settings: Mapping[str, Any], build: Build, tell: Tell) -> Corpus:
    """The corpus, read by the offsets in its index with these settings, which is built first if it is missing."""
    if not corpus.exists():
        raise ValueError(f"There is no corpus {corpus}.")
    if not (folder / MANIFEST).exists():
        with _building(folder) as place:
            if place is not None:
                _build(corpus, place, settings, build, tell)
    check(corpus, folder, settings)
    return open_corpus(corpus, folder)


def open_corpus(corpus: Path, folder: Path) -> Corpus:
    file = folder / PASSAGES if corpus.is_dir() else corpus
    return Corpus(file, np.load(folder / OFFSETS, mmap_mode="r"))


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest of a complete index."""
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder} holds no index. Build one: a2tgpo serve-search --corpus FILE --build")
    return json.loads((folder / MANIFEST).read_text())


def check(corpus: Path, folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise an error unless the index has this corpus, these settings and this version."""
    found = manifest_of(folder)
    remedy = f"Remove {folder} to have the index built again, or name another folder (--index-folder)."
    if found["version"] != VERSION:
        raise ValueError(f"{folder} holds an index of version {found['version']}; this is version {VERSION}. {remedy}")
    for name, value in settings.items():
        there = found["settings"].get(name)
        if there != value:
            raise ValueError(f"{folder} holds an index with {name} {there!r}, not {value!r}. {remedy}")
    if found["corpus"]["listing"] != listing(corpus) and found["corpus"]["content"] != content(corpus):
        raise ValueError(
            f"{folder} holds an index of a corpus other than {corpus}, or the corpus has changed since. {remedy}"
        )


def _build(corpus: Path, place: Path, settings: Mapping[str, Any], build: Build, tell: Tell) -> None:
    began, fingerprint = listing(corpus), content(corpus)
    _of_the_same(place, json.dumps([VERSION, dict(settings), fingerprint], sort_keys=True))
    file = corpus
    if corpus.is_dir():
        file = place / PASSAGES
        cut(corpus, file)
    tell(f"reading {corpus}")
    np.save(place / OFFSETS, scan(file))
    passages = Corpus(file, np.load(place / OFFSETS, mmap_mode="r"))
    tell(f"{len(passages):,} passages")
    build(passages, place, tell)
    if listing(corpus) != began:
        raise ValueError(f"{corpus} was changed while it was indexed. Start again when it is complete.")
    manifest = {
        "version": VERSION,
        "settings": dict(settings),
        "corpus": {"path": str(corpus.resolve()), "listing": began, "content": fingerprint},
        "passages": len(passages),
    }
    (place / MANIFEST).write_text(json.dumps(manifest, indent=2))


def _of_the_same(place: Path, source: str) -> None:
    """Remove what an earlier build left, unless it had the same corpus, settings and version."""
    mark = place / "source"
    if any(place.iterdir()) and not (mark.exists() and mark.read_text() == source):
        shutil.rmtree(place)
        place.mkdir()
    mark.write_text(source)


@contextmanager
def _building(folder: Path) -> Iterator[Path | None]:
    """A folder to build in, renamed to `folder` at the end. None if another process has built it meanwhile."""
    place = folder.with_name(f"{folder.name}.building")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # wait for another builder; a killed one releases the lock
        if (folder / MANIFEST).exists():
            yield None
            return
        if folder.exists():
            raise ValueError(f"{folder} exists but holds no index. Name another folder (--index-folder).")
        place.mkdir(exist_ok=True)
        try:
            yield place
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            free = shutil.disk_usage(place).free / 2**30
            raise ValueError(
                f"There is no room for the index in {place} ({free:.1f} GiB are free). Make room, or name a folder "
                "elsewhere (--index-folder)."
            ) from error
        _to_disk(place)
        os.rename(place, folder)


def _to_disk(place: Path) -> None:
    """Flush a folder to the disk, so that it is complete if it has its final name after a power failure."""
    for file in [*place.rglob("*"), place]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


# ---- the corpus's identity


def listing(corpus: Path) -> str:
    """A digest of the sizes and times of a corpus's files: equal if nothing was written."""
    digest = blake2b(digest_size=16)
    for name, file in _files(corpus):
        stat = file.stat()
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def content(corpus: Path) -> str:
    """A digest of the contents of a corpus's files: equal for a copy."""
    digest = blake2b(digest_size=16)
    for name, file in _files(corpus):
        digest.update(f"{name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as blocks:
            while block := blocks.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _files(corpus: Path) -> list[tuple[str, Path]]:
    if corpus.is_dir():
        return [(str(file.relative_to(corpus)), file) for file in text_files(corpus)]
    return [("", corpus)]
