"""a slow tool, a policy with given replies -> seconds of a turn's tools, by this package and by TRL.

    ours   `A2TGPOTrainer`: all calls of a turn concurrently, as many as `tool_concurrency` allows
    TRL    `GRPOTrainer`: its own tool loop, one call after the other

The time between two generations is measured: turns are parsed, calls made, results put into tokens, and the next
contexts handed to the model. Sampling takes no time, because `generate` writes a script; both ways read the same
script, so their rollouts must be the same, token for token.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.cli.bench import add_numbers, show, table
from a2tgpo_trl.cli.machine import device_name
from a2tgpo_trl.report.progress import quiet_libraries
from a2tgpo_trl.tasks.atlas import POLICY


PATIENCE = 60.0  # seconds that a call may take beyond those it is asked to take
# The parts of a batch that the tools affect.
PARTS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask")
ROOM = 256  # most tokens of a turn and its result: a call, and two dozen words


@dataclass(frozen=True)
class Load:
    """Sizes of a batch. Each tool turn makes one call, and an answer follows the last."""

    rollouts: int
    turns: int  # with a call
    tool_seconds: float
    concurrency: int

    @property
    def least_seconds(self) -> float:
        """What a turn's tools take if nothing else takes any time."""
        return -(-self.rollouts // self.concurrency) * self.tool_seconds


class Script:
    """Replaces a model's `generate`: writes given turns, and notes when it was called and when it finished."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, turns: int):
        self._tokenizer, self._turns = tokenizer, turns
        self._rows: list[list[int]] = []
        self._turn = 0
        self.seconds: list[float] = []  # between two calls
        self._done = 0.0

    def begin(self) -> None:
        """Begin a new batch, whose rows are numbered by their places in the first call."""
        self._rows, self._turn, self.seconds = [], 0, []

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> torch.Tensor:
        if self._turn:
            self.seconds.append(time.perf_counter() - self._done)
        contexts = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
        self._rows = self._rows or contexts
        # No rollout ends before the others, so each row keeps its place; this is asserted, not assumed.
        assert all(now[: len(row)] == row for now, row in zip(contexts, self._rows, strict=True))
        ids = [self._tokenizer.encode(self._text(row), add_special_tokens=False) for row in range(len(contexts))]
        self._rows = [context + written for context, written in zip(contexts, ids, strict=True)]
        self._turn += 1
        padded = self._tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt")["input_ids"]
        written = torch.cat([input_ids, padded.to(input_ids)], dim=1)
        self._done = time.perf_counter()
        return written

    def _text(self, row: int) -> str:
        end = self._tokenizer.eos_token
        if self._turn == self._turns:
            return f"<answer>{row}</answer>{end}"
        query = f"question {self._turn} of {row}"
        return f'<tool_call>\n{{"name": "search", "arguments": {{"query": "{query}"}}}}\n</tool_call>{end}'


class Pause:
    """Sleeps as long as it is set to."""

    seconds = 0.0

    def __call__(self) -> None:
        time.sleep(self.seconds)


def slow_search(pause: Callable[[], None]) -> Callable[[str], str]:
    """A tool named `search` that waits, like one that asks a server."""

    def search(query: str) -> str:
        """Search the encyclopedia.

        Args:
            query: What to look for.

        Returns:
            The documents that fit best.
        """
        pause()
        return f"The answer of {query} is the name of {len(query)} words."

    return search


class Way:
    """A trainer whose policy reads from a script."""

    def __init__(self, trainer: GRPOTrainer, script: Script):
        self.trainer, self.script = trainer, script

    def roll_out(self, rollouts: int) -> tuple[dict[str, torch.Tensor], list[float]]:
        """A batch as it goes to the loss, and the seconds between its generations."""
        rows = [_row(f"What is the answer of question {row}?") for row in range(rollouts)]
        self.script.begin()
        self.trainer.model.eval()  # in evaluation a group may have one rollout, so any number is a batch
        output = self.trainer._generate_and_score_completions(rows)
        return {name: output[name] for name in PARTS}, self.script.seconds

    def close(self) -> None:
        if isinstance(self.trainer, A2TGPOTrainer) and self.trainer._tool_loop is not None:
            self.trainer._tool_loop.runner.close()


def _row(question: str) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": question}], "answer": "answer"}


def make_ways(load: Load, tool: Callable, folder: str) -> dict[str, Way]:
    """Both ways, each with its own trainer of the shipped policy."""
    common: dict[str, Any] = {
        "output_dir": folder,
        "use_cpu": True,  # the tools' part has nothing to do on an accelerator
        "bf16": False,
        "per_device_train_batch_size": 2,  # TRL's minimum; here batches are given, not drawn
        "num_generations": 2,
        "num_generations_eval": 1,
        "max_completion_length": (load.turns + 1) * ROOM,
        "chat_template_kwargs": {"enable_thinking": False},
        "report_to": "none",
    }
    ours = A2TGPOConfig(
        **common, credit="grpo", tool_concurrency=load.concurrency, tool_timeout=load.tool_seconds + PATIENCE
    )
    return {
        "ours": _way(A2TGPOTrainer, ours, load.turns, tool),
        "TRL": _way(GRPOTrainer, GRPOConfig(**common), load.turns, tool),
    }


def _way(trainer: type[GRPOTrainer], args: GRPOConfig, turns: int, tool: Callable) -> Way:
    tokenizer = AutoTokenizer.from_pretrained(POLICY, padding_side="left")
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(POLICY)
    model.config.max_position_embeddings *= turns + 1  # the script needs no positions, so no context is too long
    script = Script(tokenizer, turns)
    model.generate = script
    rows = Dataset.from_list([_row("What is the answer?")])
    made = trainer(
        model, reward_funcs=_no_reward, args=args, train_dataset=rows, processing_class=tokenizer, tools=[tool]
    )
    return Way(made, script)


def _no_reward(completions: list, **_: Any) -> list[float]:
    return [0.0] * len(completions)


# ---- timing


@dataclass(frozen=True)
class ToolTimes:
    """Seconds of each tool turn, by way, and where the rollouts of the two ways differ."""

    timings: dict[str, list[float]]
    differences: list[str]

    def seconds(self, way: str) -> float:
        return statistics.median(self.timings[way])

    @property
    def ratio(self) -> float:
        return self.seconds("TRL") / self.seconds("ours")


def measure(load: Load) -> ToolTimes:
    """Roll out a batch each way, after a warm-up batch whose tool takes no time."""
    pause = Pause()
    with tempfile.TemporaryDirectory() as folder:
        ways = make_ways(load, slow_search(pause), folder)
        try:
            for way in ways.values():
                way.roll_out(load.rollouts)
            pause.seconds = load.tool_seconds
            found = {name: way.roll_out(load.rollouts) for name, way in ways.items()}
        finally:
            for way in ways.values():
                way.close()
    timings = {name: seconds for name, (_, seconds) in found.items()}
    return ToolTimes(timings, differences(*(rollouts for rollouts, _ in found.values())))


def differences(ours: dict[str, torch.Tensor], trl: dict[str, torch.Tensor]) -> list[str]:
    """Which parts of a batch are not the same."""
    return [part for part in PARTS if not torch.equal(ours[part], trl[part])]


def describe(load: Load) -> Iterable[str]:
    """Everything about the machine and load that the numbers depend on."""
    yield f"{device_name(torch.device('cpu'))}; torch {torch.__version__}; TRL {version('trl')}"
    yield (
        f"{load.rollouts} rollouts of {load.turns} tool turns, one call of {load.tool_seconds:g} s each, "
        f"{load.concurrency} at once: {load.least_seconds:g} s a turn at least"
    )


# ---- the program


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Times the tools of a turn, by this package and by TRL's tool loop.")
    numbers = (
        ("--rollouts", 1, 64, "rollouts in a batch; TRL calls the tool once for each, one after the other"),
        ("--turns", 1, 2, "tool turns of a rollout, with one call each"),
        ("--tool-ms", 0, 200, "milliseconds of a call"),
        ("--concurrency", 1, 64, "calls that this package makes at once"),
    )
    add_numbers(parser, numbers)
    args = parser.parse_args(words)
    quiet_libraries()
    load = Load(args.rollouts, args.turns, args.tool_ms / 1000, args.concurrency)
    show("\n".join(describe(load)))
    found = measure(load)
    show(_tools_table(found))
    show(f"TRL / ours: {found.ratio:.1f}")
    if found.differences:
        print(f"The ways disagree in {', '.join(found.differences)}.", file=sys.stderr)
        return 1
    show("token ids and masks: equal")
    return 0


def _tools_table(found: ToolTimes):
    lines = [
        [way, f"{found.seconds(way):.4g}", f"{min(timings):.4g}", f"{max(timings):.4g}"]
        for way, timings in found.timings.items()
    ]
    return table(["way", "a turn's\ntools, s", "fastest\nturn", "slowest\nturn"], lines)


if __name__ == "__main__":
    sys.exit(main())
