"""a recipe's file -> its keys and values, each known and of the right kind.

What TRL's parser would let through, or report without its place, is found here: unknown keys, values of a wrong type,
misspelt choices, keys given twice. Errors name the file, the key, and the nearest valid name.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from ..errors import RecipeError
from ..lookup import nearest


if TYPE_CHECKING:  # the command line looks for a recipe before anything is imported that takes seconds
    from transformers import HfArgumentParser

FOLDER = Path(__file__).parents[1] / "recipes"


def find_recipe(name: str) -> Path:
    """The file of this path, or the recipe of this name that comes with the package."""
    return _find(name, recipe_folder(), "recipe")


def find_launch_config(name: str) -> Path:
    """The file of this path, or the configuration of Accelerate of this name that comes with the package."""
    return _find(name, recipe_folder() / "accelerate", "configuration of Accelerate")


def _find(name: str, folder: Path, kind: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in folder.glob("*.yaml")}
    if name in shipped:
        return shipped[name]
    raise RecipeError(f"There is no {kind} {name!r}.{nearest(name, shipped)} Shipped: {', '.join(sorted(shipped))}.")


def recipe_folder() -> Path:
    """Where the recipes are: in an installed package beside its modules, in a checkout beside the package."""
    return FOLDER if FOLDER.is_dir() else FOLDER.parents[1] / "recipes"


def check_keys(path: Path, content: Mapping[str, Any], parser: "HfArgumentParser") -> None:
    """Each key is known, and its value is of the kind that the key takes."""
    actions = {action.dest: action for action in reversed(parser._actions)}
    types = {name: _types_in(hint) for group in parser.dataclass_types for name, hint in get_type_hints(group).items()}
    for key, value in content.items():
        if key == "env" or (key, value) == ("resume_from_checkpoint", True):
            continue  # the parser's own: variables to set; the last checkpoint, whichever it is
        if key not in types:
            raise RecipeError(f"{path}: there is no key {key!r}.{nearest(str(key), types)}")
        problem = _problem(value, actions[key], types[key])
        if problem:
            raise RecipeError(f"{path}: {key} {problem}")


def _types_in(annotation: Any) -> set[Any]:
    """Example: dict[str, float] | None -> dict, str, float and NoneType, beside the union"""
    return {get_origin(annotation) or annotation}.union(*map(_types_in, get_args(annotation)))


def _problem(value: Any, action: argparse.Action, types: set[Any]) -> str | None:
    """What is wrong with a value, given the option's converter and choices and the types that the field may have."""
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
