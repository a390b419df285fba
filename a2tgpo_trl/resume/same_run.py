"""a trainer -> what its training depends on -> what differs between two runs that should be one.

A setting that is not named here matters: one that is new in TRL is compared until it is named here. A subclass of
`Resumable` names those of its own that do not matter.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer


# TRL's settings that change neither a rollout nor what is learnt from it: where things go, how often, and who is told.
BOOKKEEPING = (
    "output_dir overwrite run_name report_to project trackio_space_id trackio_bucket_id trackio_static_space_id "
    "disable_tqdm debug skip_memory_metrics include_num_input_tokens_seen num_completions_to_print "
    "logging_dir logging_steps logging_strategy logging_first_step logging_nan_inf_filter "
    "log_level log_level_replica log_on_each_node log_completions log_multimodal log_unique_prompts "
    "log_completions_hub_repo save_strategy save_steps save_total_limit save_only_model save_on_each_node "
    "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision "
    "resume_from_checkpoint enable_jit_checkpoint restore_callback_states_from_checkpoint "
    "do_train do_eval do_predict local_rank ddp_timeout ddp_backend"
).split()

# How long a run is, how it is evaluated, and how its work is laid out on devices.
NOT_LEARNT_FROM = (
    "max_steps num_train_epochs ignore_data_skip "
    "eval_strategy eval_steps eval_delay eval_on_start per_device_eval_batch_size num_generations_eval "
    "eval_accumulation_steps eval_do_concat_batches eval_use_gather_object bf16_full_eval fp16_full_eval "
    "prediction_loss_only include_for_metrics batch_eval_metrics "
    "load_best_model_at_end metric_for_best_model greater_is_better "
    "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
    "dataloader_multiprocessing_context dataloader_in_order "
    "activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs "
    "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph torch_empty_cache_steps "
    "vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port "
    "vllm_gpu_memory_utilization vllm_enable_sleep_mode"
).split()

# Covered by the layout instead: only their products count.
SHARES = (
    "per_device_train_batch_size gradient_accumulation_steps steps_per_generation generation_batch_size "
    "deepspeed fsdp fsdp_config use_cpu"
).split()

# Where an adapter came from, and how it is used.
NOT_OF_ADAPTERS = ("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version")

MOST_ROWS = 4096  # read to tell two data sets apart


def settings_of(trainer: GRPOTrainer, may_change: Collection[str] = ()) -> dict[str, Any]:
    """Return all that training depends on, as plain JSON values by name. `may_change`: more settings to leave out."""
    args = trainer.args
    left_out = {*BOOKKEEPING, *NOT_LEARNT_FROM, *SHARES, *may_change}
    rollouts_at_once = args.per_device_train_batch_size * trainer.accelerator.num_processes
    config = trainer.accelerator.unwrap_model(trainer.model).config
    settings = {
        **{key: value for key, value in args.to_dict().items() if key not in left_out},
        "rollouts per optimizer step": rollouts_at_once * args.gradient_accumulation_steps,
        "rollouts per generation": rollouts_at_once * args.steps_per_generation,
        "data": data_digest(trainer.train_dataset),
        "policy": str(config._name_or_path).rstrip("/").rpartition("/")[2],
        "architecture": _digest_of_architecture(config.to_diff_dict()),
        **_adapter_of(trainer.accelerator.unwrap_model(trainer.model)),
        "rewards": trainer.reward_func_names,
        "tools": sorted(tool.__name__ for tool in trainer.tools or []),
    }
    return json.loads(json.dumps(settings, default=_plain))


def _plain(value: Any) -> Any:
    """A setting that JSON lacks; of a set, each process would write the elements in another order."""
    return sorted(value, key=str) if isinstance(value, set | frozenset) else str(value)


def _adapter_of(model: Any) -> dict[str, Any]:
    """Return the settings of a policy's adapter, by name: a resumed run loads its weights under its own settings."""
    configs = getattr(model, "peft_config", None)
    if not configs:
        return {}
    settings = configs[model.active_adapter].to_dict()
    return {f"adapter: {key}": value for key, value in settings.items() if key not in NOT_OF_ADAPTERS}


def default_settings(args: GRPOConfig) -> dict[str, Any]:
    """Return the settings' defaults as plain values: an earlier version that lacked a setting ran with its default."""
    defaults = {one.name: one.default for one in fields(args) if one.default is not MISSING}
    return json.loads(json.dumps(defaults, default=_plain))


def layout_of(trainer: GRPOTrainer) -> dict[str, Any]:
    """Return how rollouts, weights and optimizer are divided between processes."""
    args, accelerator = trainer.args, trainer.accelerator
    sharding = "none"
    if trainer.is_deepspeed_enabled:
        sharding = f"DeepSpeed, ZeRO stage {accelerator.state.deepspeed_plugin.zero_stage}"
    elif trainer.is_fsdp_enabled:
        sharding = f"FSDP{accelerator.state.fsdp_plugin.fsdp_version}"
    return {
        "processes": accelerator.num_processes,
        "rollouts of a process": args.per_device_train_batch_size,
        "micro-steps of a generation": args.steps_per_generation,
        "sharding": sharding,
    }


def data_digest(dataset: Any) -> str:
    """Return the number of rows and a digest of them; of evenly spread ones if there are many.

    Example: "300 rows, 5f0c..."; a stream that cannot be counted is its class's name
    """
    if not isinstance(dataset, Dataset):
        return type(dataset).__name__
    step = max(1, -(-len(dataset) // MOST_ROWS))
    rows = dataset.with_format(None).select(range(0, len(dataset), step))
    digest = hashlib.sha256(json.dumps(dataset.column_names).encode())
    for row in rows:
        digest.update(json.dumps(row, default=str, sort_keys=True).encode())
    return f"{len(dataset)} rows, {digest.hexdigest()[:12]}"


def _digest_of_architecture(config: dict[str, Any]) -> str:
    """Return a digest of what gives weights shape and meaning, without tokens and caches, which training sets."""
    passing = ("_name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype")
    kept = {key: value for key, value in config.items() if key not in passing and not key.endswith("_token_id")}
    return hashlib.sha256(json.dumps(kept, default=str, sort_keys=True).encode()).hexdigest()[:12]


def with_defaults(before: dict[str, Any], now: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's settings, with the defaults of those that did not exist when it was saved.

    Example: {"seed": 1}, now {"seed": 1, "width": 3}, by default {"width": 2} -> {"seed": 1, "width": 2}
    """
    return {**{name: defaults[name] for name in now.keys() - before.keys() if name in defaults}, **before}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return what differs, with both values.

    Example: {"seed": 1, "beta": 0.0}, {"seed": 2, "beta": 0.0} -> ["seed (1, now 2)"]
    """
    names = sorted(before.keys() | now.keys())
    return [f"{name} ({before.get(name)}, now {now.get(name)})" for name in names if before.get(name) != now.get(name)]
