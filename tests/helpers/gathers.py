"""Run by test_world_sizes.py on two ranks: how often a gain pass and a plain forward gather sharded weights.

usage: gathers.py OUTPUT_FOLDER {zero3,fsdp2}
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import three_steps
import torch
from torch.profiler import ProfilerActivity, profile

from a2tgpo_trl import A2TGPOTrainer
from a2tgpo_trl.information_gain.values import Rollouts
from a2tgpo_trl.models import evaluation_mode


# What ranks send each other about rollouts is smaller; the smallest weight of the policy is larger.
LEAST_WEIGHT = 64
# Rank 0 has more rollouts to score, and longer ones.
TURNS = {0: [3, 2, 3, 1, 2], 1: [1, 0, 1, 0, 0]}


def gathers(call: Callable[[], object]) -> int:
    """The collectives that gather weights during the call."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        call()
    sizes = [
        max(torch.Size(shape).numel() for shape in event.input_shapes if shape)
        for event in found.events()
        if event.name.startswith("c10d::") and "allgather" in event.name and any(event.input_shapes)
    ]
    return sum(size >= LEAST_WEIGHT for size in sizes)


def rollouts_of(rank: int) -> Rollouts:
    masks = [[1, 1, 0, 0] * turns + [1] for turns in TURNS[rank]]
    return Rollouts([[5, 6, 7]] * len(masks), [[10 + i % 50 for i in range(len(mask))] for mask in masks], masks)


def score(trainer: A2TGPOTrainer) -> int:
    """Run the gain pass over this rank's rollouts; return its number of forwards."""
    rollouts = rollouts_of(trainer.accelerator.process_index)
    return trainer._gain_pass.run(rollouts, [["Paris"]] * len(rollouts), False)[0].forwards


def count(trainer: A2TGPOTrainer) -> dict[str, list]:
    found: dict[str, list] = {"plain": [], "gain": []}
    ids = torch.tensor([[5, 6, 7, 8]])
    for token_budget in (10**6, 10**6, 1):
        with evaluation_mode(trainer.model), torch.no_grad():
            found["plain"].append(gathers(lambda: trainer.model(input_ids=ids, use_cache=False)))
        gain_pass = trainer._gain_pass
        gain_pass._settings = replace(gain_pass._settings, gain_token_budget=token_budget)
        forwards: list[int] = []
        counted = gathers(lambda: forwards.append(score(trainer)))  # noqa: B023  # called immediately
        found["gain"].append((counted, *forwards))
    return found


def main(folder: str, backend: str) -> None:
    trainer = three_steps.make(folder, backend, 2, 10, max_steps=1)
    training_step = trainer.training_step

    def step(*args):
        """Count inside training, where the model is sharded."""
        Path(folder, f"rank{os.environ['RANK']}.json").write_text(json.dumps(count(trainer)))
        return training_step(*args)

    trainer.training_step = step
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
