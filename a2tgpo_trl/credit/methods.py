"""the name of a method -> the method, from this package or the user's own."""

import hashlib
import inspect
from pathlib import Path

from ..lookup import load
from .a2tgpo import a2tgpo, a2tgpo_code, a2tgpo_paper, atpo, grpo, gspo, mt_grpo
from .gigpo import gigpo
from .gtpo import gtpo, hybrid
from .igpo import igpo, igpo_joint
from .method import Method


_METHODS: dict[str, Method] = {
    method.__name__: method
    for method in (
        *(a2tgpo, grpo, gspo, atpo, igpo, igpo_joint, gtpo, mt_grpo, hybrid, gigpo),
        *(a2tgpo_paper, a2tgpo_code),
    )
}
METHODS = tuple(_METHODS)


def find_method(name: str) -> Method:
    """Find a method of this package by name, or a user's by path (file.py:function, package.module:function)."""
    if name in _METHODS:
        return _METHODS[name]
    found = load(name, [Path.cwd()], "credit method", METHODS)
    if not callable(found):
        raise ValueError(f"credit: {name} must be a function, not {type(found).__name__}.")
    return found


def identity_of(name: str) -> str:
    """Return text that identifies a method across runs; a user's method by the content of its file, wherever that is.

    Example: "igpo" -> "igpo"; "/home/me/own_credit.py:last_turn" -> "own_credit.py:last_turn (5f0c1a...)"
    """
    if ":" not in name:
        return name
    source = Path(inspect.getfile(find_method(name)))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12] if source.is_file() else "interactive"
    return f"{source.name}:{name.rpartition(':')[2]} ({digest})"
