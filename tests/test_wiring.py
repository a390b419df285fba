"""Each setting of the config takes effect: a step is compared with a direct computation."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from datasets import Dataset
from training import Library, captured, make, questions, settings, spread
from trl import GRPOTrainer

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.credit import a2tgpo_credit
from a2tgpo_trl.information_gain.values import Rollouts, answer_values, information_gain
from a2tgpo_trl.rollout.engines import Request
from a2tgpo_trl.turns import to_tokens


NAMES = [["Paris", "Lutetia", "X"]] * 4
SWITCHES = [
    {},
    {"gain_weight": 1.5},
    {"gain_normalization": "pooled"},
    {"gain_normalization": "none"},
    {"discount": 0.5},
    {"rescale_accumulation": False},
    {"clip_adaptation": 0.1},
    {"clip_adaptation": 0.0},
    {"gain_measure": "probability"},
    {"first_gain": False},
    {"last_gain": False},
    {"credit": "a2tgpo_paper"},
    {"answer_aliases": "max"},
    {"answer_aliases": "mean"},
    {"probe_template": "So it is {answer}, then"},
    {"answer_column": "gold"},
    {"temperature": 0.5},
]


def expected_credit(trainer, args: A2TGPOConfig, batch: dict, tokenizer, names=NAMES) -> tuple:
    """Credit of one group by the pure function, with gains by single passes of the untrained model."""
    values = answer_values(
        tiny.make_model(tokenizer),
        Rollouts.from_padded(batch),
        names,
        tokenizer=tokenizer,
        template=args.probe_template,
        aliases=args.answer_aliases,
        measure=args.gain_measure,
        temperature=args.temperature,
        packed=False,
    )
    turn_BT = batch["turn_index"]
    last = batch["completion_mask"].sum(dim=1) - 1  # a token of the answer turn, which carries only the outcome
    outcome = batch["advantages"][torch.arange(len(last)), last]
    gains = information_gain(values, int(turn_BT.max()) + 1)
    gains[:, 0] = gains[:, 0] if args.first_gain else torch.nan
    for row, with_gain in zip(gains, (~gains.isnan()).sum(dim=1), strict=True):
        if not args.last_gain and with_gain > 0:
            row[with_gain - 1] = torch.nan
    advantages, scale = a2tgpo_credit(
        gains,
        torch.zeros(len(last)),
        outcome,
        alpha=args.gain_weight,
        gamma=args.discount,
        beta=args.clip_adaptation,
        normalization=args.gain_normalization,
        rescale=args.rescale_accumulation,
    )
    return to_tokens(advantages, turn_BT), to_tokens(scale, turn_BT, fill=1.0)


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_a_switch_changes_the_credit_as_the_pure_functions_say(switch, tokenizer, tmp_path):
    args = A2TGPOConfig(**settings(tmp_path, max_steps=1, **switch))
    dataset = Dataset.from_dict({"prompt": questions()["prompt"], args.answer_column: NAMES, "reward": [0.0] * 4})
    trainer = make(tokenizer, args, train_dataset=dataset, reward_funcs=spread)
    batch = captured(trainer)[0]
    advantages, scale = expected_credit(trainer, args, batch, tokenizer)
    torch.testing.assert_close(batch["advantages"], advantages, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(batch["clip_scale"], scale, atol=2e-3, rtol=1e-3)
    assert (batch["clip_scale"] != 1).any() == (args.clip_adaptation > 0)


def test_masked_rollouts_are_out_of_the_group_statistics(tokenizer, tmp_path):
    # Four rollouts with a tool turn each; two do not end in an end token, so they are truncated and masked out.
    end = tokenizer.eos_token_id
    endings = [[40, end], [40, 41], [42, end], [43, 44]]

    def rollout(prompts, trainer):
        return {
            "prompt_ids": [[5, 6 + i] for i in range(4)],
            "completion_ids": [[20 + i, 21, 30 + i, *ending] for i, ending in enumerate(endings)],
            "logprobs": [[-1.0] * 5] * 4,
            "env_mask": [[1, 0, 0, 1, 1]] * 4,
        }

    args = A2TGPOConfig(**settings(tmp_path, max_steps=1, mask_truncated_completions=True))
    trainer = make(tokenizer, args, tools=None, rollout_func=rollout, reward_funcs=spread)
    batch = captured(trainer)[0]
    assert trainer.state.log_history[0]["turns/survivors_turn_1"] == 2
    masked = batch["completion_mask"].sum(dim=1) == 0
    assert masked.sum() == 2 and (batch["turn_index"][masked] == -1).all()
    # Two survivors: their scores are -1 and 1, so credit is 0.3 on either side of the outcome.
    credit = (batch["advantages"][:, 0] - batch["advantages"][:, 3])[~masked]
    torch.testing.assert_close(credit.sort().values, torch.tensor([-0.3, 0.3]), atol=1e-3, rtol=0)


def test_the_gain_pass_runs_in_the_precision_of_training(tokenizer, tmp_path):
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, max_steps=1, bf16=True)))
    seen = set()
    trainer.model.register_forward_pre_hook(
        lambda *_: seen.add((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
    )
    trainer.train()
    assert seen == {(False, True), (True, True)}


@pytest.mark.parametrize(("bf16", "kept"), [(False, False), (True, True)])
def test_the_trial_of_packing_allows_for_the_precision(bf16, kept, tokenizer, tmp_path, monkeypatch):
    # 0.05 is rounding in 16 bits and an error in 32.
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, max_steps=1, bf16=bf16)))
    monkeypatch.setattr("a2tgpo_trl.information_gain.gain_pass.packing_error", lambda *_: 0.05)
    trainer.train()
    assert (trainer._gain_pass.packing is not None) == kept


@pytest.mark.parametrize("packs", [True, False])
def test_batch_stays_on_the_rank_device_if_weights_are_offloaded(packs, tokenizer, tmp_path):
    # Weights offloaded by FSDP are on the CPU between forwards, where GPU collectives cannot read tensors.
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, max_steps=1, num_iterations=2)))
    if not packs:
        trainer._gain_pass.packing = None

    class Offloaded(type(trainer.model)):
        device = torch.device("meta")

    trainer.model.__class__ = Offloaded
    batch = captured(trainer)[0]
    assert {values.device.type for values in batch.values()} == {"cpu"}
    assert trainer.state.log_history[0]["turns/survivors_turn_1"] == 3  # all values were found


def test_old_log_probabilities_are_needed_with_vllm_unless_uncorrected(tokenizer, tmp_path):
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path)))
    assert not trainer._parent_wants_old_logps
    trainer.use_vllm = True  # as the parent sets it; its condition reads these two
    assert trainer._parent_wants_old_logps
    trainer.vllm_importance_sampling_correction = False
    assert not trainer._parent_wants_old_logps


def test_an_empty_generation_gets_a_log_probability_of_its_own(tokenizer, tmp_path, monkeypatch):
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path)))
    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", lambda *_: ([[], [7]], [[], [-0.5]]))
    assert trainer._sample([Request([5]), Request([6])]) == ([[tokenizer.eos_token_id], [7]], [[None], [-0.5]])


def test_later_turns_are_sampled_within_the_remaining_tokens(tokenizer, tmp_path):
    # A turn is the same without its surplus; with it, a babbling turn would run to the 700 tokens of a whole rollout.
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, max_steps=1)))
    asked, generate = [], trainer.model.generate

    def watched(input_ids, attention_mask, generation_config):
        asked.append((generation_config.max_new_tokens, attention_mask.sum(dim=1)))
        return generate(input_ids, attention_mask)

    trainer.model.generate = watched
    trainer.train()
    prompt = asked[0][1].unique()  # four rollouts of one question
    assert [most for most, _ in asked] == [700 - int((context - prompt).min()) for _, context in asked]
    assert len(asked) == 4 and asked[3][0] < asked[1][0] < 700
    assert trainer.generation_config.max_new_tokens == 700


def test_vllm_max_tokens_is_capped_per_request_and_restored(tokenizer, tmp_path, monkeypatch):
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path)))
    trainer.use_vllm, asked = True, []

    def sampled(*_):
        asked.append(trainer.vllm_generation.generation_kwargs)
        return [[7]], None

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", sampled)
    for given in ({}, {"max_tokens": 20, "seed": 3}, {"min_tokens": 60}):
        trainer.vllm_generation = SimpleNamespace(generation_kwargs=given, max_completion_length=700)
        trainer._sample([Request([5], max_tokens=50)])
        assert trainer.vllm_generation.generation_kwargs is given
    trainer._sample([Request([5])])
    assert asked == [{"max_tokens": 50}, {"max_tokens": 20, "seed": 3}, {"min_tokens": 60, "max_tokens": 60}, given]


def test_rewards_read_the_answer_whatever_its_column_is_called(tokenizer, tmp_path):
    dataset = questions().rename_column("answer", "gold")
    for off in ({}, {"gain_weight": 0.0, "clip_adaptation": 0.0}):
        trainer = make(
            tokenizer,
            A2TGPOConfig(**settings(tmp_path, max_steps=1, answer_column="gold", **off)),
            train_dataset=dataset,
        )
        trainer.train()
        assert trainer.state.log_history[0]["rewards/exact_match/mean"] == 0.5


def test_reset_gets_the_row_unchanged_and_rewards_get_the_answer(tokenizer, tmp_path):
    class Strict(Library):
        def reset(self, prompt: list, gold: str) -> str:
            return super().reset()

    trainer = make(
        tokenizer,
        A2TGPOConfig(**settings(tmp_path, max_steps=1, answer_column="gold")),
        train_dataset=questions().rename_column("answer", "gold"),
        tools=None,
        environment_factory=Strict,
    )
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["rollouts/excluded"] == 0 and entry["rewards/exact_match/mean"] == 0.5


def test_in_16_bits_no_turn_is_clipped_before_the_first_update(tokenizer, tmp_path):
    changes = {"bf16": True, "num_iterations": 2, "max_steps": 1, "num_generations": 2}  # two prompts: one is padded
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, **changes)), reward_funcs=spread)
    trainer.train()
    assert trainer.state.log_history[0]["clip_fraction/mean"] == 0
    assert trainer.state.log_history[0]["turn_ratio/mean"] == pytest.approx(1.0, abs=1e-6)


def test_in_16_bits_the_correction_of_a_sampler_clips_no_turn_before_the_first_update(
    tokenizer, tmp_path, monkeypatch
):
    # It asks for old log-probabilities. They come from forwards of other pairs of rollouts than those of the loss, and
    # with other padding: there are two prompts.
    lengths = (3, 41, 6, 11)
    sampled = [[*range(20, 20 + length), tokenizer.eos_token_id] for length in lengths]
    logprobs = [[-3.0] * len(ids) for ids in sampled]
    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", lambda *_, **__: (sampled, logprobs))
    layout = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_generations": 2}
    layout |= {"sorted_rows": False, "shared_prefixes": False}
    args = A2TGPOConfig(**settings(tmp_path, bf16=True, max_steps=1, **layout))
    trainer = make(tokenizer, args, tools=None, reward_funcs=spread, scripted=False)
    trainer.use_vllm, trainer._last_loaded_step = True, 0
    trainer.train()
    assert "sampler_gap/mean" in trainer.state.log_history[0]
    assert trainer.state.log_history[0]["clip_fraction/mean"] == 0
    assert trainer.state.log_history[0]["turn_ratio/mean"] == pytest.approx(1.0, abs=1e-6)
