"""the number of a series -> how its line or bar looks, in grey as well; a figure -> a file, always the same.

A colour never stands alone: with it go a line's dashes and markers, and a bar's hatch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .scores import Estimate


# From dark to light, so that neighbours differ in grey.
COLOURS = ("#1b2a6b", "#c0392b", "#2a9d6f", "#e08e1b", "#6a4fa3", "#5aa9d6", "#7a3b1d", "#8f9a27")
DASHES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), ":", (0, (8, 3)), (0, (3, 1)), (0, (1, 1)))
MARKERS = "osD^vPX*"
HATCHES = ("", "//", "..", "xx", "\\\\", "oo", "--", "++")
SUFFIXES = (".png", ".svg")
MARKS = 8  # of a long line


class Look(NamedTuple):
    colour: str
    dashes: Any
    marker: str
    hatch: str


def look(number: int) -> Look:
    """Eight differ in all; the next eight have other dashes and hatches with the same colours."""
    place, turn = number % len(COLOURS), number // len(COLOURS)
    other = (place + turn) % len(COLOURS)
    return Look(COLOURS[place], DASHES[other], MARKERS[(place + turn) % len(MARKERS)], HATCHES[other])


def draw_curve(
    axes: Axes, curve: Sequence[tuple[int, Estimate]], number: int, label: str | None = None, marked: bool = True
) -> None:
    """A line through means over seeds, with markers, and its interval as a band."""
    of = look(number)
    steps = [step for step, _ in curve]
    axes.plot(
        steps,
        [one.mean for _, one in curve],
        color=of.colour,
        linestyle=of.dashes,
        marker=of.marker if marked else "",
        markevery=(number % MARKS, max(1, len(steps) // MARKS)) if len(steps) > MARKS else 1,
        markersize=4.5,
        linewidth=1.8,
        label=None if label is None else plain(label),
    )
    if any(one.low < one.high for _, one in curve):
        low, high = [one.low for _, one in curve], [one.high for _, one in curve]
        axes.fill_between(steps, low, high, color=of.colour, alpha=0.15, linewidth=0)


def plain(name: str) -> str:
    """A name as matplotlib shows it: a dollar begins no formula, and no legend leaves it out."""
    escaped = name.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def check_suffix(file: Path) -> None:
    if file.suffix.lower() not in SUFFIXES:
        found = f"{file.suffix!r}" if file.suffix else "no suffix"
        raise ValueError(f"{file}: pictures are written as {' or '.join(SUFFIXES)}; this name has {found}.")


def save(figure: Figure, file: Path, dpi: int = 110) -> None:
    """As PNG or SVG, by its suffix. The same figure is the same file: without a date, and texts of an SVG are text."""
    check_suffix(file)
    metadata = {"Date": None} if file.suffix.lower() == ".svg" else None
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "a2tgpo"}):
        figure.savefig(file, dpi=dpi, metadata=metadata)
