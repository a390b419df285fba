"""The trainer on CPU: when it reduces to GRPO, what it credits, and that every way of making rollouts trains."""

import dataclasses
import math

import pytest
import tiny
import torch
from peft import LoraConfig
from training import WAYS, captured, logged, make, questions, settings, spread, weights, write
from trl import GRPOConfig, GRPOTrainer

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.information_gain.values import Rollouts, answer_values, fused_scorer
from a2tgpo_trl.loss import mean_log_ratio, turn_policy_loss
from a2tgpo_trl.rewards import exact_match, f1
from a2tgpo_trl.rollout.records import as_text, read_off


# ---- reduction to GRPO

GRPO_SWITCHES = {"gain_weight": 0.0, "clip_adaptation": 0.0, "importance_sampling_level": "token"}
EVERY_EXTRA = {"beta": 0.1, "entropy_coef": 0.01, "delta": 1.5, "top_entropy_quantile": 0.8}


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("extra", [{}, EVERY_EXTRA, {"off_policy_mask_threshold": 1e-4}], ids=["plain", "all", "mask"])
def test_without_gains_and_with_token_ratios_it_is_grpo_bit_for_bit(
    loss_type, extra, tokenizer, tmp_path, monkeypatch
):
    common = settings(
        tmp_path,
        loss_type=loss_type,
        epsilon=0.003,
        epsilon_high=0.004,
        num_iterations=2,
        steps_per_generation=2,
        **extra,
    )
    if extra.get("beta"):  # the parent loads its reference model by name; here it gets the same tiny model again
        monkeypatch.setattr(
            "trl.trainer.grpo_trainer.create_model_from_path", lambda *_, **__: tiny.make_model(tokenizer, seed=1)
        )
    grpo = make(tokenizer, GRPOConfig(**common), trainer=GRPOTrainer)
    grpo.train()
    ours = make(tokenizer, A2TGPOConfig(**common, **GRPO_SWITCHES))  # seeds again
    start = weights(ours)
    ours.train()
    assert all(torch.equal(a, b) for a, b in zip(weights(grpo).values(), weights(ours).values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(start.values(), weights(ours).values(), strict=True))
    assert logged(ours, "clip_ratio/region_mean")[1] > 0  # the second step was off policy, and clipped
    for key in ("loss", "grad_norm", "clip_ratio/low_mean", "clip_ratio/high_mean", "entropy"):
        assert logged(ours, key) == logged(grpo, key)


def test_the_preset_grpo_is_trls_grpo_bit_for_bit(tokenizer, tmp_path):
    common = settings(tmp_path, num_iterations=2, steps_per_generation=2)
    grpo = make(tokenizer, GRPOConfig(**common), trainer=GRPOTrainer)
    grpo.train()
    ours = make(tokenizer, A2TGPOConfig(**common, credit="grpo"))
    ours.train()
    assert all(torch.equal(a, b) for a, b in zip(weights(grpo).values(), weights(ours).values(), strict=True))
    assert logged(ours, "loss") == logged(grpo, "loss")


@pytest.mark.parametrize("loss_type", ["luspo", "cispo", "sapo", "vespo"])
def test_losses_without_our_clip_range_equal_trl_with_the_grpo_preset(loss_type, tokenizer, tmp_path):
    common = settings(tmp_path, num_iterations=2, steps_per_generation=2, loss_type=loss_type)
    grpo = make(tokenizer, GRPOConfig(**common), trainer=GRPOTrainer)
    grpo.train()
    ours = make(tokenizer, A2TGPOConfig(**common, credit="grpo"))
    start = weights(ours)
    ours.train()
    assert all(torch.equal(a, b) for a, b in zip(weights(grpo).values(), weights(ours).values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(start.values(), weights(ours).values(), strict=True))
    for key in ("loss", "grad_norm", "entropy"):
        assert logged(ours, key) == logged(grpo, key)
    assert bool(logged(ours, "clip_fraction/mean")) == (loss_type == "luspo")  # the others clip nothing


# Rollouts of a single turn have no gain, so their advantage is the outcome's, and their clip range is the usual one.
ONE_TURN = {"tools": None, "scripted": False, "reward_funcs": spread}


@pytest.mark.parametrize("updates", [1, 4])
def test_single_turn_a2tgpo_with_grpo_ratio_and_clip_range_equals_grpo(updates, tokenizer, tmp_path):
    # From the second update of a batch on, ratios differ from 1, and old log-probabilities come from the gain pass:
    # equal up to rounding. SGD, because Adam divides rounding by itself where the gradient is that small.
    plain = {"sorted_rows": False, "shared_prefixes": False, "sampled_tokens_only": False}
    common = settings(tmp_path, num_iterations=updates, max_steps=4, max_completion_length=12, optim="sgd", **plain)
    grpo = make(tokenizer, A2TGPOConfig(**common, credit="grpo"), **ONE_TURN)
    grpo.train()
    as_grpo = {"importance_sampling_level": "token", "epsilon": 0.2, "epsilon_high": 0.2}
    ours = make(tokenizer, A2TGPOConfig(**common, credit="a2tgpo", **as_grpo), **ONE_TURN)
    start = weights(ours)
    ours.train()
    assert logged(ours, "gain/forwards") and not logged(grpo, "gain/forwards")
    for name, before in start.items():
        moved = (weights(grpo)[name] - before).abs().max().item()
        tolerance = 0.0 if updates == 1 else 1e-4 * moved + 1e-7
        torch.testing.assert_close(weights(ours)[name], weights(grpo)[name], atol=tolerance, rtol=0)
    assert any(not torch.equal(before, weights(ours)[name]) for name, before in start.items())
    ratios = [abs(ratio - 1) for ratio in logged(ours, "turn_ratio/mean")]
    assert max(ratios) > 1e-4 if updates > 1 else max(ratios) < 1e-6
    for key in ("loss", "clip_ratio/low_mean", "clip_ratio/high_mean", "entropy"):
        assert logged(ours, key) == pytest.approx(logged(grpo, key), abs=0 if updates == 1 else 1e-5)


@pytest.mark.parametrize("method", ["a2tgpo", "a2tgpo_paper", "a2tgpo_code"])
def test_single_turn_a2tgpo_credit_equals_grpo_credit(method, tokenizer, tmp_path):
    common = settings(tmp_path, max_steps=1, max_completion_length=12)
    (theirs, *_), (ours, *_) = (
        captured(make(tokenizer, A2TGPOConfig(**common, credit=credit), **ONE_TURN)) for credit in ("grpo", method)
    )
    assert torch.equal(ours["completion_ids"], theirs["completion_ids"])
    assert ours["turn_index"].max() == 0 and theirs["advantages"].unique().numel() > 1
    assert torch.equal(ours["advantages"], theirs["advantages"])
    assert (ours["clip_scale"] == 1).all()


def test_adapted_embeddings_keep_shared_prefixes_and_contexts(tokenizer, tmp_path):
    lora = LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"])
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, max_steps=1)), peft_config=lora)
    trainer.train()
    assert trainer._shares_prefixes and logged(trainer, "gain/mean")
    args = A2TGPOConfig(**settings(tmp_path / "other", max_steps=1))
    assert make(tokenizer, args, scripted=False, peft_config=lora)._keeps_contexts


def test_the_gain_pass_itself_leaves_training_untouched(tokenizer, tmp_path, monkeypatch):
    # Weights of 0 with the pass forced on: it must not change dropout, random numbers or modes.
    monkeypatch.setattr(A2TGPOConfig, "uses_gain", property(lambda self: True))
    common = settings(tmp_path)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.3)
    grpo = make(tokenizer, GRPOConfig(**common, epsilon=0.003), trainer=GRPOTrainer, peft_config=lora)
    grpo.train()
    plain = {"sorted_rows": False, "shared_prefixes": False, "sampled_tokens_only": False}
    ours = make(tokenizer, A2TGPOConfig(**common, **GRPO_SWITCHES, **plain, epsilon=0.003), peft_config=lora)
    ours.train()
    assert len(logged(ours, "gain/mean")) == 2
    assert all(torch.equal(a, b) for a, b in zip(weights(grpo).values(), weights(ours).values(), strict=True))


# ---- credit and loss as the trainer wires them


def test_each_turn_is_credited_with_its_gain_as_computed_by_hand(tokenizer, tmp_path):
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, max_steps=1, gain_weight=0.5, learning_rate=0.0)))
    batch = captured(trainer)[0]
    values = answer_values(
        trainer.model, Rollouts.from_padded(batch), ["Paris"] * 4, tokenizer=tokenizer, packed=False
    ).tolist()
    turns = [int(row.max()) + 1 for row in batch["turn_index"]]
    assert sorted(turns) == [1, 2, 3, 4]
    gains = [[row[k + 1] - row[k] for k in range(n - 1)] for row, n in zip(values, turns, strict=True)]
    outcome = batch["advantages"][torch.arange(4), (batch["completion_mask"].sum(1) - 1)]  # that of the answer turn
    for i, own in enumerate(gains):
        scores = []
        for k, gain in enumerate(own):
            cell = [other[k] for other in gains if len(other) > k]
            mean = sum(cell) / len(cell)
            deviation = math.sqrt(sum((x - mean) ** 2 for x in cell) / len(cell) + 1e-8) + 1e-6
            scores.append((gain - mean) / deviation if len(cell) > 1 else 0.0)
        for k in range(turns[i]):
            rest = scores[k:]
            expected = outcome[i].item() + (0.5 * sum(rest) / math.sqrt(len(rest)) if rest else 0.0)
            scale = 1 + 0.3 * (2 / (1 + math.exp(-scores[k])) - 1) if rest else 1.0
            tokens = batch["turn_index"][i] == k
            torch.testing.assert_close(batch["advantages"][i][tokens].mean().item(), expected, atol=2e-4, rtol=0)
            torch.testing.assert_close(batch["clip_scale"][i][tokens].mean().item(), scale, atol=2e-4, rtol=0)
            assert batch["advantages"][i][tokens].unique().numel() == 1


@pytest.mark.parametrize("level", ["turn", "token", "sequence"])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_the_trained_loss_is_turn_policy_loss_inside_the_parents_aggregation(level, loss_type, tokenizer, tmp_path):
    args = A2TGPOConfig(
        **settings(
            tmp_path,
            num_iterations=2,
            steps_per_generation=1,
            importance_sampling_level=level,
            loss_type=loss_type,
            learning_rate=1e-3,
        )
    )
    trainer = make(tokenizer, args)
    losses, inner = [], trainer._compute_loss

    def compare(model, inputs):
        loss = inner(model, inputs)
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        logps, _, _ = GRPOTrainer._get_per_token_logps_and_entropies(
            trainer, model, ids, mask, inputs["completion_ids"].size(1)
        )
        per_token = turn_policy_loss(
            logps,
            inputs["old_per_token_logps"],
            inputs["advantages"],
            inputs["turn_index"],
            inputs["clip_scale"],
            epsilon_low=3e-3,
            epsilon_high=4e-3,
            level=level,
        )
        in_loss = (inputs["turn_index"] >= 0).float()
        if loss_type == "grpo":
            expected = (per_token.sum(1) / in_loss.sum(1)).mean()
        else:
            expected = per_token.sum() / in_loss.sum()
        gradient, expected_gradient = (
            torch.cat([g.flatten() for g in torch.autograd.grad(x, list(model.parameters()), retain_graph=True)])
            for x in (loss, expected)
        )
        torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-4, rtol=1e-3)
        losses.append(loss.item())
        return loss

    trainer._compute_loss = compare
    trainer.train()
    assert len(losses) == 2 and losses[0] != losses[1]


# The loss of a token with log-probability p and advantage A, whose turn has the ratio r.
LOSSES_OF_TURNS = {
    "luspo": lambda p, A, r: -torch.min(r * A, r.clamp(1 - 0.003, 1 + 1.05) * A),
    "cispo": lambda p, A, r: -r.clamp(max=1.05) * A * p,
    "sapo": lambda p, A, r: torch.where(A > 0, -4 * (r - 1).sigmoid(), -4 / 1.05 * (1.05 * (r - 1)).sigmoid()) * A,
    # On policy, when the weight of a rollout is 1 and only log-probabilities have a gradient.
    "vespo": lambda p, A, r: -A * p,
}
SUMMED_UP = {
    "luspo": lambda loss, mask: loss.sum(1).mean(),
    "sapo": lambda loss, mask: (loss.sum(1) / mask.sum(1)).mean(),
    "cispo": lambda loss, mask: loss.sum() / mask.sum(),
    "vespo": lambda loss, mask: loss.sum() / mask.sum(),
}


@pytest.mark.parametrize("loss_type", LOSSES_OF_TURNS)
def test_trls_other_losses_take_the_advantage_and_the_ratio_of_each_turn(loss_type, tokenizer, tmp_path):
    changes = {"loss_type": loss_type, "clip_adaptation": 0.0, "epsilon_high": 1.05, "num_iterations": 2}
    steps = 1 if loss_type == "vespo" else 2
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, max_steps=steps, **changes)))
    found, inner = [], trainer._compute_loss

    def compare(model, inputs):
        loss = inner(model, inputs)
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        logps, _, _ = GRPOTrainer._get_per_token_logps_and_entropies(
            trainer, model, ids, mask, inputs["completion_ids"].size(1)
        )
        in_turn = inputs["turn_index"] >= 0
        mean = mean_log_ratio(logps, inputs["old_per_token_logps"], inputs["turn_index"], "turn")
        per_token = LOSSES_OF_TURNS[loss_type](logps, inputs["advantages"], mean.exp())
        expected = SUMMED_UP[loss_type](per_token.masked_fill(~in_turn, 0.0), in_turn.float())
        torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)
        assert inputs["advantages"][in_turn].unique().numel() > 4  # more than one per rollout
        found.append(mean.abs().max().item())
        return loss

    trainer._compute_loss = compare
    trainer.train()
    assert len(found) == steps and (steps == 1 or found[1] > 0.01)


def test_old_log_probabilities_come_from_the_gain_pass_in_the_same_forward(tokenizer, tmp_path):
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, num_iterations=2, max_steps=1, shared_prefixes=False)))
    trainer._gain_pass.packing_tried = True  # so that the trial on a small example is not counted
    forwards = []
    trainer.model.register_forward_pre_hook(lambda *_: forwards.append(torch.is_grad_enabled()))
    batch = captured(trainer)[0]
    assert forwards == [False, True]  # one pass for gains and old log-probs, one for the loss
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    plain_model = tiny.make_model(tokenizer)
    with torch.no_grad():
        logps = plain_model(ids, attention_mask=mask).logits.log_softmax(-1)[:, :-1]
    expected = logps.gather(2, ids[:, 1:, None]).squeeze(2)[:, -batch["completion_ids"].size(1) :]
    difference = ((batch["old_per_token_logps"] - expected) * batch["completion_mask"]).abs().max()
    assert difference < 1e-4


def test_model_with_learned_positions_gets_old_log_probs_from_the_parent(tokenizer, tmp_path):
    # TRL counts positions from the left padding, a packed row from its first token, so the model input differs.
    model = tiny.architectures()["gpt2"]()
    tiny.script(model, tokenizer, write)
    args = A2TGPOConfig(
        **settings(tmp_path, num_iterations=2, max_steps=1, disable_dropout=True, num_generations=2)
    )  # two prompts of unequal length in a batch, so that one is padded
    trainer = A2TGPOTrainer(model, exact_match, args, questions(), processing_class=tokenizer, tools=[tiny.search])
    assert trainer._gain_pass.packing is not None
    batch = captured(trainer)[0]
    assert (batch["prompt_mask"] == 0).any() and logged(trainer, "gain/mean")
    assert logged(trainer, "turn_ratio/mean")[0] == pytest.approx(1.0, abs=1e-6)


def test_unpackable_model_trains_by_single_passes_with_a_message(tokenizer, tmp_path, caplog):
    model = tiny.architectures()["lfm2-hybrid"]()
    tiny.script(model, tokenizer, write)
    args = A2TGPOConfig(**settings(tmp_path, num_iterations=2))
    trainer = A2TGPOTrainer(model, exact_match, args, questions(), processing_class=tokenizer, tools=[tiny.search])
    trainer.train()
    said = [record.message for record in caplog.records if "one pass per turn boundary" in record.message]
    assert len(said) == 1 and "conv layers" in said[0]
    assert logged(trainer, "gain/turn_3/mean") and "old_per_token_logps" in trainer._buffered_inputs[0]


@pytest.mark.parametrize("name", tiny.multimodal())
def test_the_text_model_of_a_multimodal_checkpoint_trains_with_tools(name, tokenizer, tmp_path):
    model = tiny.multimodal()[name]()
    tiny.script(model, tokenizer, write)
    trainer = A2TGPOTrainer(
        model,
        exact_match,
        A2TGPOConfig(**settings(tmp_path, max_steps=1)),
        questions(),
        processing_class=tokenizer,
        tools=[tiny.search],
    )
    start = weights(trainer)
    trainer.train()
    changed = {name for name, before in start.items() if not torch.equal(before, weights(trainer)[name])}
    assert any("language_model" in name for name in changed) and not any("vision" in name for name in changed)
    assert logged(trainer, "turns/survivors_turn_3") == [1] and trainer._gain_pass.packing is not None
    # The vision parts have no gradient, and DDP would wait for it forever.
    assert trainer.accelerator.ddp_handler.find_unused_parameters


def test_a_model_whose_context_has_no_limit_trains_with_tools(tokenizer, tmp_path):
    model = tiny.architectures()["bloom"]()
    tiny.script(model, tokenizer, write)
    args = A2TGPOConfig(**settings(tmp_path, max_steps=1))
    trainer = A2TGPOTrainer(model, exact_match, args, questions(), processing_class=tokenizer, tools=[tiny.search])
    trainer.train()
    assert logged(trainer, "turns/context_full") == [0] and logged(trainer, "turns/max") == [4]


@pytest.mark.parametrize("error", [0.5, math.nan])
def test_packing_that_fails_its_trial_is_dropped_with_a_message(error, tokenizer, tmp_path, caplog, monkeypatch):
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, max_steps=1)))
    monkeypatch.setattr("a2tgpo_trl.information_gain.gain_pass.packing_error", lambda *_: error)
    trainer.train()
    assert any(f"packed rows differ by {error}" in record.message for record in caplog.records)
    assert trainer._gain_pass.packing is None and logged(trainer, "gain/mean")


def test_vllm_correction_weights_the_turn_loss(tokenizer, tmp_path):
    # The parent stores it like this after sampling with vLLM: one weight per rollout, or per token.
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, max_steps=1, loss_type="grpo", learning_rate=0.0)))
    batch = captured(trainer)[0]
    trainer.current_gradient_accumulation_steps = 1
    in_turn = (batch["turn_index"] >= 0).float()
    # On policy the ratio is 1 and the surrogate is minus the advantage.
    per_token = -batch["advantages"] * in_turn
    for correction in (torch.tensor([[0.5], [1.0], [0.0], [2.0]]), 0.5 + 0.1 * batch["turn_index"].float()):
        trainer.use_vllm = True
        loss = trainer._compute_loss(trainer.model, {**batch, "importance_sampling_ratio": correction})
        expected = ((per_token * correction).sum(1) / in_turn.sum(1)).mean()
        torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)


EVERYTHING = {
    "beta": 0.1,
    "entropy_coef": 0.01,
    "delta": 1.5,
    "top_entropy_quantile": 0.8,
    "off_policy_mask_threshold": 0.5,
    "scale_rewards": "batch",
    "num_iterations": 2,
    "steps_per_generation": 2,
    "per_device_train_batch_size": 2,
    "temperature": 0.7,
    "mask_truncated_completions": True,
    "log_completions": True,
    "max_steps": 4,
}


@pytest.mark.parametrize(
    "changes",
    [
        EVERYTHING,
        {**EVERYTHING, "loss_type": "grpo", "importance_sampling_level": "sequence", "scale_rewards": "none"},
        {**EVERYTHING, "loss_type": "bnpo", "multi_objective_aggregation": "normalize_then_sum"},
        {**EVERYTHING, "loss_type": "dr_grpo", "use_adaptive_entropy": True, "use_bias_correction_kl": False},
        {"gain_normalization": "pooled", "gain_measure": "probability", "answer_aliases": "max"},
        {"gain_normalization": "none", "rescale_accumulation": False, "discount": 0.5, "answer_aliases": "mean"},
        {"bf16": True, "num_iterations": 2},
        {"cast_lm_head_to_fp32": True, "num_iterations": 2},
        {"gain_token_budget": 1, "num_iterations": 2},
    ],
    ids=str,
)
def test_settings_work_together_with_gains(changes, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "trl.trainer.grpo_trainer.create_model_from_path", lambda *_, **__: tiny.make_model(tokenizer, seed=1)
    )
    args = A2TGPOConfig(**settings(tmp_path, **changes))
    trainer = make(tokenizer, args, reward_funcs=[exact_match, f1])
    start = weights(trainer)
    trainer.train()
    assert trainer.state.global_step == args.max_steps
    assert all(math.isfinite(loss) for loss in logged(trainer, "loss"))
    assert all(torch.isfinite(tensor).all() for tensor in weights(trainer).values())
    assert any(not torch.equal(before, weights(trainer)[name]) for name, before in start.items())
    assert logged(trainer, "gain/turn_1/mean") and logged(trainer, "gain/failed_probes")[0] == 0
    if args.gain_token_budget == 1:
        assert logged(trainer, "gain/forwards") == [4]  # one rollout per forward


def test_a_mixture_of_experts_with_its_balancing_loss_trains(tokenizer, tmp_path):
    model = tiny.architectures()["qwen3-moe"]()
    model.config.output_router_logits = True
    tiny.script(model, tokenizer, write)
    args = A2TGPOConfig(**settings(tmp_path, num_iterations=2, router_aux_loss_coef=0.01))
    trainer = A2TGPOTrainer(model, exact_match, args, questions(), processing_class=tokenizer, tools=[tiny.search])
    trainer.train()
    assert trainer._gain_pass.packing and logged(trainer, "gain/mean") and logged(trainer, "aux_loss")[0] > 0


def test_a_mixture_of_experts_is_scored_like_its_reference_on_tool_results_too(tokenizer, tmp_path, monkeypatch):
    # At this temperature tool tokens have log-probabilities of -100; exp(0 - -100) is too large for float32.
    model, reference = (tiny.architectures()["qwen3-moe"]() for _ in range(2))
    monkeypatch.setattr("trl.trainer.grpo_trainer.create_model_from_path", lambda *_, **__: reference)
    tiny.script(model, tokenizer, write)
    changes = {"max_steps": 1, "beta": 0.1, "temperature": 0.05, "router_aux_loss_coef": 0.01}
    args = A2TGPOConfig(**settings(tmp_path, **changes))
    trainer = A2TGPOTrainer(model, exact_match, args, questions(), processing_class=tokenizer, tools=[tiny.search])
    batch = captured(trainer)[0]
    of_tools = batch["completion_mask"].bool() & ~batch["tool_mask"].bool()
    assert (batch["ref_per_token_logps"][of_tools] < -89).any()
    assert math.isfinite(logged(trainer, "kl")[0])
    assert all(tensor.isfinite().all() for tensor in weights(trainer).values())


# ---- every way of making rollouts, two steps each


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"num_iterations": 2, "gradient_checkpointing": True}],
    ids=["aligned", "off-policy"],
)
def test_two_steps_train_and_evaluate(way, changes, tokenizer, tmp_path):
    args = A2TGPOConfig(**settings(tmp_path, eval_strategy="steps", eval_steps=1, **changes))
    trainer = make(tokenizer, args, eval_dataset=questions(1), **WAYS[way])
    start = weights(trainer)
    trainer.train()
    changed = [name for name, before in start.items() if not torch.equal(before, weights(trainer)[name])]
    assert changed and all("lora" in name for name in changed) == (way == "lora")
    assert all(torch.isfinite(tensor).all() for tensor in weights(trainer).values())
    assert len(logged(trainer, "gain/seconds")) >= 1 and len(logged(trainer, "value/before")) >= 1
    assert len(logged(trainer, "eval_turns/mean")) == 2
    if way in ("tools", "environment_factory", "lora"):
        assert logged(trainer, "turns/mean")[0] == 2.5  # (3 + 2 + 1 + 4) / 4
        assert logged(trainer, "turns/survivors_turn_1")[0] == 3
        assert logged(trainer, "eval_turns/mean") == [2.5, 2.5] and logged(trainer, "eval_turns/max") == [4, 4]


def test_rollouts_of_a_rollout_func_are_credited_by_their_mask(tokenizer, tmp_path):
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, max_steps=1)), **WAYS["rollout_func"])
    batch = captured(trainer)[0]
    lengths = batch["completion_mask"].sum(dim=1).tolist()
    by_length = dict(zip(lengths, batch["turn_index"].tolist(), strict=True))
    assert by_length[5] == [0, 0, -1, -1, 1]
    assert by_length[4] == [0, 0, -1, -1, -1]
    assert by_length[1] == [-1] * 5  # empty: one end token outside the mask
    assert by_length[3] == [0, 0, 0, -1, -1]
    assert logged(trainer, "turns/survivors_turn_1") == [2]
    assert logged(trainer, "turns/mean") == [pytest.approx(4 / 3)]  # 2, 1 and 1: the third is not in the loss


def test_records_of_a_rollout_func_are_read_off_its_tokens_and_mask(tokenizer, tmp_path):
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, max_steps=1)), **WAYS["rollout_func"])
    seen = []
    trainer.on_rollouts = seen.extend
    trainer.train()
    # Masks 1 1 0 0 1, 1 1 0 0, empty, and 1 1 1; no turn has an end token, so turns that end a rollout count as cut.
    turns = [[(turn["tokens_out"], turn["tokens_in"], turn["status"]) for turn in one["turns"]] for one in seen]
    cut = "over_budget"
    assert turns == [[(2, 2, "ok"), (1, 0, cut)], [(2, 2, "ok")], [], [(3, 0, cut)]]
    assert [one["tool_turns"] for one in seen] == [1, 1, 0, 0] == [len(one["gains"]) for one in seen]
    assert [one["ended"] for one in seen] == [cut, None, None, cut]
    gains = [gain for one in seen for gain in one["gains"]]
    assert logged(trainer, "gain/mean") == [pytest.approx(sum(gains) / 2)] and None not in gains
    first = seen[0]
    assert [turn["text"] for turn in first["turns"]] == [tokenizer.decode([30, 31]), tokenizer.decode([34])]
    assert [turn["read"] for turn in first["turns"]] == [tokenizer.decode([32, 33]), ""]
    assert first["prompt"].startswith("the capital of France is?") and seen[2]["prompt"] == first["prompt"]
    assert f"gain {gains[0]:+.2f}" in as_text(first) and tokenizer.decode([32, 33]) in as_text(first)


def test_rollout_function_tokens_before_the_first_turn_belong_to_the_prompt():
    def decode(ids):
        return "".join(map(chr, ids))

    record = read_off([*b"ask"], [*b"-see-say>read.end"], [0] * 5 + [1] * 4 + [0] * 5 + [1] * 3, decode, [ord("d")])
    assert record["prompt"] == "ask-see-" and record["tool_turns"] == 1 and record["ended"] is None
    assert [(turn["text"], turn["read"], turn["cut"]) for turn in record["turns"]] == [
        ("say>", "read.", False),
        ("end", "", False),
    ]


def test_truncated_rollouts_that_are_masked_out_have_no_part_in_the_statistics(tokenizer, tmp_path):
    # 130 tokens cut off the rollout of 3 tool turns in its second one. Masked, it has no turns, and its first turn has
    # no gain; those of 2 and 1 tool turns have one, and the fourth answers immediately.
    args = A2TGPOConfig(**settings(tmp_path, max_steps=1, max_completion_length=130, mask_truncated_completions=True))
    trainer = make(tokenizer, args)
    seen = []
    trainer.on_rollouts = seen.extend
    batch = captured(trainer)[0]
    assert [one["ended"] for one in seen] == ["answer", "answer", "answer", "over_budget"]
    assert [one["tool_turns"] for one in seen] == [2, 1, 0, 1] and seen[3]["gains"][0] is not None
    truncated = batch["completion_mask"].sum(1) == 0
    assert truncated.sum() == 1 and (batch["turn_index"][truncated] == -1).all()
    assert logged(trainer, "turns/survivors_turn_1") == [2] and logged(trainer, "turns/survivors_turn_2") == [1]
    assert torch.isfinite(trainer.model.lm_head.weight).all()


def test_an_unscored_rollout_gets_neither_outcome_nor_gain(tokenizer, tmp_path):
    def sometimes(completions, **_):
        return [None if len(completion) == 5 else float(i) for i, completion in enumerate(completions)]

    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, max_steps=1)), reward_funcs=sometimes)
    batch = captured(trainer)[0]
    unscored = batch["turn_index"].amax(1) == 2  # two tool turns: five messages
    assert (batch["advantages"][unscored] == 0).all()
    assert (batch["advantages"][~unscored].abs().sum(1) > 0).any()
    assert logged(trainer, "turns/survivors_turn_1") == [2]


def test_turn_with_a_failed_probe_keeps_its_outcome(tokenizer, tmp_path, monkeypatch):
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, max_steps=1)))
    trainer._gain_pass.packing_tried = True
    make_scorer = fused_scorer

    def failing_scorer(*args):
        score = make_scorer(*args)

        def failing(*inputs):
            logps = score(*inputs)
            logps[:, -1] = torch.nan  # the last probe of the longest row
            return logps

        return failing

    monkeypatch.setattr("a2tgpo_trl.information_gain.gain_pass.fused_scorer", failing_scorer)
    batch = captured(trainer)[0]
    assert logged(trainer, "gain/failed_probes") == [1]
    assert torch.isfinite(batch["advantages"]).all() and torch.isfinite(trainer.model.lm_head.weight).all()
    assert "turns/survivors_turn_3" not in trainer.state.log_history[0]


def test_an_empty_generation_is_an_end_token(tokenizer, tmp_path, monkeypatch):
    # `generate` writes at least one token; an inference server may return none.
    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", lambda self, ids, *_, **__: ([[] for _ in ids], None))
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, max_steps=1, stream_turns=False)), scripted=False)
    batch = captured(trainer)[0]
    assert batch["completion_ids"].tolist() == [[tokenizer.eos_token_id]] * 4


# ---- evaluation, model card, columns


def test_an_evaluation_with_fewer_turns_leaves_a_buffered_batch_alone(tokenizer, tmp_path):
    # The second step trains on the rollouts of the first; the evaluation in between has at most one tool turn.
    model = tiny.make_model(tokenizer)
    tiny.script(
        model, tokenizer, lambda turn, row: write(turn, row) if model.training or not turn else tiny.final("x")
    )
    args = A2TGPOConfig(**settings(tmp_path, num_iterations=2, eval_strategy="steps", eval_steps=1))
    trainer = A2TGPOTrainer(
        model, exact_match, args, questions(), questions(1), processing_class=tokenizer, tools=[tiny.search]
    )
    trainer.train()
    assert logged(trainer, "eval_turns/max") == [2, 2]
    assert len(logged(trainer, "turn_ratio/turn_4")) == 2  # both steps, including the one after the evaluation


EVALUATIONS = {
    "old and reference": {"num_iterations": 2, "beta": 0.1},
    "gains alone": {},
    "failures shaped": {"credit": "gtpo", "num_iterations": 2},
}


@pytest.mark.parametrize("way", EVALUATIONS)
def test_evaluation_runs_no_extra_forward(way, tokenizer, tmp_path, monkeypatch):
    # The script that replaces `generate` runs no forward, so any forward comes from something else.
    monkeypatch.setattr(
        "trl.trainer.grpo_trainer.create_model_from_path", lambda *_, **__: tiny.make_model(tokenizer, seed=1)
    )
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, **EVALUATIONS[way])))
    records = []
    trainer.on_rollouts = records.extend
    forwards = forwards_of(trainer.model, trainer.ref_model)
    found = trainer.evaluate(questions(1))
    assert forwards == []
    assert found["eval_reward"] == 0.5 and found["eval_turns/mean"] == 2.5 and found["eval_tools/search/ok"] == 1
    needless = ("eval_loss", "eval_gain/", "eval_value", "eval_clip", "eval_groups", "eval_shaping", "eval_turn_ratio")
    assert not [key for key in found if key.startswith(needless)]
    assert len(records) == 4 and not any("gains" in record or "values" in record for record in records)
    trainer.train()  # training still runs what the evaluation switched off
    assert {id(model) for model in forwards} == {id(trainer.model), id(trainer.ref_model)} - {id(None)}


def forwards_of(*models) -> list:
    """A list to which each of these models is appended whenever it runs a forward."""
    seen: list = []
    for model in models:
        if model is not None:
            model.register_forward_pre_hook(lambda module, *_: seen.append(module))
    return seen


def test_an_evaluation_by_an_engine_of_its_own_compares_no_log_probabilities(tokenizer, tmp_path, monkeypatch):
    # As with vLLM: tokens come with log-probabilities, which training uses for its correction.
    sampled = ([[20, 21, tokenizer.eos_token_id]] * 4, [[-1.0, -2.0, -3.0]] * 4)
    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", lambda *_, **__: sampled)
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path)), tools=None, reward_funcs=spread, scripted=False)
    trainer.use_vllm, trainer._last_loaded_step = True, 0
    assert trainer.vllm_importance_sampling_correction
    forwards = forwards_of(trainer.model)
    found = trainer.evaluate(questions(1))
    assert forwards == [] and found["eval_reward"] == 0.75  # 0, 1, 2 and 0
    assert not [key for key in found if "sampling/" in key or "sampler_gap" in key]
    assert trainer.vllm_importance_sampling_correction


def test_rows_of_an_evaluation_need_no_answer(tokenizer, tmp_path):
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path)), reward_funcs=spread)
    assert trainer.evaluate(questions(1).remove_columns("answer"))["eval_reward"] == 0.75  # 0, 1, 2 and 0


def test_evaluation_rewards_can_choose_the_best_model(tokenizer, tmp_path):
    args = A2TGPOConfig(
        **settings(
            tmp_path,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            reward_weights=[1.0, 0.0],
            load_best_model_at_end=True,
            metric_for_best_model="eval_rewards/f1/mean",
            greater_is_better=True,
        )
    )
    trainer = make(tokenizer, args, reward_funcs=[exact_match, f1], eval_dataset=questions(2))
    trainer.train()
    assert logged(trainer, "eval_rewards/exact_match/mean") == [0.5, 0.5]  # two of four scripted answers are right
    assert trainer.state.best_metric == 0.5


def test_metric_for_best_model_is_reward_by_default(tmp_path):
    common = settings(tmp_path, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1)
    args = A2TGPOConfig(**{**common, "load_best_model_at_end": True})
    assert args.metric_for_best_model == "reward" and args.greater_is_better
    plateau = A2TGPOConfig(**{**common, "lr_scheduler_type": "reduce_lr_on_plateau"})
    assert plateau.metric_for_best_model == "reward"
    assert A2TGPOConfig(**common).metric_for_best_model is None
    for name in ("loss", "eval_loss"):
        with pytest.raises(ValueError, match=f"'{name}'.*no loss.*'reward'"):
            A2TGPOConfig(**{**common, "load_best_model_at_end": True, "metric_for_best_model": name})


FOLLOWS = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
FOLLOWS |= {"load_best_model_at_end": True, "max_steps": 1}


def test_best_model_follows_the_named_evaluation_set(tokenizer, tmp_path):
    sets = {"easy": questions(1), "hard": questions(1).map(lambda row: {"answer": "Oslo"})}
    with pytest.raises(ValueError, match="'reward' belongs to no evaluation.*'eval_easy_reward', 'eval_hard_reward'"):
        make(tokenizer, A2TGPOConfig(**settings(tmp_path, **FOLLOWS)), eval_dataset=sets)
    args = A2TGPOConfig(**settings(tmp_path, **FOLLOWS, metric_for_best_model="easy_reward"))
    trainer = make(tokenizer, args, eval_dataset=sets)
    trainer.train()
    # Two of the four scripted answers are Paris and one is Oslo.
    assert (logged(trainer, "eval_easy_reward"), logged(trainer, "eval_hard_reward")) == ([0.5], [0.25])
    assert trainer.state.best_metric == 0.5 and not logged(trainer, "eval_reward")


def test_unscored_evaluation_is_no_new_best(tokenizer, tmp_path):
    args = A2TGPOConfig(**settings(tmp_path, **FOLLOWS))
    trainer = make(
        tokenizer, args, reward_funcs=lambda completions, **_: [None] * len(completions), eval_dataset=questions(1)
    )
    trainer.train()
    assert logged(trainer, "eval_reward") == [None] and trainer.state.best_model_checkpoint is None


def test_the_model_card_names_the_method_and_its_paper(tokenizer, tmp_path):
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path)))
    trainer.create_model_card(model_name="mine")
    card = (tmp_path / "README.md").read_text()
    assert "2605.06200" in card and "A2TGPO" in card and "@article{chen2026a2tgpo" in card


def test_the_answer_column_survives_removing_unused_columns(tokenizer, tmp_path):
    args = A2TGPOConfig(**settings(tmp_path, max_steps=1, remove_unused_columns=True))
    trainer = make(tokenizer, args, train_dataset=questions().add_column("notes", ["x"] * 4))
    trainer.train()
    assert logged(trainer, "gain/mean")


@dataclasses.dataclass
class HomeConfig(A2TGPOConfig):
    """A user's own config, which trains on a CPU on any machine."""

    use_cpu: bool = True
    bf16: bool = False


def test_a_default_config_is_made_from_the_model_name(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert A2TGPOTrainer.config_class is A2TGPOConfig
    monkeypatch.setattr(A2TGPOTrainer, "config_class", HomeConfig)
    model = tiny.make_model(tokenizer)
    model.config._name_or_path = "someone/tiny"
    trainer = A2TGPOTrainer(model, exact_match, train_dataset=questions(), processing_class=tokenizer)
    assert type(trainer.args) is HomeConfig and trainer.args.output_dir.endswith("tiny-Home")
