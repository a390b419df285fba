"""a recipe's file, and the files that it is built on -> their keys and values, each known and of the right kind.

This finds what TRL's parser would accept, or report without its place: unknown keys, values of a wrong type, misspelt
choices, keys given twice, recipes built on themselves. Errors name the file, the key, and the nearest valid name.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import yaml

from ..errors import RecipeError, shown
from ..lookup import nearest, read_yaml


if TYPE_CHECKING:  # the command line looks for a recipe before slow imports
    from transformers import HfArgumentParser

FOLDER = Path(__file__).parents[1] / "recipes"
LAUNCH, STUDIES = "accelerate", "study"  # folders whose files are not recipes
BASE, FILES_IN = "base", "files_in"


def find_recipe(name: str) -> Path:
    """Return the file of this path, or the recipe of this name that comes with the package."""
    return _find(name, shipped_recipes(), "recipe")


def find_launch_config(name: str) -> Path:
    """Return the file of this path, or the package's configuration of Accelerate of this name."""
    shipped = {file.stem: file for file in (recipe_folder() / LAUNCH).glob("*.yaml")}
    return _find(name, shipped, "configuration of Accelerate")


def _find(name: str, shipped: Mapping[str, Path], kind: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    if name in shipped:
        return shipped[name]
    raise RecipeError(f"There is no {kind} {name!r}.{nearest(name, shipped)} Shipped: {', '.join(sorted(shipped))}.")


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with the package, by their names: quickstart, qa/dapo."""
    folder = recipe_folder()
    files = [file for file in folder.rglob("*.yaml") if file.parent.name not in (LAUNCH, STUDIES)]
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def recipe_folder() -> Path:
    """Return the folder of recipes: in an installed package beside its modules, in a checkout beside the package."""
    return FOLDER if FOLDER.is_dir() else FOLDER.parents[1] / "recipes"


# ---- recipes that are built on others


@dataclass(frozen=True)
class Layer:
    """One of the files that a recipe is made of, and its keys."""

    path: Path
    keys: dict[str, Any]
    folder: Path  # where files that it names are looked up


def read_layers(path: Path, bases: Sequence[str] | None = None) -> list[Layer]:
    """Return a recipe and the recipes it is built on (`base`), the lowest first. `bases` replaces its own.

    A base that several of them share appears once, below all of them.

    Example: dapo.yaml on qwen3_8b.yaml and single_hop.yaml, which are both built on qwen3_4b.yaml
        -> qwen3_4b.yaml, qwen3_8b.yaml, single_hop.yaml, dapo.yaml
    """
    below = None if bases is None else [find_recipe(name) for name in bases]
    found: dict[Path, Layer] = {}
    for layer in _layers(path, below, ()):
        found.setdefault(layer.path.resolve(), layer)
    return list(found.values())


def _layers(path: Path, below: Sequence[Path] | None, above: Sequence[Path]) -> Iterator[Layer]:
    keys = read_yaml(path)
    own, folder, trail = keys.pop(BASE, None), _folder(path, keys.pop(FILES_IN, None)), [*above, path]
    for base in _bases(path, own) if below is None else below:
        if any(base.resolve() == file.resolve() for file in trail):
            where = "--base" if below is not None else _place_of_base(path)
            circle = " -> ".join(file.name for file in [*trail, base])
            raise RecipeError(f"{where}: a recipe cannot be built on itself ({circle}). Name another one, or none.")
        yield from _layers(base, None, trail)
    yield Layer(path, keys, folder)


def _folder(path: Path, value: Any) -> Path:
    """Return the folder that `files_in` names, or that of the recipe."""
    if value is None:
        return path.parent
    if not isinstance(value, str):
        raise RecipeError(f"{path}: {FILES_IN} must be a folder, where files are looked up; got {shown(value)}.")
    return path.parent / value


def _bases(path: Path, value: Any) -> list[Path]:
    """Return what `base` names: files, beside the recipe if the path is relative, or recipes of the package."""
    names = [value] if isinstance(value, str) else value or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RecipeError(f"{_place_of_base(path)} must be a recipe or a list of them; got {shown(value)}.")
    return [_base(path, name) for name in names]


def _base(path: Path, name: str) -> Path:
    beside, shipped = path.parent / name, shipped_recipes()
    if beside.is_file():
        return beside
    if name in shipped:
        return shipped[name]
    known = [*(file.name for file in path.parent.glob("*.yaml") if file.name != path.name), *shipped]
    raise RecipeError(
        f"{_place_of_base(path)}: there is no file {name} in {path.parent}, and no recipe of this name comes with "
        f"the package.{nearest(name, known)}"
    )


def _place_of_base(path: Path) -> str:
    """Return the place of the key, as messages name it."""
    tree = yaml.compose(path.read_text())
    line = next(key.start_mark.line + 1 for key, _ in tree.value if key.value == BASE)
    return f"{path}, line {line}: {BASE}"


def merge(layers: Sequence[Layer]) -> dict[str, Any]:
    """Return the keys of all layers; if several have a key, the highest wins. Mappings are merged in the same way."""
    return reduce(_laid_over, (layer.keys for layer in layers), {})


def _laid_over(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Example: {a: 1, b: {c: 2, d: 3}} and {b: {d: 4}} over it -> {a: 1, b: {c: 2, d: 4}}"""
    merged = {
        key: _laid_over(lower[key], value) if isinstance(lower.get(key), dict) and isinstance(value, dict) else value
        for key, value in upper.items()
    }
    return {**lower, **merged}


# ---- the contents of a file


def check_keys(path: Path, content: Mapping[str, Any], parser: "HfArgumentParser") -> None:
    """Raise an error if a key is unknown, or its value is not of the kind that the key takes."""
    actions = {action.dest: action for action in reversed(parser._actions)}
    types = {name: _types_in(hint) for group in parser.dataclass_types for name, hint in get_type_hints(group).items()}
    for key, value in content.items():
        if key == "env" and not isinstance(value, Mapping):
            raise RecipeError(f"{path}: env must be a mapping of variables to their values; got {shown(value)}.")
        if key == "env" or (key, value) == ("resume_from_checkpoint", True):
            continue  # left to the parser: variables to set; the last checkpoint, whichever it is
        if key not in types:
            raise RecipeError(f"{path}: there is no key {key!r}.{nearest(str(key), types)}")
        problem = _problem(value, actions[key], types[key])
        if problem:
            raise RecipeError(f"{path}: {key} {problem}")


def _types_in(annotation: Any) -> set[Any]:
    """Example: dict[str, float] | None -> dict, str, float and NoneType, beside the union"""
    return {get_origin(annotation) or annotation}.union(*map(_types_in, get_args(annotation)))


def _problem(value: Any, action: argparse.Action, types: set[Any]) -> str | None:
    """Return what is wrong with a value, given the option's converter and choices and the field's types."""
    if value is None:
        return None if action.default is None or type(None) in types else "must not be empty."
    if isinstance(value, Mapping):
        return None if dict in types else f"must be a single value; got the mapping {value!r}."
    many = action.nargs in ("+", "*")
    if isinstance(value, list):
        if not many and list not in types:
            return f"must be a single value; got the list {value!r}."
        return next(filter(None, (_problem_of_one(item, action, types) for item in value)), None)
    return f"must be a list; got {value!r}. Write [{value}]." if many else _problem_of_one(value, action, types)


def _problem_of_one(value: Any, action: argparse.Action, types: set[Any]) -> str | None:
    if action.choices and value not in action.choices:
        valid = ", ".join(map(str, action.choices))
        return f"cannot be {value!r}.{nearest(str(value), action.choices)} It must be one of {valid}."
    if isinstance(value, bool):
        return None if bool in types else f"must not be true or false; got {value!r}."
    if action.type is str or action.type is None:
        is_text = isinstance(value, str) or int in types or float in types
        return None if is_text else f"must be text; got {value!r}. Put it in quotation marks."
    try:
        action.type(str(value))  # type: ignore[operator]
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        return f"cannot be {value!r}: {error}."
    return None
