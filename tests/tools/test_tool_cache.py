"""Recorded calls, secrets in results, and arguments that do not fit."""

import inspect
import json
import logging
import os
from enum import Enum
from typing import Literal

import pytest

from a2tgpo_trl.search import SearchTool
from a2tgpo_trl.tools import tool
from a2tgpo_trl.tools.arguments import LONGEST_PROBLEM, MOST_PROBLEMS, problem_with
from a2tgpo_trl.tools.cache import CallCache, ReplayMiss, call_key
from a2tgpo_trl.tools.calls import Outcome, ToolCall
from a2tgpo_trl.tools.results import Redaction
from a2tgpo_trl.tools.runner import ToolRunner
from a2tgpo_trl.tools.search import search_tool
from a2tgpo_trl.tools.settings import identity, settings_of


@pytest.fixture
def run():
    """A function that makes calls with a cache, each time in a new runner, and returns the outcomes and the runner."""
    runners = []

    def make_calls(cache, *calls):
        runners.append(ToolRunner(cache=cache))
        return runners[-1].run([ToolCall(function, arguments) for function, arguments in calls]), runners[-1]

    yield make_calls
    for runner in runners:
        runner.close()


class Library:
    """A tool that counts its calls, and fails while it is down."""

    def __init__(self, up=True):
        self.up, self.made = up, []

        def search(query: str, top: int = 1) -> str:
            self.made.append(query)
            if not self.up:
                raise ConnectionError("down")
            return f"{query} \u2028 {top}\n"

        self.search = search


def told(outcomes):
    return [(outcome.status, outcome.text) for outcome in outcomes]


# ---- record and replay


def test_a_replay_gives_what_was_recorded_without_a_call(run, tmp_path):
    library, file = Library(), tmp_path / "new" / "calls.jsonl"
    calls = [(library.search, {"query": query, "top": 2}) for query in ("Velm", "caf\xe9", "\udc80 alone", "Velm")]
    recorded, _ = run(CallCache(file), *calls)
    assert sorted(library.made) == sorted(["Velm", "caf\xe9", "\udc80 alone"])  # equal calls are made once
    assert len(file.read_bytes().splitlines()) == 3
    library.up = False
    again = [(library.search, {"top": 2, "query": call["query"]}) for _, call in calls]  # arguments in another order
    replayed, runner = run(CallCache(file, replay=True), *again)
    assert told(replayed) == told(recorded) and len(library.made) == 3
    assert {outcome.attempts for outcome in replayed} == {0} and runner.trouble is None


def test_a_recorded_call_is_not_made_again_and_new_ones_are(run, tmp_path):
    library, file = Library(), tmp_path / "calls.jsonl"
    run(CallCache(file), (library.search, {"query": "Velm"}))
    run(CallCache(file), (library.search, {"query": "Velm"}), (library.search, {"query": "Oss"}))
    assert library.made == ["Velm", "Oss"]


def test_a_call_that_a_replay_does_not_have_stops_the_run_and_is_named(run, tmp_path):
    library, file = Library(), tmp_path / "calls.jsonl"
    run(CallCache(file), (library.search, {"query": "Velm"}))
    outcomes, runner = run(CallCache(file, replay=True), (library.search, {"query": "Oss" * 10**6, "top": 1}))
    assert outcomes[0].status == "tool_error" and library.made == ["Velm"]
    assert 'search({"query": "OssOss' in runner.trouble and str(file) in runner.trouble
    assert len(runner.trouble) < 1500


def test_failures_are_replayed_but_repeated_when_recording(run, tmp_path):
    library, file = Library(up=False), tmp_path / "calls.jsonl"
    call = (library.search, {"query": "Velm"})
    run(CallCache(file), call)
    replayed, _ = run(CallCache(file, replay=True), call)
    assert told(replayed) == [("tool_error", "Error: ConnectionError: down")] and len(library.made) == 1
    library.up = True
    recorded, _ = run(CallCache(file), call)
    assert recorded[0].status == "ok" and len(library.made) == 2
    replayed, _ = run(CallCache(file, replay=True), call)
    assert told(replayed) == told(recorded)


def other_argument(query: str, top: int = 5) -> str:
    raise AssertionError("a signature alone")


def other_words(query: str, top: int = 1) -> str:
    """It has a docstring."""
    raise AssertionError("a docstring alone")


def like(shown, version=None):
    """A library whose search has the signature and the docstring of another function, and a version."""
    library = Library()
    library.search.__signature__, library.search.__doc__ = inspect.signature(shown), shown.__doc__
    tool(version=version)(library.search)
    return library


@pytest.mark.parametrize(
    "changed",
    [lambda: like(other_argument), lambda: like(other_words), lambda: like(Library().search, version="world 2")],
    ids=["signature", "docstring", "version"],
)
def test_calls_of_another_tool_version_are_ignored_with_one_warning(run, tmp_path, caplog, changed):
    file, library = tmp_path / "calls.jsonl", changed()
    run(CallCache(file), *[(Library().search, {"query": one}) for one in ("Velm", "Oss")])
    _, runner = run(CallCache(file, replay=True), (library.search, {"query": "Velm"}))
    assert "calls.jsonl holds this call of another version of search" in runner.trouble and not library.made
    with caplog.at_level(logging.WARNING, logger="a2tgpo_trl"):
        for _ in range(2):
            run(CallCache(file), *[(library.search, {"query": one}) for one in ("Velm", "Oss")])
    assert sorted(library.made) == ["Oss", "Velm"]  # their results are kept beside the earlier ones
    (record,) = caplog.records
    assert "calls of another version of the tool search" in record.message
    first = Library()
    run(CallCache(file), (first.search, {"query": "Velm"}))
    assert not first.made


def test_search_tool_version_depends_on_corpus_and_top_k():
    made = [SearchTool(url=f"http://localhost:{port}", top_k=top_k) for port in (1, 2) for top_k in (1, 2)]
    made += [search_tool(documents, top_k) for documents in (["a", "b"], ["ab"]) for top_k in (1, 2)]
    assert len({settings_of(search).version for search in made}) == 8
    first, again = made[4], search_tool(["a", "b"], 1)
    assert identity(first, settings_of(first)) == identity(again, settings_of(again))


def test_state_changing_calls_are_neither_cached_nor_replayed(run, tmp_path):
    file, library = tmp_path / "calls.jsonl", Library()
    book = tool(changes_state=True)(library.search)
    for _ in range(2):
        run(CallCache(file), (book, {"query": "Velm"}), (book, {"query": "Velm"}))
    assert library.made == ["Velm"] * 4 and file.read_text() == ""
    _, runner = run(CallCache(file, replay=True))
    with pytest.raises(ValueError, match="tool_replay does not work with search, which has changes_state"):
        runner.prepare([book])
    _, runner = run(None)
    with pytest.raises(ValueError, match="search has both cache and changes_state"):
        runner.prepare([tool(cache=True, changes_state=True)(library.search)])


def test_a_disk_that_is_full_ends_the_recording_and_not_the_run(run, caplog):
    library = Library()
    with caplog.at_level(logging.WARNING, logger="a2tgpo_trl"):
        outcomes, runner = run(CallCache("/dev/full"), *[(library.search, {"query": one}) for one in ("Velm", "Oss")])
        again = runner.run([ToolCall(library.search, {"query": "Velm"})])
    assert [outcome.status for outcome in (*outcomes, *again)] == ["ok"] * 3 and len(library.made) == 2
    (record,) = caplog.records
    assert "/dev/full can no longer be written to" in record.message and "No space left" in record.message


def test_unwritable_cache_file_is_an_error_at_construction(tmp_path):
    with pytest.raises(IsADirectoryError):
        CallCache(tmp_path)


def test_replay_without_a_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no file .*nowhere.jsonl to replay from"):
        CallCache(tmp_path / "nowhere.jsonl", replay=True)


@pytest.mark.parametrize("cut", [2, 4, 30], ids=["end of the object", "in a character", "in the middle"])
def test_truncated_line_is_ignored_and_later_lines_are_complete(tmp_path, cut):
    file = tmp_path / "calls.jsonl"
    CallCache(file).put("search", {"query": "Velm"}, "ok", "on the Oss")
    CallCache(file).put("search", {"query": "b"}, "ok", "caf\xe9")
    file.write_bytes(file.read_bytes()[:-cut])  # the last 5 bytes are \xc3 \xa9 " } \n
    cache = CallCache(file)
    assert cache.get("search", {"query": "Velm"}) == Outcome("ok", "on the Oss")
    assert cache.get("search", {"query": "b"}) is None
    cache.put("search", {"query": "c"}, "ok", "new")
    assert CallCache(file).get("search", {"query": "c"}) == Outcome("ok", "new")


def test_a_whole_last_line_without_an_end_is_kept(tmp_path):
    file = tmp_path / "calls.jsonl"
    cache = CallCache(file)
    for number in range(2):
        cache.put("s", {"q": number}, "ok", f"{number}")
    file.write_text(file.read_text().removesuffix("\n"))  # as editors and scripts leave it
    assert CallCache(file, replay=True).get("s", {"q": 1}).text == "1"
    cache = CallCache(file)
    cache.put("s", {"q": 2}, "ok", "2")
    assert [CallCache(file, replay=True).get("s", {"q": number}).text for number in range(3)] == ["0", "1", "2"]


@pytest.mark.parametrize(
    "line",
    ["{", "3", "", '{"tool": "a"}', '{"tool": "a", "arguments": {}, "status": "fine", "text": ""}', '"\udcff"'],
)
def test_a_broken_line_in_the_middle_is_an_error_with_its_place(tmp_path, line):
    file = tmp_path / "calls.jsonl"
    CallCache(file).put("search", {"query": "Velm"}, "ok", "on the Oss")
    text = file.read_bytes()
    file.write_bytes(text + line.encode(errors="surrogateescape") + b"\n" + text)
    with pytest.raises(ValueError, match="line 2 of .*calls.jsonl is not a recorded call"):
        CallCache(file)


def test_each_rank_writes_a_file_and_reads_all(tmp_path):
    path = tmp_path / "calls[1].jsonl"  # to glob, this name means something else
    for rank in (0, 1):
        CallCache(path, rank=rank).put("search", {"query": f"of {rank}"}, "ok", f"found by {rank}")
        CallCache(path, rank=rank).put("clock", {}, "ok", f"time of {rank}")
    assert len(list(tmp_path.iterdir())) == 2
    for rank in (0, 1):
        cache = CallCache(path, replay=True, rank=rank)
        assert [cache.get("search", {"query": f"of {one}"}).text for one in (0, 1)] == ["found by 0", "found by 1"]
        assert cache.get("clock", {}).text == f"time of {rank}"  # where they differ, each rank has its own
        with pytest.raises(ReplayMiss, match=r"clock\(\{\"zone\": \"CET\"\}\)"):
            cache.get("clock", {"zone": "CET"})


def test_call_key_ignores_argument_order_but_not_types():
    assert call_key("f", {"a": 1, "b": {"c": 2, "d": 3}}) == call_key("f", {"b": {"d": 3, "c": 2}, "a": 1})
    keys = {call_key("f", {"a": value}) for value in (1, "1", True, None, [1])} | {call_key("g", {"a": 1})}
    assert len(keys) == 6


# ---- secrets


def test_secrets_are_masked_in_outcomes_and_cache_files(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "sesame-open-up")

    def leak(how: str) -> str:
        if how == "raise":
            raise PermissionError(f"wrong key {os.environ['SOME_API_KEY']}")
        return f"key={os.environ['SOME_API_KEY']}&q=1"

    async def aleak() -> str:
        return os.environ["SOME_API_KEY"]

    @tool(check=lambda: leak("raise"))
    def checked() -> str:
        return ""

    file = tmp_path / "calls.jsonl"
    outcomes, runner = run(CallCache(file), (leak, {"how": "raise"}), (leak, {"how": "return"}), (aleak, {}))
    assert told(outcomes) == [
        ("tool_error", "Error: PermissionError: wrong key [SOME_API_KEY]"),
        ("ok", "key=[SOME_API_KEY]&q=1"),
        ("ok", "[SOME_API_KEY]"),
    ]
    assert "sesame" not in file.read_text()
    with pytest.raises(RuntimeError, match=r"wrong key \[SOME_API_KEY\]"):
        runner.check([checked])


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("HF_TOKEN", "hf_abcdefgh", True),
        ("MY_PASSWORD", "correct horse", True),
        ("PLAIN_NAME", "Xa9" * 8, True),  # 24 letters and digits
        ("DATABASE_URL", "postgres://me:hunter2@host/db", True),
        ("SOME_API_KEY", "short", False),
        ("DESKTOP_SESSION", "ubuntu-xorg", False),
        ("TOKENIZERS_PARALLELISM", "disabled", False),
        ("GIT_AUTHOR_NAME", "Ada Lovelace", False),
        ("HOME", "/home/ada/and/a/path/of/24/or/more", False),
    ],
)
def test_secrets_are_recognised_by_name_and_value(name, value, secret):
    text = Redaction({name: value, "OTHER": "x"})(f"<{value}>")
    assert text == (f"<[{name}]>" if secret else f"<{value}>")


def test_longer_of_two_overlapping_secrets_is_masked_first():
    clean = Redaction({"A_KEY": "abcdefgh", "B_KEY": "abcdefgh-more"})
    assert clean("abcdefgh-more, abcdefgh") == "[B_KEY], [A_KEY]"


# ---- arguments


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


def find(
    query: str,
    top: int = 1,
    tags: list[str] | None = None,
    order: Literal["new", "old"] = "new",
    colour: Colour | None = None,
    nullable: bool = False,
    weights: dict[str, float] | None = None,
):
    """
    Find things.

    Args:
        query: What to find.
        top: How many.
        tags: What they must have.
        order: Which come first.
        colour: Of which colour they are.
        nullable: An argument whose name means something in a schema.
        weights: By tag.
    """


def find_with(query: str, **options: str):
    """
    Find things.

    Args:
        query: What to find.
        options: Anything else.
    """


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"query": "x"}, None),
        ({"query": "x", "top": 3, "tags": ["a"], "order": "old", "colour": "red", "nullable": True}, None),
        ({"query": "x", "tags": None, "colour": None, "weights": {"a": 0.5}}, None),
        ({}, "query is missing"),
        ({"q": 1}, "query is missing; there is no argument 'q'"),
        ({"query": 1}, "query: 1 is not of type 'string'"),
        ({"query": None}, "query: None is not of type 'string'"),
        ({"query": "x", "top": "3"}, "top: '3' is not of type 'integer'"),
        ({"query": "x", "top": True}, "top: True is not of type 'integer'"),
        ({"query": "x", "tags": "a"}, "tags: 'a' is not of type 'array', 'null'"),
        ({"query": "x", "tags": ["a", 3]}, "tags[1]: 3 is not of type 'string'"),
        ({"query": "x", "order": "best"}, "order: 'best' is not one of ['new', 'old']"),
        ({"query": "x", "colour": "green"}, "colour: 'green' is not one of ['red', 'blue', None]"),
        ({"query": "x", "nullable": 3}, "nullable: 3 is not of type 'boolean'"),
        ({"query": "x", "weights": {"a": "b"}}, "weights['a']: 'b' is not of type 'number'"),
        (["x"], "arguments must be an object of names and values, not ['x']"),
        (None, "arguments must be an object of names and values, not None"),
    ],
    ids=str,
)
def test_arguments_are_checked_against_the_schema(arguments, problem):
    assert problem_with(find, arguments) == problem


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"query": "x"}, None),
        ({"query": "x", "shape": "round", "size": "big"}, None),
        ({"query": "x", "shape": 3}, "shape: 3 is not of type 'string'"),
        ({"shape": "round"}, "query is missing"),
    ],
    ids=str,
)
def test_a_tool_that_takes_any_argument_is_given_any(arguments, problem):
    assert problem_with(find_with, arguments) == problem


def test_long_values_and_names_give_short_messages_that_say_what_is_wrong():
    long = "x" * 10**6
    found = problem_with(find, {"query": "x", "top": long})
    assert len(found) <= LONGEST_PROBLEM + 10 and found.endswith("is not of type 'integer'")
    found = problem_with(find, {"query": "x", **{f"{long}{number}": 1 for number in range(9)}})
    assert len(found) <= MOST_PROBLEMS * (LONGEST_PROBLEM + 50)
    assert len(problem_with(find, long)) <= LONGEST_PROBLEM + 60
    assert len(problem_with(find, {"query": "x", "weights": {long: "b"}})) <= 2 * LONGEST_PROBLEM + 10


def test_a_method_is_checked_without_its_self():
    class Shop:
        def buy(self, what: str):
            """
            Buy.

            Args:
                what: The thing.
            """

    assert problem_with(Shop().buy, {"what": "x"}) is None
    assert problem_with(Shop().buy, {}) == "what is missing"


def test_a_file_of_calls_is_what_its_docstring_shows(tmp_path):
    file = tmp_path / "calls.jsonl"
    CallCache(file).put("search", {"query": "Velm"}, "ok", "Velm lies on the Oss.", "3f0a")
    call = {"tool": "search", "of": "3f0a", "arguments": {"query": "Velm"}}
    shown = {**call, "status": "ok", "text": "Velm lies on the Oss."}
    assert json.loads(file.read_text()) == shown
