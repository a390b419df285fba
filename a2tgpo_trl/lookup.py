"""a name, and what is known -> what it means, or an error that says which known name is nearest.

my_package.rewards:short   an attribute of a module
my_tools.py:lookup         an attribute of a file, beside the recipe or in the working directory
"""

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from .errors import RecipeError


def load(name: str, folders: Sequence[Path], kind: str, known: Any) -> Any:
    """The object that `module:attribute` or `file.py:attribute` names."""
    place, colon, attribute = name.rpartition(":")
    if not colon:
        raise ValueError(
            f"There is no {kind} {name!r}.{nearest(name, known)} Name your own as file.py:NAME or package.module:NAME."
        )
    module = _module_of_file(place, folders) if place.endswith(".py") else importlib.import_module(place)
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ValueError(f"{place} has no {attribute!r}.{nearest(attribute, vars(module))}") from None


def _module_of_file(place: str, folders: Sequence[Path]) -> Any:
    file = find_file(place, folders)
    if file is None:
        raise ValueError(f"There is no file {place!r} in {' or '.join(map(str, folders))}.")
    name = f"a2tgpo_recipe_{file.stem}"
    if name in sys.modules and sys.modules[name].__file__ == str(file):
        return sys.modules[name]  # two names of one file share its state
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def find_file(place: str, folders: Sequence[Path]) -> Path | None:
    """The first file with this path in these folders."""
    return next(((folder / place).resolve() for folder in folders if (folder / place).is_file()), None)


def nearest(name: str, valid: Iterable[Any]) -> str:
    """A question to end an error message with, or "" if no valid name is similar to this one."""
    found = difflib.get_close_matches(name, [str(word) for word in valid], n=1)
    return f" Did you mean {found[0]!r}?" if found else ""


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a file; a key that occurs twice is an error."""
    try:
        text = path.read_text()
        tree, content = yaml.compose(text), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must hold keys with values ('learning_rate: 1e-6').")
    keys = [key.value for key, _ in tree.value]
    for key in set(keys):
        if keys.count(key) > 1:
            raise RecipeError(f"{path}: the key {key!r} is given {keys.count(key)} times. Keep one.")
    return content
