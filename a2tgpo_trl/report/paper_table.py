"""scores of evaluations -> the cells of one row of a table in Markdown, next to a paper's numbers.

    <!-- results -->
    | Qwen3-4B |       | HotpotQA | ... | PopQA | single-hop |
    |----------|-------|---------:| ... |------:|-----------:|
    | DAPO     | paper |    45.95 | ... | 51.03 |      56.33 |
    | DAPO     | here  |          | ... |       |            |
    <!-- end of results -->

Only cells of rows whose second cell is "here" are filled. Nothing else in the file changes.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import shown
from ..lookup import nearest
from ..tasks.qa.sets import MULTI_HOP, SETS, SINGLE_HOP


BEGIN, END = "<!-- results -->", "<!-- end of results -->"
HERE = "here"
# heading of a column -> the sets that it covers
COLUMNS = {
    "HotpotQA": ("hotpotqa",),
    "2Wiki": ("2wikimultihopqa",),
    "MuSiQue": ("musique",),
    "Bamboogle": ("bamboogle",),
    "NQ": ("nq",),
    "TriviaQA": ("triviaqa",),
    "PopQA": ("popqa",),
    **{kind: tuple(name for name, one in SETS.items() if one.hops == kind) for kind in (MULTI_HOP, SINGLE_HOP)},
}


@dataclass(frozen=True)
class SetScore:
    """Exact match on a set: the share, half of its 95 % interval, and how many questions were asked."""

    mean: float
    half: float
    number: int


def fill(file: Path, model: str, method: str, scores: Sequence[Path]) -> str:
    """Write the scores of these evaluations into the row of a model and a method. Returns the row."""
    found = read_scores(scores)
    lines = file.read_text().splitlines(keepends=True)
    head, place = _find_row(file, lines, model, method)
    cells = [cell_of(found, COLUMNS[name]) for name in head[2:]]
    row = f"| {' | '.join([method, HERE, *cells])} |"
    lines[place] = f"{row}\n"
    file.write_text("".join(lines))
    return row


def read_scores(files: Sequence[Path]) -> dict[str, SetScore]:
    """Return exact match on each set from files of `a2tgpo eval` (scores.json), each set being in only one of them."""
    found: dict[str, SetScore] = {}
    places: dict[str, Path] = {}
    for file in files:
        for name, score in _of_file(file).items():
            if name in found:
                raise ValueError(f"{file} and {places[name]} both have scores on {name}. Name only one of them.")
            found[name], places[name] = score, file
    return found


def _of_file(file: Path) -> dict[str, SetScore]:
    try:
        groups = json.loads(file.read_text())["groups"]
        estimates = {name: groups[f"set {name}"]["exact_match"] for name in SETS if f"set {name}" in groups}
        scores = {
            name: SetScore(float(one["mean"]), float(one["high"] - one["low"]) / 2, int(one["number"]))
            for name, one in estimates.items()
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is not the scores.json of an evaluation that scores exact_match by set ({type(error).__name__}: "
            f"{error}). a2tgpo eval writes one beside the rollouts."
        ) from None
    if not scores:
        raise ValueError(f"{file} has scores on none of {', '.join(SETS)}; it has {shown([*groups])}.")
    return scores


def cell_of(found: Mapping[str, SetScore], names: Sequence[str]) -> str:
    """Return exact match on all questions of these sets in percent, or nothing if one of them was not evaluated.

    If not all questions of the sets were asked, their number follows in brackets.

    Example: HotpotQA 0.4942, interval 0.483 to 0.5056, all 7,405 -> "49.42 ± 1.13"
    """
    if not set(names) <= found.keys():
        return ""
    scores = [found[name] for name in names]
    number = sum(one.number for one in scores)
    mean = sum(one.number * one.mean for one in scores) / number
    half = math.sqrt(sum((one.number * one.half) ** 2 for one in scores)) / number  # the sets are independent
    whole = all(found[name].number == SETS[name].sizes[SETS[name].test] for name in names)
    return f"{100 * mean:.2f} ± {100 * half:.2f}{'' if whole else f' ({number:,})'}"


# ---- the table


def cells_of(line: str) -> list[str]:
    """Example: "| DAPO | here | 45.95 |" -> ["DAPO", "here", "45.95"]"""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def tables(file: Path, lines: Sequence[str]) -> dict[str, dict[int, list[str]]]:
    """Return the tables between the two markers: model in the heading -> number of a line -> the line's cells."""
    stripped = [line.strip() for line in lines]
    if stripped.count(BEGIN) != 1 or stripped.count(END) != 1 or stripped.index(BEGIN) > stripped.index(END):
        raise ValueError(f"{file} must have the lines {BEGIN} and {END} once each, and the tables between them.")
    found: dict[str, dict[int, list[str]]] = {}
    model = None
    for number in range(stripped.index(BEGIN) + 1, stripped.index(END)):
        cells = cells_of(lines[number])
        if cells and model is None:
            model = cells[0]
            found[model] = {}
        if cells and model is not None:
            found[model][number] = cells
        if not cells:
            model = None
    return found


def _find_row(file: Path, lines: Sequence[str], model: str, method: str) -> tuple[list[str], int]:
    """Return the head cells of the model's table, and the line number of the method's own row."""
    found = tables(file, lines)
    if model not in found:
        raise ValueError(f"{file} has no table of {model!r}.{nearest(model, found)} It has {', '.join(found)}.")
    head, *rows = found[model].items()
    unknown = [name for name in head[1][2:] if name not in COLUMNS]
    if unknown:
        raise ValueError(
            f"{file}, line {head[0] + 1}: there is no column {unknown[0]!r}.{nearest(unknown[0], COLUMNS)} Known: "
            f"{', '.join(COLUMNS)}."
        )
    own = {cells[0]: number for number, cells in rows if cells[1] == HERE}
    if method not in own:
        raise ValueError(
            f"{file}: {model} has no row {method!r} that says {HERE!r}.{nearest(method, own)} It has {', '.join(own)}."
        )
    return head[1], own[method]
