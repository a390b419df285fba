"""settings whose annotations say what they take -> the same settings, checked; and their page of documentation.

    discount: Annotated[float, Interval(0.0, 1.0, "[]")]
    tool_concurrency: Annotated[int, Interval(1)]
    on_outage: Literal["stop", "continue"]

The annotation is the one place that says whether a setting is a switch, a whole number or a choice, whether it may be
None, and which interval it lies in. Parsers of recipes and of command lines read the plain type inside.
"""

import inspect
import math
import textwrap
from dataclasses import dataclass, field, fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .lookup import nearest


def setting(default: Any, text: str) -> Any:
    """A dataclass field with this help text, stored where parsers of command lines look for it."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Interval:
    """The numbers from `low` to `high`; a square bracket means that the end itself is included."""

    low: float = -math.inf
    high: float = math.inf
    ends: Literal["[)", "(]", "[]", "()"] = "[)"

    def __contains__(self, value: float) -> bool:
        above = value >= self.low if self.ends[0] == "[" else value > self.low
        below = value <= self.high if self.ends[1] == "]" else value < self.high
        return above and below  # NaN compares false

    def __str__(self) -> str:
        return f"{self.ends[0]}{self.low}, {self.high}{self.ends[1]}"


@dataclass(frozen=True)
class Kind:
    """What an annotation says: the types of its values (`Literal` for choices), and what they are limited to."""

    types: tuple[Any, ...]
    may_be_none: bool
    interval: Interval | None

    @property
    def choices(self) -> tuple[str, ...]:
        """The words to choose from; none if the setting is not a choice."""
        return next((get_args(kind) for kind in self.types if get_origin(kind) is Literal), ())


def kind_of(annotation: Any) -> Kind:
    """What an annotation says that was read with `include_extras`."""
    annotation, *extras = get_args(annotation) if hasattr(annotation, "__metadata__") else (annotation,)
    types = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    interval = next((extra for extra in extras if isinstance(extra, Interval)), None)
    return Kind(tuple(kind for kind in types if kind is not type(None)), type(None) in types, interval)


def kinds_of(settings: type, base: type) -> dict[str, Kind]:
    """The kind of each field that a class of settings, or one between it and `base`, declares; its own first."""
    hints = get_type_hints(settings, include_extras=True)
    between = [parent for parent in settings.__mro__ if issubclass(parent, base) and parent is not base]
    names = [name for parent in between for name in inspect.get_annotations(parent)]
    known = {entry.name for entry in fields(settings)}
    return {name: kind_of(hints[name]) for name in names if name in known}


def check_fields(settings: Any, base: type) -> None:
    """Check each field of `kinds_of` against its annotation. Mappings and texts are left to the code reading them."""
    for name, kind in kinds_of(type(settings), base).items():
        check_value(name, getattr(settings, name), kind)


def check_value(name: str, value: Any, kind: Kind) -> None:
    """Raise a ValueError that says what is wrong with a value of this name, and what it must be."""
    if value is None and kind.may_be_none:
        return
    or_none = " or None" if kind.may_be_none else ""
    if kind.choices and value not in kind.choices:
        valid = ", ".join(map(repr, kind.choices))
        raise ValueError(f"{name} must be one of {valid}{or_none}; got {value!r}.{nearest(str(value), kind.choices)}")
    if kind.types == (bool,) and not isinstance(value, bool):
        raise ValueError(f"{name} must be true{', false' if or_none else ' or false'}{or_none}; got {value!r}.")
    if kind.interval is not None:
        check_number(name, value, kind.interval, whole=kind.types == (int,))


def check_number(name: str, value: Any, interval: Interval, whole: bool = False) -> None:
    """Raise a ValueError that says what is wrong with a number of this name."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be a number in {interval}; got {value!r}.")
    if value not in interval:
        raise ValueError(f"{name} must be in {interval}; got {value!r}.")
    if whole and not isinstance(value, int):
        raise ValueError(f"{name} must be a whole number; got {value!r}.")


def documented(base: type) -> Any:
    """Append the text of `parameters` to the docstring of a dataclass of settings."""

    def decorate(settings: type) -> type:
        settings.__doc__ = f"{inspect.cleandoc(settings.__doc__ or '')}\n\n{parameters(settings, base)}"
        return settings

    return decorate


def parameters(settings: type, base: type) -> str:
    """Name, type, interval, default and meaning of each field of `kinds_of`, in the form of TRL's config docstrings.

    `HEADINGS` of a class names the fields at which a part of the page begins, and says what that part is about.
    """
    headings = {name: text for parent in settings.__mro__ for name, text in vars(parent).get("HEADINGS", {}).items()}
    known = {entry.name: entry for entry in fields(settings)}
    lines = ["Parameters:"]
    for name, kind in kinds_of(settings, base).items():
        if name in headings:
            lines += [f"    > Parameters that control {headings[name]}", ""]
        lines.append(f"    {name} ({_kind_in_words(kind, known[name].default)}):")
        lines += [_indented(known[name].metadata["help"], " " * 8), ""]
    return "\n".join(lines)


def _indented(text: str, by: str) -> str:
    return textwrap.fill(text, 115, initial_indent=by, subsequent_indent=by, break_on_hyphens=False)


def _kind_in_words(kind: Kind, default: Any) -> str:
    types = ["str" if get_origin(each) is Literal else _name_of_type(each) for each in kind.types]
    words = [f"`{name}`" for name in types]
    if kind.interval is not None and kind.interval != Interval(ends="()"):
        words.append(f"in {kind.interval}")
    words.append("*optional*" if default is None else f"*optional*, defaults to `{default!r}`")
    return ", ".join(words)


def _name_of_type(kind: Any) -> str:
    return str(kind).replace("typing.", "") if get_args(kind) else kind.__name__
