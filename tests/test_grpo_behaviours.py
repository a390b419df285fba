"""What `GRPOTrainer` does, done by `A2TGPOTrainer`: the same numbers with `credit="grpo"`, and training with the
default credit; or an error at construction that says why not."""

import asyncio
import inspect
import math
import re
from typing import Any

import pytest
import tiny
import torch
from datasets import Dataset, DatasetDict
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from training import Library, questions, rollouts_of_tokens, settings, spread, write
from transformers import AutoModelForSequenceClassification, Qwen3Config, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.rewards import exact_match


SHORT = {"max_completion_length": 6, "num_generations": 2, "max_steps": 1}
PARAMETERS = set(inspect.signature(GRPOTrainer.__init__).parameters)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A policy and a reward model, as a user has them on disk."""
    folder = tmp_path_factory.mktemp("models")
    tiny.make_model(tokenizer).save_pretrained(folder / "policy")
    reward_model(tokenizer).save_pretrained(folder / "judge")
    for name in ("policy", "judge"):
        tokenizer.save_pretrained(folder / name)
    return folder


def reward_model(tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen3Config(vocab_size=len(tokenizer), num_labels=1, num_key_value_heads=1, head_dim=8, **sizes)
    model = AutoModelForSequenceClassification.from_config(config)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


def train(trainer: type, config: type, given: dict[str, Any], tokenizer, folder, tmp_path, **method):
    """A run of one step, in which what a behaviour gives replaces the usual."""
    torch.manual_seed(0)
    keywords = {name: value for name, value in given.items() if name in PARAMETERS}
    changes = {name: value for name, value in given.items() if name not in PARAMETERS | {"scripted", "policy"}}
    args = config(**settings(tmp_path, **{**SHORT, **changes, **method}))
    model = str(folder / "policy") if given.get("policy") == "folder" else tiny.make_model(tokenizer)
    if given.get("scripted"):
        tiny.script(model, tokenizer, write)
    usual = {"model": model, "reward_funcs": spread, "train_dataset": questions(), "processing_class": tokenizer}
    made = trainer(args=args, **{**usual, **keywords})
    made.train()
    return made


# ---- the behaviours


async def later(completions, **_) -> list[float]:
    await asyncio.sleep(0)
    return spread(completions)


def sometimes(completions, **_) -> list[float | None]:
    return [None if i == 1 else float(i) for i in range(len(completions))]


def never(completions, **_) -> list[None]:
    return [None] * len(completions)


def by_column(completions, notes, trainer_state, log_extra, log_metric, **_) -> list[float]:
    log_extra("notes", notes)
    log_metric("steps", float(trainer_state.global_step))
    return [float(i * len(note)) for i, note in enumerate(notes)]


def in_plain_text(rows: int = 4) -> Dataset:
    return Dataset.from_dict(
        {"prompt": ["the capital of France is? " * (i + 1) for i in range(rows)], "answer": ["Paris"] * rows}
    )


def rollouts_without_empty_ones(prompts, trainer) -> dict:
    """TRL's parsing fails on an empty completion; `test_trainer` tries ours on one."""
    rollouts = rollouts_of_tokens(prompts, trainer)
    for name, value in (("completion_ids", 30), ("logprobs", -1.0), ("env_mask", 1)):
        rollouts[name][2] = [value] * 2
    return rollouts


async def ask(query: str) -> str:
    """Look something up.

    Args:
        query: What to look for.
    """
    return f"The {query} is Paris."


ask.__name__ = "search"


def with_an_optimiser_of_ones_own() -> dict[str, Any]:
    model = tiny.make_model(tiny.make_tokenizer())
    return {"model": model, "optimizers": (torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), None)}


class Count(TrainerCallback):
    def __init__(self):
        self.steps = 0

    def on_step_end(self, *_, **__):
        self.steps += 1


# Unlike TRL's, our evaluations do not use up training's random draws; greedy decoding removes this difference.
GREEDY = {"generation_kwargs": {"do_sample": False}, "eval_strategy": "steps", "eval_steps": 1}
TWICE = {"num_iterations": 2, "max_steps": 2}
OF_LOSSES = {
    "sapo": {"sapo_temperature_pos": 0.9, "sapo_temperature_neg": 1.1},
    "vespo": {"vespo_k_pos": 1.5, "vespo_lambda_pos": 2.5, "vespo_k_neg": 2.0, "vespo_lambda_neg": 1.5},
}
LONG = {"scripted": True, "max_completion_length": 700, "num_generations": 4, "reward_funcs": exact_match}
# What each behaviour sets: settings, arguments of the trainer, and where the policy comes from.
BEHAVIOURS = {
    # The policy and how it is loaded
    "a policy from a folder": lambda: {"policy": "folder", "processing_class": None},
    "its type": lambda: {"policy": "folder", "model_init_kwargs": {"dtype": "float32"}},
    "no dropout": lambda: {"disable_dropout": True},
    "a head in float32": lambda: {"cast_lm_head_to_fp32": True},
    "gradient checkpointing off": lambda: {"gradient_checkpointing": False},
    "reentrant checkpointing": lambda: {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "bfloat16": lambda: {"bf16": True},
    "LoRA": lambda: {"peft_config": LoraConfig(r=4, target_modules=["q_proj"])},
    "LoRA with a reference": lambda: {"peft_config": LoraConfig(r=4, target_modules=["q_proj"]), "beta": 0.1},
    "IA3": lambda: {
        "peft_config": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    },
    "an adapter of one's own": lambda: {
        "model": get_peft_model(tiny.make_model(tiny.make_tokenizer()), LoraConfig(r=4, target_modules=["q_proj"]))
    },
    "a mixture of experts": lambda: {"model": tiny.architectures()["qwen3-moe"](), "router_aux_loss_coef": 0.01},
    # Data
    "prompts in plain text": lambda: {"train_dataset": in_plain_text()},
    "a stream": lambda: {"train_dataset": questions().to_iterable_dataset()},
    "an evaluation": lambda: {"eval_dataset": questions(2), **GREEDY},
    "evaluations by name": lambda: {
        "eval_dataset": {"one": questions(2), "two": questions(2).to_iterable_dataset()},
        **GREEDY,
    },
    "evaluations of a DatasetDict before the first step": lambda: {
        "eval_dataset": DatasetDict(one=questions(2), two=questions(2)),
        **GREEDY,
        "eval_on_start": True,
    },
    "groups of an evaluation": lambda: {
        "eval_dataset": questions(4),
        **GREEDY,
        "num_generations_eval": 1,
    },
    "columns that nobody uses": lambda: {
        "train_dataset": questions().add_column("notes", ["x"] * 4),
        "remove_unused_columns": True,
    },
    "rows in order": lambda: {"shuffle_dataset": False},
    "epochs": lambda: {"max_steps": -1, "num_train_epochs": 1},
    "workers": lambda: {"dataloader_num_workers": 1},
    # Sampling
    "sampling settings": lambda: {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
    },
    "generation_kwargs": lambda: {"generation_kwargs": {"min_new_tokens": 3, "no_repeat_ngram_size": 2}},
    "generation_kwargs as text": lambda: {"generation_kwargs": '{"do_sample": false}'},
    "beams": lambda: {"generation_kwargs": {"num_beams": 2}},
    "a static cache": lambda: {"cache_implementation": "static"},
    "padding to a multiple": lambda: {"pad_to_multiple_of": 8},
    "chat_template_kwargs": lambda: {"chat_template_kwargs": {"enable_thinking": False}},
    "no limit of a completion but generate's own": lambda: {
        "max_completion_length": None,
        "generation_kwargs": {"max_new_tokens": 5},
    },
    # Steps
    "iterations": lambda: TWICE,
    "steps of a generation": lambda: {"steps_per_generation": 2, "per_device_train_batch_size": 2, "max_steps": 3},
    "a generation batch": lambda: {"generation_batch_size": 8, "per_device_train_batch_size": 4},
    "accumulation": lambda: {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    "another optimiser and schedule": lambda: {
        "optim": "sgd",
        "lr_scheduler_type": "cosine",
        "warmup_steps": 1,
        "max_grad_norm": 0.1,
    },
    "an optimiser of one's own": with_an_optimiser_of_ones_own,
    "a callback": lambda: {"callbacks": [Count()]},
    # Rewards
    "an asynchronous reward": lambda: {"reward_funcs": [later, spread]},
    "a reward that does not apply": lambda: {"reward_funcs": [sometimes, spread]},
    "a rollout without a reward": lambda: {"reward_funcs": sometimes},
    "a reward that never applies": lambda: {"reward_funcs": [spread, never]},
    "weights of rewards": lambda: {"reward_funcs": [exact_match, spread], "reward_weights": [0.5, 2.0]},
    "rewards that are normalised first": lambda: {
        "reward_funcs": [later, spread],
        "multi_objective_aggregation": "normalize_then_sum",
    },
    "columns, state and logs of a reward": lambda: {
        "train_dataset": questions().add_column("notes", ["a", "bb", "c", "dd"]),
        "reward_funcs": by_column,
        "log_completions": True,
    },
    "a reward model": lambda: {
        "reward_funcs": [reward_model(tiny.make_tokenizer()), spread],
        "reward_processing_classes": [tiny.make_tokenizer(), None],
    },
    "a reward model from a folder": lambda: {"reward_funcs": "judge"},
    **{
        f"scale_rewards {scale}": lambda scale=scale: {"scale_rewards": scale}
        for scale in ("batch", "none", True, False)
    },
    # The loss
    **{
        f"loss {loss}": lambda loss=loss: {"loss_type": loss, **TWICE, **OF_LOSSES.get(loss, {})}
        for loss in ("dapo", "grpo", "bnpo", "dr_grpo", "luspo", "cispo", "sapo", "vespo")
    },
    "a ratio of the sequence": lambda: {
        "importance_sampling_level": "sequence",
        "loss_type": "grpo",
        **TWICE,
    },
    "two-sided clipping": lambda: {"delta": 1.5, "epsilon": 0.1, "epsilon_high": 0.3, **TWICE},
    "a reference": lambda: {"policy": "folder", "beta": 0.1},
    "a reference that follows": lambda: {
        "policy": "folder",
        "beta": 0.1,
        "sync_ref_model": True,
        "ref_model_sync_steps": 1,
        "ref_model_mixup_alpha": 0.5,
    },
    "KL as it is estimated": lambda: {
        "policy": "folder",
        "beta": 0.1,
        "use_bias_correction_kl": False,
        **TWICE,
    },
    "tokens of high entropy": lambda: {"top_entropy_quantile": 0.5},
    "an entropy bonus": lambda: {"entropy_coef": 0.01},
    "an adaptive entropy bonus": lambda: {"use_adaptive_entropy": True, "entropy_target": 5.0},
    "a mask of what is off policy": lambda: {"off_policy_mask_threshold": 1e-4, **TWICE},
    "truncated completions out of the loss": lambda: {"mask_truncated_completions": True, "max_completion_length": 40},
    # What is logged
    "samples of completions": lambda: {
        "log_completions": True,
        "num_completions_to_print": 1,
        "log_unique_prompts": True,
    },
    "noise on embeddings": lambda: {"neftune_noise_alpha": 5.0},
    "prompts that are learnt": lambda: {
        "peft_config": PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    },
    "no answers": lambda: {"train_dataset": questions().remove_columns("answer")},
    "sums of input tokens": lambda: {"include_num_input_tokens_seen": True},
    # Tools
    "tools": lambda: {**LONG, "tools": [tiny.search]},
    "an asynchronous tool": lambda: {**LONG, "tools": [ask]},
    "rounds of tools": lambda: {**LONG, "tools": [tiny.search], "max_tool_calling_iterations": 1},
    "no tools in a list": lambda: {"tools": []},
    "environments": lambda: {**LONG, "environment_factory": Library, "reward_funcs": None},
    "environments by name": lambda: {
        **LONG,
        "environment_factory": {"library": Library, "other": Library},
        "train_dataset": questions().add_column("environment", ["library", "other"] * 2),
    },
    "a function for rollouts": lambda: {"rollout_func": rollouts_without_empty_ones, "num_generations": 4},
}
# Settings that this package needs to do as TRL does: sample by TRL, and end a rollout at a call too many.
AS_TRL = {"seeded_rollouts": False, "failure_policy": {"over_budget": "end"}}
# Metrics of TRL that differ here, because they mean something else.
OTHERWISE = {
    # Here a call beyond the limit has failed. TRL ignores it.
    "rounds of tools": {"tools/call_frequency", "tools/failure_frequency"},
    # Here a mean over the tokens of rollouts, not over rollouts.
    "loss vespo": {"vespo/phi_seq_mean"},
}
# Our evaluations do not use up training's random draws, so the first batch differs.
OTHER_DRAWS = {"evaluations of a DatasetDict before the first step"}

# Behaviours that the default credit refuses: why, and what to add so that it trains.
WITH_DEFAULT_CREDIT: dict[str, tuple[str, dict[str, Any]]] = {
    "loss cispo": ("Set clip_adaptation=0", {"clip_adaptation": 0.0, "epsilon_high": 5.0}),
    "loss sapo": ("Set clip_adaptation=0", {"clip_adaptation": 0.0}),
    "loss vespo": ("Set clip_adaptation=0", {"clip_adaptation": 0.0}),
    "noise on embeddings": ("set importance_sampling_level='token'", {"importance_sampling_level": "token"}),
    "no answers": ("measured against the ground-truth answer", {"gain_weight": 0.0, "clip_adaptation": 0.0}),
    "prompts that are learnt": ("train without gains", {"gain_weight": 0.0, "clip_adaptation": 0.0}),
    "beams": ("set seeded_rollouts=False", {"seeded_rollouts": False}),
}
# Behaviours that involve turns or gains; with the default credit, the others are slow tests.
OF_OUR_KIND = {
    *WITH_DEFAULT_CREDIT,
    *("LoRA with a reference", "a mixture of experts", "prompts in plain text", "a stream", "evaluations by name"),
    *OTHER_DRAWS,
    *("steps of a generation", "a rollout without a reward", "a reward that never applies", "a ratio of the sequence"),
    *("a reference that follows", "tokens of high entropy", "a mask of what is off policy"),
    *("truncated completions out of the loss", "samples of completions"),
    *("no tools in a list", "environments by name", "a function for rollouts", "a reward model"),
}
# What no credit accepts, though TRL does.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "several sequences for a prompt": (
        {"generation_kwargs": {"num_return_sequences": 2}},
        "num_generations sets the number of rollouts",
    ),
    "a clip range down to 0": ({"epsilon": 1.0}, "epsilon must be in (0.0, 1.0)"),
    "checkpoints on SIGTERM by transformers": ({"enable_jit_checkpoint": True}, "On SIGTERM, all processes save"),
}
# Settings of `GRPOConfig` that no behaviour here sets, and where they are tested, or why they are not.
ELSEWHERE = {
    "learning_rate": "every test sets it",
    "trust_remote_code": "for models whose code comes from the hub",
    "ds3_gather_for_generation": "test_ranks_in_step.py",
    "use_transformers_continuous_batching": "test_sampling.py",
    "transformers_continuous_batching_config": "test_sampling.py",
    "use_transformers_paged": "deprecated",
    "vllm_importance_sampling_cap": "deprecated",
    "log_multimodal": "for vision-language models, which are refused in test_bad_input.py",
    "log_completions_hub_repo": "for the hub",
    **{
        name: "defaults that other settings need"
        for name in ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta")
    },
    **{
        name: "test_vllm_training.py"
        for name in GRPOConfig.__dataclass_fields__
        if name == "use_vllm" or name.startswith("vllm_") and name != "vllm_importance_sampling_cap"
    },
}


def test_each_setting_and_each_argument_of_trl_is_tried():
    tried = {name for behaviour in BEHAVIOURS.values() for name in behaviour()}
    settings_of_trl = set(GRPOConfig.__annotations__) - {name for name in GRPOConfig.__annotations__ if name[0] == "_"}
    assert settings_of_trl - tried - set(ELSEWHERE) == set()
    assert PARAMETERS - tried - {"self", "args", "quantization_config"} == set()  # test_lora.py tests the last one


# Our evaluations only sample and score; these metrics would take forwards of the policy over the rollouts.
NOT_IN_EVALUATIONS = re.compile(r"eval_(\w+_)?(loss|entropy|clip_ratio/\w+)$")
# TRL logs several evaluation sets under one name; we log each under its own: eval_one_reward.
OF_ONE_SET = re.compile(r"eval_(one|two)_(?!runtime|\w+_per_second)")
# Measured by the clock.
TIMED = ("runtime", "_time", "per_second")


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, tuple]:
    """The numbers that `GRPOTrainer` has logged and that differ here."""

    def same(one: Any, other: Any) -> bool:
        return one == other or (one != one and other != other)  # NaN equals nothing, itself included

    left_out = {name for name in theirs if name.endswith(TIMED) or NOT_IN_EVALUATIONS.match(name)}
    compared = {name: value for name, value in theirs.items() if name not in left_out}
    ours = {**ours, **{OF_ONE_SET.sub("eval_", name): value for name, value in ours.items()}}
    return {name: (value, ours.get(name)) for name, value in compared.items() if not same(value, ours.get(name))}


def complete(name: str, folder) -> dict[str, Any]:
    given = dict(BEHAVIOURS[name]())
    return {**given, "reward_funcs": str(folder / "judge")} if given.get("reward_funcs") == "judge" else given


@pytest.mark.parametrize("name", [name for name in BEHAVIOURS if name not in OTHER_DRAWS])
def test_credit_grpo_equals_trl_exactly(name, tokenizer, folder, tmp_path):
    theirs = train(GRPOTrainer, GRPOConfig, complete(name, folder), tokenizer, folder, tmp_path / "theirs")
    method = {"credit": "grpo", **AS_TRL}
    ours = train(A2TGPOTrainer, A2TGPOConfig, complete(name, folder), tokenizer, folder, tmp_path / "ours", **method)
    for one, other in zip(theirs.state.log_history, ours.state.log_history, strict=True):
        assert differences(one, other).keys() <= OTHERWISE.get(name, set())
        assert not any(map(NOT_IN_EVALUATIONS.match, other))
    pairs = zip(theirs.model.state_dict().values(), ours.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    "name", [name if name in OF_OUR_KIND else pytest.param(name, marks=pytest.mark.slow) for name in BEHAVIOURS]
)
def test_each_behaviour_trains_with_the_default_credit_or_is_refused(name, tokenizer, folder, tmp_path):
    words, changes = WITH_DEFAULT_CREDIT.get(name, ("", {}))
    if words:
        plain = {key: value for key, value in complete(name, folder).items() if key not in changes}
        with pytest.raises(ValueError, match=re.escape(words)):
            train(A2TGPOTrainer, A2TGPOConfig, plain, tokenizer, folder, tmp_path)
    trainer = train(A2TGPOTrainer, A2TGPOConfig, complete(name, folder), tokenizer, folder, tmp_path, **changes)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses and all(math.isfinite(loss) for loss in losses)
    assert trainer.args.uses_gain == any("gain/seconds" in entry for entry in trainer.state.log_history)


@pytest.mark.parametrize("credit", ["a2tgpo", "grpo"])
@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_behaviours_are_refused_at_construction(name, credit, tokenizer, folder, tmp_path):
    given, words = REFUSED[name]
    with pytest.raises(ValueError, match=re.escape(words)):
        train(A2TGPOTrainer, A2TGPOConfig, given, tokenizer, folder, tmp_path, credit=credit)
