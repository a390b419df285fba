"""Pictures of each view of the page, in light and dark, on a wide and a narrow screen, for a person to look at.

pytest -m slow tests/view/test_pictures.py --basetemp=pictures
"""

import struct

import pytest
import view_picture
from places import ROOT
from recorded import write_run
from visits import Visit

from a2tgpo_trl.view.html import make_page
from a2tgpo_trl.view.run import read_runs


pytestmark = pytest.mark.slow

MOST_BYTES = 150_000  # of the picture that the README shows
VIEWS = ("steps", "turns", "paper", "groups", "group", "pair")


@pytest.mark.parametrize("width", [1400, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_view_is_in_a_picture_and_nothing_in_it_is_wider_than_the_page(scheme, width, browser, tmp_path):
    runs = [write_run(tmp_path / name, 0, steps=6, groups=8, rollouts=6) for name in ("one", "two")]
    file = tmp_path / "page.html"
    file.write_text(make_page(read_runs(runs)), encoding="utf-8")
    visit = Visit(browser, file, "#group-0-1", color_scheme=scheme, viewport={"width": width, "height": 900})
    page = visit.page
    page.locator("article").first.wait_for()
    for view in VIEWS:
        if view == "pair":
            page.locator("#other").select_option("two")
            page.locator(".pair").wait_for()
        place = page.locator("#group" if view == "pair" else f"#{view}")
        place.screenshot(path=tmp_path / f"{view}-{scheme}-{width}.png")
        picture = (tmp_path / f"{view}-{scheme}-{width}.png").read_bytes()
        assert struct.unpack(">II", picture[16:24])[0] <= width and len(picture) > 5000
    # Tables and rollouts scroll by themselves; the page does not.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    visit.close()


def test_the_picture_of_the_readme_can_be_made_and_is_small(browser, tmp_path):
    run = write_run(tmp_path / "run", steps=6, groups=8, rollouts=6)
    view_picture.make(run, tmp_path / "view.png", browser)
    made, shown = ((folder / "view.png").read_bytes() for folder in (tmp_path, ROOT / "recipes"))
    for picture in (made, shown):
        assert struct.unpack(">I", picture[16:20])[0] == view_picture.WIDTH and len(picture) < MOST_BYTES
