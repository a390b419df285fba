"""A page of runs in a real browser: sorted, filtered, searched, opened, printed; and hostile text, which does nothing.

They need chromium (Debian: `apt-get install chromium`) and the package playwright, which drives it.
"""

import json
import random
import re
import time
from pathlib import Path

import psutil
import pytest
from recorded import HOSTILE, drawn, record, with_tokens, write_log, write_records, write_run
from visits import Visit, eventually

from a2tgpo_trl.rollout.reading import plain
from a2tgpo_trl.rollout.records import read_jsonl
from a2tgpo_trl.view.groups import MOST_CHARACTERS
from a2tgpo_trl.view.html import make_page
from a2tgpo_trl.view.run import read_runs


pytestmark = pytest.mark.slow


def written(folder: Path, *runs: Path) -> Path:
    file = folder / "page.html"
    file.write_text(make_page(read_runs(runs)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = [write_run(folder / name, seed, steps=6, groups=4, rollouts=4) for seed, name in enumerate(("one", "two"))]
    return runs, written(folder, *runs)


def records_of(run: Path) -> list[dict]:
    return [record for file in sorted(run.glob("rollouts/*.jsonl")) for record in read_jsonl(file)]


def spread(records: list[dict]) -> float:
    gains = [gain for one in records for gain in one["gains"]]
    return max(gains) - min(gains)


def by_group(records: list[dict]) -> dict[tuple[int, int], list[dict]]:
    groups: dict[tuple[int, int], list[dict]] = {}
    for one in records:
        groups.setdefault((one["step"], one["group"]), []).append(one)
    return groups


def test_groups_can_be_sorted_filtered_searched_and_opened(two_runs, browser):
    (one, two), file = two_runs
    groups = by_group(records_of(one))
    visit = Visit(browser, file)
    page = visit.page
    visit.found("24 of 24 groups")
    # By keyboard: the heading of a column sorts by it.
    page.locator(".tabulator-col[tabulator-field=spread]").press("Enter")
    most = pytest.approx(max(map(spread, groups.values())), abs=0.006)
    eventually(lambda: float(visit.column("spread")[0]) == most)
    shown = [float(text) for text in visit.column("spread")]
    assert shown == sorted(shown)[::-1]
    # The arrow keys go from row to row.
    links = page.locator(".tabulator-row a")
    links.nth(0).press("ArrowDown")
    links.nth(1).press("ArrowDown")
    eventually(lambda: links.nth(2).evaluate("link => link === document.activeElement"))
    page.get_by_label("solved and failed").check()
    mixed = [key for key, of in groups.items() if len({one["rewards"]["exact_match"] for one in of}) == 2]
    assert 0 < len(mixed) < 24
    visit.found(f"{len(mixed)} of 24 groups")
    page.get_by_label("solved and failed").uncheck()
    page.get_by_label("failed turns", exact=True).check()
    failing = [of for of in groups.values() if any(turn["status"] != "ok" for one in of for turn in one["turns"])]
    visit.found(f"{len(failing)} of 24 groups")
    page.get_by_label("failed turns", exact=True).uncheck()
    page.get_by_label("gain spread at least").fill("9.5")
    visit.found(f"{sum(spread(of) >= 9.5 for of in groups.values())} of 24 groups")
    page.get_by_label("gain spread at least").fill("")
    # A word that occurs in only one result.
    key, words = (3, 2), groups[3, 2][1]["completion"][1]["content"].split()
    rare = next(word for word in words if sum(word in json.dumps(of) for of in groups.values()) == 1)
    page.get_by_label("text").fill(rare.upper())
    visit.found("1 of 24 groups")
    page.locator(".tabulator-row a").press("Enter")
    page.locator("article").first.wait_for()
    assert page.locator("#group-title").inner_text().startswith("one, step 3, group 2")
    assert page.locator("mark").first.inner_text().lower() == rare  # it was folded, and is now open
    for rollout, expected in zip(page.locator("article").all(), groups[key], strict=True):
        turns = rollout.locator(".turn").all()
        assert len(turns) == len(expected["advantages"])
        for turn, advantage in zip(turns, expected["advantages"], strict=True):
            said = turn.locator("[data-number=advantage]").inner_text()
            assert said == f"advantage {advantage:+.2f}".replace("-", "−")
            assert ("more" if advantage > 0 else "less") in turn.get_attribute("class")
    # Coloured by what a turn has beyond its rollout's advantage.
    page.locator(".legend select").select_option("credit")
    for rollout, expected in zip(page.locator("article").all(), groups[key], strict=True):
        credit = expected["advantages"][0] - expected["outcome_advantage"]
        assert ("more" if credit > 0 else "less") in rollout.locator(".turn").first.get_attribute("class")
    page.keyboard.press("Escape")
    page.locator("#group").wait_for(state="hidden")
    page.get_by_label("text").fill("")
    visit.found("24 of 24 groups")
    # Now the other run.
    page.locator("#run").select_option("two")
    page.locator(".tabulator-row a").first.click()
    page.get_by_role("heading", name=re.compile(r"^two, step")).wait_for()
    gains = {f"gain {one['gains'][0]:+.2f}".replace("-", "−") for one in records_of(two)}
    assert page.locator("article").first.locator("[data-number=gain]").first.inner_text() in gains
    visit.close()


def test_a_turn_is_shown_as_tokens_coloured_by_advantage_and_by_ratio(browser, tmp_path):
    # Of three tokens one is as probable as before, one more and clipped, one less: ln 1.5 is 0.405, ln 0.8 is -0.223.
    first = with_tokens(record(0, said="as before more less", credit=[0.25]), [1.0, 1.0, 1.5, 0.8], [0, 0, 1, 0])
    second = record(0, reward=0.0, outcome_advantage=-0.5, credit=[0.0])
    write_records(tmp_path / "run", {1: [first, second]})
    visit = Visit(browser, written(tmp_path, tmp_path / "run"), "#group-0-0")
    page = visit.page
    turn = page.locator("article").first.locator(".turn").first
    assert turn.locator("pre.said").inner_text() == "as before more less" and turn.locator(".token").count() == 0
    assert turn.locator("[data-number=ratio]").inner_text() == "ratio ×1.250"
    page.locator("#text-as").select_option("tokens by advantage")
    tokens = turn.locator(".token")
    assert tokens.all_inner_texts() == ["as", " before", " more", " less"]
    classes = [one.get_attribute("class").split() for one in tokens.all()]
    assert all("more" in one for one in classes)  # each has the advantage of its turn, 0.75
    assert page.locator("article").nth(1).locator("pre.said").first.inner_text() == "Let me see."
    page.locator("#text-as").select_option("tokens by ratio")
    assert page.evaluate("document.activeElement.id") == "text-as"
    shares = [one.evaluate("one => Number(one.style.getPropertyValue('--share'))") for one in tokens.all()]
    assert shares == [0, 0, 1, pytest.approx(0.223 / 0.405, abs=0.002)]
    classes = [one.get_attribute("class").split() for one in tokens.all()]
    assert classes[1:] == [["token"], ["token", "clipped", "more"], ["token", "less"]]
    colours = [one.evaluate("one => getComputedStyle(one).backgroundColor") for one in tokens.all()]
    assert colours[0] == colours[1] and len(set(colours)) == 3
    assert "underline" in tokens.nth(2).evaluate("one => getComputedStyle(one).textDecorationLine")
    # A token's number, by mouse and by keyboard.
    tokens.nth(2).hover()
    told = turn.locator(".of-token")
    assert told.inner_text() == '" more": advantage +0.75, ratio ×1.5000, log-probability −0.50, clipped'
    turn.locator("pre.tokens").focus()
    page.keyboard.press("ArrowRight")
    assert told.inner_text() == '" less": advantage +0.75, ratio ×0.8000, log-probability −0.50'
    for _ in range(9):
        page.keyboard.press("ArrowLeft")
    assert told.inner_text().startswith('"as": advantage +0.75, ratio ×1.0000')
    # Dark mode has other colours; print has those of light mode, without the cursor's.
    page.emulate_media(color_scheme="dark")
    dark = tokens.nth(2).evaluate("one => getComputedStyle(one).backgroundColor")
    page.emulate_media(media="print", color_scheme="dark")
    assert tokens.nth(2).evaluate("one => getComputedStyle(one).backgroundColor") == colours[2] != dark
    assert tokens.nth(2).evaluate("one => getComputedStyle(one).printColorAdjust") == "exact"
    assert told.is_hidden()
    visit.requests[1:] = []
    visit.close()


def test_both_runs_are_in_each_chart_and_the_stage_changes_what_is_drawn(two_runs, browser, tmp_path):
    runs, file = two_runs
    visit = Visit(browser, file, color_scheme="dark")
    page = visit.page
    chart = page.locator("#step-charts figure", has_text="exact match").first
    assert chart.locator(".u-series").all_inner_texts()[1:] == ["one–", "held out–", "two–", "held out–"]
    chart.get_by_text("numbers").click()
    columns = ["step", "one", "one, held out", "two", "two, held out"]
    eventually(lambda: chart.locator("th[scope=col]").all_inner_texts() == columns)
    advantage = page.locator("#turn-charts figure", has_text="advantage").first
    advantage.get_by_text("numbers").click()
    for stage, steps in (("all steps", range(1, 13)), ("the last third", range(9, 13))):
        page.locator("#stage").select_option(stage)
        first = [one["advantages"][0] for one in records_of(runs[0]) if one["step"] in steps]
        shown = advantage.locator(".plain tbody tr").first.locator("td").first.inner_text()
        assert float(shown) == pytest.approx(sum(first) / len(first), abs=0.006)
    page.locator("#metric").select_option("turn_ratio/turn_1")
    page.locator("#chosen-chart figure").wait_for()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    visit.close()


def test_chart_includes_intervals_and_distinguishes_runs_of_one_colour(browser, tmp_path):
    runs = [write_run(tmp_path / f"run{number}", number, steps=1) for number in range(7)]
    for number, run in enumerate(runs):
        wide = {"mean": 0.5, "low": -3.0 if number else 0.4, "high": 4.0}
        (run / "evaluation" / "after.json").write_text(json.dumps({"everything": {"exact_match": wide}}))
    visit = Visit(browser, written(tmp_path, *runs))
    visit.page.locator("#step-charts .u-over").first.wait_for()
    found = visit.page.evaluate(
        """() => {
          const { series } = stepChart(INDEX.runs, "rewards/exact_match/mean");
          const seen = series.flatMap((one) => one.ys.filter((y) => y !== null));
          return [spanned({ series }, Math.min(...seen), Math.max(...seen)),
            [0, 5, 6].map((run) => [colour(run), dash(run) ?? null])];
        }"""
    )
    assert found[0] == [-3, 4]
    first, other, seventh = found[1]
    assert first[0] == seventh[0] != other[0] and first[1] is other[1] is None and seventh[1]
    visit.close()


def test_print_shows_all_groups_and_unfolds_details(two_runs, browser, tmp_path):
    _, file = two_runs
    visit = Visit(browser, file, "#group-0-3")
    page = visit.page
    page.locator("article").first.wait_for()
    folded = page.locator("#group details").count()
    assert folded > 4 and page.locator("#group details[open]").count() == 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    eventually(lambda: page.locator(".tabulator-print-table tbody tr").count() == 24)
    eventually(lambda: page.locator("#group details[open] pre").count() >= folded)
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    eventually(lambda: page.locator("#group details[open]").count() == 0)
    assert len(page.pdf(path=tmp_path / "page.pdf")) > 10_000
    visit.close()


def test_an_address_opens_a_group_of_either_run(two_runs, browser):
    _, file = two_runs
    visit = Visit(browser, file, "#group-1-5")
    visit.page.get_by_role("heading", name=re.compile(r"^two, step 3, group 1")).wait_for()
    visit.page.get_by_role("link", name="next").click()
    visit.page.get_by_role("heading", name=re.compile(r"^two, step 3, group 2")).wait_for()
    visit.page.get_by_role("link", name="close").click()
    visit.page.locator("#group").wait_for(state="hidden")
    assert visit.page.url.endswith("#groups")
    visit.requests[1:] = []  # some browsers report a change of the address after #
    visit.close()


def test_hostile_text_is_shown_in_table_and_rollouts_and_nothing_of_it_runs(browser, tmp_path):
    folder = tmp_path / '<img src=x onerror=alert("name")>'
    texts = dict(enumerate(HOSTILE))
    rollouts = [
        with_tokens(record(group, question=text, said=text, result=text, answer=text), [1.0, 2.0])
        for group, text in texts.items()
    ]
    write_records(folder, {1: rollouts})
    visit = Visit(browser, written(tmp_path, folder))
    page = visit.page
    visit.found(f"{len(HOSTILE)} of {len(HOSTILE)} groups")
    assert page.title() == folder.name == page.locator("h1").inner_text()
    for group, text in texts.items():
        page.evaluate(f"location.hash = 'group-0-{group}'")
        page.get_by_role("heading", name=re.compile(rf", group {group}:|^Step 1, group {group}:")).wait_for()
        page.locator(".turn summary").first.click()
        for kind in ("pre.question", ".turn pre.said >> nth=0", ".turn pre.inside >> nth=0"):
            shown = page.locator(f"#group {kind}").first.text_content()
            assert shown[:1000] == plain(text)[:1000] and len(shown) < MOST_CHARACTERS + 50
        page.locator("#text-as").select_option("tokens by ratio")
        shown = page.locator("#group pre.tokens").first.text_content()
        assert shown[:1000] == plain(text)[:1000] or not text.strip()
        page.locator("#group pre.tokens").first.focus()
        page.locator("#text-as").select_option("as it reads")
    assert page.locator("main").is_visible() and page.locator("#table img, #group img, iframe").count() == 0
    visit.requests[1:] = []
    visit.close()


@pytest.mark.alone
def test_ten_thousand_rollouts_open_in_three_seconds_and_300_mb(browser, tmp_path):
    folder = write_run(tmp_path / "run", steps=25, groups=50, rollouts=8, words=60)
    file = written(tmp_path, folder)
    begin = time.monotonic()
    visit = Visit(browser, file)
    visit.found("1,250 of 1,250 groups")
    seconds = time.monotonic() - begin
    assert visit.page.locator(".tabulator-row").count() < 100  # only those in view
    processes = [one for one in psutil.Process().children(recursive=True) if "--type=renderer" in one.cmdline()]
    megabytes = max(one.memory_info().rss for one in processes) / 2**20
    assert seconds < 3 and megabytes < 300, (seconds, megabytes)
    visit.page.locator(".tabulator-row a").first.click()
    visit.page.locator("article").first.wait_for()
    visit.close()


def test_a_killed_run_says_what_is_missing(browser, tmp_path):
    write_records(tmp_path / "run", {1: drawn(random.Random(0), 2, 4)})
    write_log(tmp_path / "run" / "checkpoint-2", random.Random(0), 2)
    visit = Visit(browser, written(tmp_path, tmp_path / "run"))
    assert "its log ends with checkpoint-2" in visit.page.locator("#runs").inner_text()
    assert visit.page.locator("#which-run").is_hidden()
    visit.close()


def test_groups_of_the_same_prompt_are_compared_side_by_side(browser, tmp_path):
    # The same three questions in both runs; run two solves less. In run one the first is asked again, later.
    rewards = {"one": [(1, 1, 1), (1, 0, 1), (0, 0, 0)], "two": [(1, 0, 0), (1, 0, 1), (1, 1, 1)]}
    for name, of_run in rewards.items():
        batch = [
            record(group, question=f"Question {group}", reward=float(one), outcome_advantage=one - 0.5)
            for group, of_group in enumerate(of_run)
            for one in of_group
        ]
        write_records(tmp_path / name, {1: batch})
    write_records(tmp_path / "one", {5: [record(0, question="Question 0"), record(1, question="Only here")]})
    visit = Visit(browser, written(tmp_path, tmp_path / "one", tmp_path / "two"))
    page = visit.page
    visit.found("5 of 5 groups")
    assert page.locator(".tabulator-col[tabulator-field=gap]").is_hidden()
    page.locator("#other").select_option("two")
    page.locator(".tabulator-col[tabulator-field=gap]").wait_for()
    assert visit.column("other") == ["0.333", "0.667", "1", "0.333", "–"]
    assert visit.column("gap") == ["+0.67", "+0.00", "−1.00", "+0.67", "–"]
    page.locator(".tabulator-col[tabulator-field=gap]").press("Enter")
    eventually(lambda: visit.column("gap") == ["+0.67", "+0.67", "+0.00", "−1.00", "–"])
    page.locator(".tabulator-row a", has_text="Question 2").click()
    page.get_by_role("heading", name="one, step 1, group 2: 0 solved, 3 failed").wait_for()
    panes = page.locator(".pair > div")
    assert [pane.locator("article h3").all_inner_texts() for pane in panes.all()] == [
        ["1: failed", "2: failed", "3: failed"],
        ["1: solved", "2: solved", "3: solved"],
    ]
    assert panes.nth(1).locator(".of-run").inner_text() == "two step 1, group 2: 3 solved, 0 failed"
    left, right = (pane.bounding_box() for pane in panes.all())
    assert left["y"] == right["y"] and left["x"] + left["width"] < right["x"]
    # The group nearest in step, with links to others.
    page.locator(".tabulator-row a", has_text="Question 0").first.click()
    page.get_by_role("heading", name="one, step 1, group 0").wait_for()
    page.get_by_role("link", name="one, step 5 (1 of 1 solved)").click()
    page.get_by_role("heading", name="one, step 5, group 0").wait_for()
    assert page.locator(".again").inner_text() == "Asked the same: one, step 1 (3 of 3 solved)"
    page.locator(".tabulator-row a", has_text="Only here").click()
    page.get_by_text("two was not asked this.").wait_for()
    assert page.locator(".pair").count() == 0
    # A run is not shown beside itself.
    page.locator("#run").select_option("two")
    visit.found("3 of 3 groups")
    assert page.locator("#other").evaluate("select => select.selectedIndex") == 0
    assert page.locator("#other option").nth(2).is_disabled()
    visit.requests[1:] = []
    visit.close()
