"""Faults of tools, environments and policies in training: what is logged, what the loss does; the training goes on."""

import gc
import json
import math
import os
import re
import resource
import socket
import threading
import time
from collections.abc import Callable

import psutil
import pytest
import tiny
import torch
from calls import becomes
from datasets import Dataset
from tool_runs import args, one_call, spread, train
from training import logged, make, questions, weights
from transformers import TrainerCallback
from trl import GRPOTrainer

from a2tgpo_trl.errors import RunStopped
from a2tgpo_trl.ranks import Ranks
from a2tgpo_trl.rollout.open_files import OpenFiles
from a2tgpo_trl.rollout.records import as_text
from a2tgpo_trl.rollout.tool_loop import SILENT_BATCHES
from a2tgpo_trl.tools import ToolSettings, tool
from a2tgpo_trl.tools.settings import identity


def failing_for(rows: set[str], error: BaseException | None = None):
    @tiny.searches
    def search(query):
        if query in rows:
            raise error or ValueError("no luck")
        return f"The {query} is Paris."

    return search


def trained_tokens(batch: dict) -> list[int]:
    return (batch["completion_mask"] * batch["tool_mask"]).sum(dim=1).tolist()


# ---- failures of tools


def test_tool_failure_is_reported_logged_and_trained_on(tokenizer, tmp_path):
    trainer, batch, records = train(tokenizer, args(tmp_path), tools=[failing_for({"1", "2"})])
    log = trainer.state.log_history[0]
    # Four calls, two of which raised; eight turns, of which two ended in an error.
    assert log["tools/search/tool_error"] == 0.5 and log["tools/search/ok"] == 0.5
    assert log["turns/tool_error"] == 0.25 and log["turns/ok"] == 0.75 and log["rollouts/excluded"] == 0
    assert log["tools/call_frequency"] == 1.0 and log["tools/failure_frequency"] == 0.5
    assert [record["turns"][0]["status"] for record in records] == ["ok", "tool_error", "tool_error", "ok"]
    assert records[1]["completion"][1]["content"] == "Error: ValueError: no luck"
    assert min(trained_tokens(batch)) > 0 and (batch["advantages"] != 0).any(dim=1).all()


def test_turn_cut_by_max_new_tokens_counts_as_over_budget(tokenizer, tmp_path):
    # The policy is not scripted: it samples up to a limit far below the 700 tokens of a rollout, or ends earlier.
    config = args(tmp_path, generation_kwargs={"max_new_tokens": 6}, failure_policy={"over_budget": "exclude"})
    trainer = make(tokenizer, config, scripted=False, reward_funcs=spread)
    records = []
    trainer.on_rollouts = records.extend
    trainer.train()
    cut = [record for record in records if record["ended"] == "over_budget"]
    assert all(record["turns"][0]["tokens_out"] == 6 and record["excluded"] for record in cut)
    log = trainer.state.log_history[0]
    assert 0 < log["completions/clipped_ratio"] < 1
    assert log["turns/over_budget"] == log["rollouts/excluded"] == log["completions/clipped_ratio"] == len(cut) / 4


def test_an_excluded_rollout_is_out_of_the_statistics_and_out_of_the_loss(tokenizer, tmp_path):
    config = args(tmp_path, failure_policy={"tool_error": "exclude"}, credit="grpo", max_steps=2)
    trainer, batch, records = train(tokenizer, config, tools=[failing_for({"3"})])
    assert [record["excluded"] for record in records[:4]] == [False, False, False, True]
    out = batch["completion_mask"].sum(dim=1) == 0
    out |= (batch["completion_mask"] * batch["tool_mask"]).sum(dim=1) == 0
    assert out.sum() == 1 and (batch["advantages"][out] == 0).all() and (batch["turn_index"][out] == -1).all()
    # The rewards 0, 1, 2 of the others: mean 1, deviation 1; with the fourth, 3, they would be -1.16, -0.39, 0.39.
    kept = sorted(batch["advantages"][~out].amax(dim=1).tolist() + batch["advantages"][~out].amin(dim=1).tolist())
    assert kept[0] == pytest.approx(-1, abs=1e-3) and kept[-1] == pytest.approx(1, abs=1e-3)
    assert trainer.state.log_history[0]["rollouts/excluded"] == 0.25
    assert trainer.state.log_history[0]["rewards/spread/mean"] == pytest.approx(1.0)
    assert batch["num_items_in_batch"] == sum(trained_tokens(batch))


@pytest.mark.parametrize("credit", ["a2tgpo", "grpo"])
def test_batch_with_only_failed_rollouts_changes_no_weights(credit, tokenizer, tmp_path):
    # The tool fails in the first batch, and works in the second.
    calls = []

    @tiny.searches
    def search(query):
        calls.append(query)
        if len(calls) <= 4:
            raise ValueError("down")
        return query

    config = args(tmp_path, failure_policy={"tool_error": "exclude"}, credit=credit, max_steps=2, max_grad_norm=1.0)
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, *_, **__):
            seen.append(weights(trainer))

    trainer = make(tokenizer, config, scripted=False, reward_funcs=spread, tools=[search])
    tiny.script(trainer.model, tokenizer, one_call)
    before = weights(trainer)
    trainer.add_callback(Watch())
    trainer.train()
    assert len(seen) == 2
    assert all(torch.equal(before[name], tensor) for name, tensor in seen[0].items())
    assert any(not torch.equal(before[name], tensor) for name, tensor in seen[1].items())
    assert all(tensor.isfinite().all() for tensor in seen[1].values())
    assert logged(trainer, "loss")[0] == 0 and logged(trainer, "rollouts/excluded") == [1.0, 0.0]
    assert logged(trainer, "grad_norm")[0] == 0


def test_policy_that_never_answers_ends_at_every_limit(tokenizer, tmp_path):
    def write(turn: int, row: int) -> str:
        return tiny.call(f"{turn}", times=3)

    config = args(tmp_path, max_tool_calling_iterations=2, max_calls_per_turn=2, max_completion_length=2000)
    trainer, batch, records = train(tokenizer, config, write)
    assert all(record["ended"] == "over_budget" for record in records)
    statuses = [call["status"] for call in records[0]["turns"][0]["calls"]]
    assert statuses == ["ok", "ok", "over_budget"]
    # Two turns of calls, one that is told that no more are allowed, and one that calls anyway.
    assert [len(record["turns"]) for record in records] == [4] * 4 and min(trained_tokens(batch)) > 0
    config = args(tmp_path, max_completion_length=300)  # no limit except the length
    trainer, batch, records = train(tokenizer, config, write)
    assert all(record["ended"] in ("context_full", "over_budget") for record in records)
    log = trainer.state.log_history[0]
    assert log["turns/context_full"] + log["turns/over_budget"] > 0


def test_policy_that_never_calls_a_tool_is_warned_of_once(tokenizer, tmp_path, caplog):
    config = args(tmp_path, max_steps=SILENT_BATCHES + 1)
    train(tokenizer, config, lambda turn, row: tiny.final("Paris"))
    assert caplog.text.count("called no tool") == 1


def test_a_tool_all_of_whose_calls_fail_is_named(tokenizer, tmp_path, caplog):
    def write(turn: int, row: int) -> str:
        return tiny.call(f"{row}", times=2) if turn == 0 else tiny.final("Paris")

    train(tokenizer, args(tmp_path), write, tools=[failing_for({"0", "1", "2", "3"})])
    assert (
        "All calls to the tool search in this batch failed, the last with: Error: ValueError: no luck" in caplog.text
    )


def test_empty_generations_are_answers_of_one_end_token(tokenizer, tmp_path, monkeypatch):
    answer = tokenizer(tiny.final("Paris"))["input_ids"]
    rows = [answer, [], answer, []]
    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", lambda *_: (rows, None))
    trainer, batch, records = train(tokenizer, args(tmp_path))
    assert [record["ended"] for record in records] == ["answer"] * 4
    assert sorted(trained_tokens(batch))[:2] == [1, 1] and math.isfinite(logged(trainer, "loss")[0])


def test_tool_that_leaks_sockets_stops_the_run_before_files_run_out(tokenizer, tmp_path):
    kept = []

    @tiny.searches
    def search(query):
        kept.extend(socket.socket() for _ in range(100))
        return query

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = psutil.Process().num_fds() + 1000
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    config = args(tmp_path, max_steps=10, save_strategy="steps", save_steps=100)
    try:
        with pytest.raises(RunStopped, match=rf"\(limit: {allowed}\): search.*process=True.*checkpoint-1"):
            train(tokenizer, config, tools=[search])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in kept:
            one.close()
    assert len(kept) == 800  # 400 a batch: the second was the last


def test_one_more_open_file_in_each_batch_stops_no_run_that_has_room(tokenizer, tmp_path):
    kept = [socket.socket() for _ in range(300)]

    @tiny.searches
    def search(query):
        if query == "0":
            kept.append(socket.socket())
        return query

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(psutil.Process().num_fds() / 0.75), hard))
    try:
        trainer, _, _ = train(tokenizer, args(tmp_path, max_steps=4), tools=[search])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in kept:
            one.close()
    assert trainer.state.global_step == 4 and len(kept) == 304


def files_after(*counts: int, allowed: int = 1000) -> OpenFiles:
    files = OpenFiles(counts[0])
    for count in counts[1:]:
        files.see(count, allowed)
    return files


def test_leak_is_detected_from_steadily_rising_file_counts():
    # 40 a batch since the third count, 5 times: (900 - 300) / 40
    assert files_after(150, 160, 100, 140, 180, 220, 260, 300).batches_left == 15.0
    assert files_after(100, 140, 180, 220, 260).batches_left == math.inf
    assert files_after(719, 720, 720, 721, 721, 722, 721).batches_left == math.inf
    # 300 a batch, twice, is more than a quarter of all: (900 - 700) / 300. One rise may be files held for good.
    assert files_after(100, 400, 700).batches_left == pytest.approx(2 / 3)
    assert files_after(100, 400, 400, 700).batches_left == math.inf
    assert files_after(100, 899).is_full is False and files_after(100, 900).is_full is True


def test_slow_file_leak_is_warned_of_before_it_stops_the_run(tokenizer, tmp_path, caplog):
    kept = []

    @tiny.searches
    def search(query):
        kept.extend(socket.socket() for _ in range(3))
        return query

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # 12 a batch: 120 more may be open, and a tenth of all is kept free for saving.
    allowed = int((psutil.Process().num_fds() + 120) / 0.9)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    try:
        with pytest.raises(RunStopped, match="search may leave some open"):
            train(tokenizer, args(tmp_path, max_steps=20), tools=[search])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in kept:
            one.close()
    told = [record.message for record in caplog.records if "the run would have to stop" in record.message]
    assert len(told) >= 2 and "search may leave some open" in told[0]


# ---- tools that hang, and tools that are down


def test_calls_that_never_come_back_stop_the_run_with_a_checkpoint(tokenizer, tmp_path):
    never, steps = threading.Event(), []

    @tiny.searches
    def search(query):
        if steps:
            never.wait()
        return query

    limits = {"tool_timeout": 0.2, "max_hung_calls": 3, "outage_patience": 0.0}
    config = args(tmp_path, max_steps=5, save_strategy="steps", save_steps=100, **limits)
    trainer = make(tokenizer, config, scripted=False, reward_funcs=spread, tools=[search])

    def write(turn: int, row: int) -> str:
        if trainer.state.global_step == 2:
            steps.append(2)
        return one_call(turn, row)

    tiny.script(trainer.model, tokenizer, write)
    with pytest.raises(RunStopped, match=r"4 calls have not returned: search \(4\).*checkpoint-2"):
        trainer.train()
    never.set()
    assert (tmp_path / "checkpoint-2" / "model.safetensors").exists()


def test_a_tool_that_is_down_at_the_start_is_found_before_the_first_step(tokenizer, tmp_path):
    def check():
        raise ConnectionRefusedError("nobody listens on port 8000")

    search = tool(check=check)(failing_for(set()))
    trainer = make(tokenizer, args(tmp_path), scripted=False, reward_funcs=spread, tools=[search])
    trainer.model.generate = lambda *_, **__: pytest.fail("sampled before the tool was asked")
    with pytest.raises(RunStopped, match="search: ConnectionRefusedError: nobody listens on port 8000"):
        trainer.train()


class Server:
    """A tool's server that is down for some of its checks."""

    def __init__(self, down_from: int, down_to: int):
        self.asked, self.down = 0, range(down_from, down_to)

    def check(self):
        self.asked += 1
        if self.asked - 1 in self.down:
            raise ConnectionError("refused")

    def tool(self, **words):
        @tool(check=self.check, backoff=0.01, **words)
        @tiny.searches
        def search(query):
            if self.asked in self.down:
                raise OSError("connection reset")
            return query

        return search


def test_tool_that_recovers_loses_no_calls(tokenizer, tmp_path):
    server = Server(1, 4)  # up at the start, then down for three checks
    trainer, batch, records = train(
        tokenizer, args(tmp_path, outage_patience=20.0, tool_concurrency=1), tools=[server.tool()]
    )
    assert [record["turns"][0]["status"] for record in records] == ["ok"] * 4
    assert max(call["attempts"] for record in records for call in record["turns"][0]["calls"]) == 2


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_tool_that_stays_down_stops_the_run_unless_on_outage_is_continue(policy, tokenizer, tmp_path):
    server = Server(1, 10**9)
    config = args(tmp_path, max_steps=2, outage_patience=0.1, on_outage=policy)
    trainer = make(tokenizer, config, scripted=False, reward_funcs=spread, tools=[server.tool()])
    tiny.script(trainer.model, tokenizer, one_call)
    if policy == "continue":
        trainer.train()
        assert logged(trainer, "tools/search/tool_error") == [1.0, 1.0]
        return
    with pytest.raises(
        RunStopped, match="The tool search is down, and did not come back within 0.1 s: ConnectionError"
    ):
        trainer.train()


def test_outage_on_another_rank_stops_this_one_too(tokenizer, tmp_path):
    trainer = make(tokenizer, args(tmp_path), scripted=False, reward_funcs=spread)
    tiny.script(trainer.model, tokenizer, one_call)
    # What the ranks say at the start, and after the first batch.
    heard = iter([None, "The tool search of rank 1 is down"])
    trainer._tool_loop._ranks = Ranks(trainer.accelerator)
    trainer._tool_loop._ranks.first_text = lambda of_this_rank: next(heard)
    with pytest.raises(RunStopped, match="The tool search of rank 1 is down"):
        trainer.train()


# ---- prompts that are too long


@pytest.mark.parametrize("credit", ["a2tgpo", "grpo"])
@pytest.mark.parametrize("too_long", [{1}, {0, 1}], ids=["one", "all"])
def test_overlong_prompt_loses_its_rollouts_but_not_the_run(too_long, credit, tokenizer, tmp_path, caplog):
    texts = ["Where? " * (600 if i in too_long else 1) for i in range(2)]
    prompts = [[{"role": "user", "content": text}] for text in texts]
    rows = Dataset.from_dict({"prompt": prompts, "answer": ["Paris"] * 2})
    config = args(tmp_path, num_generations=2, credit=credit)
    trainer, batch, records = train(tokenizer, config, train_dataset=rows)
    assert len(records) == 4
    for record in records:
        is_long = len(record["prompt"][-1]["content"]) > 2048
        assert (record["ended"], len(record["turns"])) == (("context_full", 0) if is_long else ("answer", 2))
        assert record["rewards"]["spread"] is not None and not record["excluded"]
    number = 2 * len(too_long)
    assert batch["prompt_ids"].size(1) < 2048 and trained_tokens(batch).count(0) == number
    assert math.isfinite(trainer.state.log_history[0]["loss"])
    assert f"{number} rollouts of a batch could not begin (context_full)" in caplog.text


# ---- environments


class Room:
    """An environment that can fail in each of its methods."""

    made = 0

    def __init__(self):
        Room.made += 1
        self.thread = threading.get_ident()

    def reset(self, **row):
        assert threading.get_ident() == self.thread
        self.looked = []
        if row["fails"] == "reset":
            raise RuntimeError("no room")
        self.fails = row["fails"]
        return " You are in a room."

    def look(self, query: str) -> str:
        """Look around.

        Args:
            query: What for.
        """
        assert threading.get_ident() == self.thread
        self.looked.append(query)
        if self.fails == "hangs":
            time.sleep(3)
        return ", ".join(self.looked)

    def get_reward(self) -> float:
        if self.fails == "get_reward":
            raise RuntimeError("no judge")
        return math.nan if self.fails == "nan" else float(len(self.looked))

    def _secret(self) -> str:
        raise AssertionError("called")


def in_rooms(tokenizer, tmp_path, fails: list[str], write=None, **changes):
    dataset = questions().add_column("fails", fails)

    def look(turn: int, row: int) -> str:
        text = tiny.call("x", times=row + 1) if turn == 0 else tiny.final("Paris")
        return text.replace("search", "look")

    # A group needs several rollouts of a prompt: each row is rolled out four times; its rollouts look 1 to 4 times.
    config = args(tmp_path, **changes)
    return train(
        tokenizer,
        config,
        write or look,
        train_dataset=dataset,
        tools=None,
        reward_funcs=None,
        environment_factory=Room,
    )


def test_records_hold_the_prompt_that_the_policy_read(tokenizer, tmp_path):
    trainer, _, records = in_rooms(tokenizer, tmp_path, ["no"] * 4)
    asked = {row["prompt"][-1]["content"] for row in questions()}
    for record in records:
        assert record["prompt"][-1]["content"].removesuffix(" You are in a room.") in asked
        assert record["prompt"][-1]["content"] not in asked and "You are in a room." in as_text(record)


def test_calls_on_an_environment_are_in_order_and_on_one_thread(tokenizer, tmp_path):
    def write(turn: int, row: int) -> str:
        calls = [tiny.call(f"{turn}{i}").replace("search", "look").removesuffix("<|im_end|>") for i in range(5)]
        return "".join(calls) + "<|im_end|>" if turn < 2 else tiny.final("Paris")

    _, _, records = in_rooms(tokenizer, tmp_path, ["no"] * 4, write, max_completion_length=3000)
    for record in records:
        looked = [call["result"] for turn in record["turns"] for call in turn["calls"]]
        assert [call["status"] for turn in record["turns"] for call in turn["calls"]] == ["ok"] * 10
        assert looked[-1] == "00, 01, 02, 03, 04, 10, 11, 12, 13, 14"


def test_reset_get_reward_and_private_methods_cannot_be_called(tokenizer, tmp_path):
    def write(turn: int, row: int) -> str:
        name = ("reset", "get_reward", "_secret", "__init__")[row]
        return tiny.call("x").replace("search", name) if turn == 0 else tiny.final("Paris")

    trainer, _, records = in_rooms(tokenizer, tmp_path, ["no"] * 4, write)
    assert [record["turns"][0]["status"] for record in records] == ["unknown_tool"] * 4
    assert all("There are: look." in record["completion"][1]["content"] for record in records)
    assert trainer.state.log_history[0]["turns/unknown_tool"] == 0.5


class Moody(Room):
    """Fails for the rollouts that the test names, whatever their row."""

    number = 0
    fails_for: dict[int, str] = {}

    @tool(concurrency=1)  # because it counts
    def reset(self, **row):
        mine = Moody.number % 4
        Moody.number += 1
        return super().reset(**{**row, "fails": Moody.fails_for.get(mine, "no")})


@pytest.mark.parametrize("where", ["reset", "get_reward", "nan"])
def test_failing_environment_loses_its_rollout_but_not_the_run(where, tokenizer, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Moody, "fails_for", {3: where})
    monkeypatch.setattr(Moody, "number", 0)

    def look(turn: int, row: int) -> str:
        text = tiny.call("x", times=row + 1) if turn == 0 else tiny.final("Paris")
        return text.replace("search", "look")

    trainer, batch, records = train(
        tokenizer, args(tmp_path), look, tools=None, reward_funcs=None, environment_factory=Moody
    )
    rewards = [record["rewards"]["Moody"] for record in records]
    assert rewards[3] is None and None not in rewards[:3]
    log = trainer.state.log_history[0]
    assert log["rollouts/excluded"] == (0.25 if where == "reset" else 0)
    assert log["rollouts/failed_rewards"] == (0 if where == "reset" else 0.25)
    assert where == "reset" or f"{ {'nan': 'nan', 'get_reward': 'no judge'}[where] }" in caplog.text
    unscored = (batch["advantages"] == 0).all(dim=1)
    assert unscored.sum() == 1 and math.isfinite(log["loss"])
    if where == "reset":
        assert records[3]["ended"] == "reset" and records[3]["turns"] == []
        assert trained_tokens(batch)[int(unscored.nonzero())] == 0


def test_failed_get_reward_leaves_the_rollout_unscored(tokenizer, tmp_path, monkeypatch):
    # Format rewards are 0, and each judge gives one point: without a judge, a rollout would seem to lack the point.
    monkeypatch.setattr(Moody, "fails_for", {3: "get_reward"})
    monkeypatch.setattr(Moody, "number", 0)

    def look(turn: int, row: int) -> str:
        return tiny.call("x").replace("search", "look") if turn == 0 else tiny.final("Paris")

    def form(prompts, **_):
        return [0.0] * len(prompts)

    keywords = {"tools": None, "reward_funcs": form, "environment_factory": Moody}
    _, batch, records = train(tokenizer, args(tmp_path, credit="grpo"), look, **keywords)
    assert [record["rewards"]["form"] for record in records] == [0.0, 0.0, 0.0, None]
    assert (batch["advantages"] == 0).all()


def test_equal_environments_are_distinguished_by_identity(tokenizer, tmp_path, monkeypatch):
    class Twin(Moody):
        def __eq__(self, other):
            return True

        __hash__ = None

    monkeypatch.setattr(Moody, "fails_for", {3: "hangs"})
    monkeypatch.setattr(Moody, "number", 0)

    def look(turn: int, row: int) -> str:
        return tiny.call("x").replace("search", "look") if turn == 0 else tiny.final("Paris")

    keywords = {"tools": None, "reward_funcs": None, "environment_factory": Twin}
    trainer, _, _ = train(tokenizer, args(tmp_path, tool_timeout=0.5), look, **keywords)
    pool = trainer._environment_pool[None]
    assert len(pool) == 3 and not any(trainer._tool_loop.runner.is_stuck(environment) for environment in pool)


def test_environments_that_take_no_attributes_are_refused_with_a_reason(tokenizer, tmp_path):
    class Slotted:
        __slots__ = ("state", "__weakref__")

        def reset(self, **_):
            self.state = 0

        def get_reward(self) -> float:
            return 0.0

    with pytest.raises(TypeError, match="class Slotted do not accept new attributes: remove its __slots__"):
        make(tokenizer, args(tmp_path), tools=None, environment_factory=Slotted)


def test_evaluation_excludes_no_rollout_and_a_stop_in_it_saves_a_checkpoint(tokenizer, tmp_path):
    failing = failing_for({"0", "1", "2", "3"})
    config = args(tmp_path, failure_policy={"tool_error": "exclude"}, num_generations_eval=4)
    trainer = make(tokenizer, config, scripted=False, reward_funcs=spread, tools=[failing])
    tiny.script(trainer.model, tokenizer, one_call)
    metrics = trainer.evaluate(questions(1))
    assert metrics["eval_rollouts/excluded"] == 0 and metrics["eval_turns/tool_error"] == 1

    calls = []

    @tool(check=lambda: calls and 1 / 0, backoff=0.01)
    @tiny.searches
    def search(query):
        if calls:
            raise OSError("gone")
        return query

    config = args(tmp_path, max_steps=4, eval_strategy="steps", eval_steps=2, outage_patience=0.1)
    trainer = make(tokenizer, config, scripted=False, reward_funcs=spread, tools=[search], eval_dataset=questions())

    def write(turn: int, row: int) -> str:
        if not trainer.model.training:
            calls.append(row)
        return one_call(turn, row)

    tiny.script(trainer.model, tokenizer, write)
    with pytest.raises(RunStopped, match="search is down.*checkpoint-2: fix the problem and resume from there"):
        trainer.train()
    assert (tmp_path / "checkpoint-2" / "model.safetensors").exists()


def test_environments_that_all_fail_stop_the_run(tokenizer, tmp_path):
    with pytest.raises(RunStopped, match="reset failed for all 4 environments of a batch.*RuntimeError: no room"):
        in_rooms(tokenizer, tmp_path, ["reset"] * 4, max_steps=3)


def test_one_batch_of_failed_resets_does_not_stop_the_run(tokenizer, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Moody, "fails_for", dict.fromkeys(range(4), "reset"))
    monkeypatch.setattr(Moody, "number", 0)

    def look(turn: int, row: int) -> str:
        Moody.fails_for.clear()
        return tiny.call("x").replace("search", "look") if turn == 0 else tiny.final("Paris")

    def reward(prompts, trainer_state, **_):
        Moody.fails_for.clear()  # the next batch succeeds
        return spread(prompts)

    config = args(tmp_path, max_steps=2)
    keywords = {"tools": None, "reward_funcs": reward, "environment_factory": Moody}
    trainer, _, records = train(tokenizer, config, look, **keywords)
    assert logged(trainer, "rollouts/excluded") == [1.0, 0.0] and "reset failed for all 4" in caplog.text
    assert logged(trainer, "loss")[0] == 0


def test_an_environment_that_hangs_is_replaced(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(Room, "made", 0)
    monkeypatch.setattr(Moody, "fails_for", {3: "hangs"})
    monkeypatch.setattr(Moody, "number", 0)

    def look(turn: int, row: int) -> str:
        return tiny.call("x").replace("search", "look") if turn < 2 else tiny.final("Paris")

    trainer, _, records = train(
        tokenizer,
        args(tmp_path, tool_timeout=0.5, max_steps=2),
        look,
        tools=None,
        reward_funcs=None,
        environment_factory=Moody,
    )
    assert Room.made == 4 + 1  # one hung in the first batch, and is replaced in the second
    assert [turn["status"] for turn in records[3]["turns"]] == ["timeout", "timeout", "ok"]
    assert "has not come back" in records[3]["completion"][3]["content"]
    assert logged(trainer, "tools/look/timeout") == [0.25, 0.25]


class Rebuilt(Moody):
    """Environments of which the fifth cannot be made."""

    _fault: Callable[[], object]

    def __init__(self):
        super().__init__()
        if Room.made == 5:
            Rebuilt._fault()

    def _give_back(self):
        self.looked.clear()

    @tool(release=_give_back)
    def look(self, query: str) -> str:
        """Look around.

        Args:
            query: What for.
        """
        return super().look(query)


def raises():
    raise OSError("no display")


FAULTS = {"raises": "OSError: no display", "blocks": r"Rebuilt\(\) did not answer within 1 seconds"}


@pytest.mark.parametrize("fault", FAULTS)
def test_environment_that_cannot_be_rebuilt_loses_its_rollout_only(fault, tokenizer, tmp_path, monkeypatch, caplog):
    never = threading.Event()
    monkeypatch.setattr(Rebuilt, "_fault", raises if fault == "raises" else never.wait, raising=False)
    monkeypatch.setattr(Room, "made", 0)
    monkeypatch.setattr(Moody, "fails_for", {3: "hangs"})
    monkeypatch.setattr(Moody, "number", 0)

    def look(turn: int, row: int) -> str:
        Moody.fails_for.clear()  # only the first batch has one that hangs
        return tiny.call("x").replace("search", "look") if turn == 0 else tiny.final("Paris")

    keywords = {"tools": None, "reward_funcs": None, "environment_factory": Rebuilt}
    trainer, _, records = train(tokenizer, args(tmp_path, tool_timeout=1.0, max_steps=3), look, **keywords)
    never.set()
    # One hangs in the first batch, its replacement cannot be made in the second, and the third has another.
    assert Room.made == 6 and logged(trainer, "rollouts/excluded") == [0.0, 0.25, 0.0]
    assert [record["ended"] for record in records[4:]] == ["answer"] * 3 + ["reset"] + ["answer"] * 4
    assert [record["rewards"]["Rebuilt"] for record in records[4:]] == [1.0] * 3 + [None] + [1.0] * 4
    assert re.search(f"reset failed for 1 of 4 .* could not be made: {FAULTS[fault]}", caplog.text)
    assert "failed to release" not in caplog.text and len(trainer._environment_pool[None]) == 4


def test_environment_init_has_its_own_timeout(tokenizer, tmp_path, monkeypatch):
    class Slow(Room):
        @tool(timeout=20)
        def __init__(self):
            super().__init__()
            time.sleep(0.4)

    config = args(tmp_path, tool_timeout=0.2)
    keywords = {"tools": None, "reward_funcs": spread, "environment_factory": Slow}
    dataset = questions().add_column("fails", ["no"] * 4)
    trainer, _, _ = train(tokenizer, config, lambda *_: tiny.final("Paris"), train_dataset=dataset, **keywords)
    assert logged(trainer, "rollouts/excluded") == [0.0]


# ---- what does not depend on time


@pytest.mark.parametrize("other", [{"tool_concurrency": 1}, {"replay": True}], ids=["alone", "replayed"])
def test_rollouts_are_the_same_at_any_concurrency_and_replayed(other, tokenizer, tmp_path):
    # The tool answers later calls faster.
    made: list[str] = []

    @tiny.searches
    def search(query):
        made.append(query)
        time.sleep(0.05 / (1 + len(made)))
        return f"Nothing is known of {query}."

    def write(turn: int, row: int) -> str:
        return tiny.call(f"{turn} {row}", times=1 + row) if turn < row else tiny.final("Paris")

    cache = str(tmp_path / "calls.jsonl")
    common = {"max_steps": 2, "tool_cache": cache, "max_completion_length": 2000}
    first, batch, records = train(tokenizer, args(tmp_path, **common), write, tools=[search])
    calls = len(made)
    if other.pop("replay", False):
        common["tool_replay"] = True
    else:
        common.pop("tool_cache")
    second, batch_2, records_2 = train(tokenizer, args(tmp_path, **common, **other), write, tools=[search])
    assert (len(made) == calls) == common.get("tool_replay", False)
    for key in ("completion_ids", "tool_mask", "advantages", "clip_scale"):
        assert torch.equal(batch[key], batch_2[key])
    assert all(torch.equal(a, b) for a, b in zip(weights(first).values(), weights(second).values(), strict=True))
    assert [r["completion"] for r in records] == [r["completion"] for r in records_2]


def test_a_call_that_a_replay_does_not_have_stops_the_run_and_is_named(tokenizer, tmp_path):
    cache = tmp_path / "calls.jsonl"
    of = identity(tiny.search, ToolSettings())
    entry = {"tool": "search", "of": of, "arguments": {"query": "0"}, "status": "ok", "text": "x"}
    cache.write_text(json.dumps(entry) + "\n")
    config = args(tmp_path, tool_cache=str(cache), tool_replay=True)
    with pytest.raises(RunStopped, match=r'holds no call search\({"query": "1"}\)'):
        train(tokenizer, config, lambda turn, row: one_call(turn, min(row, 1)))


def test_tool_replay_with_environments_is_refused(tokenizer, tmp_path):
    cache = tmp_path / "calls.jsonl"
    cache.write_text("")
    with pytest.raises(ValueError, match="tool_replay does not work with environments"):
        in_rooms(tokenizer, tmp_path, ["no"] * 4, tool_cache=str(cache), tool_replay=True)


def test_a_secret_of_the_environment_is_in_no_record_and_no_cache(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("SEARCH_API_KEY", "sk-very-secret")

    @tiny.searches
    def search(query):
        raise PermissionError(f"401 for key {os.environ['SEARCH_API_KEY']}")

    cache = tmp_path / "calls.jsonl"
    _, batch, records = train(tokenizer, args(tmp_path, tool_cache=str(cache)), tools=[search])
    assert "[SEARCH_API_KEY]" in cache.read_text() and "very-secret" not in cache.read_text()
    assert "very-secret" not in json.dumps(records, default=str)


def test_threads_and_open_files_stay_bounded_over_batches(tokenizer, tmp_path):
    me = psutil.Process()
    seen = []

    @tiny.searches
    def search(query):
        if int(query) == 1:
            time.sleep(0.2)  # beyond its limit, but it returns
        if int(query) == 2:
            raise ValueError("no luck")
        return query

    def watched(prompts, **_):
        seen.append((threading.active_count(), me.num_fds()))
        return spread(prompts)

    train(tokenizer, args(tmp_path, tool_timeout=0.1, max_steps=12), tools=[search], reward_funcs=watched)
    threads, files = zip(*seen, strict=True)
    assert max(threads[4:]) <= max(threads[:4]) + 2 and max(files[4:]) <= max(files[:4])


def test_reset_and_get_reward_can_have_limits_of_their_own(tokenizer, tmp_path):
    class Slow:
        @tool(timeout=20)
        def reset(self, **row):
            time.sleep(0.4)

        def get_reward(self) -> float:
            time.sleep(0.4)
            return 1.0

    keywords = {"tools": None, "reward_funcs": spread, "environment_factory": Slow}
    config = args(tmp_path, tool_timeout=0.2, on_outage="continue")
    trainer, _, records = train(tokenizer, config, lambda turn, row: tiny.final("Paris"), **keywords)
    assert logged(trainer, "rollouts/failed_rewards") == [1.0] and trainer._tool_loop.environments.reset_errors == []
    assert "Slow.get_reward did not answer within 0.2 seconds" in trainer._tool_loop.environments.reward_errors[0]


def test_environment_without_tools_can_reset_and_judge(tokenizer, tmp_path):
    class Judge:
        judged = 0

        def reset(self, **row):
            return " Answer at once."

        @tool(concurrency=1)
        def get_reward(self) -> float:
            Judge.judged += 1
            if Judge.judged == 4:
                raise RuntimeError("no judge")
            return float(Judge.judged)

    keywords = {"tools": None, "reward_funcs": None, "environment_factory": Judge}
    trainer, batch, records = train(tokenizer, args(tmp_path), lambda turn, row: tiny.final("Paris"), **keywords)
    assert [record["rewards"]["Judge"] for record in records] == [1.0, 2.0, 3.0, None]
    assert all("Paris" in record["completion"][-1]["content"] for record in records)
    assert batch["completion_mask"].sum(dim=1).tolist() == [8] * 4
    assert logged(trainer, "rollouts/failed_rewards") == [0.25]


def test_each_kind_of_environment_gets_its_own_rewards(tokenizer, tmp_path):
    class Hall(Room):
        async def get_reward(self) -> float:
            if self.fails == "get_reward":
                raise RuntimeError("no judge")
            return 2.0

    dataset = questions().add_column("fails", ["no"] * 4).add_column("environment", ["room", "hall"] * 2)
    config = args(tmp_path, max_steps=4)
    trainer, _, records = train(
        tokenizer,
        config,
        train_dataset=dataset,
        tools=None,
        reward_funcs=None,
        environment_factory={"room": Room, "hall": Hall},
    )
    by_kind = {record["environment"]: record["rewards"] for record in records}
    assert by_kind == {"room": {"Room": 0.0, "Hall": None}, "hall": {"Room": None, "Hall": 2.0}}


def test_rollout_function_with_tools_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="makes the tool calls of its rollouts itself"):
        make(tokenizer, args(tmp_path), rollout_func=lambda prompts, trainer: {})


# ---- wrong settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"failure_policy": {"time_out": "tell"}}, "there is no failure 'time_out'.*Did you mean 'timeout'"),
        ({"failure_policy": {"timeout": "ignore"}}, "timeout must be one of tell, end, exclude; got 'ignore'"),
        ({"failure_policy": {"context_full": "tell"}}, "context_full must be one of end, exclude"),
        ({"failure_policy": "tell"}, "failure_policy must be a mapping, or JSON"),
        ({"tool_timeout": 0}, "tool_timeout must be in"),
        ({"tool_concurrency": 0}, "tool_concurrency must be in"),
        ({"max_calls_per_turn": 1.5}, "max_calls_per_turn must be a whole number"),
        ({"tool_replay": True}, "tool_replay needs a file"),
        ({"on_outage": "go"}, "on_outage must be one of"),
        ({"tool_settings": {"serch": {"timeout": 1}}}, "there is no tool 'serch'. Did you mean 'search'"),
        ({"tool_settings": {"search": {"time": 1}}}, "there is no setting 'time'. Did you mean 'timeout'"),
        ({"tool_settings": {"search": {"retries": -1}}}, "retries must be a whole number, at least 0"),
        ({"tool_settings": {"search": {"process": True}}}, "must be importable"),
        ({"tool_cache": "/nowhere/calls.jsonl", "tool_replay": True}, "there is no file /nowhere/calls.jsonl"),
    ],
)
def test_invalid_tool_settings_are_refused_by_name(changes, message, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=message):
        make(tokenizer, args(tmp_path, **changes), scripted=False, tools=[failing_for(set())])


def test_tool_settings_of_a_recipe_apply_to_calls(tokenizer, tmp_path):
    attempts = []

    @tiny.searches
    def search(query):
        attempts.append(query)
        if attempts.count(query) == 1:
            raise OSError("once")
        return "one two three four five six seven"

    words = json.dumps({"search": {"retries": 1, "backoff": 0.01, "max_result_tokens": 4}})
    _, _, records = train(tokenizer, args(tmp_path, tool_settings=words), tools=[search])
    made = [record["turns"][0]["calls"][0] for record in records]
    assert [call["attempts"] for call in made] == [2] * 4 and {call["status"] for call in made} == {"result_cut"}


def test_trainers_that_are_gone_leave_no_threads(tokenizer, tmp_path):
    gc.collect()
    before = threading.active_count()
    for _ in range(3):
        train(tokenizer, args(tmp_path))
    gc.collect()
    # The last one may still be referenced, and on a busy machine threads take time to end.
    assert becomes(lambda: threading.active_count() <= before + 2)
