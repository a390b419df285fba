"""Runs of a step whose rollouts call a tool once and earn 0, 1, 2 and 3."""

import tiny
from training import captured, make, settings

from a2tgpo_trl import A2TGPOConfig


def args(tmp_path, **changes) -> A2TGPOConfig:
    return A2TGPOConfig(**settings(tmp_path, **{"max_steps": 1, "tool_timeout": 10.0, **changes}))


def spread(prompts, **_) -> list[float]:
    return [float(i % 4) for i in range(len(prompts))]


def one_call(turn: int, row: int) -> str:
    return tiny.call(f"{row}") if turn == 0 else tiny.final("Paris")


def train(tokenizer, config, write=one_call, **keywords):
    """Train a policy that writes these turns; return the trainer, its first batch and its records."""
    trainer = make(tokenizer, config, scripted=False, **{"reward_funcs": spread, **keywords})
    tiny.script(trainer.model, tokenizer, write)
    records = []
    trainer.on_rollouts = records.extend
    batch = captured(trainer)[0]
    return trainer, batch, records
