"""Settings drawn at random from their valid ranges: a run either trains or is refused before it begins."""

import math
import tempfile
from dataclasses import dataclass
from typing import Any, get_args

import pytest
import tiny
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from peft import LoraConfig

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.config import AnswerAliases, GainGroups, GainMeasure, LossType, Normalization, RatioLevel
from a2tgpo_trl.credit import METHODS
from a2tgpo_trl.rewards import exact_match, f1
from a2tgpo_trl.rollout.failures import Policy, Status


TOOL_TURNS = [2, 1, 0, 3]  # of the four rollouts of a prompt
PROBLEMS = ["<tool_call>\n{broken\n</tool_call><|im_end|>", tiny.call("a", times=3), "babble " * 30]


def write(turn: int, row: int) -> str:
    """The text of a scripted policy that answers, calls, calls wrongly and babbles."""
    if turn == 1 and row % 8 > 4:
        return PROBLEMS[row % 8 - 5]
    if turn < TOOL_TURNS[row % 4]:
        return tiny.call(f"capital {turn} {row}")
    return tiny.final("Paris" if row % 3 else "x")


@dataclass
class Counter:
    """An environment with a tool and a turn reward."""

    turn_reward: float | None = None
    counted: int = 0

    def reset(self, **row: Any) -> None:
        self.counted = 0

    def search(self, query: str) -> str:
        """Look something up.

        Args:
            query: What to look for.
        """
        self.counted += 1
        self.turn_reward = float(self.counted % 2)
        if self.counted == 3:
            raise RuntimeError("worn out")
        return f"The {query} is Paris."


def numbers(low: float, high: float, **more: Any) -> st.SearchStrategy[float]:
    return st.floats(low, high, width=32, **more)


STATUSES = [status for status in get_args(Status) if status != "ok"]

OURS = dict(
    credit=st.sampled_from(METHODS),
    epsilon=numbers(0, 0.5, exclude_min=True),
    epsilon_high=numbers(0, 5, exclude_min=True),
    importance_sampling_level=st.sampled_from(get_args(RatioLevel)),
    outcome_weight=numbers(0, 3),
    gain_weight=numbers(0, 3),
    turn_reward_weight=numbers(0, 3),
    turn_rewards=st.dictionaries(
        st.sampled_from(["bad_format", "failed_call", "duplicate_call", "read_only", "state_changing"]), numbers(-2, 2)
    ),
    gain_normalization=st.sampled_from(get_args(Normalization)),
    gain_groups=st.sampled_from(get_args(GainGroups)),
    stopped_count=st.booleans(),
    first_gain=st.booleans(),
    last_gain=st.booleans(),
    state_likeness=numbers(0, 1, exclude_min=True),
    state_weight=numbers(0, 3),
    discount=numbers(0, 1),
    rescale_accumulation=st.booleans(),
    failure_shaping=numbers(0, 1),
    clip_adaptation=numbers(0, 0.96875),
    gain_measure=st.sampled_from(get_args(GainMeasure)),
    answer_aliases=st.sampled_from(get_args(AnswerAliases)),
    probe_template=st.sampled_from(["<answer>{answer}</answer>", "So: {answer}", "{answer}"]),
    gain_token_budget=st.integers(1, 3000),
    resample_limit=st.integers(0, 2),
    seeded_rollouts=st.sampled_from([None, True, False]),
)

TOOLS = dict(
    tool_timeout=st.sampled_from([None, 5.0, 60.0]),
    tool_concurrency=st.integers(1, 64),
    tool_settings=st.just({"search": {"retries": 1, "max_result_tokens": 3}}),
    max_calls_per_turn=st.sampled_from([None, 1, 2, 16]),
    max_result_tokens=st.sampled_from([None, 1, 5, 100]),
    failure_policy=st.dictionaries(st.sampled_from(STATUSES), st.sampled_from(get_args(Policy))),
    max_hung_calls=st.integers(0, 20),
    on_outage=st.sampled_from(["stop", "continue"]),
    max_tool_calling_iterations=st.sampled_from([None, 1, 2, 5]),
    mask_truncated_completions=st.booleans(),
)

THEIRS = dict(
    loss_type=st.sampled_from(get_args(LossType)),
    beta=st.sampled_from([0.0, 0.05]),
    delta=st.sampled_from([None, 1.5]),
    num_iterations=st.integers(1, 2),
    steps_per_generation=st.sampled_from([1, 2, 4]),
    gradient_accumulation_steps=st.sampled_from([1, 2, 4]),
    per_device_train_batch_size=st.sampled_from([4, 8]),
    num_generations=st.sampled_from([2, 4, 8]),
    max_completion_length=st.sampled_from([3, 24, 90, 600]),
    scale_rewards=st.sampled_from(["group", "batch", "none"]),
    multi_objective_aggregation=st.sampled_from(["sum_then_normalize", "normalize_then_sum"]),
    reward_weights=st.sampled_from([[1.0, 0.5], [0.0, 2.0]]),
    temperature=numbers(0.5, 2),
    entropy_coef=st.sampled_from([0.0, 0.01]),
    top_entropy_quantile=st.sampled_from([1.0, 0.5]),
    off_policy_mask_threshold=st.sampled_from([None, 0.01]),
    gradient_checkpointing=st.booleans(),
    disable_dropout=st.booleans(),
    log_completions=st.booleans(),
    bf16=st.booleans(),
    pad_to_multiple_of=st.sampled_from([None, 8]),
)

SETTINGS: dict[str, st.SearchStrategy] = OURS | TOOLS | THEIRS

RUNS = st.fixed_dictionaries(
    {
        # A few at a time: among many, two would contradict each other, and nothing would train.
        "settings": st.lists(st.sampled_from(sorted(SETTINGS)), unique=True, max_size=8).flatmap(
            lambda names: st.fixed_dictionaries({name: SETTINGS[name] for name in names})
        ),
        "adapter": st.booleans(),
        "environment": st.booleans(),
        "scripted": st.booleans(),
        "aliases": st.booleans(),
    }
)


@pytest.fixture(scope="module")
def tokenizer():
    """The tokenizer; when TRL loads a reference model, it gets a tiny one."""
    made = tiny.make_tokenizer()
    with pytest.MonkeyPatch.context() as patch:
        load = "trl.trainer.grpo_trainer.create_model_from_path"
        patch.setattr(load, lambda *_, **__: tiny.make_model(made, seed=1))
        yield made


def questions(aliases: bool) -> Dataset:
    prompts = [[{"role": "user", "content": f"the capital of France, {i}?"}] for i in range(4)]
    return Dataset.from_dict({"prompt": prompts, "answer": [["Paris", "paris"] if aliases else "Paris"] * 4})


def build(run: dict[str, Any], tokenizer, folder: str) -> A2TGPOTrainer:
    common = {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_steps": 2,
        "max_completion_length": 90,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    model = tiny.make_model(tokenizer)
    if run["scripted"]:
        tiny.script(model, tokenizer, write)
    return A2TGPOTrainer(
        model,
        [exact_match, f1],
        A2TGPOConfig(**{**common, **run["settings"]}),
        questions(run["aliases"]),
        processing_class=tokenizer,
        peft_config=LoraConfig(target_modules="all-linear", r=2, task_type="CAUSAL_LM") if run["adapter"] else None,
        **({"environment_factory": Counter} if run["environment"] else {"tools": [tiny.search]}),
    )


def trains_or_is_refused(run: dict[str, Any], tokenizer) -> bool:
    """Whether a run takes two steps with finite losses and weights, or raises a long ValueError before."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            trainer = build(run, tokenizer, folder)
        except ValueError as refusal:
            note(f"refused: {refusal}")
            return len(str(refusal)) > 20
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        note(f"losses: {losses}")
        finite = all(torch.isfinite(tensor).all() for tensor in trainer.model.state_dict().values())
        return trainer.state.global_step == len(losses) == 2 and all(map(math.isfinite, losses)) and finite


def drawn(number: int):
    return settings(
        max_examples=number, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )


@drawn(6)
@given(RUNS)
def test_random_settings_train_or_are_refused(tokenizer, run):
    assert trains_or_is_refused(run, tokenizer)


@pytest.mark.slow
@drawn(200)
@given(RUNS)
def test_200_random_settings_train_or_are_refused(tokenizer, run):
    assert trains_or_is_refused(run, tokenizer)
