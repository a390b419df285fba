"""a run's folder -> a picture of its page: the curves, and an open group with solved and failed rollouts.

    a2tgpo train quickstart --record_every 5
    python tests/benches/view_picture.py outputs/quickstart recipes/view.png

It needs chromium (Debian: `apt-get install chromium`) and the package playwright.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from a2tgpo_trl.rollout.reading import Record, is_solved
from a2tgpo_trl.view.groups import groups_of
from a2tgpo_trl.view.html import make_page
from a2tgpo_trl.view.run import read_runs


if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
WIDTH, SHOWN = 1200, 4  # pixels; rollouts that fit
CURVES = ("exact match", "gain/mean", "turns/mean")
COLOURS = 160  # few, because a README loads the picture


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args(argv)
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        parser.error("There is no chromium: apt-get install chromium.")
    with sync_playwright() as playwright:
        # Root can start it only without its sandbox; it opens nothing but our own page, without a network.
        make(args.run, args.picture, playwright.chromium.launch(executable_path=program, args=["--no-sandbox"]))
    print(f"{args.picture}: {args.picture.stat().st_size / 1000:.0f} kB")
    return 0


def make(run: Path, picture: Path, browser: "Browser") -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = read_runs([run])
        file = Path(folder, "page.html")
        file.write_text(make_page(runs), encoding="utf-8")
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        page.goto(f"{file.as_uri()}#group-0-{telling(groups_of(runs[0].records))}")
        page.locator("article").first.wait_for()
        compose(page)
        page.wait_for_timeout(500)  # charts are drawn at their new width
        page.screenshot(path=picture, full_page=True)
        page.close()
    with Image.open(picture) as drawn:
        drawn.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(picture, optimize=True)


def telling(groups: Sequence[Sequence[Record]]) -> int:
    """The number of the group whose first rollouts differ most: half of them solved it, in few turns, with gains."""

    def score(number: int) -> tuple[Any, ...]:
        first = groups[number][:SHOWN]
        solved = sum(map(is_solved, first))
        gains = [gain for record in first for gain in record.get("gains", ()) if gain is not None]
        return (min(solved, len(first) - solved), -max(len(record["advantages"]) for record in first), max(gains))

    return max(range(len(groups)), key=score)


def compose(page: "Page") -> None:
    """Reduce the page to what a picture can show: a row of curves, and the group with the results of its calls."""
    page.evaluate(
        """([curves, shown]) => {
          const hide = (found) => found.forEach((one) => { one.hidden = true; });
          hide(document.querySelectorAll("#turns, #paper, #groups, #steps label, .links, figure > details, .news"));
          hide([...document.querySelectorAll("#step-charts figure")]
            .filter((one) => !curves.includes(one.querySelector("figcaption").textContent)));
          hide(document.querySelectorAll(`#group article:nth-child(n + ${shown + 1}), #group > details`));
          document.querySelector(".rollouts").style.setProperty("--rollouts", shown);
          document.querySelector("main").style.paddingBottom = "1rem";
          for (const one of document.querySelectorAll("#group article details")) one.open = true;
          scrollTo(0, 0);
        }""",
        [CURVES, SHOWN],
    )


if __name__ == "__main__":
    sys.exit(main())
