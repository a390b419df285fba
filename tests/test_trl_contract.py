"""Every private name of TRL and transformers that the package uses, and what it must still do.

An upgrade that breaks one of them fails here, with its name, and not in a user's run.
"""

import inspect
import re
from itertools import product

import pytest
import tiny
import torch
from accelerate.commands import launch
from training import captured, make, questions, settings, spread
from transformers import AttentionInterface, GenerationMixin, LogitsProcessorList, PreTrainedModel, Trainer
from transformers import trainer as trainer_module
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations import TrackioCallback, WandbCallback
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from trl import GRPOConfig, GRPOTrainer, TrlParser, chat_template_utils
from trl.extras import profiling
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration
from trl.kernels import chunked_logprob
from trl.models.utils import unwrap_model_for_generation
from trl.trainer import utils as trainer_utils
from trl.trainer.utils import add_fused_lm_head

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.credit import DEFAULTS
from a2tgpo_trl.information_gain.packed_attention import SPLIT_SDPA
from a2tgpo_trl.plan.planning import processes
from a2tgpo_trl.resume.trainer import Resumable
from a2tgpo_trl.rewards import exact_match, f1
from a2tgpo_trl.rollout.answers import GIVEN
from a2tgpo_trl.rollout.micro_batches import SUMS_OF_ROWS
from a2tgpo_trl.rollout.trainer import ToolTrainer
from a2tgpo_trl.scoring import ScoringTrainer


OVERRIDDEN = {
    "_generate": ["self", "prompts"],
    "_generate_single_turn": [
        "self",
        "prompt_ids",
        "images",
        "multimodal_fields",
        "num_generations",
        "has_tool_images",
    ],
    "_generate_and_score_completions": ["self", "inputs"],
    "_tool_call_loop": [
        *("self", "prompts", "prompt_ids", "completion_ids", "completions"),
        *("logprobs", "images", "multimodal_fields"),
    ],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_compute_loss": ["self", "model", "inputs"],
    "_prepare_inputs": ["self", "generation_batch"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "prediction_step": ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"],
    "_set_signature_columns_if_needed": ["self"],
    "_get_train_sampler": ["self", "dataset"],
    "_run_epoch": [
        *("self", "model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial"),
        *("ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained"),
        "steps_trained_in_current_epoch",
    ],
    "_load_rng_state": ["self", "checkpoint"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_push_from_checkpoint": ["self", "checkpoint_folder"],
    "_finalize_training": ["self", "trial", "num_train_samples", "start_time"],
}


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_methods_we_override_still_exist_with_these_arguments(name):
    assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters) == OVERRIDDEN[name]
    assert name in {**vars(Resumable), **vars(ToolTrainer), **vars(ScoringTrainer), **vars(A2TGPOTrainer)}


def test_the_log_probability_helper_still_starts_with_these_arguments():
    arguments = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    assert arguments[:5] == ["self", "model", "input_ids", "attention_mask", "logits_to_keep"]


def test_our_configs_fields_of_the_same_name_still_exist_in_the_parent():
    parent, ours = GRPOConfig.__dataclass_fields__, A2TGPOConfig.__annotations__
    of_the_method = {"epsilon", "epsilon_high", "importance_sampling_level", "loss_type", "beta"}
    assert of_the_method == set(ours) & set(parent)
    # Unless a method sets them, they are the parent's.
    for name in ("epsilon", "beta", "loss_type", "importance_sampling_level"):
        assert DEFAULTS[name] == parent[name].default


def test_outcomes_are_still_rewards_times_these_weights(tokenizer, tmp_path):
    args = GRPOConfig(**settings(tmp_path, reward_weights=[0.5, 2.0]))
    trainer = make(tokenizer, args, trainer=GRPOTrainer, reward_funcs=[exact_match, f1])
    assert trainer.reward_weights.tolist() == [0.5, 2.0]
    assert GRPOConfig.__dataclass_fields__["scale_rewards"].default == "group"
    assert GRPOConfig.__dataclass_fields__["multi_objective_aggregation"].default == "sum_then_normalize"


def test_generate_still_returns_prompts_completions_and_tool_mask_first(tokenizer, tmp_path):
    trainer = make(tokenizer, GRPOConfig(**settings(tmp_path)), trainer=GRPOTrainer)
    seen = []
    inner = trainer._generate
    trainer._generate = lambda prompts: (seen.append(inner(prompts)), seen[-1])[1]
    trainer.train()
    prompt_ids, completion_ids, tool_mask = seen[0][:3]
    assert all(isinstance(token, int) for row in (prompt_ids[0], completion_ids[0]) for token in row)
    assert [len(mask) for mask in tool_mask] == [len(ids) for ids in completion_ids]
    assert {0, 1} == {token for mask in tool_mask for token in mask}


def test_the_loss_batch_still_has_the_names_we_read(tokenizer, tmp_path):
    trainer = make(tokenizer, GRPOConfig(**settings(tmp_path)), trainer=GRPOTrainer)
    batch = captured(trainer)[0]
    assert {"prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask", "advantages"} <= set(batch)
    assert batch["advantages"].shape == (4,)
    assert (batch["tool_mask"][batch["completion_mask"] == 0] == 1).all()  # padded with ones: never use it alone


def test_tensors_added_to_the_batch_are_split_and_shuffled_with_it(tokenizer, tmp_path):
    args = settings(tmp_path, steps_per_generation=2, per_device_train_batch_size=2, max_steps=2)
    trainer = make(tokenizer, A2TGPOConfig(**args))
    for batch in captured(trainer):
        assert batch["turn_index"].shape == batch["advantages"].shape == batch["completion_ids"].shape
        model_tokens = batch["completion_mask"] * batch["tool_mask"]
        assert torch.equal(batch["turn_index"] >= 0, model_tokens == 1)


def test_numbers_of_rollouts_are_split_and_shuffled_with_them(tokenizer, tmp_path):
    # A record uses them to find what updates did to its rollout.
    args = settings(tmp_path, steps_per_generation=2, per_device_train_batch_size=2, max_steps=2, record_every=2)
    trainer = make(tokenizer, A2TGPOConfig(**args))
    made, inner = [], trainer._train_batch
    trainer._train_batch = lambda rows: (made.append(inner(rows)), made[-1])[1]
    batches = captured(trainer)
    numbers = [batch["record_number"].tolist() for batch in batches]
    assert len(batches) == 2 and sorted(numbers[0] + numbers[1]) == [0, 1, 2, 3]
    for batch, of_batch in zip(batches, numbers, strict=True):
        for row, number in enumerate(of_batch):
            mask = batch["completion_mask"][row].bool()
            whole = made[0]["completion_mask"][number].bool()
            assert torch.equal(batch["completion_ids"][row][mask], made[0]["completion_ids"][number][whole])


@pytest.mark.parametrize(
    ("accumulation", "generation", "iterations"), [*product((1, 2, 4), (1, 2, 4), (1, 2)), (3, 2, 1)]
)
def test_our_rule_for_old_log_probabilities_agrees_with_the_parents(
    accumulation, generation, iterations, tokenizer, tmp_path, monkeypatch
):
    # The parent writes them into its batch if and only if it asked for them; our copy of its rule must agree. This is
    # the batch as the parent makes it: ours leaves out again what a single update does not need.
    args = A2TGPOConfig(
        **settings(
            tmp_path,
            gradient_accumulation_steps=accumulation,
            steps_per_generation=generation,
            num_iterations=iterations,
            max_steps=1,
            gain_weight=0.0,
            clip_adaptation=0.0,
        )
    )
    trainer = make(tokenizer, args, reward_funcs=spread)
    made, inner = [], trainer._train_batch
    trainer._train_batch = lambda rows: (made.append(inner(rows)), made[-1])[1]
    trainer.train()
    assert ("old_per_token_logps" in made[0]) == trainer._parent_wants_old_logps


def test_the_parent_loss_reads_old_log_probabilities_after_its_forward(tokenizer, tmp_path):
    trainer = make(tokenizer, GRPOConfig(**settings(tmp_path, max_steps=1)), trainer=GRPOTrainer)
    batch = captured(trainer)[0]
    forward = trainer._get_per_token_logps_and_entropies

    def late(*args, **kwargs):
        logps, entropies, aux = forward(*args, **kwargs)
        batch["old_per_token_logps"] = logps.detach() - 1.0  # ratio e
        return logps, entropies, aux

    trainer.current_gradient_accumulation_steps = 1
    trainer._get_per_token_logps_and_entropies = late
    trainer._metrics["train"].clear()
    trainer._compute_loss(trainer.model, batch)
    assert trainer._metrics["train"]["clip_ratio/high_mean"][0] > 0


def test_the_parent_loss_takes_advantages_and_both_epsilons_per_token(tokenizer, tmp_path):
    trainer = make(tokenizer, GRPOConfig(**settings(tmp_path, max_steps=1)), trainer=GRPOTrainer)
    batch = captured(trainer)[0]
    trainer.current_gradient_accumulation_steps = 1
    plain = trainer._compute_loss(trainer.model, dict(batch))
    ones = torch.ones(batch["completion_ids"].shape)
    trainer.epsilon_low, trainer.epsilon_high = 0.2 * ones, 0.2 * ones
    per_token = trainer._compute_loss(trainer.model, {**batch, "advantages": batch["advantages"][:, None] * ones})
    assert torch.equal(plain, per_token)


def test_the_fused_head_scores_pre_shifted_labels_at_a_mask_and_positions_of_ours(tokenizer):
    model, plain = tiny.make_model(tokenizer), tiny.make_model(tokenizer)
    add_fused_lm_head(model)
    ids = torch.randint(len(tokenizer), (2, 9))
    mask = torch.ones(9, 9).tril().bool().expand(2, 1, 9, 9)
    next_ids, inputs = ids.roll(-1, 1), {"attention_mask": mask, "position_ids": torch.arange(9)[None]}
    scored = model(input_ids=ids, shift_labels=next_ids, fused_lm_head=True, **inputs)
    expected = plain(ids).logits.log_softmax(-1).gather(2, next_ids[..., None]).squeeze(2)
    torch.testing.assert_close(scored.log_probs, expected, atol=1e-5, rtol=0)
    half = model.bfloat16()(input_ids=ids, shift_labels=next_ids, fused_lm_head=True, **inputs)
    assert half.log_probs.dtype == torch.float32  # ratios of a few thousandths do not survive 16 bits


def test_attention_functions_can_be_registered_and_chosen_by_the_config(tokenizer):
    model = tiny.make_model(tokenizer)
    assert SPLIT_SDPA in AttentionInterface().valid_keys()
    assert list(inspect.signature(sdpa_attention_forward).parameters)[:5] == [
        "module", "query", "key", "value", "attention_mask",
    ]  # fmt: skip
    called = []

    def spying(module, query, key, value, attention_mask, **kwargs):
        called.append(attention_mask)
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)

    AttentionInterface.register("spying", spying)
    model.config._attn_implementation = "spying"
    mask = torch.ones(1, 1, 2, 5, dtype=torch.bool)  # not even square: a four-dimensional mask is passed on unchanged
    model(torch.ones(1, 5, dtype=torch.long), attention_mask=mask)
    assert all(given is mask for given in called) and len(called) == model.config.num_hidden_layers


def test_models_still_say_what_packing_needs_to_know(tokenizer):
    assert isinstance(PreTrainedModel._is_stateful, bool) and isinstance(PreTrainedModel._supports_sdpa, bool)
    model = tiny.make_model(tokenizer)
    assert model.config.layer_types == ["full_attention"] * 2 and model.config.sliding_window is None
    assert model.config.rope_parameters["rope_type"] == "default"


def test_attributes_of_the_parent_that_we_read(tokenizer, tmp_path):
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path)))
    assert trainer._tokenizer is tokenizer and trainer._is_vlm is False
    assert set(trainer._metrics) == {"train", "eval"}
    assert trainer.chat_template is None or isinstance(trainer.chat_template, str)
    assert isinstance(trainer.chat_template_kwargs, dict) and trainer.environment_factories is None
    assert {"advantages", "extra"} <= set(trainer._logs) and trainer.log_completions is False
    assert trainer.eos_token_ids == [tokenizer.eos_token_id] and trainer.max_completion_length == 700
    assert not trainer._dist.is_zero3 and not trainer._dist.is_fsdp
    assert trainer.generation_config.max_new_tokens == 700  # read again at each call
    assert trainer.accelerator.ddp_handler.find_unused_parameters is False  # under gradient checkpointing
    assert {"_name", "_paper", "_tag_names"} <= set(vars(GRPOTrainer)) and set(GRPOTrainer._paper) == set(
        A2TGPOTrainer._paper
    )


BORROWED = {
    "_tokenize_prompts": ["self", "prompts"],
    "_get_tool_suffix_ids": ["self", "tool_messages"],
}


@pytest.mark.parametrize("name", BORROWED)
def test_methods_that_the_preflight_runs_still_take_these_arguments(name):
    assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters) == BORROWED[name]
    # The preflight runs them without a trainer: if they read anything else, `preflight.chat` must provide it.
    known = set(
        "processing_class _tokenizer tools chat_template chat_template_kwargs _is_vlm environment_factories "
        "_env_tools _batch_environments".split()
    )
    read = set(re.findall(r"self\.(\w+)", inspect.getsource(getattr(GRPOTrainer, name))))
    assert read <= known
    if name == "_get_tool_suffix_ids":  # `control.SuffixWriter` provides only these
        assert read <= {"processing_class", "_tokenizer", "chat_template", "chat_template_kwargs", "_is_vlm"}


def test_tool_suffix_is_still_cut_from_the_last_rendered_conversation():
    # `SuffixWriter.before` looks at the token before them.
    source = inspect.getsource(GRPOTrainer._get_tool_suffix_ids)
    calls = re.findall(r"(\w+) = self\.processing_class\.apply_chat_template\(\s*([^,]+),", source)
    assert calls == [("prefix_ids", "dummy_messages"), ("full_ids", "dummy_messages + tool_messages")]
    assert source.rstrip().endswith("return full_ids[len(prefix_ids) :]")


class Counter:
    """An environment with one tool and a reward."""

    def reset(self, **row):
        self.number = 0

    def count(self, by: int) -> str:
        """Count on.

        Args:
            by: How far.
        """
        self.number += by
        return str(self.number)

    def get_reward(self) -> float:
        return float(self.number)


def test_tool_loop_still_gets_tools_and_environments_and_returns_seven_values(tokenizer, tmp_path, monkeypatch):
    # Each rollout has a dictionary of tools and an environment from a pool; the loop returns seven things.
    seen = []

    def loop(self, prompts, prompt_ids, completion_ids, completions, logprobs, images, multimodal_fields):
        seen.append((self._sync_tool_dicts, self._async_tool_dicts, self.environments, self._batch_environments))
        assert prompts[0][0]["role"] == "user" and len(prompts) == len(prompt_ids) == 4
        rows = range(len(prompts))
        return (
            [[1, 0, 1] for _ in rows],
            [[{"role": "assistant", "content": "x"}] for _ in rows],
            [[5, 6, tokenizer.eos_token_id] for _ in rows],
            None,
            8,
            2,
            [[] for _ in rows],
        )

    monkeypatch.setattr(GRPOTrainer, "_tool_call_loop", loop)
    args = GRPOConfig(**settings(tmp_path, max_steps=1))
    trainer = make(
        tokenizer, args, trainer=GRPOTrainer, reward_funcs=spread, tools=[tiny.search], environment_factory=Counter
    )
    pool = trainer._environment_pool[None]
    assert trainer.environment_factories == {None: Counter} and len(pool) == 1
    reset, rows = pool[0].reset, []
    pool[0].reset = lambda **row: (rows.append(row), reset())[1]  # the parent calls the attribute of the instance
    batch = captured(trainer)[0]
    assert len(rows) == 1 and rows[0]["answer"] == "Paris"
    tools, async_tools, environments, names = seen[0]
    assert [set(of_rollout) for of_rollout in tools] == [{"search", "count"}] * 4 and async_tools == [{}] * 4
    assert [of_rollout["count"].__self__ for of_rollout in tools] == environments == pool and names == [None] * 4
    assert {tool.__name__ for tool in trainer._env_tools[None]} == {"search", "count"}
    assert batch["completion_ids"][0].tolist() == [5, 6, tokenizer.eos_token_id]
    assert batch["tool_mask"].tolist() == [[1, 0, 1]] * 4
    entry = trainer.state.log_history[0]
    assert (entry["tools/call_frequency"], entry["tools/failure_frequency"]) == (2.0, 0.25)


@pytest.mark.parametrize("several", [False, True], ids=["one kind", "several kinds"])
def test_the_parent_still_resets_environments_with_the_rows_that_we_begin_with(several, tokenizer, tmp_path):
    rows = []

    class Kept(Counter):
        def reset(self, **row):
            super().reset()
            rows.append(row)

    kinds = [("TRL", GRPOTrainer, GRPOConfig), ("ours", A2TGPOTrainer, A2TGPOConfig)]
    seen = {}
    for name, kind, config in kinds:
        rows.clear()
        trainer = make(
            tokenizer,
            config(**settings(tmp_path, max_steps=1)),
            trainer=kind,
            reward_funcs=spread,
            tools=None,
            train_dataset=questions().add_column("environment", ["kept"] * 4) if several else questions(),
            environment_factory={"kept": Kept} if several else Kept,
        )
        assert trainer._multi_environment is several
        trainer.train()
        seen[name] = sorted(map(repr, rows))
    assert len(seen["TRL"]) == 4 and seen["ours"] == seen["TRL"]
    assert ("environment" in rows[0]) is False


def test_loss_is_still_zero_if_every_token_is_masked(tokenizer, tmp_path):
    trainer = make(tokenizer, GRPOConfig(**settings(tmp_path, max_steps=1)), trainer=GRPOTrainer)
    batch = captured(trainer)[0]
    assert batch["num_items_in_batch"].shape == () and batch["num_items_in_batch"] > 0
    trainer.current_gradient_accumulation_steps = 1
    nothing = {**batch, "tool_mask": torch.zeros_like(batch["tool_mask"]), "num_items_in_batch": torch.tensor(0)}
    assert trainer._compute_loss(trainer.model, nothing) == 0


def test_colocated_vllm_still_has_the_attributes_we_use():
    # Streaming and `awake` use them; tests/rollout/test_vllm_engine.py runs them if vLLM is installed.
    arguments = list(inspect.signature(VLLMGeneration.generate).parameters)
    assert arguments[:4] == ["self", "prompts", "images", "num_generations"]
    source = inspect.getsource(VLLMGeneration)
    names = ("self.mode", "self.tensor_parallel_size", "self.enable_sleep_mode", "self._llm_weights_sleeping")
    assert all(
        name in source for name in (*names, "self.llm.generate(", "sampling_params=", 'wake_up(tags=["kv_cache"])')
    )
    assert callable(VLLMGeneration.sync_weights)
    turn = inspect.getsource(GRPOTrainer._generate_single_turn)
    assert "self.state.global_step != self._last_loaded_step" in turn and "self.vllm_generation.sync_weights()" in turn


def test_vllm_server_still_has_the_calls_and_settings_we_use():
    # Only the first rank asks, because it has the client; a test marked `vllm` lets a rollout reach the limit.
    assert list(inspect.signature(VLLMClient.get_server_info).parameters) == ["self"]
    source = inspect.getsource(VLLMGeneration)
    assert "if accelerator.is_main_process:" in source and "self.vllm_client = VLLMClient(" in source
    assert '"max_tokens": max_completion_length' in source and "self.generation_kwargs" in source
    # `generation_kwargs` win, both in this process and in what is sent.
    assert "generation_kwargs.update(self.generation_kwargs)" in source
    assert "sampling_params.update(generation_kwargs or {})" in inspect.getsource(VLLMClient.generate)


def test_vllm_importance_weights_still_compare_the_log_probabilities_we_log():
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert "(old_per_token_logps - sampling_per_token_logps) * mask" in source
    for name in ("old_per_token_logps", "sampling_per_token_logps"):
        assert f'output["{name}"] = {name}' in source
    # vLLM returns what it sampled by, after every processor; the trainer knows only the temperature.
    assert 'logprobs_mode="processed_logprobs"' in inspect.getsource(VLLMGeneration)


def test_reward_functions_still_get_these_arguments():
    source = inspect.getsource(GRPOTrainer._calculate_rewards)
    assert 'if key not in ["prompt", "completion", "completion_ids"]' in source
    given = {*re.findall(r'(?<!row_)reward_kwargs\["(\w+)"\] =', source)}
    assert given == {"trainer_state", "log_extra", "log_metric", "environments"}
    assert GIVEN == {"prompts", "completions", "completion_ids", *given}
    assert "prompts=prompts, completions=completions, completion_ids=completion_ids_list, **reward_kwargs" in source


def test_save_checkpoint_still_has_the_arguments_we_use():
    assert "self.is_in_train = True" in inspect.getsource(Trainer)  # also during evaluations within the training
    assert list(inspect.signature(GRPOTrainer._save_checkpoint).parameters) == ["self", "model", "trial"]


def test_resuming_still_calls_these_methods_in_this_order():
    # Weights and optimizer are loaded, the sums of the log are set to 0, and then callbacks may restore them.
    loop = inspect.getsource(Trainer._inner_training_loop)
    begin = [
        loop.index(name) for name in ("_prepare_for_training(", "self._tr_loss = ", "on_train_begin(", "_run_epoch(")
    ]
    assert begin == sorted(begin)
    assert "self._total_loss_scalar = 0.0" in loop and "self._globalstep_last_logged = self.state.global_step" in loop
    # Random states are loaded before the first batch of an epoch, or after it in the middle of an epoch.
    epoch = inspect.getsource(Trainer._run_epoch)
    places = [epoch.index(name) for name in ("skip_first_batches(", "iter(train_dataloader)", "get_batch_samples(")]
    assert places == sorted(places) and epoch.count("self._load_rng_state(resume_from_checkpoint)") == 2
    assert "epoch=epoch," in loop and "epochs_trained=epochs_trained," in loop  # by name, as our override expects
    # A limit removes older checkpoints, also when a run ends; our overrides lift it meanwhile.
    end = inspect.getsource(Trainer._finalize_training)
    assert "self.args.save_total_limit == 1" in end and inspect.getsource(Trainer).count("rmtree(") == 1
    save = inspect.getsource(Trainer._save_checkpoint)
    assert save.index("rotate_checkpoints(") > save.index("self.state.save_to_json(")
    assert "save_total_limit=self.args.save_total_limit" in save and "self._get_output_dir(trial=trial)" in save
    assert "if save_total_limit is None" in inspect.getsource(trainer_module.rotate_checkpoints)
    assert trainer_module.TRAINING_ARGS_NAME == "training_args.bin"
    arguments = list(inspect.signature(Trainer._maybe_log_save_evaluate).parameters)
    assert arguments[1:8] == ["tr_loss", "grad_norm", "model", "trial", "epoch", "ignore_keys_for_eval", "start_time"]


def test_a_batch_of_rollouts_is_still_kept_and_counted_by_these_names():
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    assert "self._step % generate_every == 0 or self._buffered_inputs is None" in source
    assert "self._buffered_inputs[self._step % self.args.steps_per_generation]" in source
    assert "self._step += 1" in inspect.getsource(GRPOTrainer.training_step)
    assert 'self._logs["prompt"].extend' in inspect.getsource(GRPOTrainer)
    # A new sampler gives the order of the first epoch, and each pass the next order: one permutation of all rows.
    sampler = trainer_utils.RepeatSampler(range(6), mini_repeat_count=1, seed=3)
    first, second = list(sampler), list(sampler)
    again = trainer_utils.RepeatSampler(range(6), mini_repeat_count=1, seed=3)
    torch.randperm(again.num_samples, generator=again.generator)
    assert first != second == list(again)


def test_template_and_loading_functions_keep_their_arguments():
    def first(function, number):
        return list(inspect.signature(function).parameters)[:number]

    for name in ("supports_tool_calling", "is_chat_template_prefix_preserving", "get_training_chat_template"):
        assert first(getattr(chat_template_utils, name), 1) == ["processing_class"]
    assert first(chat_template_utils.add_response_schema, 1) == ["processing_class"]
    assert {"prefix", "tools"} <= set(inspect.signature(chat_template_utils.parse_response).parameters)
    assert len(first(trainer_utils.create_model_from_path, 1)) == 1


def test_rollouts_can_still_be_generated_for_any_rows_in_evaluation_mode(tokenizer, tmp_path):
    # evaluation.py relies on this: any number of rows in evaluation mode, and metrics kept by mode.
    trainer = make(tokenizer, GRPOConfig(**settings(tmp_path)), trainer=GRPOTrainer)
    trainer.num_generations_eval = 1
    trainer.model.eval()
    row = {"prompt": [{"role": "user", "content": "What is the capital of France?"}], "answer": "Paris"}
    output = trainer._generate_and_score_completions([row] * 3)
    assert len(output["completion_ids"]) == 3
    assert trainer._metrics["eval"] and not trainer._metrics["train"]
    assert trainer.reward_func_names


def test_parent_forwards_still_depend_only_on_beta_old_logps_and_correction():
    # Log-probabilities by the reference (beta), by the old policy (requested immediately), and the correction by them.
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    passes = [part.split("(", 1)[1].split()[0] for part in source.split("self._get_per_token_logps_and_entropies")[1:]]
    assert passes == ["self.model,", "self.ref_model,", "self.model,"]
    assert source.count("if self.use_vllm and self.vllm_importance_sampling_correction:") == 3
    assert source.count("if self.beta != 0.0:") == 1
    assert source.count("old_per_token_logps, _, _ =") == 1


def test_the_parser_still_takes_these_options():
    parser = TrlParser((GRPOConfig,), allow_abbrev=False)
    assert "--learning_rate" in {option for action in parser._actions for option in action.option_strings}
    assert parser.set_defaults_with_config(learning_rate="3e-4", seed=2) == []
    words = ["--seed", "3", "--nonsense", "--use_cpu", "true", "--bf16", "false"]
    args, unknown = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
    assert (args.learning_rate, args.seed, unknown) == (3e-4, 3, ["--nonsense"])
    assert parser.dataclass_types == [GRPOConfig]


def test_last_logits_processor_still_runs_right_before_sampling():
    # `own_draws` hooks the method in which `generate` makes its processors; it gets the config first or by name.
    names = list(inspect.signature(GenerationMixin._get_logits_processor).parameters)
    assert names[:2] == ["self", "generation_config"]
    source = inspect.getsource(GenerationMixin.generate)
    assert "self._get_logits_processor(\n            generation_config=" in source
    sample = inspect.getsource(GenerationMixin._sample)
    assert sample.index("logits_processor(") < sample.index("torch.multinomial")


def test_generation_config_is_still_completed_by_the_models_own(tokenizer, tmp_path):
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path)), scripted=False)
    assert trainer.generation_kwargs["temperature"] == trainer.generation_config.temperature == 1.0
    trainer.model.generation_config.no_repeat_ngram_size = 3
    with unwrap_model_for_generation(
        trainer.model_wrapped,
        trainer.accelerator,
        generation_kwargs=trainer.generation_kwargs,
        gradient_checkpointing_kwargs=None,
    ) as model:
        completed, _ = model._prepare_generation_config(trainer.generation_config)
        assert completed.no_repeat_ngram_size == 3 and completed.max_new_tokens == 700 and completed.do_sample
        assert completed.eos_token_id == [tokenizer.eos_token_id]
        model._prepare_special_tokens(completed, True, device=model.device)
        assert completed._eos_token_tensor.tolist() == [tokenizer.eos_token_id]  # else processors would be left out
        made = model._get_logits_processor(
            completed,
            input_ids_seq_length=0,
            logits_processor=LogitsProcessorList(),
            device=model.device,
            model_kwargs={},
        )
        assert [type(one).__name__ for one in made] == ["NoRepeatNGramLogitsProcessor"]


def test_dynamic_cache_layers_still_have_these_attributes(tokenizer):
    model = tiny.make_model(tokenizer)
    cache = Cache(layer_class_to_replicate=DynamicLayer)
    ids = torch.tensor([[5, 6, 7]])
    model(input_ids=ids, past_key_values=cache, use_cache=True)
    assert [tuple(layer.keys.shape) for layer in cache.layers] == [(1, 2, 3, 8)] * 2
    assert all(layer.is_initialized and layer.get_seq_length() == 3 for layer in cache.layers)
    assert all(layer.get_mask_sizes(2) == (5, 0) for layer in cache.layers)


def test_these_losses_still_weigh_rows_alike_in_any_micro_batch():
    source = inspect.getsource(GRPOTrainer._compute_loss)
    for losses, sums in (
        ('in ["grpo", "sapo"]', "((per_token_loss * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()"),
        ('== "dr_grpo"', "(per_token_loss * mask).sum() / (per_token_loss.size(0) * self.max_completion_length)"),
        ('in ["cispo", "dapo", "vespo"]', 'normalizer = inputs["num_items_in_batch"]'),
        ('== "luspo"', "(per_token_loss * mask).sum(-1).mean()"),
    ):
        after = source.split(f"self.loss_type {losses}:")[-1]
        assert sums in after.split("elif self.loss_type")[0]
    assert set(SUMS_OF_ROWS) == {"grpo", "sapo", "dr_grpo", "cispo", "dapo", "vespo", "luspo"}
    assert "shuffle_sequence_dict(generation_batch)" in inspect.getsource(GRPOTrainer._prepare_inputs)


def test_generation_schedule_is_still_what_rollout_seeds_assume():
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    assert "generate_every = self.args.steps_per_generation * self.num_iterations" in source
    assert "self._step % generate_every == 0" in source
    assert "self._step += 1" in inspect.getsource(GRPOTrainer.training_step)


def test_accelerate_launch_still_gives_processes_these_variables(tmp_path):
    # `launch/processes.py` asks it for the variables of a configuration when something else starts the processes.
    assert list(inspect.signature(launch._validate_launch_command).parameters) == ["args"]
    file = tmp_path / "zero1.yaml"
    file.write_text("distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config: {zero_stage: 1}\n")
    words = ["--config_file", str(file), "--main_process_port", "0", "--module", "module"]
    args, config, mixed_precision_is_set = launch._validate_launch_command(
        launch.launch_command_parser().parse_args(words)
    )
    assert args.use_deepspeed and config.deepspeed_config == {"zero_stage": 1} and mixed_precision_is_set is False
    args.deepspeed_fields_from_accelerate_config = "zero_stage"
    _, told = launch.prepare_deepspeed_cmd_env(args)
    assert told["ACCELERATE_USE_DEEPSPEED"] == "true" and told["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "1"
    assert "ACCELERATE_USE_DEEPSPEED" not in launch.prepare_multi_gpu_env(args)


def test_fused_head_still_uses_the_tile_sizes_that_plan_assumes():
    for function in (chunked_logprob.ChunkedLogProbFunction.forward, chunked_logprob.ChunkedLogProbFunction.backward):
        source = inspect.getsource(function)
        assert "mm_buf = torch.empty((min(N, TOKEN_CHUNK_SIZE), chunk_size)" in source
    assert "dtype=torch.float32) if needs_weight_grad" in inspect.getsource(
        chunked_logprob.ChunkedLogProbFunction.backward
    )
    assert "_CHUNKED_LOGPROB_CHUNK_SIZE," in inspect.getsource(add_fused_lm_head)


def add_head(model: PreTrainedModel) -> PreTrainedModel:
    add_fused_lm_head(model)
    return model


def test_batch_sizes_are_still_checked_against_world_size(tmp_path):
    assert isinstance(inspect.getattr_static(GRPOConfig, "world_size"), property)
    with processes(4):  # 1 row on each of 4 processes is a group of 4
        sizes = {
            "per_device_train_batch_size": 1,
            "num_generations": 4,
            "gradient_accumulation_steps": 1,
            "bf16": False,
        }
        assert A2TGPOConfig(str(tmp_path), **sizes).generation_batch_size == 4
    with pytest.raises(ValueError, match="divisible"):
        A2TGPOConfig(str(tmp_path), **sizes)


def test_trainer_still_names_its_optimizer_and_the_timed_methods(tmp_path):
    kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(A2TGPOConfig(str(tmp_path), bf16=False))
    assert issubclass(kind, torch.optim.Optimizer) and kwargs["lr"] > 0
    step = inspect.getsource(Trainer.training_step)
    assert "self.compute_loss(" in step and "self.accelerator.backward(" in step


def test_trainer_still_writes_these_files_in_output_dir():
    assert list(inspect.signature(GRPOTrainer.save_model).parameters)[1:] == ["output_dir", "_internal_call"]
    assert "if self.args.push_to_hub and not _internal_call:" in inspect.getsource(GRPOTrainer.save_model)
    assert 'os.path.join(self.args.output_dir, "README.md")' in inspect.getsource(GRPOTrainer.create_model_card)
    # A push in the middle of a run writes what its checkpoint holds, and uploads no files that begin with "_".
    push = inspect.getsource(GRPOTrainer._push_from_checkpoint)
    assert "not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END" in push
    assert "os.path.isfile(os.path.join(checkpoint_folder, modeling_file))" in push
    assert "self.processing_class.save_pretrained(output_dir)" in push and 'ignore_patterns=["_*",' in push
    log = inspect.getsource(GRPOTrainer.log)
    assert '"completions",' in log and "completions_{self.state.global_step:05d}.parquet" in log


def test_log_and_profiling_still_read_report_to_when_called():
    source = inspect.getsource(GRPOTrainer.log)
    assert 'if self.args.report_to and "wandb" in self.args.report_to and wandb.run is not None' in source
    assert 'logging_backend.log({"completions": logging_backend.Table(dataframe=df)})' in source
    assert "report_to=trainer.args.report_to" in inspect.getsource(profiling.profiling_context)
    assert "args.report_to" not in inspect.getsource(WandbCallback) + inspect.getsource(TrackioCallback)
