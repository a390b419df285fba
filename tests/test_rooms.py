"""The rooms of the package, in an order that imports obey: a room only imports rooms below it."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from places import ROOT


PACKAGE = "a2tgpo_trl"

# The map, lowest first. A room is a folder or a module; it may import those that come before it in this list.
ROOMS = {
    "import_lines": "what other libraries log while they are imported",
    "errors": "what ends a run, in words that a user can act on",
    "secret_names": "a variable's name -> whether its value is a secret",
    "lookup": "names in recipes -> what they mean; YAML",
    "fields": "settings whose annotations say what they take -> the same settings, checked",
    "precision": "weights, mixed precision, device -> by how much a forward rounds",
    "models": "a model without its wrappers, in evaluation mode",
    "log_probabilities": "rows of tokens -> log-probabilities of those that were sampled",
    "shared_prefixes": "rows that begin alike -> their log-probabilities, each token read once",
    "dropout": "a policy -> the same without dropout",
    "addresses": "an address -> whether it is this machine's own, what may be shown, why it cannot be listened on",
    "ranks": "all ranks together: maxima, lists, errors",
    "turns": "masks of sampled tokens -> turns",
    "loss": "log-probabilities -> ratios of turns",
    "tools": "calls -> results, in bounded time; a Python interpreter among the tools",
    "search": "a corpus -> its index -> passages for queries: a server, and a tool",
    "rewards": "completions and accepted answers -> rewards",
    "tasks": "data sets, tools and rewards that come with the package",
    "report": "records and logs of runs -> progress lines, scores, pictures",
    "launch": "configuration of Accelerate, machine -> processes",
    "resume": "a run -> checkpoints -> the same run",
    "rollout": "GRPO whose policy calls tools: prompts -> rollouts, their records and seeds",
    "information_gain": "rollouts, answers -> the value of each context, the gain of each turn",
    "credit": "gains, turn rewards, outcomes -> the advantage and the clip range of each turn",
    "config": "the settings of A2TGPO",
    "scoring": "micro-batches -> log-probabilities, with less to read",
    "recording": "credited batches -> files of their rollouts, beside the training",
    "tracking": "credited batches, facts of a run -> tables, histograms and config of its trackers",
    "recredit": "records of credited batches -> the same rollouts, credited by another method",
    "trainer": "A2TGPO itself: gain, credit, ratio and loss, wired into the layer below",
    "recipe": "YAML and words of the command line -> settings, task, trainer",
    "evaluation": "a policy and a test set -> records and scores; a program that is launched",
    "train": "a recipe -> a trained policy; a program that is launched",
    "preflight": "a recipe -> what would go wrong in its run",
    "plan": "a recipe, devices -> whether it fits them; what a step of it takes here",
    "study": "cells and seeds of a study -> their runs, results in one file, a report",
    "view": "runs and their records -> a page for a browser",
    "cli": "words -> verbs",
    "__main__": "python -m a2tgpo_trl",
}
THE_PACKAGE = {"__init__": "the two names that a script imports"}  # may import any room; imported for its version

# Known upward imports, circles and uses of private names. These sets may only shrink.
KNOWN_UPWARD: set[tuple[str, str]] = set()
KNOWN_CIRCLES: set[frozenset[str]] = set()
KNOWN_PRIVATE: set[str] = set()

# Modules that may use private names of a trainer.
TRAINERS = {"trainer", "scoring", "rollout.trainer"}
NAMES_OF_A_TRAINER = {"trainer", "_trainer", "ours"}


@cache
def modules() -> dict[str, Path]:
    """Files by module name within the package: `credit` is its `__init__`, `credit.method` a module of that room."""
    files = {}
    for file in sorted(Path(ROOT, PACKAGE).rglob("*.py")):
        parts = file.relative_to(Path(ROOT, PACKAGE)).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = file
    return files


def room_of(module: str) -> str:
    return module.split(".")[0]


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text())


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of the package that this one imports: at its top, in its functions, and for types only."""
    return frozenset(found for node in ast.walk(tree(module)) for found in _imported(module, node))


def _imported(module: str, node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (_known(alias.name) for alias in node.names if alias.name.split(".")[0] == PACKAGE)
    elif isinstance(node, ast.ImportFrom):
        where = _absolute(module, node)
        if where.split(".")[0] == PACKAGE:
            yield from (_known(f"{where}.{alias.name}") for alias in node.names)


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    folder = modules()[module].parent.relative_to(ROOT).parts
    return ".".join([*folder[: len(folder) - node.level + 1], *([node.module] if node.module else [])])


def _known(name: str) -> str:
    """The module that a dotted name names or is in.

    Example: "a2tgpo_trl.credit.method.Evidence" -> "credit.method"; "a2tgpo_trl.__version__" -> "__init__"
    """
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in modules():
        parts.pop()
    return ".".join(parts) or "__init__"


def upward() -> set[tuple[str, str]]:
    place = {room: i for i, room in enumerate(ROOMS)}
    arrows = {(module, target) for module in modules() for target in imports(module)}
    return {
        (module, target)
        for module, target in arrows
        if "__init__" not in (module, target) and place[room_of(module)] < place[room_of(target)]
    }


def circles() -> set[frozenset[str]]:
    """Sets of modules of one room in which each module imports all others, directly or through others of the room."""
    reached = {module: _reached_from(module) for module in modules()}
    return {
        frozenset(other for other in of_module if module in reached[other])
        for module, of_module in reached.items()
        if module in of_module
    }


def _reached_from(module: str) -> set[str]:
    found: set[str] = set()
    waiting = [module]
    while waiting:
        inside = {target for target in imports(waiting.pop()) if room_of(target) == room_of(module)}
        waiting += inside - found
        found |= inside
    return found


def private_names() -> set[str]:
    """`module: name` for each private name of a trainer that is used outside the trainers' own modules."""
    return {
        f"{module}: {node.attr}"
        for module in modules()
        if module not in TRAINERS
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and _last_name(node.value) in NAMES_OF_A_TRAINER
    }


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _last_name(node: ast.AST) -> str | None:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


def test_every_module_is_in_a_listed_room_and_every_listed_room_exists():
    assert {room_of(module) for module in modules()} == {*ROOMS, *THE_PACKAGE}


def test_modules_import_only_rooms_below_their_own():
    offenders = sorted(upward() - KNOWN_UPWARD)
    assert not offenders, "\n".join(
        f"{module} imports {target}, which stands above it" for module, target in offenders
    )
    gone = KNOWN_UPWARD - upward()
    assert not gone, f"take these out of KNOWN_UPWARD, they are mended: {sorted(gone)}"


def test_no_circular_imports_within_a_room():
    offenders = circles() - KNOWN_CIRCLES
    assert not offenders, "\n".join(f"{' and '.join(sorted(circle))} import each other" for circle in offenders)
    gone = KNOWN_CIRCLES - circles()
    assert not gone, f"take these out of KNOWN_CIRCLES, they are mended: {gone}"


def test_nothing_but_the_trainers_touches_a_private_name_of_a_trainer():
    offenders = sorted(private_names() - KNOWN_PRIVATE)
    assert not offenders, "\n".join(f"{name} is a private name of a trainer" for name in offenders)
    gone = KNOWN_PRIVATE - private_names()
    assert not gone, f"take these out of KNOWN_PRIVATE, they are mended: {sorted(gone)}"


@pytest.mark.parametrize("room", [name for name, file in modules().items() if file.name == "__init__.py"])
def test_first_line_of_each_room_docstring_states_its_purpose(room):
    docstring = ast.get_docstring(tree(room))
    assert docstring, f"{modules()[room]} has no docstring"
    assert len(docstring.splitlines()[0].split()) > 3, f"{modules()[room]}: {docstring.splitlines()[0]!r}"
