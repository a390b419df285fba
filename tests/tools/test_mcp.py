"""Tools of real Model Context Protocol servers, over standard input and output and over HTTP on loopback."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import tiny
from datasets import Dataset
from places import HELPERS
from ranks import free_port
from transformers.utils.chat_template_utils import get_json_schema

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.recipe.recipe import read_recipe
from a2tgpo_trl.rewards import exact_match
from a2tgpo_trl.tools.calls import Limits, Outcome, ToolCall
from a2tgpo_trl.tools.from_schema import describe_as
from a2tgpo_trl.tools.mcp import Connection, mcp_tools, public_name
from a2tgpo_trl.tools.runner import ToolRunner


COMMAND = f"{sys.executable} {HELPERS / 'mcp_server.py'}"


@contextmanager
def serving(port: int) -> Iterator[None]:
    """Run the server over HTTP, and wait until it answers."""
    process = subprocess.Popen([*COMMAND.split(), str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module", params=["stdio", "http"])
def tools(request):
    """The tools of each kind of server, by name."""
    if request.param == "stdio":
        yield {one.__name__: one for one in mcp_tools(COMMAND)}
        return
    port = free_port()
    with serving(port):
        yield {one.__name__: one for one in mcp_tools(f"http://127.0.0.1:{port}/mcp")}


@pytest.fixture
def runner():
    runner = ToolRunner(Limits(timeout=20, patience=60))
    yield runner
    runner.close()


def call(runner: ToolRunner, tool, **arguments) -> Outcome:
    (outcome,) = runner.run([ToolCall(tool, arguments)])
    return outcome


def test_mcp_schema_shows_types_and_descriptions_of_the_server(tools):
    shown = get_json_schema(tools["search"])["function"]
    assert (shown["name"], shown["description"]) == ("search", "Look something up.")
    assert shown["parameters"] == {
        "type": "object",
        "properties": {
            "query": {"type": "string", "description": "What to look for."},
            "kind": {"type": "string", "enum": ["page", "title"], "description": 'Kind. Default: "page".'},
            "limit": {"type": "integer", "nullable": True, "description": "How many results."},
        },
        "required": ["query"],
    }
    places = get_json_schema(tools["visit"])["function"]["parameters"]["properties"]["places"]
    assert places["type"] == "array" and '"country": {"title": "Country", "type": "string"}' in places["description"]


def test_a_call_has_the_servers_answer(tools, runner):
    assert call(runner, tools["search"], query="capital").text == "The capital is Paris (page, None)."
    assert call(runner, tools["visit"], places=[{"country": "Kenya"}, {"country": "Peru"}]).text == "Kenya, Peru"


def test_server_errors_become_tool_errors(tools, runner):
    failed = call(runner, tools["fail"], reason="closed")
    assert failed.status == "tool_error" and failed.text.startswith("Error: ") and "fail" in failed.text
    wrong = call(runner, tools["search"], query=3)
    assert wrong.status == "tool_error" and "query" in wrong.text


def test_slow_call_times_out_and_later_calls_work(tools, runner):
    runner.limits = Limits(timeout=0.5)
    assert call(runner, tools["wait"], seconds=30).status == "timeout"
    assert runner.hung == 0  # it was cancelled, and nothing is left behind
    runner.limits = Limits(timeout=20)
    assert call(runner, tools["wait"], seconds=0).text == "done"


def test_mcp_calls_run_concurrently(tools, runner):
    start = time.monotonic()
    outcomes = runner.run([ToolCall(tools["wait"], {"seconds": 1.0}) for _ in range(8)])
    assert [outcome.text for outcome in outcomes] == ["done"] * 8 and time.monotonic() - start < 6


def test_crashed_server_is_restarted_and_the_call_repeated(runner, tmp_path):
    (crash_once,) = mcp_tools(COMMAND, names=["crash_once"])
    outcome = call(runner, crash_once, file=str(tmp_path / "crashed"))
    assert (outcome.status, outcome.text) == ("ok", "still here")


@pytest.mark.parametrize("mode", [pytest.param("auto", marks=pytest.mark.slow), "legacy"])
def test_calls_wait_for_a_server_that_was_restarted(mode, runner, monkeypatch):
    # Before the protocol of 2026 a server keeps sessions, and a restarted one does not know the earlier ones.
    import mcp  # installed where these tests run, but not wherever tests are collected

    monkeypatch.setattr(mcp, "Client", partial(mcp.Client, mode=mode))
    port = free_port()
    with serving(port):
        (search,) = mcp_tools(f"http://127.0.0.1:{port}/mcp", names=["search"])
        assert call(runner, search, query="capital").status == "ok"
    future = runner.submit([ToolCall(search, {"query": "capital"})])
    with serving(port):
        assert future.result(60)[0].text == "The capital is Paris (page, None)."


@pytest.mark.parametrize(
    ("server", "names", "message"),
    [
        (f"{sys.executable} -c 'raise SystemExit'", None, "no session could be opened"),
        ("no-such-command --at-all", None, "no session could be opened: FileNotFoundError"),
        ("http://127.0.0.1:9/mcp", None, "no session could be opened: ConnectError"),
        (f"{COMMAND} silent", None, "it did not answer within 6 s"),
        (COMMAND, ["serch"], "it has no tool serch; it has search, visit"),
    ],
)
def test_a_server_that_cannot_be_used_is_named_with_the_reason(server, names, message, monkeypatch):
    if "silent" in server:
        monkeypatch.setattr("a2tgpo_trl.tools.mcp.CONNECTING", 6.0)
    with pytest.raises(ValueError) as error:
        mcp_tools(server, names)
    assert public_name(server) in str(error.value) and message in str(error.value)


def test_an_empty_list_of_names_gives_no_tools():
    assert mcp_tools(COMMAND, []) == []


def test_options_and_queries_of_a_server_are_not_shown():
    assert public_name("python weather.py --key sk-1") == "python weather.py ..."
    assert public_name("env KEY=sk-1 python weather.py") == "env ..."
    assert public_name("python weather.py") == "python weather.py"
    assert public_name("http://me:pw@host:80/mcp?key=sk-1") == "http://host:80/mcp"


def test_a_result_that_is_only_structured_is_shown_as_json():
    from mcp_types import CallToolResult

    result = CallToolResult(content=[], structured_content={"temperature": 21})

    class Structured(Connection):
        async def _ask(self, method, *args, **options):
            return result

    connection = Structured(COMMAND)
    assert asyncio.run(connection.call("forecast", {})) == '{"temperature": 21}'
    result = CallToolResult(content=[])
    assert asyncio.run(connection.call("forecast", {})) == "The tool returned nothing."
    connection.close()


def test_python_keywords_are_valid_argument_names_and_invalid_names_refused():
    def flights(**arguments): ...

    schema = {"properties": {"to": {"type": "string"}, "from": {"$ref": "#/$defs/City"}}, "required": ["from"]}
    describe_as(
        flights, "flights", "Find flights.", {**schema, "$defs": {"City": {"type": "string", "title": "City"}}}
    )
    shown = get_json_schema(flights)["function"]["parameters"]
    assert shown["required"] == ["from"] and shown["properties"]["from"] == {"type": "string", "description": "City"}
    with pytest.raises(ValueError, match="the tool 'x' cannot be shown to a policy: ValueError: 'user-id' is"):
        describe_as(flights, "x", None, {"properties": {"user-id": {"type": "string"}}})
    with pytest.raises(ValueError, match="the tool 'x' cannot be shown to a policy: KeyError: "):
        describe_as(flights, "x", None, {"properties": {"city": {"$ref": "#/$defs/City"}}})


def test_untyped_arguments_are_shown_without_a_type():
    def keep(**arguments): ...

    describe_as(keep, "keep", None, {"properties": {"it": True, "all": {"type": "array", "items": True}}})
    shown = get_json_schema(keep)["function"]["parameters"]["properties"]
    assert shown == {"it": {"description": "it"}, "all": {"type": "array", "items": {}, "description": "all"}}


def test_a_recipe_names_a_server_and_the_trainer_calls_its_tools(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": [{"role": "user", "content": "capital?"}], "answer": "Paris"}\n' * 2)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model_name_or_path: atlas-tiny\nbf16: false\ndataset_name: {rows}\nreward_funcs: [exact_match]\n"
        f"output_dir: {tmp_path / 'out'}\ntools: ['mcp:{COMMAND}']\n"
    )
    (search, *_) = read_recipe(["--config", str(recipe)]).task.tools
    tokenizer = tiny.make_tokenizer()
    model = tiny.make_model(tokenizer)
    tiny.script(model, tokenizer, lambda turn, _: tiny.call("capital") if turn == 0 else tiny.final("Paris"))
    args = A2TGPOConfig(
        str(tmp_path),
        use_cpu=True,
        bf16=False,
        max_steps=1,
        num_generations=2,
        per_device_train_batch_size=2,
        max_completion_length=400,
        report_to="none",
        disable_tqdm=True,
    )
    data = Dataset.from_json(str(rows))
    trainer = A2TGPOTrainer(model, exact_match, args, data, processing_class=tokenizer, tools=[search])
    seen: list[dict] = []
    trainer.on_rollouts = seen.extend
    trainer.train()
    (first, _), *_ = [record["turns"] for record in seen]
    assert first["calls"][0]["result"] == "The capital is Paris (page, None)."
