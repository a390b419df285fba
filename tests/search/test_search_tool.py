"""The tool that a policy calls: over HTTP, against a stub of Search-R1's protocol, and in process."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from ranks import free_port
from search_world import FOUR, write_lines
from transformers.utils import get_json_schema

from a2tgpo_trl.search import SearchTool
from a2tgpo_trl.search.retriever import bm25_retriever
from a2tgpo_trl.search.tool import SearchServerDown
from a2tgpo_trl.tools.calls import ToolCall
from a2tgpo_trl.tools.search import NOTHING_FOUND
from a2tgpo_trl.tools.settings import settings_of


class Stub(ThreadingHTTPServer):
    """Answers each query with two documents named after it and without a title, as servers of that protocol do."""

    daemon_threads = True

    def __init__(self, port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.delay = 0.0
        self.asked, self.answers = [], []  # what came; (code, body) of the next replies, instead of documents
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        """Ignore errors: the client may have gone."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, request))
        time.sleep(self.server.delay)
        code, body = self.server.answers.pop(0) if self.server.answers else (200, json.dumps(reply(request)).encode())
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def reply(request) -> dict:
    def document(query: str, n: int) -> dict:
        return {"document": {"id": f"{n}", "contents": f'"{query} {n}"\nOne two three.'}, "score": 1.0 / (n + 1)}

    return {"result": [[document(query, n) for n in range(min(2, request["topk"]))] for query in request["queries"]]}


@pytest.fixture
def stub():
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_query_brings_passages_and_several_go_in_one_request(stub):
    search = SearchTool(url=stub.url)
    assert search("Velm") == "[1] Velm 0\nOne two three.\n[2] Velm 1\nOne two three."
    both = search(["Velm", "Osk"])
    assert both.startswith("Velm\n[1] Velm 0\n") and "\n\nOsk\n[1] Osk 0\n" in both
    assert stub.asked == [
        ("/retrieve", {"queries": ["Velm"], "topk": 3, "return_scores": True}),
        ("/retrieve", {"queries": ["Velm", "Osk"], "topk": 3, "return_scores": True}),
    ]
    SearchTool(url=f"{stub.url}/other", top_k=1)("Velm")
    assert stub.asked[-1][0] == "/other" and stub.asked[-1][1]["topk"] == 1
    SearchTool(url=f"{stub.url}?index=wiki")("Velm")
    assert stub.asked[-1][0] == "/retrieve?index=wiki"
    with pytest.raises(ValueError, match="names and passwords are not sent"):
        SearchTool(url="http://me:secret@localhost:1")


def test_tool_schema_describes_the_query():
    schema = get_json_schema(SearchTool(url="http://localhost:1"))["function"]
    assert schema["name"] == "search" and schema["description"] == "Search the encyclopedia."
    kinds = schema["parameters"]["properties"]["query"]
    assert {"type": "string"} in kinds["anyOf"] or "string" in kinds["type"]


def test_passages_and_results_are_cut(stub):
    search = SearchTool(url=stub.url, max_passage_words=2, max_result_tokens=50)
    assert search("Velm") == "[1] Velm 0\nOne two ...\n[2] Velm 1\nOne two ..."
    assert settings_of(search).max_result_tokens == 50 and settings_of(search).cache


def test_equal_queries_are_cached_and_server_errors_retried(stub, make_runner):
    stub.answers = [(502, b"<html>"), (200, b"no json"), (200, b'{"result": []}')]
    runner, search = make_runner({"search": {"backoff": 0.01}}, timeout=10.0), SearchTool(url=stub.url)
    for _ in range(2):
        (outcome,) = runner.run([ToolCall(search, {"query": "Velm"})])
        assert outcome.status == "ok" and outcome.text.startswith("[1] Velm 0")
    assert len(stub.asked) == 4


def test_refused_request_is_a_tool_error_without_retry(stub, make_runner):
    stub.answers = [(422, b'{"error": "too long"}')]
    (outcome,) = make_runner(timeout=10.0).run([ToolCall(SearchTool(url=stub.url), {"query": "Velm"})])
    assert outcome.status == "tool_error" and "refuses (422)" in outcome.text
    # One request for the call, and one to see whether the server is up.
    assert [request["queries"] for _, request in stub.asked] == [["Velm"], ["a"]]


@pytest.mark.parametrize("query", ["", "  ", ["Velm", ""], "a" * 20_000])
def test_invalid_query_is_an_error_without_a_request(stub, query):
    with pytest.raises(ValueError, match=r"A query (is empty|has 20,000)"):
        SearchTool(url=stub.url)(query)
    assert SearchTool(url=stub.url)([]) == NOTHING_FOUND and stub.asked == []


def test_unreachable_server_raises_search_server_down_and_fails_the_check():
    search = SearchTool(url=f"http://127.0.0.1:{free_port()}", timeout=2.0)
    with pytest.raises(SearchServerDown, match=r"does not answer .* a2tgpo serve-search"):
        search("Velm")
    with pytest.raises(SearchServerDown):
        settings_of(search).check()


@pytest.mark.parametrize("body", [b'{"result": [["text"]]}', b'{"result": 1}', b'["x"]', b"[" * 100_000, b"<html>"])
def test_an_answer_of_the_wrong_form_means_that_the_server_is_down(stub, body):
    stub.answers = [(200, body)]
    with pytest.raises(SearchServerDown, match="answers 200, and no passages"):
        settings_of(SearchTool(url=stub.url)).check()


def test_keys_in_the_address_of_a_server_are_not_shown():
    search = SearchTool(url=f"http://127.0.0.1:{free_port()}/retrieve?api_key=sk-123456789", timeout=2.0)
    with pytest.raises(SearchServerDown) as error:
        search("Velm")
    assert "/retrieve does not answer" in str(error.value) and "sk-1" not in str(error.value)


def test_in_process_it_searches_an_index_or_its_folder(tmp_path):
    retriever = bm25_retriever(write_lines(tmp_path / "wiki.jsonl", FOUR))
    search = SearchTool(index=retriever, top_k=1)
    assert search("lake") == "[1] Torn\nTorn is a lake. No river leaves it."
    assert SearchTool(index=tmp_path / "wiki.jsonl.bm25", top_k=1)("lake") == search("lake")
    assert search("zebra") == NOTHING_FOUND
    settings_of(search).check()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "either url or index"),
        ({"url": "http://a", "index": "b"}, "either url or index"),
        ({"url": "localhost:8000"}, "address like http://localhost:8000"),
        ({"url": "http://a", "top_k": 0}, "top_k must be a whole number, at least 1; got 0"),
        ({"url": "http://a", "top_k": "3"}, "top_k must be a whole number, at least 1; got '3'"),
        ({"url": "http://a", "timeout": 0}, "timeout must be a number of seconds above 0"),
        ({"index": "/nowhere"}, "holds no index"),
    ],
)
def test_invalid_search_settings_are_an_error(settings, told):
    with pytest.raises(ValueError, match=told):
        SearchTool(**settings)


def test_search_tools_can_have_different_names(stub):
    news = SearchTool(url=stub.url, name="search_news")
    assert get_json_schema(news)["function"]["name"] == news.__name__ == "search_news"
    with pytest.raises(ValueError, match="name must be one word, valid as a function's name; got 'search news'"):
        SearchTool(url=stub.url, name="search news")


@pytest.mark.parametrize(("words", "in_time"), [({"timeout": 10}, True), ({}, False)])
def test_tool_settings_can_extend_the_timeout_of_a_slow_server(stub, make_runner, words, in_time):
    stub.delay = 0.5
    runner = make_runner({"search": {"retries": 0, **words}}, patience=0.1, stop_when_down=False)
    (outcome,) = runner.run([ToolCall(SearchTool(url=stub.url, timeout=0.2), {"query": "Velm"})])
    assert (outcome.status == "ok") == in_time
