"""Rows rearranged among micro-batches: less to read, and the same gradient."""

import math

import pytest
import torch
from training import logged, make, settings, weights

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.rollout.micro_batches import arranged, best_order


LONG, SHORT = tuple(range(50)), tuple(range(5))


def completion(length: int) -> tuple[int, ...]:
    return tuple(range(100 * length, 101 * length))


def test_rows_are_sorted_by_length_if_nothing_is_shared():
    rows = [(SHORT, completion(length)) for length in (3, 90, 5, 80)]
    assert best_order(rows, 2, share_prefixes=False) == [1, 3, 2, 0]


def test_rollouts_of_a_long_prompt_are_grouped_if_prefixes_are_shared():
    prompts = [LONG, tuple(range(1, 51)), LONG, tuple(range(1, 51))]
    rows = list(zip(prompts, map(completion, (3, 4, 5, 2)), strict=True))
    assert best_order(rows, 2, share_prefixes=True) == [2, 0, 1, 3]
    assert best_order(rows, 2, share_prefixes=False) == [2, 1, 0, 3]


def test_rollouts_with_the_same_call_are_grouped():
    a, b = tuple(range(100, 130)), tuple(range(200, 230))
    rows = [(SHORT, (*a, *range(20))), (SHORT, (*b, *range(9))), (SHORT, (*a, *range(7))), (SHORT, (*b, 1))]
    assert best_order(rows, 2, share_prefixes=True) == [2, 0, 1, 3]


def batches() -> list[dict]:
    """Two micro-batches of two rows; the ids and advantages of a row are its number."""
    made = []
    for first in (0, 2):
        numbers = torch.arange(first, first + 2).unsqueeze(1)
        lengths = torch.tensor([[1, 4], [2, 3]][first // 2]).unsqueeze(1)
        made.append(
            {
                "prompt_ids": numbers.expand(2, 3),
                "prompt_mask": torch.ones(2, 3),
                "completion_ids": numbers.expand(2, 4),
                "completion_mask": (torch.arange(4) < lengths).long(),
                "advantages": numbers.expand(2, 4).float(),
                "num_items_in_batch": torch.tensor(10),
                "ref_per_token_logps": None,
            }
        )
    return made


def test_reordering_keeps_row_tensors_with_rows_and_batch_values_with_batches():
    found = arranged(batches(), together=2, share_prefixes=False)
    assert [batch["prompt_ids"][:, 0].tolist() for batch in found] == [[1, 3], [2, 0]]
    for batch in found:
        for key in ("completion_ids", "advantages"):
            assert batch[key][:, 0].tolist() == batch["prompt_ids"][:, 0].tolist()
        assert batch["num_items_in_batch"] == 10 and batch["ref_per_token_logps"] is None


def test_rows_are_reordered_only_within_an_optimizer_step():
    found = arranged(batches(), together=1, share_prefixes=False)
    assert [batch["prompt_ids"][:, 0].tolist() for batch in found] == [[1, 0], [3, 2]]


# ---- in the trainer


def trained(tokenizer, tmp_path, **changes):
    args = A2TGPOConfig(
        **settings(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=2, **changes)
    )
    return make(tokenizer, args)


def widths_of(trainer) -> list[int]:
    """A list to which training adds the completion width of each micro-batch."""
    widths, inner = [], trainer._compute_loss

    def watched(model, inputs):
        widths.append(inputs["completion_ids"].size(1))
        return inner(model, inputs)

    trainer._compute_loss = watched
    return widths


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_is_equal_for_any_assignment_of_rows_to_micro_batches(tokenizer, tmp_path, loss_type, checkpointing):
    runs = []
    names = ("sorted_rows", "shared_prefixes", "sampled_tokens_only")
    for switches in ((0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 0, 1), (1, 1, 1)):
        how = dict(zip(names, map(bool, switches), strict=True))
        how["optim"] = "sgd"  # Adam turns rounding of a gradient near 0 into a step
        folder = tmp_path / str(switches)
        trainer = trained(tokenizer, folder, loss_type=loss_type, gradient_checkpointing=checkpointing, **how)
        widths = widths_of(trainer)
        trainer.train()
        assert trainer._shares_prefixes == how["shared_prefixes"]
        runs.append((logged(trainer, "grad_norm"), weights(trainer), sum(widths)))
    plain, *others = runs
    for found in others:
        assert found[0] == pytest.approx(plain[0], rel=1e-3)
        for name, weight in found[1].items():
            torch.testing.assert_close(weight, plain[1][name], atol=1e-4, rtol=1e-3)
    assert others[0][2] < plain[2]


def test_losses_that_are_not_sums_of_rows_are_not_reordered(tokenizer, tmp_path):
    assert trained(tokenizer, tmp_path, loss_type="bnpo")._summed_micro_batches == 0
    assert trained(tokenizer, tmp_path, loss_type="grpo", sorted_rows=False)._summed_micro_batches == 0
    for of_entropy in ({"entropy_coef": 0.01}, {"use_adaptive_entropy": True}, {"top_entropy_quantile": 0.5}):
        assert trained(tokenizer, tmp_path, loss_type="grpo", **of_entropy)._summed_micro_batches == 0
    of_experts = trained(tokenizer, tmp_path, loss_type="grpo")
    assert of_experts._summed_micro_batches > 0
    of_experts.aux_loss_enabled = True  # as for a model whose router should use all experts equally
    assert of_experts._summed_micro_batches == 0


@pytest.mark.parametrize(
    ("accumulated", "generated", "together"), [(4, 4, 4), (2, 4, 2), (1, 4, 1), (8, 4, 4), (3, 4, 0)]
)
def test_only_micro_batches_of_one_step_exchange_rows(tokenizer, tmp_path, accumulated, generated, together):
    steps = {"gradient_accumulation_steps": accumulated, "steps_per_generation": generated}
    args = A2TGPOConfig(**settings(tmp_path, per_device_train_batch_size=2, **steps))
    assert make(tokenizer, args)._summed_micro_batches == together


@pytest.mark.parametrize("error", [0.5, math.nan])
def test_rows_are_read_one_by_one_if_shared_ones_fail_their_trial(error, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("a2tgpo_trl.scoring.sharing_error", lambda *_: error)
    assert not trained(tokenizer, tmp_path)._shares_prefixes


def test_grpo_preset_shares_no_prefixes_and_trims_no_padding(tokenizer, tmp_path):
    trainer = trained(tokenizer, tmp_path, credit="grpo")
    assert not trainer._shares_prefixes and not trainer._trims_padding
