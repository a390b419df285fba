"""Small runs: a data set of questions, settings, a scripted policy and its trainer, and what is read from them."""

import tiny
import torch
from datasets import Dataset
from peft import LoraConfig

from a2tgpo_trl import A2TGPOTrainer
from a2tgpo_trl.rewards import exact_match


TOOL_TURNS = [2, 1, 0, 3]  # of the four rollouts of each prompt
ANSWERS = ["Paris", "Rome", "Paris", "Oslo"]


def questions(rows: int = 4) -> Dataset:
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": "the capital of France is? " * (i + 1)}] for i in range(rows)],
            "answer": ["Paris"] * rows,
        }
    )


def write(turn: int, row: int) -> str:
    """A scripted policy: rollouts of 2, 1, 0 and 3 tool turns; the last one makes two calls per turn."""
    if turn < TOOL_TURNS[row % 4]:
        return tiny.call(f"capital {turn} {row}", times=2 if row % 4 == 3 else 1)
    return tiny.final(ANSWERS[row % 4])


def settings(tmp_path, **changes) -> dict:
    return {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "num_generations": 4,
        "max_steps": 2,
        "max_completion_length": 700,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **changes,
    }


def make(tokenizer, args, trainer=A2TGPOTrainer, scripted=True, **keywords):
    model = tiny.make_model(tokenizer)
    if scripted:
        tiny.script(model, tokenizer, write)
    keywords = {"reward_funcs": exact_match, "train_dataset": questions(), "tools": [tiny.search], **keywords}
    return trainer(model, args=args, processing_class=tokenizer, **keywords)


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def logged(trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def without_times(history: list[dict]) -> list[dict]:
    """A log without what the clock measured."""
    return [
        {key: value for key, value in entry.items() if "second" not in key and not key.endswith(("runtime", "_time"))}
        for entry in history
    ]


def captured(trainer) -> tuple[dict, torch.Tensor]:
    """The batch that reaches the loss in the first step, and the completions' old log-probabilities it came with."""
    batches = []
    inner = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: (batches.append(dict(inputs)), inner(model, inputs))[1]
    trainer.train()
    return batches


def spread(completions, **_) -> list[float]:
    """Rewards that differ within every group."""
    return [float(i % 3) for i in range(len(completions))]


def rollouts_of_tokens(prompts, trainer) -> dict:
    """A rollout_func with ragged turns: cut off in a turn, right after a result, empty, and without any call."""
    masks = [[1, 1, 0, 0, 1], [1, 1, 0, 0], [], [1, 1, 1]]
    assert len(prompts) == 4
    return {
        "prompt_ids": [trainer.processing_class(prompt[-1]["content"])["input_ids"] for prompt in prompts],
        "completion_ids": [[30 + 7 * i + j for j in range(len(mask))] for i, mask in enumerate(masks)],
        "logprobs": [[-1.0] * len(mask) for mask in masks],
        "env_mask": masks,
    }


class Library:
    """An environment with one tool and its own reward."""

    def reset(self, **row) -> str:
        self.asked = 0
        return " (look it up)"

    def search(self, query: str) -> str:
        """Look something up.

        Args:
            query: What to look for.

        Returns:
            What was found.
        """
        self.asked += 1
        return f"The {query} is Paris."

    def get_reward(self) -> float:
        return float(self.asked)


WAYS = {
    "tools": {},
    "environment_factory": {"tools": None, "environment_factory": Library, "reward_funcs": None},
    "rollout_func": {"tools": None, "rollout_func": rollouts_of_tokens, "reward_funcs": spread},
    "lora": {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)},
    "no tools at all": {"tools": None, "scripted": False, "reward_funcs": spread},
}
