"""Three groups of four rollouts, some of which teach nothing in the first round.

Run by test_resampling.py under torchrun as well: one batch, and what each rank trained on, as JSON.

usage: two_rounds.py OUTPUT_FOLDER PER_DEVICE_BATCH
"""

import functools
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import tiny
import torch
from datasets import Dataset
from torch import distributed

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer


PROMPTS = ["one", "two two two two", "three three"]
SIZE = 4
RECORDED = {"num_iterations": 2, "max_steps": 2, "record_every": 2}


class Rollouts:
    """A rollout_func. `uninformative`: prompt -> the rounds in which its rollouts have equal rewards and no tool turn.

    A rollout is identified by its tokens: 100 + 10 * prompt + member, then 50 + round, then more tokens. Informative
    rollouts have a tool turn, and are longer for later members and rounds.
    """

    def __init__(self, uninformative: dict[int, set[int]], first_round: int = 0):
        self.uninformative, self.first_round = uninformative, first_round
        self.rounds: list[list[int]] = []  # prompts of each call on this rank
        self._step = -1
        self._round = 0

    def __call__(self, prompts: list[str], trainer: A2TGPOTrainer) -> dict:
        self._round = self._round + 1 if trainer._step == self._step else self.first_round
        self._step = trainer._step
        self.rounds.append([PROMPTS.index(prompt) for prompt in prompts])
        first = trainer.accelerator.process_index * len(prompts)
        members = [i % SIZE for i in range(first, first + len(prompts))]
        ids, masks, scores = zip(*map(self.rollout, self.rounds[-1], members), strict=True)
        return {
            "prompt_ids": [prompt_ids(question) for question in self.rounds[-1]],
            "completion_ids": list(ids),
            "logprobs": [[-1.0] * len(mask) for mask in masks],
            "env_mask": list(masks),
            "score": list(scores),
        }

    def rollout(self, question: int, member: int) -> tuple[list[int], list[int], float]:
        here = self._round
        name = [100 + 10 * question + member, 50 + here]
        if here in self.uninformative.get(question, ()):
            return [*name, 7], [1, 1, 1], 0.5
        tail = member + 3 * here
        return [*name, 8, 9, *[10 + member] * (tail + 1)], [1, 1, 0, 0, *[1] * (tail + 1)], member * (1 + question)


def prompt_ids(question: int) -> list[int]:
    return [20 + question] * (2 + 3 * question)


def make(folder, rollouts: Rollouts, **changes) -> A2TGPOTrainer:
    tokenizer = tiny.make_tokenizer()
    settings = {
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": len(PROMPTS) * SIZE,
        "num_generations": SIZE,
        "max_steps": 1,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "shuffle_dataset": False,
        "resample_limit": 1,
        **changes,
    }
    return A2TGPOTrainer(
        tiny.make_model(tokenizer),
        lambda score, **_: score,
        A2TGPOConfig(str(folder), **settings),
        Dataset.from_dict({"prompt": PROMPTS, "answer": ["Paris", "Rome", "Oslo"]}),
        processing_class=tokenizer,
        rollout_func=rollouts,
    )


def batches(trainer: A2TGPOTrainer) -> list[dict]:
    """Train, and return the batches that reached the loss."""
    found = []
    inner = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: (found.append(dict(inputs)), inner(model, inputs))[1]
    trainer.train()
    return found


def rows(batch: dict) -> dict[int, dict]:
    """The rollouts of a batch by their first token, without padding, as lists; the prompt as it is in the batch."""
    found = {}
    for i, mask in enumerate(batch["completion_mask"]):
        length = int(mask.sum())
        names = ("completion_ids", "tool_mask", "turn_index", "advantages", "clip_scale", "old_per_token_logps")
        row = {name: batch[name][i, :length].tolist() for name in names if name in batch}
        found[row["completion_ids"][0]] = {
            "prompt_ids": batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].tolist(),
            **row,
        }
    return found


def weights(trainer: A2TGPOTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def counted(call: Callable, calls: Counter) -> Callable:
    @functools.wraps(call)
    def counting(*args, **kwargs):
        calls[call.__name__] += 1
        return call(*args, **kwargs)

    return counting


def report(folder: str, batch_size: int) -> dict:
    """Train one step with an uninformative second group, two of whose rows are on each of two ranks."""
    rollouts = Rollouts({1: {0}})
    trainer = make(folder, rollouts, per_device_train_batch_size=batch_size, resample_limit=2, **RECORDED)
    batch = batches(trainer)[0]
    return {
        "rank": trainer.accelerator.process_index,
        "rows": rows(batch),
        "items": int(batch["num_items_in_batch"]),
        "rounds": rollouts.rounds,
        "logged": {key: value for key, value in trainer.state.log_history[0].items() if key.startswith("groups/")},
        "weights": weights(trainer).tolist()[::97],
        "norm": weights(trainer).double().norm().item(),
    }


def main(folder: str, batch_size: str) -> None:
    calls: Counter[str] = Counter()
    for name in ("all_gather_object", "all_gather", "all_gather_into_tensor", "all_reduce", "broadcast"):
        setattr(distributed, name, counted(getattr(distributed, name), calls))
    found = {**report(folder, int(batch_size)), "calls": calls}
    Path(folder, f"rank{found['rank']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
