"""Environments of a batch are reset and asked for rewards concurrently; the calls of each one stay in order."""

import asyncio
import threading
import time

import tiny
from calls import Gauge
from tool_runs import args, train
from training import questions

from a2tgpo_trl.tools import tool


ROWS = 4  # in a batch
SECONDS = 0.2


def hold(gauge: Gauge) -> None:
    with gauge:
        time.sleep(SECONDS)


class Slow:
    """An environment that is slow to reset and to judge, and says which row it has."""

    resetting, judging = Gauge(), Gauge()

    def __init__(self):
        self.alone, self.thread = threading.Lock(), threading.get_ident()

    def _one_after_the_other(self, work):
        assert self.alone.acquire(blocking=False) and threading.get_ident() == self.thread
        try:
            return work()
        finally:
            self.alone.release()

    def reset(self, number: int, **row):
        self.number, self.looked = number, 0
        self._one_after_the_other(lambda: hold(type(self).resetting))
        return f" You are in room {number}."

    def search(self, query: str) -> str:
        """Look around.

        Args:
            query: What for.
        """
        self.looked += 1
        return self._one_after_the_other(lambda: f"Room {self.number}.")

    def get_reward(self) -> float:
        self._one_after_the_other(lambda: hold(type(self).judging))
        return 10.0 * self.number + self.looked


class OnePerMachine(Slow):
    """The same, but only one at a time may be reset or judged."""

    resetting, judging = Gauge(), Gauge()

    @tool(concurrency=1)
    def reset(self, number: int, **row):
        return super().reset(number, **row)

    @tool(concurrency=1)
    def get_reward(self) -> float:
        return super().get_reward()


def write(turn: int, row: int) -> str:
    return tiny.call("x") if turn == 0 else tiny.final("Paris")


def told(prompts, number, **_) -> list[float]:
    """1 for each rollout whose prompt names its own room."""
    return [float(f"room {n}." in prompt[-1]["content"]) for prompt, n in zip(prompts, number, strict=True)]


def in_rooms(tokenizer, tmp_path, kind, reward_funcs=told, **changes):
    """Train on two rollouts of each of two rows; check that each got its own environment's text and reward."""
    kind.resetting, kind.judging = Gauge(), Gauge()
    dataset = questions().add_column("number", range(4))
    trainer, _, records = train(
        tokenizer,
        args(tmp_path, num_generations=2, **changes),
        write,
        train_dataset=dataset,
        tools=None,
        reward_funcs=reward_funcs,
        environment_factory=kind,
    )
    assert len({record["number"] for record in records}) == ROWS // 2
    for record in records:
        assert record["completion"][1]["content"] == f"Room {record['number']}."
        assert record["rewards"] == {reward_funcs.__name__: 1.0, kind.__name__: 10.0 * record["number"] + 1}
    return trainer


def test_environments_are_reset_and_judged_at_once(tokenizer, tmp_path):
    in_rooms(tokenizer, tmp_path, Slow)
    assert Slow.resetting.most == Slow.judging.most == ROWS


def test_at_most_tool_concurrency_environments_run_at_once(tokenizer, tmp_path):
    in_rooms(tokenizer, tmp_path, Slow, tool_concurrency=2)
    assert Slow.resetting.most == Slow.judging.most == 2


def test_environments_with_concurrency_1_run_one_at_a_time(tokenizer, tmp_path):
    in_rooms(tokenizer, tmp_path, OnePerMachine)
    assert OnePerMachine.resetting.most == OnePerMachine.judging.most == 1


def test_reward_function_may_call_get_reward(tokenizer, tmp_path):
    def told_and_judged(prompts, number, environments, **_):
        assert [one.get_reward() for one in environments] == [10.0 * n + 1 for n in number]
        return told(prompts, number)

    in_rooms(tokenizer, tmp_path, Slow, reward_funcs=told_and_judged)
    assert Slow.judging.most == ROWS


class Restarts(Slow):
    """Calls its own `reset` and `get_reward` from a tool, as games do."""

    resetting, judging = Gauge(), Gauge()

    def search(self, query: str) -> str:
        """Begin again.

        Args:
            query: What for.
        """
        assert self.get_reward() == 10.0 * self.number
        self.reset(self.number)
        return super().search(query)


def test_a_tool_may_reset_and_judge_its_own_environment(tokenizer, tmp_path):
    in_rooms(tokenizer, tmp_path, Restarts)
    assert Restarts.resetting.most > 0 and Restarts.judging.most > 0


class Asks(Slow):
    """Judges asynchronously, as through a server."""

    resetting, judging = Gauge(), Gauge()

    async def get_reward(self) -> float:
        with type(self).judging:
            await asyncio.sleep(SECONDS)
        return 10.0 * self.number + self.looked


def test_async_get_rewards_run_concurrently(tokenizer, tmp_path):
    in_rooms(tokenizer, tmp_path, Asks)
    assert Asks.judging.most == ROWS
