"""Training with `torch_compile`, on the backend that runs graphs as they are, against training without."""

import pytest

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.tasks.atlas import POLICY
from a2tgpo_trl.tasks.atlas.task import atlas


pytestmark = pytest.mark.slow


def log_of(folder, **changes) -> list[dict[str, float]]:
    """What two updates on a batch of rollouts log."""
    task = atlas(test_questions=3)
    settings = {
        **{"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1},
        **{"per_device_train_batch_size": 4, "num_generations": 4, "gradient_accumulation_steps": 1},
        **{"steps_per_generation": 2, "max_steps": 2, "max_completion_length": 128, "learning_rate": 5e-4},
    }
    args = A2TGPOConfig(
        str(folder), chat_template_kwargs={"enable_thinking": False}, disable_dropout=True, **settings, **changes
    )
    trainer = A2TGPOTrainer(str(POLICY), task.reward_funcs, args, task.train_dataset, tools=task.tools)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("bf16", [False, True])
def test_compiled_policy_trains_as_the_plain_one(bf16, tmp_path):
    plain = log_of(tmp_path / "plain", bf16=bf16)
    compiled = log_of(tmp_path / "compiled", bf16=bf16, torch_compile=True, torch_compile_backend="eager")
    for one, other in zip(plain, compiled, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=2e-2 if bf16 else 1e-4)
        assert one.get("completions/mean_length") == other.get("completions/mean_length")
    # Before the first update every ratio is 1, and nothing is clipped.
    assert compiled[0]["clip_fraction/mean"] == 0
