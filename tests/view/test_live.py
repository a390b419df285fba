"""The live page in a real browser: it shows what is new, and keeps what is open, sorted, filtered or scrolled."""

import random
import re
import shutil
import threading
import time

import pytest
from recorded import HOSTILE, drawn, record, write_log, write_records, write_run
from visits import Visit, eventually

from a2tgpo_trl.view.server import ViewServer


pytestmark = pytest.mark.slow


class LiveVisit(Visit):
    """The page of a server, and its requests."""

    def close(self) -> None:
        """Check that nothing went wrong and that no other server was asked."""
        assert self.errors == [] and self.requests
        assert all(one.startswith(self.file.partition("?")[0]) for one in self.requests), self.requests
        self.page.context.close()


@pytest.fixture
def serve():
    started = []

    def start(*folders, host="127.0.0.1", port=0):
        server = ViewServer(host, port, folders)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        started.append((server, thread))
        return server

    yield start
    for server, thread in started:
        end(server, thread)


def end(server, thread=None):
    server.shutdown()
    server.server_close()
    if thread is not None:
        thread.join()


def test_live_page_updates_without_disturbing_what_is_open(serve, browser, tmp_path):
    folder, rng = tmp_path / "run", random.Random(0)
    visit = LiveVisit(browser, serve(folder).address)
    page = visit.page
    page.get_by_text("yet. Waiting for it").wait_for()
    for step in (1, 2, 3):
        write_records(folder, {step: drawn(rng, 20, 4, first=20 * step)})
    visit.found("60 of 60 groups")
    reward = page.locator("#step-charts figure", has_text="reward").first
    # Sorted, filtered, scrolled, unfolded, zoomed, open, coloured, and with the focus somewhere.
    page.locator(".tabulator-col[tabulator-field=spread]").press("Enter")
    page.get_by_label("text").fill("question 2")
    visit.found("10 of 60 groups")  # 20 to 29
    page.locator(".tabulator-row a").first.click()
    page.locator("article").first.wait_for()
    page.locator("#group details summary").nth(1).click()
    page.locator("#group .legend select").select_option("gain")
    page.locator("#group details summary").nth(1).click()
    title, opened = page.locator("#group-title").inner_text(), page.locator("#group article").first.inner_text()
    reward.get_by_text("numbers").click()
    page.locator("#stage").select_option("the last third")
    box = reward.locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 20, steps=4)
    page.mouse.up()
    page.evaluate("scrollTo(0, 300)")
    page.locator("#table .tabulator-row a").nth(3).evaluate("link => link.focus({ preventScroll: true })")
    is_focused = "document.activeElement.closest('.tabulator-row')?.innerText"
    spread, focused = visit.column("spread"), page.evaluate(is_focused)
    assert focused
    page.evaluate("window.stays = [...document.querySelectorAll('#step-charts figure')]")
    for step in (5, 6):
        write_records(folder, {step: drawn(rng, 20, 4, first=20 * step)})
    eventually(lambda: "100 groups" in page.locator("#runs").inner_text())
    # Of step 5, whose questions are 100 to 119, and 6, 120 to 139: none that begins with "question 2".
    visit.found("10 of 100 groups")
    assert visit.column("spread") == spread
    eventually(lambda: page.evaluate(is_focused) == focused)
    assert page.evaluate("scrollY") == 300
    assert page.locator("#group-title").inner_text() == title
    assert page.locator("#group article").first.inner_text() == opened
    assert page.locator("#group details[open]").count() == 1
    assert page.locator("#group .legend select").input_value() == "2"
    assert page.locator("#stage").evaluate("select => select.selectedIndex") == 3
    assert page.evaluate("window.stays.every((figure) => figure.isConnected)")
    assert reward.locator("details[open] tbody tr").count() == 5  # steps 1, 2, 3, 5 and 6
    reward.scroll_into_view_if_needed()
    box = reward.locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 20)
    assert reward.locator(".u-legend .u-value").first.inner_text() == "2"  # the first step that the zoom leaves
    # The log adds charts.
    write_log(folder / "checkpoint-4", rng, 4)
    page.locator("#step-charts figure", has_text="entropy").first.wait_for()
    page.get_by_text("its log ends with checkpoint-4").wait_for()
    # A new group that contains the words comes into the table, in its place.
    page.get_by_label("text").fill("question 1")
    visit.found("40 of 100 groups")
    write_records(folder, {7: drawn(rng, 20, 4, first=140)})
    visit.found("60 of 120 groups")
    shown = [float(text) for text in visit.column("spread")]
    assert shown == sorted(shown)[::-1]
    visit.close()


@pytest.mark.parametrize("words", ["", "question"])
def test_the_table_stays_where_it_was_scrolled_to(words, serve, browser, tmp_path):
    folder, rng = tmp_path / "run", random.Random(0)
    write_records(folder, {1: drawn(rng, 60, 4)})
    visit = LiveVisit(browser, serve(folder).address)
    page = visit.page
    page.get_by_label("text").fill(words)
    visit.found("60 of 60 groups")
    holder = page.locator(".tabulator-tableholder")
    page.wait_for_timeout(500)
    holder.evaluate("holder => { holder.scrollTop = 900; }")
    page.wait_for_timeout(200)  # rows are drawn after it was scrolled
    link = page.locator("#table a", has_text="Question 30:")
    link.evaluate("link => link.focus({ preventScroll: true })")
    write_records(folder, {2: drawn(rng, 60, 4, first=60)})
    visit.found("120 of 120 groups")
    eventually(lambda: page.evaluate("document.activeElement.innerText").startswith("Question 30:"))
    page.wait_for_timeout(500)
    assert holder.evaluate("holder => holder.scrollTop") == 900 and link.is_visible()
    visit.close()


def test_polling_without_news_transfers_little(serve, browser, tmp_path):
    visit = LiveVisit(browser, serve(write_run(tmp_path / "run", steps=20)).address)
    sizes = []
    visit.page.on("response", lambda response: sizes.append(len(response.body())))
    visit.page.wait_for_timeout(5000)
    assert len(sizes) >= 2 and max(sizes) < 200
    visit.close()


def test_restarted_training_is_announced_and_the_open_group_stays(serve, browser, tmp_path):
    folder = write_run(tmp_path / "run", 0, steps=3)
    visit = LiveVisit(browser, serve(folder).address, "#group-0-3.1.1.1")
    page = visit.page
    page.locator("article").first.wait_for()
    opened = page.locator("#group article").all_inner_texts()
    shutil.rmtree(folder)
    page.get_by_text("this is what was there before").wait_for()
    page.get_by_text("There is no folder").wait_for()
    assert page.locator("#group article").all_inner_texts() == opened
    write_run(folder, 1, steps=1)
    visit.found("3 of 3 groups")
    assert "It was begun anew" in page.locator("#runs").inner_text()
    reward = page.locator("#step-charts figure", has_text="reward").first
    reward.get_by_text("numbers").click()
    eventually(lambda: reward.locator(".plain tbody tr").count() == 2)
    page.locator(".tabulator-row a").first.click()
    page.get_by_role("heading", name=re.compile("^Step 1, group 0")).wait_for()
    assert page.locator("#group .news").count() == 0
    visit.close()


def test_further_rollouts_of_the_open_group_are_offered(serve, browser, tmp_path):
    write_records(tmp_path / "run", {1: [record(0)]})
    visit = LiveVisit(browser, serve(tmp_path / "run").address, "#group-0-1.1.0.1")
    page = visit.page
    page.locator("article").first.wait_for()
    file = tmp_path / "run" / "rollouts" / "step-000001-rank-0.jsonl"
    file.with_name("step-000001-rank-1.jsonl").write_bytes(file.read_bytes())
    page.get_by_text("There are 2 rollouts of this group now.").wait_for()
    assert page.locator("article").count() == 1
    page.get_by_role("button", name="show them").click()
    eventually(lambda: page.locator("article").count() == 2)
    visit.close()


def test_metrics_removed_from_a_step_leave_the_charts(serve, browser, tmp_path):
    folder = tmp_path / "run"
    write_records(folder, {1: [record(0, rewards={"exact_match": 1.0, "style": 1.0})], 2: [record(0)]})
    write_log(folder / "checkpoint-2", random.Random(0), 1)
    visit = LiveVisit(browser, serve(folder).address)
    page = visit.page
    ratio = page.locator("#turn-charts figure", has_text="importance ratio")
    ratio.get_by_text("numbers").wait_for()
    # The checkpoint's folder is gone, and with it what was logged; what records say takes its place.
    shutil.rmtree(folder / "checkpoint-2")
    ratio.get_by_text("not in these runs").wait_for()
    page.locator("#metric").select_option("rewards/style/mean")
    chosen = page.locator("#chosen-chart figure")
    chosen.get_by_text("numbers").click()
    assert chosen.locator(".plain tbody tr").all_inner_texts() == ["1\t1"]
    write_records(folder, {1: [record(0)]})
    chosen.wait_for(state="detached")
    eventually(lambda: "rewards/style/mean" not in page.locator("#metric option").all_inner_texts())
    visit.close()


def test_stopped_server_is_reported_and_a_restarted_one_followed(serve, browser, tmp_path):
    folder = write_run(tmp_path / "run", steps=1)
    server = serve(folder)
    visit = LiveVisit(browser, server.address)
    page = visit.page
    visit.found("3 of 3 groups")
    end(server)
    page.get_by_text("not live: the server does not answer").wait_for()
    write_records(folder, {9: drawn(random.Random(0), 2, 4)})
    serve(folder, port=server.server_address[1])
    visit.found("5 of 5 groups")
    page.get_by_text(re.compile("^live, ")).wait_for()
    assert not page.get_by_text("not live").is_visible()
    visit.errors.clear()  # the browser says that it could not connect
    visit.close()


def test_page_reloads_if_the_server_returns_with_other_runs(serve, browser, tmp_path):
    server = serve(write_run(tmp_path / "one", 0, steps=1))
    visit = LiveVisit(browser, server.address, "#group-0-1.1.0.1")
    page = visit.page
    page.locator("article").first.wait_for()
    end(server)
    serve(write_run(tmp_path / "two", 1, steps=2), port=server.server_address[1])
    visit.found("6 of 6 groups")
    assert page.title() == "two" and "two" in page.locator("#runs").inner_text() and "#" not in page.url
    visit.errors.clear()  # the browser says that it could not connect
    visit.close()


def test_removed_group_is_reported_and_the_page_continues(serve, browser, tmp_path):
    folder = write_run(tmp_path / "run", 0, steps=3)
    server = serve(folder)
    visit = LiveVisit(browser, server.address, "#group-0-3.1.1.1")
    page = visit.page
    page.locator("article").first.wait_for()
    page.evaluate("() => { drawNews = () => { throw new TypeError('drawing failed'); }; }")
    write_records(folder, {9: drawn(random.Random(0), 2, 4)})
    page.get_by_text("not live: drawing failed").wait_for()
    page.reload()
    page.locator("article").first.wait_for()
    # The run begins again, and another group is requested before the page learns of it.
    page.evaluate("INDEX.runs[0].begun[0] = -1")
    page.evaluate("location.hash = 'group-0-3.1.2.1'")
    page.get_by_text("This group could not be read: The run has started over.").wait_for()
    shutil.rmtree(folder)
    write_run(folder, 1, steps=1)
    visit.found("3 of 3 groups")
    page.wait_for_timeout(2500)  # until it has asked again
    assert page.locator("#live").inner_text().startswith("live, ")
    visit.errors.clear()  # the browser says that an answer was 410
    visit.close()


def test_token_is_removed_from_the_address(serve, browser, tmp_path):
    server = serve(write_run(tmp_path / "run", steps=1), host="0.0.0.0")
    place = f"http://localhost:{server.server_address[1]}/"
    visit = LiveVisit(browser, f"{place}?token={server.token}", "#group-0-1.1.0.1")
    visit.page.locator("article").first.wait_for()
    assert visit.page.url == f"{place}#group-0-1.1.0.1"
    assert visit.page.evaluate("document.cookie") == ""
    visit.page.reload()
    visit.found("3 of 3 groups")
    assert all("token" not in one for one in visit.requests[1:])
    visit.close()


def test_hostile_text_is_shown_and_nothing_of_it_runs(serve, browser, tmp_path):
    folder = tmp_path / '<img src=x onerror=alert("name")>'
    visit = LiveVisit(browser, serve(folder).address)
    page = visit.page
    page.get_by_text("yet. Waiting for it").wait_for()
    rewards = {text[:30]: 1.0 for text in HOSTILE if not re.search("[\ud800-\udfff]", text)}  # no half characters
    texts = enumerate(HOSTILE)
    write_records(
        folder, {1: [record(n, question=text, said=text, result=text, rewards=rewards) for n, text in texts]}
    )
    visit.found(f"{len(HOSTILE)} of {len(HOSTILE)} groups")
    for group in range(len(HOSTILE)):
        page.evaluate(f"location.hash = 'group-0-1.1.{group}.1'")
        page.get_by_role("heading", name=re.compile(rf"^Step 1, group {group}:")).wait_for()
        page.locator(".turn summary").first.click()
    names = page.locator("#step-charts figcaption").all_inner_texts()
    others = page.locator("#metric option").all_inner_texts()
    assert "reward" in names and "rewards/constructor/mean" in others and "rewards/__proto__/mean" in others
    page.locator("#metric").select_option("rewards/constructor/mean")
    page.locator("#chosen-chart figure").wait_for()
    assert page.locator("main").is_visible() and page.locator("#table img, #group img, iframe").count() == 0
    visit.close()


@pytest.mark.alone
def test_ten_thousand_rollouts_are_opened_and_followed_without_a_stop(serve, browser, tmp_path):
    folder, rng = write_run(tmp_path / "run", steps=25, groups=50, rollouts=8, words=60), random.Random(1)
    visit = LiveVisit(browser, serve(folder).address)
    page = visit.page
    visit.found("1,250 of 1,250 groups")
    # The longest time in which the page does nothing else.
    page.evaluate("""() => { let last = performance.now(); window.stop = 0; setInterval(() => {
        const now = performance.now(); window.stop = Math.max(window.stop, now - last); last = now; }, 10); }""")
    begin = time.monotonic()
    for step in (101, 102, 103):
        write_records(folder, {step: drawn(rng, 50, 8, words=60)})
        visit.found(f"{1250 + 50 * (step - 100):,} of {1250 + 50 * (step - 100):,} groups")
    assert page.evaluate("window.stop") < 1000 and time.monotonic() - begin < 30
    visit.close()
