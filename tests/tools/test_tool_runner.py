"""Calls with real threads, loops and processes. Lower bounds of times are exact, upper bounds are generous, because
machines can be busy."""

import asyncio
import gc
import logging
import sys
import threading
import time
from concurrent.futures import wait

import pytest
from calls import Gauge, Notebook, anap, becomes, call, local_tool, nap, requests, timed

from a2tgpo_trl.tools import tool
from a2tgpo_trl.tools.calls import ToolCall
from a2tgpo_trl.tools.runner import MOST_KEPT, STILL_BUSY, ToolRunner
from a2tgpo_trl.tools.settings import ToolSettings, check_tool_settings


# ---- concurrency


def test_calls_of_a_turn_are_made_at_once(make_runner):
    outcomes, seconds = timed(lambda: make_runner(concurrency=64).run(requests(nap, 64)))
    assert [outcome.text for outcome in outcomes] == ["slept"] * 64
    assert 0.2 <= seconds < 1.5  # one after the other: 64 * 0.2 = 12.8


def test_no_more_than_concurrency_calls_run_at_once(make_runner):
    gauge = Gauge()

    def measured() -> str:
        with gauge:
            return nap(0.1)

    _, seconds = timed(lambda: make_runner(concurrency=16).run(requests(measured, 64)))
    assert 8 < gauge.most <= 16
    assert 0.4 <= seconds < 3.0  # 64 / 16 = 4 rounds of 0.1


@pytest.mark.parametrize("words", [{"concurrency": 3}, None], ids=["recipe", "decorator"])
def test_a_tool_can_have_a_concurrency_of_its_own(make_runner, words):
    gauge = Gauge()

    @tool(concurrency=3 if words is None else 60)
    def measured() -> str:
        with gauge:
            return nap(0.05)

    runner = make_runner({"measured": words} if words else None)
    others, mine = runner.submit(requests(nap, 20, seconds=0.05)), runner.submit(requests(measured, 12))
    wait([others, mine])
    assert 1 < gauge.most <= 3


def test_outcomes_stand_in_the_order_of_the_calls(make_runner):
    def echo(wait: float) -> str:
        time.sleep(wait)
        return str(wait)

    waits = [0.2, 0.0, 0.1, 0.05]
    outcomes = make_runner().run([ToolCall(echo, {"wait": wait}) for wait in waits])
    assert [outcome.text for outcome in outcomes] == [str(wait) for wait in waits]


# ---- environments


def test_calls_on_an_environment_run_in_their_order_on_one_thread(make_runner):
    runner, notebook = make_runner(), Notebook()
    turn = requests(notebook.open, 1, notebook)
    turn += [ToolCall(notebook.write, {"text": text}, notebook) for text in "abc"]
    assert [outcome.text for outcome in runner.run(turn)] == ["slept", "a", "a,b", "a,b,c"]
    runner.run(requests(nap, 8, seconds=0.01))
    assert call(runner, notebook.write, notebook, text="d").text == "a,b,c,d"  # in a later turn too


def test_environments_and_plain_tools_do_not_wait_for_each_other(make_runner):
    runner, notebooks = make_runner(), [Notebook() for _ in range(8)]
    turn = [ToolCall(one.sleep, {"seconds": 0.2}, one) for one in notebooks for _ in range(2)] + requests(nap, 4)
    outcomes, seconds = timed(lambda: runner.run(turn))
    assert {outcome.status for outcome in outcomes} == {"ok"}
    assert 0.4 <= seconds < 2.0  # two in a row on each; all in a row: 20 * 0.2 = 4


def test_sync_and_async_methods_of_an_environment_keep_their_order(make_runner):
    notebook = Notebook()
    turn = [ToolCall(notebook.open, {}, notebook), ToolCall(notebook.awrite, {"text": "x"}, notebook)]
    turn += [ToolCall(notebook.write, {"text": "y"}, notebook)]
    assert [outcome.text for outcome in make_runner().run(turn)] == ["slept", "async x", "y"]


def test_an_environment_whose_call_does_not_come_back_is_stuck(make_runner):
    runner, notebook, other = make_runner(timeout=0.1), Notebook(), Notebook()
    first, second = runner.run([ToolCall(notebook.sleep, {"seconds": s}, notebook) for s in (0.6, 0.0)])
    assert (first.status, second.status, second.text) == ("timeout", "timeout", STILL_BUSY)
    assert first.made and not second.made
    assert runner.is_stuck(notebook) and not runner.is_stuck(other)
    assert call(runner, other.sleep, other, seconds=0.0).status == "ok"
    runner.forget(notebook)
    assert not runner.is_stuck(notebook)
    assert becomes(lambda: runner.hung == 0)


# ---- async tools


def test_async_tools_run_together_on_one_loop(make_runner):
    loops = set()

    async def here() -> str:
        loops.add(id(asyncio.get_running_loop()))
        return await anap()

    runner, threads = make_runner(), threading.active_count()
    outcomes, seconds = timed(lambda: runner.run(requests(here, 64)))
    assert {outcome.text for outcome in outcomes} == {"slept"} and len(loops) == 1
    assert 0.2 <= seconds < 1.5
    assert threading.active_count() <= threads + 1


def test_an_async_tool_that_is_late_is_cancelled(make_runner):
    ended = threading.Event()

    async def late() -> str:
        try:
            return await anap(600)
        finally:
            ended.set()

    runner = make_runner(timeout=0.1)
    assert call(runner, late).status == "timeout"
    assert ended.is_set() and runner.hung == 0 and runner.abandoned == 1


def test_an_async_tool_that_blocks_its_loop_is_counted_until_it_comes_back(make_runner):
    release = threading.Event()

    async def block() -> str:
        release.wait(20)
        return "late"

    runner = make_runner(timeout=0.2, hung=5)
    blocked, beside, plain = runner.run([*requests(block), *requests(anap, seconds=60), *requests(nap, seconds=0.0)])
    assert (blocked.status, beside.status, plain.status) == ("timeout", "timeout", "ok")
    assert runner.hung == 1  # one thread, though two calls wait in it
    assert call(runner, anap, seconds=0.0).status == "ok"  # on another loop
    release.set()
    assert becomes(lambda: runner.hung == 0)


def test_many_calls_behind_one_that_blocks_are_one_hung_call_under_its_name(make_runner):
    release, loops = threading.Event(), []

    async def block() -> str:
        loops.append(threading.current_thread())
        release.wait(20)
        return "late"

    runner = make_runner({"block": {"timeout": 5}}, timeout=0.2, hung=0, patience=0)
    blocked = runner.submit(requests(block))
    runner.run(requests(anap, 20))
    assert runner.hung == 1 and "block (1)" in runner.trouble
    release.set()
    assert blocked.result()[0].status in ("ok", "timeout")  # its loop ends when its calls have ended
    assert becomes(lambda: not loops[0].is_alive())


def test_an_async_tool_that_does_not_heed_its_cancellation_is_counted(make_runner):
    notebook = Notebook()

    async def stubborn() -> str:
        for _ in range(15):
            try:
                await asyncio.sleep(0.1)
            except asyncio.CancelledError:
                pass
        return "done"

    runner = make_runner(timeout=0.1)
    assert call(runner, stubborn, notebook).status == "timeout"
    assert runner.hung == 1 and runner.is_stuck(notebook)  # otherwise the next call would run beside it
    assert becomes(lambda: runner.hung == 0)


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, KeyboardInterrupt, StopAsyncIteration])
def test_any_exception_of_an_async_tool_is_a_tool_error(make_runner, error):
    async def fail() -> str:
        raise error("why")

    runner = make_runner()
    outcome = call(runner, fail)
    assert (outcome.status, outcome.text) == ("tool_error", f"Error: {error.__name__}: why")
    assert call(runner, anap, seconds=0.0).status == "ok"


def test_a_task_that_exits_does_not_take_the_loop_with_it(make_runner):
    async def leave():
        sys.exit(3)

    async def start() -> str:
        started.append(asyncio.ensure_future(leave()))
        await asyncio.sleep(0.1)
        return "started"

    started: list = []
    runner = make_runner(timeout=5)
    assert call(runner, start).text == "started"
    assert call(runner, anap, seconds=0.0).status == "ok"
    assert isinstance(started[0].exception(), SystemExit)


# ---- time limits


def test_hung_tool_times_out_and_counts_until_it_returns(make_runner):
    release = threading.Event()

    def hang() -> str:
        release.wait(20)
        return "late"

    runner = make_runner(timeout=0.1, hung=2, patience=0)
    outcome, seconds = timed(lambda: call(runner, hang))
    assert (outcome.status, outcome.text) == ("timeout", "Error: hang did not answer within 0.1 seconds.")
    assert 0.1 <= seconds < 2.0
    runner.run(requests(hang))
    assert (runner.hung, runner.abandoned, runner.trouble) == (2, 2, None)
    runner.run(requests(hang))
    assert runner.hung == 3 and "hang (3)" in runner.trouble and "max_hung_calls=2" in runner.trouble
    release.set()
    assert becomes(lambda: runner.hung == 0)
    runner.begin_batch()
    assert runner.trouble is None and runner.abandoned == 3


def test_threads_do_not_become_more_with_timeouts_that_come_back(make_runner):
    runner, threads = make_runner(timeout=0.1, hung=100, concurrency=20), threading.active_count()
    for _ in range(3):
        runner.run(requests(nap, 20, seconds=0.3))
    assert becomes(lambda: runner.hung == 0)
    assert becomes(lambda: threading.active_count() <= threads)
    runner.run(requests(nap, 20, seconds=0.0))
    assert threading.active_count() <= threads + 20


def hold_gil() -> str:
    return str(sum(range(4 * 10**7)))  # in C, without ever letting another thread run


def test_a_tool_that_holds_the_interpreter_too_long_is_late(make_runner):
    _, held = timed(hold_gil)
    runner = make_runner({"hold_gil": {"timeout": held / 10}})
    (late, beside), seconds = timed(lambda: runner.run([*requests(hold_gil), *requests(nap, seconds=0.0)]))
    assert late.status == "timeout" and beside.status == "ok"
    assert seconds < 5 * held + 2
    assert becomes(lambda: runner.hung == 0)


def test_call_that_times_out_holding_the_gil_is_retried(make_runner):
    runner = make_runner({"hold_gil": {"timeout": 0.02, "retries": 1, "backoff": 0}})
    outcome = call(runner, hold_gil)
    assert (outcome.status, outcome.attempts) == ("timeout", 2)


def test_slow_str_of_a_result_delays_no_other_call(make_runner):
    class Slow:
        def __str__(self):
            time.sleep(1.0)
            return "slow"

    runner = make_runner(timeout=0.1)
    slow = runner.submit(requests(lambda: Slow()))
    assert call(runner, nap, seconds=0.0).status == "ok"
    assert slow.result()[0].status == "timeout"


def test_without_a_limit_a_call_is_waited_for(make_runner):
    assert call(make_runner(timeout=None), nap, seconds=0.1).status == "ok"


# ---- what tools raise and return


class Unprintable(Exception):
    def __str__(self):
        raise SystemExit("no text")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no such page"), "Error: ValueError: no such page"),
        (KeyError("Velm"), "Error: KeyError: 'Velm'"),
        (SystemExit(3), "Error: SystemExit: 3"),
        (KeyboardInterrupt(), "Error: KeyboardInterrupt"),
        (StopIteration(), "Error: StopIteration"),
        (Unprintable(), "Error: Unprintable: (its text could not be made: SystemExit)"),
        (ValueError("\ud800"), "Error: ValueError: ?"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_any_exception_of_a_tool_becomes_its_error_text(make_runner, error, text):
    def fail() -> str:
        raise error

    runner = make_runner()
    outcome = call(runner, fail)
    assert (outcome.status, outcome.text, outcome.attempts) == ("tool_error", text, 1)
    assert call(runner, nap, seconds=0.0).status == "ok"


class Broken:
    def __str__(self):
        raise SystemExit("no text")


@pytest.mark.parametrize(
    ("value", "status", "text"),
    [
        (None, "ok", "The tool returned nothing."),
        (b"caf\xc3\xa9 \xff", "ok", "caf\xe9 \ufffd"),
        ("a\ud800b", "ok", "a?b"),
        ("x" * 10**7, "ok", "x" * 10**7),
        ({"a": 1}, "ok", "{'a': 1}"),
        ([], "ok", "[]"),
        (Broken(), "tool_error", "Error: SystemExit: no text"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": b"b"}], "ok", "a\nb"),
        ([{"type": "city", "name": "Velm"}], "ok", "[{'type': 'city', 'name': 'Velm'}]"),
        (
            [{"type": "text", "text": "a"}, {"type": "image", "image": b""}],
            "tool_error",
            "Error: TypeError: the tool returned a block of type 'image'; this policy reads text only",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_a_tool_returns_becomes_text(make_runner, value, status, text):
    runner = make_runner()
    outcome = call(runner, lambda: value)
    assert outcome.status == status
    assert outcome.text == text
    assert call(runner, nap, seconds=0.0).status == "ok"


def test_coroutine_returned_by_a_sync_tool_is_an_error(make_runner):
    outcome = call(make_runner(), lambda: anap(0.0))
    assert outcome.status == "tool_error" and "async def" in outcome.text


# ---- retries


def test_a_call_is_tried_again_until_it_succeeds(make_runner):
    moments = []

    @tool(retries=3, backoff=0.1)
    def unsteady() -> str:
        moments.append(time.perf_counter())
        if len(moments) < 3:
            raise ConnectionError("try again")
        return "here"

    outcome = call(make_runner(), unsteady)
    assert (outcome.status, outcome.text, outcome.attempts) == ("ok", "here", 3)
    assert moments[1] - moments[0] >= 0.05  # 0.1, less up to half
    assert moments[2] - moments[1] >= 0.1  # 0.2, less up to half


def test_call_is_retried_at_most_as_often_as_set(make_runner):
    made = []

    @tool(retries=2, backoff=0)
    def broken() -> str:
        made.append(1)
        raise ConnectionError("never")

    outcome = call(make_runner(), broken)
    assert (outcome.status, outcome.text, outcome.attempts) == ("tool_error", "Error: ConnectionError: never", 3)
    assert len(made) == 3


def test_only_what_retry_on_names_is_tried_again(make_runner):
    @tool(retries=5, backoff=0, retry_on=(ConnectionError,))
    def broken(error: str) -> str:
        raise {"refused": ConnectionRefusedError, "value": ValueError}[error](error)

    runner = make_runner()
    assert call(runner, broken, error="refused").attempts == 6  # it is a ConnectionError
    assert call(runner, broken, error="value").attempts == 1


def test_a_call_that_waits_for_its_next_attempt_leaves_its_place_to_others(make_runner):
    made = []

    @tool(retries=1, backoff=1.0, concurrency=1)
    def unsteady() -> str:
        made.append(1)
        if len(made) == 1:
            raise ConnectionError("try again")
        return "here"

    runner = make_runner(concurrency=1)
    first = runner.submit(requests(unsteady))
    assert becomes(lambda: made)
    assert call(runner, unsteady).attempts == 1
    assert call(runner, nap, seconds=0.0).status == "ok"
    assert not first.done() and first.result()[0].attempts == 2


def test_retry_backoff_does_not_overflow(make_runner):
    @tool(retries=1100, backoff=1e-9)
    def broken() -> str:
        raise ConnectionError("never")

    assert call(make_runner(), broken).attempts == 1101  # 1e-9 * 2 ** 1099 seconds would overflow


# ---- calls made once


def test_equal_calls_of_a_cached_tool_are_made_once(make_runner):
    made = []

    @tool(cache=True)
    def look_up(word: str, page: int = 1) -> str:
        made.append(word)
        time.sleep(0.1)
        return word.upper()

    runner = make_runner()
    outcomes = runner.run(requests(look_up, 8, word="a", page=2) + requests(look_up, word="b"))
    outcomes += runner.run(requests(look_up, page=2, word="a"))
    assert [outcome.text for outcome in outcomes] == ["A"] * 8 + ["B", "A"]
    assert sorted(made) == ["a", "b"]
    assert [outcome.attempts for outcome in outcomes] == [1, 0, 0, 0, 0, 0, 0, 0, 1, 0]


def test_failed_calls_are_not_cached(make_runner):
    made = []

    @tool(cache=True)
    def look_up() -> str:
        made.append(1)
        if len(made) == 1:
            raise ConnectionError("down")
        return "up"

    runner = make_runner()
    assert [call(runner, look_up).status for _ in range(3)] == ["tool_error", "ok", "ok"]
    assert len(made) == 2


# ---- outages


class Server:
    """A server that a tool needs."""

    def __init__(self, up=True, **words):
        self.up, self.asked, self.called = up, 0, 0

        @tool(check=self.check, **words)
        def search(query: str) -> str:
            self.called += 1
            if not self.up:
                raise ConnectionError("refused")
            if query == "bad":
                raise ValueError("a bad query")
            return f"found {query}"

        self.search = search

    def check(self):
        self.asked += 1
        if not self.up:
            raise ConnectionError("nothing listens on port 8000")


def test_a_tool_that_is_not_up_is_named_before_the_first_step(make_runner):
    runner = make_runner()
    runner.check([nap, Server().search])
    with pytest.raises(RuntimeError, match="search: ConnectionError: nothing listens on port 8000"):
        runner.check([nap, Server(up=False).search])


def test_hung_check_counts_as_failed(make_runner):
    @tool(check=lambda: time.sleep(1.0), timeout=0.1)
    def search() -> str:
        return ""

    runner = make_runner()
    with pytest.raises(RuntimeError, match="search: its check did not answer within 0.1 seconds"):
        runner.check([search])
    assert becomes(lambda: runner.hung == 0)


def test_a_tool_that_goes_down_is_waited_for(make_runner):
    server = Server(up=False, backoff=0.05)
    runner = make_runner(patience=30)
    future = runner.submit(requests(server.search, 8, query="Velm"))
    assert becomes(lambda: server.asked >= 3)
    assert not future.done()
    server.up = True
    assert {(outcome.status, outcome.text, outcome.attempts) for outcome in future.result(timeout=20)} == {
        ("ok", "found Velm", 2)
    }
    assert runner.trouble is None


def test_a_tool_that_stays_down_stops_the_run(make_runner):
    server, runner = Server(up=False, backoff=0.05), make_runner(patience=0.3)
    outcomes, seconds = timed(lambda: runner.run(requests(server.search, 4, query="Velm")))
    assert {outcome.text for outcome in outcomes} == {"Error: ConnectionError: refused"}
    assert 0.3 <= seconds < 5
    assert "search is down" in runner.trouble and "nothing listens on port 8000" in runner.trouble
    asked = server.asked
    call(runner, server.search, query="Velm")
    assert server.asked == asked  # it was waited for only once


def test_a_run_can_go_on_without_a_tool_that_stays_down(make_runner, caplog):
    server, runner = Server(up=False, backoff=0.05), make_runner(patience=0.2, stop_when_down=False)
    assert call(runner, server.search, query="Velm").status == "tool_error"
    assert runner.trouble is None and "continues without it" in caplog.text
    runner.begin_batch()
    server.up = True
    assert call(runner, server.search, query="Velm").status == "ok"


def test_failed_call_is_not_repeated_if_the_check_passes(make_runner):
    server, runner = Server(), make_runner(patience=30)
    outcome, seconds = timed(lambda: call(runner, server.search, query="bad"))
    assert outcome.text == "Error: ValueError: a bad query" and seconds < 5
    assert (server.called, server.asked) == (1, 1)


def test_hung_environment_call_is_not_repeated_after_an_outage(make_runner):
    class Browser:
        calls, up = 0, False

        @tool(timeout=0.1, backoff=0.05, check=lambda: Browser.ping())
        def load(self) -> str:
            Browser.calls += 1
            return nap(0.5)

        @classmethod
        def ping(cls):
            if not cls.up:
                cls.up = True
                raise ConnectionError("down, at the first look")

    browser, runner = Browser(), make_runner(patience=5)
    assert call(runner, browser.load, browser).status == "timeout"
    assert Browser.calls == 1


# ---- the coordinator itself


def test_coordinator_errors_reach_the_waiting_caller(make_runner):
    @tool(cache=True)
    def search(query: str) -> str:
        return query

    runner = make_runner({"local": {"process": True}})
    local = local_tool()
    local.__name__ = "local"
    for broken in (requests(search, query={1, 2}), requests(local)):  # not JSON; no such module
        future = runner.submit([*requests(nap, seconds=0.0), *broken])
        assert isinstance(future.exception(timeout=10), (TypeError, ValueError))
    assert call(runner, search, query="x").text == "x"


def test_a_runner_keeps_nothing_of_environments_and_closures_that_are_gone(make_runner):
    runner, threads = make_runner(), threading.active_count()
    for _ in range(20):
        notebook = Notebook()
        runner.settings(notebook.sleep)
        runner.run([*requests(notebook.sleep, 1, notebook, seconds=0.0), *requests(lambda: "x")])
    del notebook
    gc.collect()
    assert becomes(lambda: len(runner._attempts._orders) == 0)
    assert becomes(lambda: threading.active_count() <= threads + 2)


def test_results_that_are_kept_have_a_bound(make_runner, monkeypatch):
    monkeypatch.setattr("a2tgpo_trl.tools.runner.MOST_KEPT", 10)
    assert MOST_KEPT > 10

    @tool(cache=True)
    def echo(number: int) -> str:
        return str(number)

    runner = make_runner()
    outcomes = runner.run([ToolCall(echo, {"number": number}) for number in range(50)])
    assert [outcome.text for outcome in outcomes] == [str(number) for number in range(50)]
    assert len(runner._results) == 10
    assert call(runner, echo, number=49).attempts == 0 and call(runner, echo, number=0).attempts == 1


# ---- settings


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"timeout": -1}, "timeout must be a number of seconds above 0; got -1"),
        ({"timeout": 0}, "timeout must be"),
        ({"timeout": "10"}, "timeout must be"),
        ({"timeout": float("nan")}, "timeout must be"),
        ({"timeout": True}, "timeout must be"),
        ({"retries": None}, "retries must be a whole number, at least 0; got None"),
        ({"retries": 1.5}, "retries must be"),
        ({"backoff": float("inf")}, "backoff must be"),
        ({"concurrency": 0}, "concurrency must be a whole number, at least 1"),
        ({"max_result_tokens": 0}, "max_result_tokens must be"),
        ({"cache": 1}, "cache must be true or false"),
        ({"final": "yes"}, "final must be true or false"),
        ({"process": None}, "process must be true or false"),
        ({"retry_on": ConnectionError}, "retry_on must be a tuple of exception classes"),
        ({"retry_on": [ConnectionError]}, "retry_on must be a tuple of exception classes"),
        ({"check": "ping"}, "check must be a function"),
        ({"check": anap}, "check must be a function"),
        ({"timout": 5}, "there is no setting 'timout'. Did you mean 'timeout'?"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_invalid_tool_decorator_setting_is_refused_by_name(words, message):
    with pytest.raises(ValueError, match=r"^tool\(\): ") as raised:
        tool(**words)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"nap": {"timeout": "soon"}}, "tool_settings of nap: A tool's timeout must be"),
        ({"nap": {"retry_on": [OSError]}}, "there is no setting 'retry_on'"),
        ({"nap": {"check": nap}}, "there is no setting 'check'"),
        ({"nap": {1: 2}}, "there is no setting 1"),
        ({"nap": 10}, "nap must be a mapping"),
        ({"napp": {}}, "there is no tool 'napp'. Did you mean 'nap'?"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_tool_settings_of_a_recipe_are_refused(words, message):
    with pytest.raises(ValueError) as raised:
        check_tool_settings([nap, anap], words)
    assert message in str(raised.value)


def test_recipe_settings_override_the_tool_decorator(make_runner):
    @tool(timeout=10, retries=3, final=True, retry_on=(OSError,))
    def search() -> str:
        return ""

    found = make_runner({"search": {"timeout": 5}}).settings(search)
    assert found == ToolSettings(timeout=5, retries=3, final=True, retry_on=(OSError,))


def test_a_tool_with_concurrency_1_is_called_on_one_thread():
    runner, threads = ToolRunner(), set()

    @tool(concurrency=1)
    def here(i: int) -> str:
        threads.add(threading.get_ident())
        time.sleep(0.002)
        return str(i)

    def anywhere(i: int) -> str:
        return str(i)

    for _ in range(3):
        requests = [ToolCall(function, {"i": i}) for i in range(10) for function in (here, anywhere)]
        assert [outcome.text for outcome in runner.run(requests)] == [str(i) for i in range(10) for _ in range(2)]
    assert len(threads) == 1
    runner.close()


class Unruly:
    """An environment whose calls are late, and which fails to cancel them."""

    def _cancel(self) -> None:
        raise KeyError("no session")

    @tool(timeout=0.1, cancel=_cancel)
    def sleep(self) -> str:
        return nap(0.4)


def test_cancel_that_raises_warns_once_and_the_calls_time_out(make_runner, caplog):
    runner = make_runner()
    environment = runner.construct(Unruly)
    with caplog.at_level(logging.WARNING, logger="a2tgpo_trl"):
        outcomes = runner.run([ToolCall(environment.sleep, {}, environment)] * 2)
    assert [outcome.status for outcome in outcomes] == ["timeout"] * 2 and not runner.is_stuck(environment)
    assert [record.message for record in caplog.records] == [
        "cancel() of the tool sleep raised KeyError: 'no session'. Late calls are waited for and then given up."
    ]


# ---- settings without an effect


class Diary:
    def read(self) -> str:
        return "a page"


def a_note() -> str:
    return "a note"


@pytest.mark.parametrize(
    ("settings", "of_method", "words"),
    [
        ({"cache": True}, True, "cache has no effect on read, a method of an environment"),
        (
            {"cancel": str},
            False,
            "cancel has no effect on a_note: it is called with the environment, and this tool is not a method of one",
        ),
        ({"release": str}, False, "release has no effect on a_note"),
    ],
)
def test_a_setting_that_would_have_no_effect_is_refused(make_runner, settings, of_method, words):
    class Owner(Diary):
        read = tool(**settings)(lambda self: "a page")

    Owner.read.__name__ = "read"
    runner = make_runner()
    function = tool(**settings)(lambda: "a note")
    function.__name__ = "a_note"
    with pytest.raises(ValueError, match=words):
        runner.prepare([runner.construct(Owner).read if of_method else function])
    runner.prepare([runner.construct(Diary).read, a_note])


def test_a_cache_of_an_environment_is_refused_in_a_recipe_too(make_runner):
    runner = make_runner({"read": {"cache": True}})
    with pytest.raises(ValueError, match="cache has no effect on read"):
        runner.prepare([runner.construct(Diary).read])
