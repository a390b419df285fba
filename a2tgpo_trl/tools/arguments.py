"""a tool's schema, as the policy reads it, and the arguments of a call -> what is wrong with them."""

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from transformers.utils.chat_template_utils import get_json_schema


MOST_PROBLEMS = 5  # in one message
LONGEST_PROBLEM = 200  # characters: a wrong value may be long


def problem_with(function: Callable, arguments: Any) -> str | None:
    """Why a call with these arguments is not made, in words for the policy; None if it can be.

    Example: for search(query: str), {"q": 1} -> "query is missing; there is no argument q"
    """
    if not isinstance(arguments, dict):
        return f"arguments must be an object of names and values, not {_short(arguments)}"
    known, required, others = _validators(getattr(function, "__func__", function))
    problems = [f"{name} is missing" for name in required if name not in arguments]
    for name, value in arguments.items():
        validator = known.get(name, others)
        if validator is None:
            problems.append(f"there is no argument {_short(name)}")
        else:
            problems += [f"{_place(name, error)}: {_cut(error.message)}" for error in validator.iter_errors(value)]
    return "; ".join(problems[:MOST_PROBLEMS]) or None


@lru_cache(maxsize=512)
def schema_of(function: Callable) -> dict[str, Any]:
    """A tool's schema, as the policy reads it, made once. It is shared: do not change it."""
    return get_json_schema(function)


@lru_cache(maxsize=512)
def _validators(
    function: Callable,
) -> tuple[dict[str, Draft202012Validator], list[str], Draft202012Validator | None]:
    """The validators by argument; the required arguments; the validator of all others, if the tool takes any."""
    schema = schema_of(function)["function"]["parameters"]
    known = {name: Draft202012Validator(_standard(value)) for name, value in schema["properties"].items()}
    required, others = schema.get("required", []), None
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:  # **options is in the schema as an argument of this name
            others = known.pop(parameter.name)
            required = [name for name in required if name != parameter.name]
    return known, required, others


def _standard(schema: Any) -> Any:
    """Replace `"nullable": true`, which transformers writes, by JSON Schema's type "null".

    Example: {"type": "integer", "nullable": true} -> {"type": ["integer", "null"]}
    """
    if isinstance(schema, list):
        return [_standard(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    standard = {key: _standard(value) for key, value in schema.items() if key != "nullable" or value is not True}
    if schema.get("nullable") is not True:
        return standard
    if "enum" in standard:
        return {"enum": [*standard["enum"], None]}
    if not isinstance(standard.get("type"), (str, list)):
        return {"anyOf": [standard, {"type": "null"}]}
    kinds = standard["type"] if isinstance(standard["type"], list) else [standard["type"]]
    return {**standard, "type": [*kinds, "null"]}


def _place(name: str, error: ValidationError) -> str:
    """Example: the second of `tags` -> tags[1]"""
    return _cut(name + "".join(f"[{step!r}]" for step in error.absolute_path))


def _short(value: Any) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    """Cut out the middle of a long text: messages begin with the value and end with what is wrong with it."""
    half = LONGEST_PROBLEM // 2
    return text if len(text) <= LONGEST_PROBLEM else f"{text[:half]}...{text[-half:]}"
