"""The loss reads hardly any padding, and trains as it did with all of it."""

import pytest
import tiny
import torch
from training import captured, logged, make, questions, settings, write

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.rewards import exact_match
from a2tgpo_trl.rollout.padding import Padding, padding_of, trimmed


PROMPTS, COMPLETIONS = torch.tensor([[0, 0, 1], [0, 1, 1]]), torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]])


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, (1, 2)), ({"left": False}, (0, 2)), ({"multiple": 2}, (0, 2)), ({"multiple": 3}, (0, 0))],
)
def test_columns_without_a_token_are_counted_at_both_sides(options, expected):
    assert padding_of(PROMPTS, COMPLETIONS, **options) == expected


def test_one_column_remains_if_all_completions_are_masked():
    assert padding_of(PROMPTS, torch.zeros(2, 4)) == (1, 3)


def test_per_token_tensors_are_trimmed_and_others_kept():
    batch = {
        "prompt_ids": torch.tensor([[0, 0, 5], [0, 6, 7]]),
        "completion_ids": torch.tensor([[8, 0, 0, 0], [9, 10, 0, 0]]),
        "advantages": torch.arange(8.0).view(2, 4),
        "importance_sampling_ratio": torch.tensor([[0.5], [2.0]]),  # one weight for all tokens of a rollout
        "num_items_in_batch": torch.tensor(3),
    }
    cut = trimmed(batch, Padding(1, 2))
    assert {key: values.tolist() for key, values in cut.items()} == {
        "prompt_ids": [[0, 5], [6, 7]],
        "completion_ids": [[8, 0], [9, 10]],
        "advantages": [[0.0, 1.0], [4.0, 5.0]],
        "importance_sampling_ratio": [[0.5], [2.0]],
        "num_items_in_batch": 3,
    }


# ---- in training

# Each rollout is a micro-batch, and each batch of rollouts is used for two steps.
# The parent's forward scores all tokens.
ALONE = {
    "sampled_tokens_only": False,
    "shared_prefixes": False,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 4,
    "steps_per_generation": 8,
}


def widths_of(trainer) -> tuple[list[int], list[int], list[int]]:
    """Widths of the rows that the model reads before the loss and in it, and of the latter without padding."""
    read: dict[bool, list[int]] = {False: [], True: []}

    def watch(_, args, kwargs):
        if "shift_labels" not in kwargs:  # the gain pass has them
            read[torch.is_grad_enabled()].append(kwargs["input_ids"].size(1))

    trainer.model.register_forward_pre_hook(watch, with_kwargs=True)
    batches = captured(trainer)
    real = [int(batch["prompt_mask"].sum() + batch["completion_mask"].sum()) for batch in batches]
    return read[False], read[True], real


@pytest.mark.parametrize("changes", [{"bf16": True}, {"credit": "gtpo", "beta": 0.1}], ids=str)
def test_a_rollout_alone_is_read_without_padding_by_the_loss_and_before_it(changes, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "trl.trainer.grpo_trainer.create_model_from_path", lambda *_, **__: tiny.make_model(tokenizer, seed=1)
    )
    args = A2TGPOConfig(**settings(tmp_path, num_generations=4, **ALONE, **changes))
    before, in_loss, real = widths_of(make(tokenizer, args))
    assert in_loss == real and len(set(real)) == 8  # two questions, four rollouts of each
    assert len(before) >= 8 and set(before) == set(real)


@pytest.mark.parametrize(("changes", "passes"), [({}, 1), ({"beta": 0.1}, 2)], ids=["old", "old and reference"])
def test_in_16_bits_old_log_probabilities_are_computed_once(changes, passes, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "trl.trainer.grpo_trainer.create_model_from_path", lambda *_, **__: tiny.make_model(tokenizer, seed=1)
    )
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, bf16=True, **ALONE, **changes)))
    reference = trainer.ref_model
    forwards = []
    for model in filter(None, (trainer.model, reference)):
        model.register_forward_pre_hook(
            lambda _, args, kwargs: forwards.append(torch.is_grad_enabled() or "shift_labels" in kwargs),
            with_kwargs=True,
        )
    batches = captured(trainer)
    assert forwards.count(False) == 8 * passes  # eight rollouts, each in its own micro-batch
    assert all((batch["old_per_token_logps"] < 0).any() for batch in batches)


def test_all_passes_use_one_row_width_if_width_affects_positions(tokenizer, tmp_path):
    # From 64 tokens on, the rotary frequencies are those of long rows. The policy stands still, so all ratios are 1,
    # though log-probabilities are computed for other pairs of rollouts than the loss.
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    model = tiny.make_model(tokenizer, rope_parameters=rope)
    tiny.script(model, tokenizer, write)
    layout = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    args = A2TGPOConfig(**settings(tmp_path, **layout, learning_rate=0.0, gain_weight=0.0, clip_adaptation=0.0))
    given = {"processing_class": tokenizer, "tools": [tiny.search]}
    trainer = A2TGPOTrainer(model, exact_match, args, questions(), **given)
    batches = captured(trainer)
    for batch in batches:
        ids, mask = (torch.cat([batch[f"prompt_{name}"], batch[f"completion_{name}"]], 1) for name in ("ids", "mask"))
        width = batch["completion_ids"].size(1)
        with torch.no_grad():
            logps, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, width)
        real = batch["completion_mask"].bool()
        torch.testing.assert_close(batch["old_per_token_logps"][real], logps[real], atol=1e-4, rtol=0)


def test_grpo_preset_reads_padding_like_trl(tokenizer, tmp_path):
    _, in_loss, real = widths_of(make(tokenizer, A2TGPOConfig(**settings(tmp_path, credit="grpo", **ALONE))))
    assert len(set(in_loss)) == 1 and in_loss[0] >= max(real)


@pytest.mark.parametrize(("name", "steps"), [("qwen3", 1), ("gpt2", 2)])
def test_training_is_equal_with_and_without_padding(name, steps, tokenizer, tmp_path, monkeypatch):
    # GPT-2 counts positions from the first column, so its prompts keep their padding. Two steps on the rollouts of a
    # batch need old log-probabilities, one step does not.
    losses = []
    for trims in (True, False):
        monkeypatch.setattr(A2TGPOTrainer, "_trims_padding", trims)
        model = tiny.architectures()[name]()
        tiny.script(model, tokenizer, write)
        layout = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "learning_rate": 1e-4}
        layout["sorted_rows"] = False
        args = A2TGPOConfig(**settings(tmp_path, **layout, steps_per_generation=4 * steps, disable_dropout=True))
        trainer = A2TGPOTrainer(model, exact_match, args, questions(), processing_class=tokenizer, tools=[tiny.search])
        trainer.train()
        losses.append([logged(trainer, key) for key in ("loss", "grad_norm", "entropy", "clip_fraction/mean")])
    for with_trimming, without in zip(*losses, strict=True):
        assert with_trimming == pytest.approx(without, rel=1e-3, abs=1e-6)
