"""The server: a client written for Search-R1's server works with it, and no request takes it down."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count

import pytest
import uvicorn
from search_world import FOUR, write_lines
from waiting import until

from a2tgpo_trl.cli import main
from a2tgpo_trl.search.retriever import bm25_retriever
from a2tgpo_trl.search.server import MOST_BYTES, SearchServer


class Served:
    """A server in this process, and requests to it."""

    def __init__(self, retriever, **settings):
        self.server = SearchServer(retriever, **settings)
        config = uvicorn.Config(self.server.app(), port=0, log_level="critical", lifespan="off")
        self._socket = config.bind_socket()
        self.port = self._socket.getsockname()[1]
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._uvicorn.run, kwargs={"sockets": [self._socket]})
        self._thread.start()
        assert until(lambda: self._uvicorn.started)

    def close(self) -> None:
        self._uvicorn.should_exit = True
        self._thread.join()
        self.server.close()
        self._socket.close()

    def ask(self, method: str, path: str, body=None, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            body = body if body is None or isinstance(body, bytes) else json.dumps(body)
            connection.request(method, path, body, headers or {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def retrieve(self, body) -> tuple[int, dict]:
        code, text = self.ask("POST", "/retrieve", body)
        return code, json.loads(text)


@pytest.fixture(scope="module")
def retriever(tmp_path_factory):
    return bm25_retriever(write_lines(tmp_path_factory.mktemp("corpus") / "wiki.jsonl", FOUR))


@pytest.fixture
def served(retriever):
    one = Served(retriever)
    yield one
    one.close()


def document(number: int, title: str) -> dict:
    return {**FOUR[number], "title": title}


# ---- the protocol: what that family's clients send, and what they read from the reply


def test_a_request_with_scores_gets_documents_and_scores(served):
    code, reply = served.retrieve({"queries": ["mayor of Velm", "lake"], "topk": 1, "return_scores": True})
    assert code == 200 and list(reply) == ["result"]
    first, second = reply["result"]
    assert [one["document"] for one in first] == [document(0, "Velm")] and first[0]["score"] > 0
    assert [one["document"] for one in second] == [document(3, "Torn")]


def test_request_without_scores_gets_three_documents_by_default(served):
    assert served.retrieve({"queries": ["Torn"]}) == served.retrieve(
        {"queries": ["Torn"], "topk": None, "return_scores": False}
    )
    code, reply = served.retrieve({"queries": ["Torn", "Velm"]})
    assert code == 200 and reply["result"][1] == [document(0, "Velm")]
    assert [one["id"] for one in reply["result"][0]] == ["3", "1", "2"]


def test_search_r1_client_can_parse_contents_and_empty_batches(served):
    # A client joins a query's results, with the first line of contents as the title; a batch may hold no query.
    reply = served.retrieve({"queries": ["mayor", "lake"], "topk": 2, "return_scores": True})[1]["result"]
    lines = [item["document"]["contents"].split("\n") for item in reply[0]]
    assert [(line[0], line[1][:9]) for line in lines] == [('"Ada Brin"', "Ada Brin "), ('"Velm"', "Velm is a")]
    assert served.retrieve({"queries": [], "topk": 3, "return_scores": True}) == (200, {"result": []})


# ---- what is not a valid request


def asking(**changes) -> dict:
    return {"queries": ["lake"], "topk": 1, "return_scores": True, **changes}


BAD = {
    "no JSON": (b'{"queries": [', 400, "not JSON"),
    "no text at all": (b"\xff\xfe", 400, "not JSON"),
    "deeper than can be read": (b"[" * 100_000, 400, "not JSON"),
    "a list": (["lake"], 422, "the request must be"),
    "one query that is no list": (asking(queries="lake"), 422, "the request must be"),
    "no queries": ({"topk": 1}, 422, "the request must be"),
    "an empty query": (asking(queries=["lake", "  "]), 422, "empty"),
    "a query of 1 MB": (asking(queries=["a" * 2**20]), 422, "1,048,576 characters; the most is 10,000"),
    "a number for a query": (asking(queries=[5]), 422, "A query must be text; got int"),
    "10,000 queries": (asking(queries=["lake"] * 10_000), 413, "10,000 queries; the most is 4,096"),
    "topk 0": (asking(topk=0), 422, "from 1 to 4, the passages there are; got 0"),
    "topk below 0": (asking(topk=-3), 422, "got -3"),
    "topk above the corpus": (asking(topk=5), 422, "got 5"),
    "topk true": (asking(topk=True), 422, "got True"),
    "topk in text": (asking(topk="3"), 422, "got '3'"),
    "scores maybe": (asking(return_scores="maybe"), 422, "true or false"),
    "more bytes than may be": (b" " * (MOST_BYTES + 1), 413, "longer than 16,777,216 bytes"),
}


@pytest.mark.parametrize(("body", "code", "told"), BAD.values(), ids=BAD)
def test_invalid_request_gets_an_error_and_the_next_is_served(served, body, code, told):
    answered, reply = served.retrieve(body)
    assert answered == code and told in reply["error"]
    assert served.retrieve(asking())[0] == 200


def test_lone_surrogate_in_a_query_is_searched_normally(served):
    assert served.retrieve(b'{"queries": ["lake \\ud800"], "topk": 1}')[1]["result"][0] == [document(3, "Torn")]


def test_internal_error_is_a_500_and_the_next_request_is_served(served, monkeypatch, caplog):
    monkeypatch.setattr(served.server._retriever, "search", lambda *_: 1 / 0)
    assert served.retrieve(asking()) == (500, {"error": "ZeroDivisionError: division by zero"})
    monkeypatch.undo()
    assert served.retrieve(asking())[0] == 200 and "a request failed" in caplog.text


def test_unknown_paths_and_methods_get_404_and_405(served):
    assert served.ask("GET", "/retrieve")[0] == 405 and served.ask("GET", "/more")[0] == 404
    assert served.ask("GET", "/healthz") == (200, '{"status":"ok","passages":4}')


# ---- many requests at the same time


def test_metrics_count_requests_by_code_their_queries_and_their_times(served):
    served.retrieve(asking(queries=["lake", "river"]))
    served.retrieve(asking(topk=0))
    lines = dict(line.rsplit(" ", 1) for line in served.ask("GET", "/metrics")[1].splitlines())
    assert (
        lines['a2tgpo_search_requests_total{code="200"}'] == lines['a2tgpo_search_requests_total{code="422"}'] == "1"
    )
    assert lines["a2tgpo_search_queries_total"] == "2" and lines["a2tgpo_search_waiting"] == "0"
    assert lines["a2tgpo_search_seconds_count"] == "2" and float(lines['a2tgpo_search_seconds{quantile="0.99"}']) > 0


def test_concurrent_searches_are_bounded_and_excess_requests_get_503(retriever, monkeypatch):
    served = Served(retriever, threads=2, most_waiting=6)
    at_once, most, hold = [0], [0], threading.Event()

    def slow(queries, top_k, right=retriever.search):
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        hold.wait(20)
        at_once[0] -= 1
        return right(queries, top_k)

    monkeypatch.setattr(retriever, "search", slow)
    with ThreadPoolExecutor(10) as clients:
        answers = [clients.submit(served.retrieve, asking()) for _ in range(10)]
        assert until(lambda: sum(answer.done() for answer in answers) == 4)
        assert "a2tgpo_search_waiting 6" in served.ask("GET", "/metrics")[1]
        hold.set()
    codes = sorted(answer.result()[0] for answer in answers)
    assert codes == [200] * 6 + [503] * 4 and most[0] == 2
    monkeypatch.undo()
    assert served.retrieve(asking())[0] == 200
    served.close()


def test_a_large_request_keeps_its_order(served):
    queries = ["lake", "Velm", "Osk", "Brin"] * 250
    code, reply = served.retrieve({"queries": queries, "topk": 1})
    assert code == 200 and [found[0]["id"] for found in reply["result"]] == ["3", "0", "1", "2"] * 250


def test_on_loopback_pages_of_a_browser_are_refused(retriever):
    one = Served(retriever, is_loopback=True)
    try:
        json_type = {"Content-Type": "application/json"}
        code, text = one.ask("POST", "/retrieve", asking(), **json_type, Host="evil.example")
        assert code == 403 and "names another machine" in text
        for host in ("localhost", f"127.0.0.1:{one.port}"):
            assert one.ask("POST", "/retrieve", asking(), **json_type, Host=host)[0] == 200
    finally:
        one.close()


# ---- the command


@contextmanager
def started(corpus):
    """Start the command as a process that listens; yield it and its port."""
    words = [sys.executable, "-m", "a2tgpo_trl", "serve-search", "--corpus", str(corpus), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        assert "searches 4 passages (bm25)" in line
        yield process, int(line.split(":")[2].partition("/")[0])
        process.kill()


@pytest.fixture
def four(tmp_path):
    return write_lines(tmp_path / "wiki.jsonl", FOUR)


def post(port: int) -> bytes:
    """The server's answer to `asking()`; raises OSError if the connection breaks."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", "/retrieve", json.dumps(asking()), {"Content-Type": "application/json"})
        return connection.getresponse().read()
    finally:
        connection.close()


def test_sigterm_ends_it_cleanly(four):
    with started(four) as (process, port):
        assert json.loads(post(port))["result"]
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0 and time.monotonic() - began < 15
        assert "Traceback" not in process.stderr.read()


def test_server_killed_while_answering_gives_the_same_answers_after_restart(four):
    with started(four) as (process, port), ThreadPoolExecutor(4) as clients:
        before = post(port)

        def ask_until_it_breaks_off() -> int:
            for answered in count():
                try:
                    assert post(port) == before
                except (OSError, http.client.HTTPException):
                    return answered

        asking_clients = [clients.submit(ask_until_it_breaks_off) for _ in range(4)]
        time.sleep(0.3)
        process.kill()
        assert sum(client.result(30) for client in asking_clients) > 0
        assert process.wait(20) == -signal.SIGKILL
    with started(four) as (process, port):
        assert post(port) == before
        process.kill()
        assert process.stderr.read() == ""  # a build would have printed something


def test_build_option_builds_the_index_and_exits(tmp_path, capsys):
    corpus = write_lines(tmp_path / "wiki.jsonl", FOUR)
    assert main(["serve-search", "--corpus", str(corpus), "--build"]) == 0
    assert "4 passages" in capsys.readouterr().err
    assert main(["serve-search", "--corpus", str(tmp_path / "none.jsonl"), "--build"]) == 2
    assert "There is no corpus" in capsys.readouterr().err


def test_port_in_use_is_an_error_before_an_index_is_built(four, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve-search", "--corpus", str(four), "--port", str(port)]) == 2
    assert f"Port {port} of 127.0.0.1 is in use. Name another one (--port {port + 1})" in capsys.readouterr().err
    assert list(four.parent.iterdir()) == [four]


def test_the_working_directory_can_be_a_corpus(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "one.txt").write_text("Velm is a town.")
    monkeypatch.chdir(folder)
    assert main(["serve-search", "--corpus", ".", "--build"]) == 0
    assert (tmp_path / "docs.bm25").is_dir()


def test_missing_search_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve-search", "--corpus", str(write_lines(tmp_path / "wiki.jsonl", FOUR))]) == 2
    assert "pip install 'a2tgpo_trl[search]'" in capsys.readouterr().err
