"""runs, and the files in page/ -> a self-contained HTML page, which may load and run only what is in it.

What a policy wrote never appears in the page as text: it is compressed JSON in base64, split into pieces so that the
browser reads only those that it needs. The rule that blocks the network names each script and style by its digest.
"""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..turns import LOGGED_TURNS
from .curves import METRICS, adds_credit, batches, by_step, by_turn, envelopes
from .groups import groups_of, line, shown
from .run import Run


PAGE = Path(__file__).parent / "page"
STYLES = ("vendor/uplot/uPlot.min.css", "vendor/tabulator/tabulator_simple.min.css", "page.css")
SCRIPTS = (
    *("vendor/uplot/uPlot.iife.min.js", "vendor/tabulator/tabulator.min.js"),
    *("data.js", "elements.js", "charts.js", "turns.js", "tokens.js", "group.js", "table.js", "beside.js", "page.js"),
)
LIVE_SCRIPTS = (*SCRIPTS[:-1], "live.js", SCRIPTS[-1])
OURS = '<meta name="generator" content="a2tgpo view">'
PIECE = 2**18  # bytes of JSON compressed together; more if one group has more


def make_page(runs: Sequence[Run]) -> str:
    """Return the page of these runs."""
    index: dict[str, Any] = {"metrics": METRICS, "most_turns": LOGGED_TURNS, "runs": []}
    pieces: list[str] = []
    for run in runs:
        of_run, lines = pieces_of(run, first=len(pieces))
        pieces += of_run
        index["runs"].append(
            {
                **{"name": run.name, "notes": run.notes, "groups": lines, "scores": run.scores},
                **{"curves": by_step(run), "turns": by_turn(run), "envelopes": envelopes(run)},
            }
        )
    data = [("index", packed(_json(index))), *((f"piece-{i}", piece) for i, piece in enumerate(pieces))]
    return _page([run.name for run in runs], SCRIPTS, data)


def make_live_page(names: Sequence[str]) -> str:
    """Return the page of runs with these names, which asks its server for their contents."""
    index = {"metrics": METRICS, "most_turns": LOGGED_TURNS, "names": names}
    return _page(names, LIVE_SCRIPTS, [("index", packed(_json(index)))], "connect-src 'self'; ")


def is_ours(file: Path) -> bool:
    """Whether a file is a page made here."""
    with file.open("rb") as opened:
        return OURS.encode() in opened.read(1000)


# ---- data


def pieces_of(run: Run, first: int) -> tuple[list[str], list[dict[str, Any]]]:
    """Return a run's groups, packed in pieces, and the table rows, each with its group's piece and place in it."""
    groups = groups_of(run.records)
    lines, number = list(map(line, groups)), 0
    has_credit = {step: adds_credit(batch) for step, batch in batches(run.records)}
    pieces: list[str] = []
    for texts in _in_pieces(_json(shown(group, has_credit[group[0]["step"]])) for group in groups):
        for place in range(len(texts)):
            lines[number] |= {"piece": first + len(pieces), "place": place}
            number += 1
        pieces.append(packed(f"[{','.join(texts)}]"))
    return pieces, lines


def _in_pieces(texts: Iterable[str]) -> Iterator[list[str]]:
    piece: list[str] = []
    size = 0
    for text in texts:
        if piece and size + len(text) > PIECE:
            yield piece
            piece, size = [], 0
        piece.append(text)
        size += len(text)
    if piece:
        yield piece


def packed(text: str) -> str:
    """Return text as a page holds it: compressed, in base64."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


# ---- the page


def _page(names: Sequence[str], scripts: Sequence[str], data: Sequence[tuple[str, str]], allowed: str = "") -> str:
    """Return the page. `data`: names and texts in it. `allowed`: what it may do besides running what is in it."""
    styles, sources = (list(map(_source, files)) for files in (STYLES, scripts))
    return _filled(
        PAGE.joinpath("page.html").read_text(),
        {
            "ours": OURS,
            "policy": _content_policy(styles, sources, allowed),
            "title": escape(" and ".join(names)),
            "styles": "\n".join(f"<style>{style}</style>" for style in styles),
            "data": "\n".join(f'<script type="text/plain" id="{name}">{text}</script>' for name, text in data),
            "scripts": "\n".join(f"<script>{script}</script>" for script in sources),
        },
    )


def _source(name: str) -> str:
    """Return a file of the page, without links to source maps, which are not included."""
    return re.sub(r"\s*(//|/\*)# sourceMappingURL=\S+( \*/)?\s*$", "\n", PAGE.joinpath(name).read_text())


def _content_policy(styles: Sequence[str], scripts: Sequence[str], allowed: str) -> str:
    return (
        f"default-src 'none'; script-src {_digests(scripts)}; style-src {_digests(styles)}; {allowed}"
        "base-uri 'none'; form-action 'none'"
    )


def _digests(texts: Iterable[str]) -> str:
    digests = (hashlib.sha256(text.encode()).digest() for text in texts)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def _filled(template: str, parts: dict[str, str]) -> str:
    return re.sub(r"\{\{ (\w+) \}\}", lambda found: parts[found[1]], template)
