"""The live page's server, over real HTTP: only what is new, who may read, runs that begin again, bad input."""

import contextlib
import gzip
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from urllib.parse import urlencode

import pytest
from ranks import free_port
from recorded import HOSTILE, drawn, record, write_log, write_records, write_run

from a2tgpo_trl.cli import main
from a2tgpo_trl.rollout.reading import plain
from a2tgpo_trl.view import server as serving
from a2tgpo_trl.view.server import ViewServer
from a2tgpo_trl.view.watch import Watch, holds


class Reader:
    """Asks a server as the page does: it knows an epoch and a number, and what it was told by run, kind and key."""

    def __init__(self, server: ViewServer):
        self.port = server.server_address[1]
        self.epoch, self.number, self.share = "", 0, 0.0
        self.known: dict[tuple[int, str, str], object] = {}

    def get(self, path: str, host: str | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.putrequest("GET", path, skip_host=True, skip_accept_encoding=True)
            for name, value in {"Host": f"localhost:{self.port}" if host is None else host, **headers}.items():
                if value:
                    connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def ask(self, path: str, **asked: object) -> dict:
        code, _, body = self.get(f"/{path}?{urlencode(asked)}")
        assert code == 200, body
        return json.loads(body)

    def news(self) -> list[list]:
        """What is new, asked for until everything was told."""
        entries = []
        for _ in range(200):
            told = self.ask("news", epoch=self.epoch, since=self.number)
            entries += told["entries"]
            self.epoch, self.number = told["epoch"], told["number"]
            if told["share"] == 1:
                break
        for run, kind, key, value in entries:
            if kind == "begun":
                self.known = {name: one for name, one in self.known.items() if name[0] != run}
            self.known[run, kind, key] = value
        return entries

    def all(self, kind: str, run: int = 0) -> dict[str, object]:
        return {key: one for (of, name, key), one in self.known.items() if (of, name) == (run, kind) and one}


@pytest.fixture
def serve(monkeypatch):
    """Start servers of runs, and stop them."""
    monkeypatch.setattr(serving, "APART", 0.0)
    started = []

    def start(*folders: Path, host: str = "127.0.0.1") -> Reader:
        server = ViewServer(host, 0, folders)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        started.append((server, thread))
        reader = Reader(server)
        reader.server = server
        return reader

    yield start
    for server, thread in started:
        server.shutdown()
        thread.join()
        server.server_close()


# ---- what is new


def test_growing_run_is_served_incrementally(serve, tmp_path):
    folder, rng = tmp_path / "run", random.Random(0)
    reader = serve(folder)
    reader.news()
    assert "There is no folder" in reader.known[0, "notes", ""][0]
    folder.mkdir()
    reader.news()
    assert "Waiting for the first" in reader.known[0, "notes", ""][0]
    write_records(folder, {1: drawn(rng, 3, 4)})
    reader.news()
    assert set(reader.all("groups")) == {"1.1.0.1", "1.1.1.1", "1.1.2.1"} and set(reader.all("curves")) == {"1"}
    assert "no log yet" in reader.known[0, "notes", ""][0]
    assert reader.news() == []
    # One more batch: its groups, its numbers, and nothing of the step before.
    write_records(folder, {6: drawn(rng, 2, 4)})
    told = reader.news()
    assert {(kind, key) for _, kind, key, _ in told} == {
        *(("groups", key) for key in ("6.1.0.1", "6.1.1.1")),
        *((kind, "6") for kind in ("curves", "turns", "envelopes")),
    }
    assert reader.news() == []
    # A checkpoint brings a log, which says more; for later steps the records remain.
    write_log(folder / "checkpoint-4", rng, 4)
    reader.news()
    assert set(reader.all("curves")) == {"1", "2", "3", "4", "6"} and set(reader.all("logged")) == {"1", "2", "3", "4"}
    assert reader.known[0, "curves", "1"]["reward"] == 0.25
    write_log(folder, rng, 8)
    (folder / "evaluation").mkdir()
    score = {"mean": 0.5, "low": 0.4, "high": 0.6}
    (folder / "evaluation" / "after.json").write_text(json.dumps({"everything": {"exact_match": score}}))
    reader.news()
    assert set(reader.all("curves")) == set("12345678") and reader.known[0, "notes", ""] == []
    assert reader.known[0, "scores", ""] == {"exact_match": [[8, 0.5, 0.4, 0.6]]}


def test_live_data_equal_those_of_the_static_page(serve, tmp_path):
    from a2tgpo_trl.view.curves import by_step, by_turn, envelopes
    from a2tgpo_trl.view.groups import groups_of, line, shown
    from a2tgpo_trl.view.run import read_runs

    folder = write_run(tmp_path / "run", steps=3)
    reader = serve(folder)
    reader.news()
    (run,) = read_runs([folder])
    groups = groups_of(run.records)
    assert list(reader.all("groups").values()) == list(map(line, groups))
    for kind, curves in (("curves", by_step(run)), ("envelopes", envelopes(run))):
        told = reader.all(kind)
        assert {name for numbers in told.values() for name in numbers} == set(curves)
        for name, (steps, values) in curves.items():
            assert [told[str(step)][name] for step in steps] == values
    for name, metric in by_turn(run).items():
        told = reader.all("logged" if name in ("turn_ratio", "clip_fraction") else "turns")
        assert [told[str(step)][name] for step in metric["steps"]] == list(
            map(list, zip(metric["sums"], metric["numbers"], strict=True))
        )
    for key, group in zip(reader.all("groups"), groups, strict=True):
        assert reader.ask("group", run=0, begun=0, key=key) == shown(group, has_credit=True)


def test_incomplete_lines_and_logs_are_not_read_until_complete(serve, tmp_path):
    write_records(tmp_path, {1: [record(0, said="日本"), record(0, said="日本")]})
    file = tmp_path / "rollouts" / "step-000001-rank-0.jsonl"
    whole = file.read_bytes()
    half = len(whole) // 2
    file.write_bytes(whole[: whole.index("本".encode()) + 1])  # in the middle of a character
    reader = serve(tmp_path)
    reader.news()
    assert reader.all("groups") == {} and "last line is incomplete" in reader.known[0, "notes", ""][0]
    for end, rollouts in ((half + 20, 1), (len(whole), 2)):
        file.write_bytes(whole[:end])
        reader.news()
        assert reader.all("groups")["1.1.0.1"]["rollouts"] == rollouts
    assert not any("incomplete" in note for note in reader.known[0, "notes", ""])
    assert reader.known[0, "begun", ""][0] == 0
    # The log of a checkpoint is written in place too: what was known remains.
    state = tmp_path / "checkpoint-2" / "trainer_state.json"
    write_log(state.parent, random.Random(0), 2)
    reader.news()
    text = state.read_text()
    state.write_text(text[:50])
    reader.news()
    assert set(reader.all("curves")) == {"1", "2"} and "is not the log of a run" in reader.known[0, "notes", ""][0]
    state.write_text(text)
    reader.news()
    assert "ends with checkpoint-2" in reader.known[0, "notes", ""][0]


def test_restarted_training_replaces_all_data_of_the_old_one(serve, tmp_path):
    old, other = write_run(tmp_path / "run", 0, steps=3), write_run(tmp_path / "other", 2, steps=1)
    reader = serve(old, other)
    reader.news()
    assert len(reader.all("groups")) == 9
    shutil.rmtree(old)
    reader.news()
    assert reader.known[0, "begun", ""][0] == 1 and reader.all("groups") == reader.all("curves") == {}
    assert "There is no folder" in reader.known[0, "notes", ""][0] and len(reader.all("groups", 1)) == 3
    write_run(old, 1, steps=1)
    reader.news()
    assert len(reader.all("groups")) == 3 and set(reader.all("curves")) == {"1", "2"}
    # An earlier key leads nowhere.
    assert reader.get("/group?run=0&begun=0&key=1.1.0.1")[0] == 410
    assert reader.get("/search?run=0&begun=0&from=0&words=x")[0] == 410
    assert reader.ask("group", run=0, begun=1, key="1.1.0.1")["rollouts"]
    # Overwritten in place by a batch with fewer groups.
    write_records(old, {1: drawn(random.Random(3), 1, 2)})
    reader.news()
    assert set(reader.all("groups")) == {"1.1.0.1"}


def test_rollouts_of_a_further_rank_join_their_group(serve, tmp_path):
    write_records(tmp_path, {1: [record(0)]})
    reader = serve(tmp_path)
    reader.news()
    first = tmp_path / "rollouts" / "step-000001-rank-0.jsonl"
    first.with_name("step-000001-rank-1.jsonl").write_bytes(first.read_bytes())
    first.with_name("step-000001-rank-0-batch-2.jsonl").write_bytes(first.read_bytes())
    reader.news()
    assert {key: one["rollouts"] for key, one in reader.all("groups").items()} == {"1.1.0.1": 2, "1.2.0.1": 1}
    assert len(reader.ask("group", run=0, begun=0, key="1.1.0.1")["rollouts"]) == 2


def test_restarted_server_sends_everything_again(serve, tmp_path):
    reader = serve(write_run(tmp_path / "run", steps=2))
    whole = reader.news()
    again = serve(tmp_path / "run")
    again.epoch, again.number = reader.epoch, reader.number
    assert again.news() == whole and again.epoch != reader.epoch
    # With the names of its runs, which may differ from the page's.
    assert again.ask("news", epoch=reader.epoch, since=0)["names"] == ["run"]
    assert "names" not in again.ask("news", epoch=again.epoch, since=0)


def test_search_covers_rollout_texts_and_continues_where_it_stopped(serve, tmp_path, monkeypatch):
    for step in range(1, 6):
        write_records(tmp_path, {step: [record(0), record(1, result=f"A Comet of step {step}")]})
    reader = serve(tmp_path)
    reader.news()
    monkeypatch.setattr(serving, "AT_ONCE", 0.0)  # one step at a time
    found, first = [], 0
    while first is not None:
        told = reader.ask("search", run=0, begun=0, words="COMET OF", **{"from": first})
        assert len(told["found"]) == 1 and 0 < told["share"] <= 1
        found, first = found + told["found"], told["next"]
    assert found == [f"{step}.1.1.1" for step in range(1, 6)]
    assert holds({"turns": [{"said": "A Comet"}]}, "comet")
    assert not holds({"turns": [{"said": "A", "pieces": {"texts": ["Comet"]}, "advantage": 1.5}]}, "comet")
    # Our own words are not texts of rollouts: all that was written is that each call and turn is "ok".
    assert reader.ask("search", run=0, begun=0, words="ok", **{"from": 0})["found"] == []
    assert reader.ask("search", run=0, begun=0, words="answer>bo", **{"from": 0})["found"]
    assert not holds({"ended": "answer", "turns": [{"calls": [{"text": "f()", "status": "ok"}]}]}, "answer")


def test_invalid_record_files_are_noted_and_the_rest_is_shown(serve, tmp_path):
    write_records(tmp_path, {1: [record(0)]})
    for name, text in (("step-000002-rank-0.jsonl", '{"a": 1}\n'), ("step-000003-rank-0.jsonl", "no json\n")):
        (tmp_path / "rollouts" / name).write_text(text)
    (tmp_path / "rollouts" / "notes.jsonl").write_text("mine\n")
    strange = {**record(0), "advantages": None}
    write_records(tmp_path, {4: [strange]})
    reader = serve(tmp_path)
    reader.news()
    notes = reader.known[0, "notes", ""]
    assert len(reader.all("groups")) == 1 and sum("is not a file of rollouts" in note for note in notes) == 2
    assert any("Step 4 is left out" in note for note in notes) and any("notes.jsonl is not" in note for note in notes)
    # Files that could be read are searched.
    searched = {"run": 0, "begun": 0, "from": 0, "words": "mayor of rome"}
    assert reader.ask("search", **searched) == {"found": ["1.1.0.1"], "next": None, "share": 1.0}
    # Nothing is left of a step that was good before; a step that is good enough for the table may still fail to open.
    write_records(tmp_path, {1: [strange, strange], 5: [{**record(0), "values": ["high"]}]})
    reader.news()
    assert set(reader.all("groups")) == {"5.1.0.1"} and reader.all("turns").keys() == {"5"}
    assert reader.get("/group?run=0&begun=0&key=1.1.0.1")[0] == 410
    code, _, body = reader.get("/group?run=0&begun=0&key=5.1.0.1")
    assert code == 400 and b"not in the form that training writes" in body
    assert reader.ask("search", **searched)["found"] == []
    reader.news()
    assert any("Step 5 is not searched" in note for note in reader.known[0, "notes", ""])


def test_numbers_that_are_not_finite_are_left_out(serve, tmp_path):
    from a2tgpo_trl.view.html import make_page
    from a2tgpo_trl.view.run import read_runs

    folder = write_run(tmp_path / "run", steps=1)
    state = json.loads((folder / "trainer_state.json").read_text())
    for step, mean in ((1, float("inf")), (2, float("nan"))):
        state["log_history"].append({"step": step, "eval_rewards/exact_match/mean": mean})
    (folder / "trainer_state.json").write_text(json.dumps(state))
    score = {"mean": 0.5, "low": 0.25, "high": float("inf")}
    endless = {**score, "mean": float("-inf")}
    (folder / "evaluation" / "after.json").write_text(
        json.dumps({"everything": {"exact_match": score, "f1": endless}})
    )
    reader = serve(folder)
    reader.news()
    scores = reader.known[0, "scores", ""]
    assert scores["exact_match"][1:] == [[2, 0.5, 0.25, None]] and "f1" not in scores
    assert set(reader.all("curves")) == {"1", "2"}
    assert make_page(read_runs([folder]))


def test_unreadable_folder_gives_a_503(serve, tmp_path, monkeypatch):
    reader = serve(write_run(tmp_path / "run", steps=1))
    reader.news()
    look = Watch._files

    def refusing(self):
        raise PermissionError(13, "Permission denied", str(self.folder))

    monkeypatch.setattr(Watch, "_files", refusing)
    code, _, body = reader.get(f"/news?epoch={reader.epoch}&since={reader.number}")
    assert code == 503 and b"Permission denied" in body
    monkeypatch.setattr(Watch, "_files", look)
    assert reader.news() == []


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_travels_as_json_and_nothing_else(text, serve, tmp_path):
    write_records(tmp_path, {1: [record(0, question=text, said=text, result=text, answer=text)]})
    reader = serve(tmp_path)
    reader.news()
    code, headers, body = reader.get("/group?run=0&begun=0&key=1.1.0.1")
    assert code == 200 and headers["Content-Type"] == "application/json" and body.isascii()
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert json.loads(body)["rollouts"][0]["turns"][0]["said"][:1000] == plain(text)[:1000]


# ---- who may read


def test_foreign_host_headers_are_refused_on_loopback(serve, tmp_path):
    reader = serve(write_run(tmp_path / "run", steps=1))
    for host in ("localhost", "localhost:9000", "127.0.0.1:8500", "[::1]:8500", "LOCALHOST:1"):
        assert reader.get("/", host)[0] == 200, host
    for host in (
        "evil.example",
        "evil.example:8500",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "[::1",
    ):
        for path in ("/", "/news?epoch=&since=0", "/group?run=0&begun=0&key=1.1.0.1"):
            code, _, body = reader.get(path, host)
            assert code == 403 and b"run" not in body, host
    assert reader.get("/", "", Origin="http://evil.example")[0] == 403


def test_page_may_connect_only_to_its_own_server(serve, tmp_path):
    reader = serve(tmp_path / "run")
    code, headers, body = reader.get("/")
    page = body.decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["connect-src"] == "'self'" and rules["default-src"] == rules["form-action"] == "'none'"
    assert "unsafe" not in policy and headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    assert headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in headers and headers["Cross-Origin-Resource-Policy"] == "same-origin"
    packed = reader.get("/", **{"Accept-Encoding": "gzip"})
    assert gzip.decompress(packed[2]) == body and len(packed[2]) < len(body) / 2


def test_cross_site_requests_are_refused_except_for_the_page_itself(serve, tmp_path):
    reader = serve(write_run(tmp_path / "run", steps=1))
    for path in ("/news?epoch=&since=0", "/group?run=0&begun=0&key=1.1.0.1", "/search?run=0&begun=0&from=0&words=x"):
        for site, code in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
            told = reader.get(path, **{"Sec-Fetch-Site": site, "Origin": "http://evil.example"})
            assert told[0] == code and (code == 200 or b"epoch" not in told[2]), (path, site)
    assert reader.get("/", **{"Sec-Fetch-Site": "cross-site"})[0] == 200


def test_other_addresses_require_a_token(serve, tmp_path):
    reader = serve(write_run(tmp_path / "run", steps=1), host="0.0.0.0")
    token = re.fullmatch(r"http://[^/]+:\d+/\?token=([\w-]{43})", reader.server.address)[1]
    paths = ("/", "/news?epoch=&since=0", "/group?run=0&begun=0&key=1.1.0.1", "/search?run=0", "/nowhere")
    for path in paths:
        for given in ("", "x", token[:-1], token + "x", "ü\0"):
            for headers in ({}, {"Cookie": f"a2tgpo-view-{reader.port}={given.encode().hex()}"}):
                joined = f"{path}{'&' if '?' in path else '?'}{urlencode({'token': given})}"
                code, told, body = reader.get(joined, **headers)
                assert (code, body) == (401, b"") and "Set-Cookie" not in told and told["Server"] == "a2tgpo"
    # The right token in the address: from then on it is in a cookie, and not in the address.
    code, headers, body = reader.get(f"/?token={token}", "machine.example")
    assert (code, headers["Location"], body) == (303, "/", b"")
    cookie, *rules = headers["Set-Cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Lax"} <= set(rules)
    assert reader.get("/", Cookie=f"other=1; {cookie}")[0] == 200
    assert reader.get("/news?epoch=&since=0", Cookie=cookie)[0] == 200
    assert reader.get(f"/news?epoch=&since=0&token={token}")[0] == 200
    # Servers on this machine have a token each.
    other = serve(tmp_path / "run", host="0.0.0.0")
    assert other.get("/", Cookie=cookie)[0] == 401 and token not in other.server.address


def test_invalid_requests_get_their_status_code(serve, tmp_path, capfd):
    reader = serve(write_run(tmp_path / "run", steps=1))
    for path, code in (
        *(("/nowhere", 404), ("/news", 400), ("/news?epoch=&since=x", 400), ("/group?run=9&begun=0&key=x", 400)),
        *(
            ("/group?run=0&begun=0&key=../x", 410),
            ("/group?run=-1&begun=0&key=x", 400),
            ("/..%2f..%2fetc/passwd", 404),
        ),
        *(("/search?run=0&begun=0&words=x", 400), ("//[::1", 404)),
    ):
        assert reader.get(path)[0] == code, path
    connection = http.client.HTTPConnection("127.0.0.1", reader.port, timeout=20)
    for method in ("POST", "DELETE"):
        connection.request(method, "/")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (501, b"")
    connection.close()
    assert reader.get("/")[0] == 200
    assert capfd.readouterr().err == ""


def test_slow_request_is_closed_after_the_time_limit(serve, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(serving, "WHOLE", 0.5)
    reader = serve(write_run(tmp_path / "run", steps=1))
    with socket.create_connection(("127.0.0.1", reader.port), timeout=20) as connection:
        begin = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < begin + 15:  # a character now and then, but never the end
                connection.sendall(b"G")
                time.sleep(0.05)
        assert time.monotonic() < begin + 10
    assert reader.get("/")[0] == 200
    assert capfd.readouterr().err == ""


def test_failed_thread_start_releases_its_slot(serve, tmp_path, monkeypatch, capfd):
    reader = serve(tmp_path / "run")
    free = reader.server._free

    def failing(self, request, client_address):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(socketserver.ThreadingMixIn, "process_request", failing)
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            reader.get("/")
    assert "can't start new thread" in capfd.readouterr().err
    assert reader.get("/")[0] == 200
    deadline = time.monotonic() + 10
    while free._value < serving.MOST_REQUESTS:
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---- size


@pytest.mark.slow
def test_ten_thousand_rollouts_are_read_in_parts_with_little_memory(serve, tmp_path):
    folder = write_run(tmp_path / "run", steps=25, groups=50, rollouts=8, words=60)
    size = sum(file.stat().st_size for file in folder.glob("rollouts/*"))
    tracemalloc.start()
    reader = serve(folder)
    longest = asked = 0.0
    while reader.share < 1:
        begin = time.monotonic()
        told = reader.ask("news", epoch=reader.epoch, since=reader.number)
        longest, asked = max(longest, time.monotonic() - begin), asked + 1
        reader.epoch, reader.number, reader.share = told["epoch"], told["number"], told["share"]
    told = None
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert asked > 1 and kept < size / 10, (asked, kept, size)
    assert most < size, (most, size)


# ---- the command


@pytest.fixture
def command(tmp_path):
    """The command itself, in a separate process."""
    words = [sys.executable, "-m", "a2tgpo_trl", "view", str(tmp_path / "run"), "--serve", "--port", str(free_port())]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.mark.slow
def test_view_serve_command_prints_its_address_and_ends_at_ctrl_c(command):
    line = command.stdout.readline()
    address, port = re.fullmatch(r"(http://127\.0\.0\.1:(\d+)/) shows run\. Ctrl-C ends it\.\n", line).groups()
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=20)
    connection.connect()  # a silent client does not keep it from ending
    os.kill(command.pid, signal.SIGINT)
    assert command.wait(timeout=20) == 0
    assert command.stderr.read() == "" and command.stdout.read() == "\n"
    connection.close()


def refused(capsys, *words: object) -> str:
    assert main(["view", *map(str, words)]) == 2
    return capsys.readouterr().err


def test_unusable_port_or_host_is_an_error_with_a_remedy(serve, tmp_path, capsys):
    port = serve(tmp_path / "run").port
    said = refused(capsys, tmp_path / "run", "--serve", "--port", port)
    assert f"Port {port} of 127.0.0.1 is in use" in said and f"--port {port + 1}" in said
    for port in (70000, -1):
        assert "from 0 to 65535" in refused(capsys, tmp_path / "run", "--serve", "--port", port)
    assert "--host" in refused(capsys, tmp_path / "run", "--serve", "--host", "192.0.2.1")
    assert "--host" in refused(capsys, tmp_path / "run", "--serve", "--host", "no such host")
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refused(capsys, tmp_path / "file", "--serve")
    assert "is named twice" in refused(capsys, tmp_path / "run", tmp_path / "run", "--serve")


def test_options_of_the_other_mode_are_refused(tmp_path, capsys):
    for port in (0, 1):
        assert "--port cannot be used without --serve" in refused(capsys, tmp_path, "--port", port)
    assert "--output cannot be used with --serve" in refused(capsys, tmp_path, "--serve", "-o", "page.html")
