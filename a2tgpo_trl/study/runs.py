"""words of a training -> the training, in a separate process, and a digest that identifies it."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from .. import __version__


LOG = "log.txt"


def train(words: Sequence[str], folder: Path, threads: int | None = None) -> int:
    """Run `a2tgpo train` with these words and return its exit code. Its output goes to `log.txt` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ) if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with (folder / LOG).open("w") as log:
        command = [sys.executable, "-m", "a2tgpo_trl", "train", *words]
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode


def identity(words: Sequence[str], without: Sequence[str] = ()) -> str:
    """Return a digest of a training's recipe, of the files and policy folders that it names, and of the version.

    The recipe's output folder and the keys `without` are left out.
    """
    from ..recipe.arguments import split_words
    from ..recipe.recipe import MODELS, whole_recipe
    from ..recipe.recipe_file import read_layers

    words = ["--config", *words]
    recipe, bases, _ = split_words(words)
    assert recipe is not None
    settings = yaml.safe_load(whole_recipe(words, without=("output_dir", "overwrite", *without)))
    said = yaml.safe_dump(settings, sort_keys=True)
    folders = [*(layer.folder for layer in reversed(read_layers(Path(recipe), bases))), Path.cwd()]
    policy = str(settings.get("model_name_or_path"))
    words_said = {*re.split(r"[\s,:'\"{}\[\]]+", said), policy}
    named = {MODELS.get(word, word) for word in words_said if word in {*MODELS, policy} or "." in word or "/" in word}
    files = {file for name in named for file in _files_first_found(name, folders)}
    contents = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return hashlib.sha256("\n".join([__version__, said, *contents]).encode()).hexdigest()[:16]


def _files_first_found(name: str, folders: Sequence[Path]) -> list[Path]:
    """The files of this name in the first of the folders that has any, which is where a recipe finds them."""
    return next((files for folder in folders if (files := _files(folder / name))), [])


def _files(place: Path) -> list[Path]:
    """The file itself, or the files of a policy's or an adapter's folder."""
    if place.is_file():
        return [place]
    is_policy = any((place / name).is_file() for name in ("config.json", "adapter_config.json"))
    return sorted(file for file in place.iterdir() if file.is_file()) if is_policy else []
