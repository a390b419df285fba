"""words of a training -> the training, in a process of its own, and what tells it from any other."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


LOG = "log.txt"


def train(words: Sequence[str], folder: Path, threads: int | None = None) -> int:
    """`a2tgpo train` with these words; its exit code. What it prints is in `log.txt` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ) if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with (folder / LOG).open("w") as log:
        command = [sys.executable, "-m", "a2tgpo_trl", "train", *words]
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode


def identity(words: Sequence[str]) -> str:
    """A digest of all that a training's recipe says but its folder, and of what stands in the files that it names:
    methods, rewards, tools, tasks, data. The same on every machine."""
    from ..recipe.arguments import split_words
    from ..recipe.recipe import whole_recipe
    from ..recipe.recipe_file import read_layers

    words = ["--config", *words]
    recipe, bases, others = split_words(words)
    assert recipe is not None
    text = whole_recipe(words, without=("output_dir", "overwrite"))
    said = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    named = {word for text in (said, *others) for word in re.split(r"[\s,:'\"{}\[\]]+", text) if word}
    folders = {Path.cwd(), *(layer.path.parent for layer in read_layers(Path(recipe), bases))}
    files = {folder / word for word in named for folder in folders if (folder / word).is_file()}
    contents = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return hashlib.sha256("\n".join([said, *contents]).encode()).hexdigest()[:16]
