"""name, description and JSON schema of a tool -> signature, type hints and docstring that give this schema again.

The trainer takes functions, and chat templates read what `get_json_schema` makes of them: types, enumerations, lists
and optional arguments. The argument's description holds what type hints cannot express, such as an object's fields.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union

from transformers.utils.chat_template_utils import get_json_schema, parse_google_format_docstring


HINTS: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "object": dict,
    "array": list,
    "null": type(None),
}
OF_FIELDS = ("properties", "additionalProperties", "prefixItems")  # type hints here cannot express these


def describe_as(function: Callable, name: str, description: str | None, schema: Mapping[str, Any]) -> None:
    """Make a function that takes any arguments look like this tool. Raises a ValueError if it cannot be shown."""
    try:
        _describe_as(function, name, inspect.cleandoc(description or ""), schema)
        get_json_schema(function)
    except Exception as error:
        raise ValueError(f"the tool {name!r} cannot be shown to a policy: {type(error).__name__}: {error}") from error


def _describe_as(function: Callable, name: str, description: str, schema: Mapping[str, Any]) -> None:
    text, described, _ = parse_google_format_docstring(description)
    properties = {key: value if isinstance(value, dict) else {} for key, value in schema.get("properties", {}).items()}
    arguments = {key: _resolved(value, schema) for key, value in properties.items()}
    required = set(schema.get("required", []))
    lines = [f"    {key}: {_described(key, value, described or {})}" for key, value in arguments.items()]
    function.__name__ = function.__qualname__ = name
    function.__doc__ = "\n".join([_one_line(text or name), *(["", "Args:", *lines] if lines else [])])
    function.__annotations__ = {key: hint_of(value) for key, value in arguments.items()}
    # Required arguments first. Positional, because only those may be named like a Python keyword: "from".
    in_order = sorted(arguments, key=lambda key: key not in required)
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what `inspect.signature` reads
        [_parameter(key, function.__annotations__[key], arguments[key], key in required) for key in in_order]
    )


def _parameter(name: str, hint: Any, schema: Mapping[str, Any], required: bool) -> inspect.Parameter:
    default = inspect.Parameter.empty if required else schema.get("default")
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY, default=default, annotation=hint)


def hint_of(schema: Any) -> Any:
    """The type hint that expresses most of a schema.

    Example: {"type": "array", "items": {"enum": ["a", "b"]}} -> list[Literal["a", "b"]]
    """
    if not isinstance(schema, dict):
        return Any  # the schema `true`: anything
    if "const" in schema or "enum" in schema:
        return Literal[tuple(schema.get("enum", [schema.get("const")]))]
    either = schema.get("anyOf") or schema.get("oneOf")
    kind = schema.get("type")
    if either or isinstance(kind, list):
        kinds = either if either else [{**schema, "type": one} for one in kind or []]
        return Union[tuple(hint_of(one) for one in kinds)]  # noqa: UP007  # made of a list
    if kind == "array" and schema.get("items"):
        return list[hint_of(schema["items"])]  # type: ignore[misc]  # made while the program runs
    return HINTS.get(kind, Any) if kind is not None else Any


def _described(name: str, schema: Mapping[str, Any], described: Mapping[str, str]) -> str:
    text = _one_line(schema.get("description") or described.get(name) or schema.get("title") or name)
    if any(f'"{word}"' in json.dumps(schema) for word in OF_FIELDS):
        return f"{text} JSON schema: {json.dumps(schema)}"
    return (
        f"{text.rstrip('.')}. Default: {json.dumps(schema['default'])}." if schema.get("default") is not None else text
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _resolved(schema: Any, root: Mapping[str, Any], within: tuple[str, ...] = ()) -> Any:
    """A schema with its references resolved; a reference to itself becomes "anything"."""
    if isinstance(schema, list):
        return [_resolved(item, root, within) for item in schema]
    if not isinstance(schema, dict):
        return schema
    reference = schema.get("$ref")
    if not isinstance(reference, str):
        return {key: _resolved(value, root, within) for key, value in schema.items()}
    if reference in within:
        return {}
    found: Any = root
    for step in reference.removeprefix("#/").split("/"):
        found = found[step]
    others = {key: value for key, value in schema.items() if key != "$ref"}
    return _resolved({**found, **others}, root, (*within, reference))
