"""A server that runs code of policies for trainers elsewhere, and sessions that use it."""

import functools
import http.client
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from waiting import until

from a2tgpo_trl.cli import main as cli
from a2tgpo_trl.rollout.environments import Environments
from a2tgpo_trl.tools.calls import Limits, ToolCall
from a2tgpo_trl.tools.python import CodeFailed, PythonSession, python_sessions, remote
from a2tgpo_trl.tools.python.interpreter import NotStarted
from a2tgpo_trl.tools.python.remote import TOKEN, RemoteSession, ServerDown, ping
from a2tgpo_trl.tools.python.server import PythonServer
from a2tgpo_trl.tools.python.session import LOST, SILENT
from a2tgpo_trl.tools.runner import ToolRunner


@pytest.fixture
def server(make):
    made = PythonServer(("127.0.0.1", 0), make(timeout=1.0), most_sessions=3, idle=600.0)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    made.address = f"http://127.0.0.1:{made.server_address[1]}"
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def test_remote_session_behaves_like_a_local_one(server, level):
    environment = python_sessions(remote=server.address)()
    environment.reset()
    assert environment.python("x = 6") == SILENT and environment.python("x * 7") == "42"
    with pytest.raises(CodeFailed, match="ZeroDivisionError"):
        environment.python("1 / 0")
    with pytest.raises(CodeFailed, match="did not end within 1 seconds"):
        environment.python("while True: pass")
    assert environment.python("'x' in globals()") == f"{LOST}False"
    assert ping(server.address) == {"isolation": level, "sessions": 1}
    environment.reset()
    assert server.sessions == 0 and environment.python("'x' in globals()") == "False"


def test_remote_sessions_are_bounded_and_idle_ones_end(server):
    environments = [PythonSession(remote=server.address) for _ in range(4)]
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(lambda i: environments[i].python(f"{i}"), range(3))) == ["0", "1", "2"]
    with pytest.raises(ServerDown, match="there are 3 sessions already"):
        environments[3].python("1")
    server._idle = 0.0
    assert until(lambda: server.sessions == 0)
    server._idle = 600.0
    assert environments[0].python("1") == f"{LOST}1"


def test_server_down_is_waited_for_and_lost_variables_are_reported(make):
    runner = ToolRunner(Limits(timeout=10.0, patience=20.0))
    pool = make(timeout=5.0)
    servers = [PythonServer(("127.0.0.1", 0), pool)]
    port = servers[0].server_address[1]
    threads = [threading.Thread(target=servers[0].serve_forever, args=(0.05,))]
    threads[0].start()
    environment = runner.construct(python_sessions(remote=f"http://127.0.0.1:{port}"))

    def call(code: str):
        return runner.run([ToolCall(environment.python, {"code": code}, environment)])[0]

    def stop():
        servers[-1].shutdown()
        threads[-1].join()
        servers[-1].server_close()

    def come_back():
        servers.append(PythonServer(("127.0.0.1", port), pool))
        threads.append(threading.Thread(target=servers[-1].serve_forever, args=(0.05,)))
        threads[-1].start()

    try:
        runner.check([environment.python])
        assert call("x = 1").status == "ok"
        stop()
        with pytest.raises(RuntimeError, match="does not answer.*a2tgpo serve-python"):
            runner.check([environment.python])
        later = threading.Timer(0.5, come_back)
        later.start()
        outcome = call("'x' in globals()")
        assert (outcome.status, outcome.text) == ("ok", f"{LOST}False")
        later.join()
    finally:
        stop()
        runner.close()


def called(runner, environment, code: str):
    return runner.submit([ToolCall(environment.python, {"code": code}, environment)])


def test_sessions_beyond_the_limit_wait_for_a_free_place(server, make_runner):
    server._most = 1
    runner = make_runner(timeout=20.0, patience=60.0)
    first, *others = [runner.construct(python_sessions(remote=server.address)) for _ in range(3)]
    assert called(runner, first, "x = 1").result()[0].status == "ok"
    runner.check([others[0].python])  # a full server counts as up
    (failed,) = called(runner, first, "1 / 0").result()
    assert failed.status == "tool_error" and failed.seconds < 10 and server.sessions == 1
    waiting = [called(runner, other, f"{number}") for number, other in enumerate(others)]
    time.sleep(0.3)
    assert not any(one.done() for one in waiting)
    first.reset()
    done, left = futures.wait(waiting, timeout=30, return_when=futures.FIRST_COMPLETED)
    others[waiting.index(*done)].reset()
    assert left and [one.result(30)[0].text for one in waiting] == ["0", "1"] and runner.trouble is None


def test_missing_free_session_stops_the_run_and_is_named(server, make_runner):
    server._most = 0
    runner = make_runner(timeout=20.0, patience=0.3)
    (outcome,) = called(runner, runner.construct(python_sessions(remote=server.address)), "1").result()
    assert outcome.status == "tool_error"
    assert "The tool python is down" in runner.trouble and "0 sessions already (--most-sessions)" in runner.trouble


def test_server_hanging_at_release_does_not_delay_the_batch(monkeypatch, caplog):
    monkeypatch.setattr(remote, "ENDING", 0.3)
    silent = socket.create_server(("127.0.0.1", 0), backlog=64)
    runner = ToolRunner(Limits(timeout=10.0))
    environments = Environments(runner)
    sessions = [PythonSession(remote=f"http://127.0.0.1:{silent.getsockname()[1]}") for _ in range(20)]
    for one in sessions:
        one._session._begun = True
    with caplog.at_level(logging.WARNING, logger="a2tgpo_trl"):
        environments.release(sessions)
        assert runner.trouble is None and not any(map(runner.is_stuck, sessions)) and not caplog.records
        monkeypatch.setattr(RemoteSession, "forget", lambda self: 1 / 0)
        environments.release(sessions)
    assert [record.message for record in caplog.records] == [
        "20 environments failed to release what their rollouts held. First error: ZeroDivisionError: division by zero"
    ]
    runner.close()
    silent.close()


def test_connection_that_is_not_accepted_times_out_soon(server, monkeypatch):
    monkeypatch.setattr(remote, "CONNECTING", 0.3)
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    waiting = [socket.socket() for _ in range(4)]
    for one in waiting:
        one.setblocking(False)
        one.connect_ex(full.getsockname())
    start = time.monotonic()
    with pytest.raises(ServerDown, match="TimeoutError"):
        PythonSession(remote=f"http://127.0.0.1:{full.getsockname()[1]}").python("1")
    assert time.monotonic() - start < 3
    for one in (full, *waiting):
        one.close()
    exchange = remote._Exchange(server.address)
    exchange.close()  # before it is connected
    with pytest.raises(ServerDown, match="given up"):
        exchange.ask("GET", "/health", None)


def test_a_session_whose_only_call_failed_leaves_none_on_the_server(make, monkeypatch):
    pool = make()
    monkeypatch.setattr(pool, "take", lambda: (_ for _ in ()).throw(NotStarted("no memory")))
    server = PythonServer(("127.0.0.1", 0), pool)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    session = RemoteSession(f"http://127.0.0.1:{server.server_address[1]}")
    with pytest.raises(ServerDown, match="can start no Python interpreter"):
        session.run("1")
    assert server.sessions == 1
    session.forget()
    assert server.sessions == 0
    server.shutdown()
    server.server_close()


def test_server_with_a_token_refuses_other_tokens(make, monkeypatch):
    monkeypatch.setenv(TOKEN, "one")
    server = PythonServer(("127.0.0.1", 0), make())
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    assert PythonSession(remote=address).python("6 * 7") == "42"
    monkeypatch.setenv(TOKEN, "another")
    with pytest.raises(ServerDown, match="the token is missing or wrong"):
        PythonSession(remote=address).python("6 * 7")
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("POST", "/run", b"{", 400),
        ("POST", "/run", b"[]", 400),
        ("POST", "/run", b'{"session": 5, "code": "1"}', 400),
        ("POST", "/run", b'{"session": "a", "code": 1}', 400),
        ("POST", "/walk", b'{"session": "a"}', 404),
        ("GET", "/", b"", 400),
    ],
)
def test_invalid_requests_get_an_error_code(method, path, body, code, server):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request(method, path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == code and "error" in json.loads(response.read())
    connection.close()


@pytest.mark.parametrize(
    ("headers", "code"), [({"Host": "pages.example.org:8400"}, 403), ({"Content-Type": "text/plain"}, 415)]
)
def test_requests_that_a_web_page_could_send_run_no_code(headers, code, server):
    port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    body = json.dumps({"session": "a", "code": "1"})
    connection.request("POST", "/run", body, {"Content-Type": "application/json", **headers})
    response = connection.getresponse()
    assert response.status == code and "error" in json.loads(response.read()) and not server.sessions
    connection.close()


def test_serve_python_command_serves_until_interrupted(level):
    words = [sys.executable, "-m", "a2tgpo_trl", "serve-python", "--port", "0", "--timeout", "7", "--warm", "0"]
    # Processes started in the background may have been told to ignore the interrupt, and pass that on.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, preexec_fn=listen)
    try:
        line = process.stdout.readline()
        assert f"level {level}, 7 s a call, 512 MiB, 16 MiB of files" in line
        assert PythonSession(remote=line.split()[0]).python("6 * 7") == "42"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preload", "no_such_module"], "No module named 'no_such_module'"),
        (["--most-sessions", "0"], "--most-sessions: must be a whole number of at least 1, got '0'"),
        (["--idle", "0"], "--idle must be a number of seconds above 0"),
    ],
)
def test_serve_python_refuses_what_it_could_not_serve(words, message, capsys):
    assert cli(["serve-python", "--port", "0", "--warm", "0", *words]) == 2
    found = capsys.readouterr()
    assert message in found.err and "runs Python" not in found.out


def test_serve_python_names_a_port_in_use(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert cli(["serve-python", "--port", str(port), "--warm", "0"]) == 2
    assert f"Port {port} of 127.0.0.1 is in use" in capsys.readouterr().err


def test_a_trainer_that_gives_up_a_call_leaves_no_traceback_on_the_server(server, capfd):
    session = RemoteSession(server.address)
    thread = threading.Thread(target=lambda: pytest.raises(ServerDown, session.run, "import time; time.sleep(0.5)"))
    thread.start()
    assert until(lambda: server.sessions == 1)
    session.cancel()
    thread.join()
    session.forget()  # waits for the call to end
    assert until(lambda: server.sessions == 0)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("answer", [[], {}, {"failed": False}, "text"])
def test_an_answer_that_is_not_one_means_that_the_server_is_down(answer, monkeypatch):
    class Answering(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answering) as other:
        thread = threading.Thread(target=other.handle_request)
        thread.start()
        with pytest.raises(ServerDown, match="answers"):
            RemoteSession(f"http://127.0.0.1:{other.server_address[1]}").run("1")
        thread.join()


def test_closing_a_connection_during_give_up_raises_nothing():
    with socket.socket() as one:
        looks = [one]

        class Closing:
            sock = property(lambda self: looks.pop() if looks else None)  # gone after the first look

        exchange = remote._Exchange("http://localhost:1")
        exchange._connection = Closing()
        exchange.close()
    assert exchange._closed and not looks
