"""Run by test_devices.py: short runs of the embedded task on the CPU, or on the accelerator that is pretended there.

usage: runs_on_a_device.py {cpu,pretended} OUTPUT_FOLDER
"""

import json
import sys
from pathlib import Path


if sys.argv[1] == "pretended":
    import pretended_device  # noqa: F401  # before all that asks which devices there are

import torch
from peft import LoraConfig
from training import settings
from transformers import AutoModelForCausalLM

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.tasks.atlas import POLICY
from a2tgpo_trl.tasks.atlas.task import atlas


DEVICE = sys.argv[1]
RUNS: dict[str, dict] = {
    "all weights": {"eval_strategy": "steps", "eval_steps": 2, "steps_per_generation": 2},
    "adapter": {"adapter": True, "beta": 0.01, "credit": "igpo", "stream_turns": False},
    "16 bits": {"dtype": torch.bfloat16, "gain_groups": "state", "resample_limit": 1, "seeded_rollouts": False},
    "no gains": {"credit": "gtpo", "turn_rewards": {"duplicate_call": -0.5}, "mask_truncated_completions": True},
}


def trained(folder: Path, dtype: torch.dtype = torch.float32, adapter: bool = False, **changes) -> list[dict]:
    """What two steps log."""
    task = atlas(train_questions=60, test_questions=4)
    args = settings(
        folder,
        use_cpu=DEVICE == "cpu",
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        max_completion_length=192,
        max_tool_calling_iterations=3,
        reward_weights=task.reward_weights,
        chat_template_kwargs={"enable_thinking": False},
        **changes,
    )
    trainer = A2TGPOTrainer(
        AutoModelForCausalLM.from_pretrained(POLICY, dtype=dtype),
        task.reward_funcs,
        A2TGPOConfig(**args),
        task.train_dataset,
        task.test_dataset,
        tools=task.tools,
        peft_config=LoraConfig(r=4, target_modules="all-linear") if adapter else None,
    )
    assert trainer.accelerator.device.type == next(trainer.model.parameters()).device.type == DEVICE
    trainer.train()
    return trainer.state.log_history


if __name__ == "__main__":
    place = Path(sys.argv[2])
    # In 16 bits, numbers of two devices cannot be compared: another rounding, another token.
    chosen = {name: changes for name, changes in RUNS.items() if DEVICE != "cpu" or "dtype" not in changes}
    logs = {name: trained(place / name, **changes) for name, changes in chosen.items()}
    (place / "rank0.json").write_text(json.dumps(logs))
