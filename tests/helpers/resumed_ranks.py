"""Run by test_resume_ranks.py on some ranks: a training that is killed or resumed, and its final weights.

usage: resumed_ranks.py TASK, which is JSON: {"folder": ..., "backend": "ddp" | "zero2" | "zero3" | "fsdp2"}, and, if
    wanted, "resume": true or a folder, "tear": [rank, step] (kills the rank instead of writing its own file of this
    checkpoint), "terminate": [rank, step] (as the next step begins), and "settings" of the trainer

The policy and its questions are those of unequal_turns.py: the ranks have unequal numbers of tool turns.
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import tiny
import torch
import unequal_turns
from backends import backend_settings, whole
from transformers import TrainerCallback

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.resume import choice


def echo(mark: str) -> str:
    """Say a mark.

    Args:
        mark: The mark.

    Returns:
        What was heard.
    """
    return f"{mark} is heard as {1000 + int(mark)}"


def reward(completions: list, **_) -> list[float]:
    return [float(len(messages[-1]["content"]) % 7) for messages in completions]


class Terminate(TrainerCallback):
    """Asks one rank to leave when a step begins."""

    def __init__(self, place: list[int] | None):
        self.place = place

    def on_step_begin(self, args, state, control, **kwargs):
        if self.place == [args.process_index, state.global_step]:
            os.kill(os.getpid(), signal.SIGTERM)


def tear_at(rank: int, step: int) -> None:
    """Kill a rank instead of writing its own file of a checkpoint: the other's exists, but no manifest."""
    save = torch.save

    def killing(content, file, *args, **kwargs):
        if f"checkpoint-{step}/rank_{rank}.pt" in str(file):
            os.kill(os.getpid(), signal.SIGKILL)
        save(content, file, *args, **kwargs)

    torch.save = killing


def be_slow_to_look() -> None:
    """Make this process look at checkpoints long after listing them, so that any other process can move one."""
    listed = choice.checkpoints_of

    def listed_and_waited(run):
        folders = listed(run)
        time.sleep(0.5)
        return folders

    choice.checkpoints_of = listed_and_waited


def main(task: dict) -> None:
    tokenizer = tiny.make_tokenizer()
    args = A2TGPOConfig(
        task["folder"],
        **{
            "bf16": False,
            "per_device_train_batch_size": 2,
            "num_generations": 2,
            # A window is four steps, for which two ranks roll out eight; an epoch is two windows.
            "steps_per_generation": 2,
            "gradient_accumulation_steps": 1,
            "num_iterations": 2,
            "max_steps": 7,
            "max_completion_length": 500,
            "learning_rate": 1e-3,
            "logging_steps": 2,
            "report_to": "none",
            "save_strategy": "steps",
            "save_steps": 1,
            "save_total_limit": 3,
            "disable_tqdm": True,
            **backend_settings(task["backend"]),
            **task.get("settings", {}),
        },
    )
    if os.environ.get("RANK") == "1":
        be_slow_to_look()
    if "tear" in task:
        tear_at(*task["tear"])
    trainer = A2TGPOTrainer(
        unequal_turns.scripted_model(tokenizer),
        reward,
        args,
        unequal_turns.prompts("mixed"),
        processing_class=tokenizer,
        tools=[echo],
        callbacks=[Terminate(task.get("terminate"))],
    )
    trainer.train(resume_from_checkpoint=task.get("resume"))
    after = torch.cat([whole(parameter).flatten() for parameter in trainer.model.parameters()])
    rank = trainer.accelerator.process_index
    report = {
        "weights": hashlib.sha256(after.numpy().tobytes()).hexdigest(),
        "steps": trainer.state.global_step,
        "micro_step": trainer._step,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }
    Path(task["folder"], f"rank{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
