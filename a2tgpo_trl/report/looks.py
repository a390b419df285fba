"""the number of a series -> how its line or bar looks, also in grey; a figure -> a file, always the same.

Series never differ in colour alone: lines also differ in dashes and markers, and bars in hatches.
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
MARKS = 8  # on a long line


class Look(NamedTuple):
    colour: str
    dashes: Any
    marker: str
    hatch: str


def look(number: int) -> Look:
    """Eight looks differ in everything; the next eight have the same colours with other dashes and hatches."""
    place, turn = number % len(COLOURS), number // len(COLOURS)
    other = (place + turn) % len(COLOURS)
    return Look(COLOURS[place], DASHES[other], MARKERS[(place + turn) % len(MARKERS)], HATCHES[other])


def draw_curve(
    axes: Axes,
    curve: Sequence[tuple[int, Estimate]],
    number: int,
    label: str | None = None,
    *,
    marked: bool = True,
    banded: bool = True,
) -> None:
    """Draw a line through means over seeds, with markers, and their intervals as a band."""
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
    if banded and any(one.low < one.high for _, one in curve):
        low, high = [one.low for _, one in curve], [one.high for _, one in curve]
        axes.fill_between(steps, low, high, color=of.colour, alpha=0.15, linewidth=0)


def draw_interval(axes: Axes, one: Estimate, number: int) -> None:
    """Draw a mean and its interval on the row of this number."""
    of = look(number)
    sides = [[one.mean - one.low], [one.high - one.mean]]
    axes.errorbar(one.mean, number, xerr=sides, color=of.colour, marker=of.marker, markersize=6, capsize=3)


def plain(name: str) -> str:
    """Return a name that matplotlib shows as it is: a dollar begins no formula, and no legend leaves the name out."""
    escaped = name.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def check_suffix(file: Path) -> None:
    if file.suffix.lower() not in SUFFIXES:
        found = f"{file.suffix!r}" if file.suffix else "no suffix"
        raise ValueError(f"{file}: pictures are written as {' or '.join(SUFFIXES)}; this name has {found}.")


def save(figure: Figure, file: Path, dpi: int = 110) -> None:
    """Save as PNG or SVG, by the suffix. The same figure gives the same file: no date, and text in SVG stays text."""
    check_suffix(file)
    metadata = {"Date": None} if file.suffix.lower() == ".svg" else None
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "a2tgpo"}):
        figure.savefig(file, dpi=dpi, metadata=metadata)
