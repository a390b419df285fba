"""Run by test_world_sizes.py, alone or under torchrun: three steps of the embedded task with tools and LoRA.

usage: three_steps.py OUTPUT_FOLDER {alone,ddp,zero2,zero3,fsdp2} PROCESSES ROLLOUTS_OF_A_RANK_AT_ONCE
    [SETTINGS AS JSON]
"""

import json
import os
import sys
from pathlib import Path

import torch
from backends import backend_settings, held, whole, zero_stage
from peft import LoraConfig

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.tasks.atlas import POLICY
from a2tgpo_trl.tasks.atlas.task import atlas


GENERATIONS = 4
ROLLOUTS = 20  # of a step, on all ranks together: five groups, so that two ranks share one, and four ranks three
STEPS = 3


def make(folder: str, backend: str, processes: int, at_once: int, **changes) -> A2TGPOTrainer:
    task = atlas(train_questions=60, test_questions=12)
    settings = dict(
        bf16=False,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=ROLLOUTS // processes // at_once,
        num_generations=GENERATIONS,
        max_steps=STEPS,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        adam_epsilon=1e-6,  # otherwise Adam divides gradients of pure rounding by each other
        max_completion_length=256,
        max_tool_calling_iterations=4,
        beta=0.01,  # the reference is the policy without its adapter
        reward_weights=task.reward_weights,
        chat_template_kwargs={"enable_thinking": False},
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    on_this_machine = {"use_cpu": True} if backend == "alone" else backend_settings(backend)
    args = A2TGPOConfig(folder, **on_this_machine, **{**settings, **changes})
    return A2TGPOTrainer(
        str(POLICY),
        task.reward_funcs,
        args,
        task.train_dataset,
        tools=task.tools,
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
    )


def watch(trainer: A2TGPOTrainer) -> list[dict[str, dict]]:
    """The credit of each batch, by the tokens of its rollouts."""
    batches: list[dict[str, dict]] = []
    assign = trainer.credit_batch

    def note(output: dict, batch) -> dict:
        values = batch.turn_scores.values_BK.tolist()
        output = assign(output, batch)
        batches.append({})
        for row, tokens in enumerate(output["completion_ids"]):
            length = int(output["completion_mask"][row].sum())
            numbers = {name: output[name][row, :length].tolist() for name in ("advantages", "clip_scale")}
            name = " ".join(map(str, tokens[:length].tolist()))
            entry = {
                "values": [v for v in values[row] if v == v],
                "turns": output["turn_index"][row, :length].tolist(),
                **numbers,
            }
            batches[-1].setdefault(name, []).append(entry)
        return output

    trainer.credit_batch = note
    return batches


def main(folder: str, backend: str, processes: str, at_once: str, changes: str = "{}") -> None:
    trainer = make(folder, backend, int(processes), int(at_once), **json.loads(changes))
    batches = watch(trainer)
    trainer.train()
    parameters = dict(trainer.model.named_parameters())
    after = {name: whole(parameter) for name, parameter in parameters.items()}
    adapter = torch.cat([after[name].flatten() for name in sorted(after) if "lora_" in name])
    frozen = torch.cat([after[name].flatten() for name in sorted(after) if "lora_" not in name])
    report = {
        "rank": trainer.accelerator.process_index,
        "processes": trainer.accelerator.num_processes,
        "type": trainer.accelerator.distributed_type.value,
        "wrapped": type(trainer.model_wrapped).__name__,
        "kinds": sorted({type(parameter).__name__ for parameter in parameters.values()}),
        "zero_stage": zero_stage(trainer),
        "held": sum(map(held, parameters.values())) / sum(parameter.numel() for parameter in after.values()),
        "batches": batches,
        "history": [entry for entry in trainer.state.log_history if "loss" in entry],
        "adapter": adapter.tolist(),
        "frozen": frozen.double().sum().item(),
        "moved": adapter.abs().max().item(),
    }
    Path(folder, f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
