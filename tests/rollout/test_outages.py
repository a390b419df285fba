"""Servers on this machine that stall for a while, and what happens to the calls that are pending meanwhile."""

import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import urlopen

import pytest
import tiny
from calls import becomes, requests, timed
from tool_runs import args, one_call, spread
from training import make

from a2tgpo_trl.rollout.checks import check_patience
from a2tgpo_trl.rollout.settings import ToolConfig
from a2tgpo_trl.tools import tool


AT_ONCE = 40  # calls in a turn
LATE = 0.2  # seconds that a call may take


class StallingServer:
    """Answers over HTTP, except between `stall` and `go_on`. `loses`: requests made in between get no answer later."""

    def __init__(self, loses: bool = False):
        self.loses, self.closed = loses, threading.Event()
        self._goes_on = threading.Event()
        self._goes_on.set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                if not server._goes_on.is_set():
                    (server.closed if server.loses else server._goes_on).wait()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"Paris")

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 256

            def handle_error(self, *_):
                pass  # nobody waits for a lost answer after the test

        self._http = Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def stall(self, seconds: float | None = None) -> None:
        self._goes_on.clear()
        if seconds is not None:
            threading.Timer(seconds, self.go_on).start()

    @property
    def goes_on(self) -> bool:
        return self._goes_on.is_set()

    def go_on(self) -> None:
        self._goes_on.set()

    def ask(self, query: str = "") -> str:
        with urlopen(self.address) as answer:  # no timeout of its own, like many clients
            return answer.read().decode()

    def close(self) -> None:
        self.go_on()
        self.closed.set()
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def make_server():
    made = []

    def make(**words):
        made.append(StallingServer(**words))
        return made[-1]

    yield make
    for server in made:
        server.close()


@contextmanager
def most_threads():
    """The largest number of threads at any time, beyond those that existed before."""
    before, most, done = threading.active_count(), [0], threading.Event()

    def watch():
        while not done.wait(0.01):
            most[0] = max(most[0], threading.active_count() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield most
    done.set()
    watcher.join()


def search_of(server, **words):
    @tool(**{"backoff": 0.05, **words})
    def search(query: str) -> str:
        return server.ask(query)

    return search


def test_short_stall_detected_by_a_check_fails_no_call(make_server, make_runner):
    server = make_server()
    runner = make_runner(timeout=LATE, hung=4, concurrency=AT_ONCE, patience=30)
    search = search_of(server, check=server.ask)
    server.stall(seconds=1.0)
    outcomes, seconds = timed(lambda: runner.run(requests(search, AT_ONCE, query="France")))
    assert {outcome.status for outcome in outcomes} == {"ok"}
    assert 1.0 <= seconds < 20 and runner.trouble is None
    assert becomes(lambda: runner.hung == 0)


def test_calls_lost_in_an_outage_do_not_count_as_hung_afterwards(make_server, make_runner):
    server = make_server(loses=True)
    runner = make_runner(timeout=LATE, hung=4, concurrency=AT_ONCE, patience=30)
    search = search_of(server, check=server.ask)
    server.stall(seconds=1.0)
    assert {outcome.status for outcome in runner.run(requests(search, AT_ONCE, query="France"))} == {"ok"}
    assert runner.trouble is None and runner.hung >= AT_ONCE
    # They are still pending, and the next turn is called as if they were not.
    outcomes, seconds = timed(lambda: runner.run(requests(search, AT_ONCE, query="Spain")))
    assert {outcome.status for outcome in outcomes} == {"ok"} and seconds < 5


def test_stall_without_a_check_delays_further_calls_and_bounds_threads(make_server, make_runner):
    server, runner = make_server(), make_runner(timeout=LATE, hung=4, concurrency=8, patience=30)
    search = search_of(server)
    server.stall(seconds=1.5)
    with most_threads() as most:
        outcomes = runner.run(requests(search, AT_ONCE, query="France"))
    # At most 4 + 8 calls are late: with 4 pending, 8 more may have begun. All others waited.
    late = [outcome for outcome in outcomes if outcome.status == "timeout"]
    assert 5 <= len(late) <= 4 + 8
    assert {outcome.status for outcome in outcomes if outcome not in late} == {"ok"}
    assert runner.trouble is None
    # Each call has a thread here, and one in the server.
    assert most[0] <= 2 * (4 + 8) + 2


def test_a_stall_that_outlasts_the_patience_stops_the_run(make_server, make_runner, caplog):
    server, runner = make_server(), make_runner(timeout=LATE, hung=4, concurrency=8, patience=0.5)
    server.stall()
    outcomes, seconds = timed(lambda: runner.run(requests(search_of(server), AT_ONCE, query="France")))
    assert "ok" not in {outcome.status for outcome in outcomes}
    assert "search was not called: earlier calls have not come back" in outcomes[-1].text
    assert outcomes[0].made and not outcomes[-1].made
    assert "max_hung_calls=4" in runner.trouble and "within 0.5 s" in runner.trouble and "search (" in runner.trouble
    assert LATE + 0.5 <= seconds < 5 and runner.hung <= 4 + 8
    assert "Further calls to search wait" in caplog.text


def test_a_tool_that_is_slow_holds_up_no_other(make_server, make_runner):
    server, runner = make_server(), make_runner(timeout=LATE, hung=4, concurrency=8, patience=30)
    server.stall()
    waiting = runner.submit(requests(search_of(server), 20, query="France"))
    assert becomes(lambda: runner.hung > 4)

    def add(a: int, b: int) -> str:
        return str(a + b)

    assert runner.submit(requests(add, 10, a=1, b=2)).result(timeout=5)[-1].text == "3"
    server.go_on()
    assert waiting.result(timeout=20)


def test_run_continuing_without_a_tool_waits_for_it_once_per_batch(make_server, make_runner):
    server, patience = make_server(loses=True), 1.0
    runner = make_runner(timeout=LATE, hung=4, concurrency=8, patience=patience, stop_when_down=False)

    def is_there() -> None:
        if not server.goes_on:
            raise ConnectionError("refused")

    search = search_of(server, check=is_there)

    def turn() -> tuple[set[str], float]:
        outcomes, seconds = timed(lambda: runner.run(requests(search, 8, query="France")))
        return {outcome.status for outcome in outcomes}, seconds

    server.stall()
    for _ in range(2):  # batches: in the second one, the calls of the first are still pending
        statuses, seconds = turn()
        assert "ok" not in statuses and patience <= seconds < 2 * patience
        for _ in range(3):
            statuses, seconds = turn()
            assert "ok" not in statuses and seconds < patience / 2
        runner.begin_batch()
    time.sleep(1.5 * patience)  # waits in the last batch must not stop the next one
    assert runner.trouble is None
    server.go_on()
    assert turn()[0] == {"ok"} and runner.trouble is None


def test_hung_checks_do_not_count_as_hung_calls(make_server, make_runner, monkeypatch):
    monkeypatch.setattr("a2tgpo_trl.tools.hung.MOST_EXCUSED", 0)  # as after outages that used up the excuses
    server = make_server(loses=True)
    runner = make_runner(timeout=0.05, hung=4, patience=0.5, stop_when_down=False)
    search = search_of(server, check=server.ask)
    server.stall()
    for _ in range(3):  # batches, in each of which the check is asked several times
        assert runner.run(requests(search, 1, query="France"))[0].status == "timeout"
        runner.begin_batch()
    assert runner.trouble is None and runner.hung > 3 + 4  # three calls, and more checks than the calls that may hang


def test_run_survives_a_stall_shorter_than_the_patience(tmp_path, make_server):
    tokenizer, server, statuses = tiny.make_tokenizer(), make_server(), []
    search = tool(check=server.ask, timeout=LATE, backoff=0.05)(tiny.searches(server.ask))
    config = args(tmp_path, max_steps=3, outage_patience=30.0, max_hung_calls=2)
    trainer = make(tokenizer, config, scripted=False, reward_funcs=spread, tools=[search])

    def write(turn: int, row: int) -> str:
        if trainer.state.global_step == 1 and turn == 0 and row == 0:
            server.stall(seconds=1.0)
        return one_call(turn, row)

    tiny.script(trainer.model, tokenizer, write)
    trainer.on_rollouts = lambda records: statuses.extend(record["turns"][0]["status"] for record in records)
    start = time.monotonic()
    trainer.train()
    assert trainer.state.global_step == 3 and statuses == ["ok"] * 12
    assert time.monotonic() - start >= 1.0


def test_patience_above_the_timeout_of_the_process_group_is_an_error(tmp_path):
    patient = ToolConfig(str(tmp_path), bf16=False, outage_patience=3600.0)
    check_patience(patient, processes=1)
    with pytest.raises(ValueError, match=r"outage_patience \(3600 s\) is not below ddp_timeout \(1800 s\)"):
        check_patience(patient, processes=2)
    patient.ddp_timeout = 7200
    check_patience(patient, processes=2)
