"""What updates made of rollouts, in their records: compared with plain forwards, however TRL shuffles and splits."""

from pathlib import Path

import pytest
import tiny
import torch
from training import make, questions, rollouts_of_tokens, settings, spread

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.recording.updates import TrainedBatch, Update
from a2tgpo_trl.rollout.records import read_jsonl


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.make_tokenizer()


def records_of(folder) -> list[dict]:
    return [record for file in sorted(Path(folder, "rollouts").glob("*.jsonl")) for record in read_jsonl(file)]


# ---- by hand


UPDATE = Update(
    turn_BT=torch.tensor([[0, 0, -1, 1], [-1, 0, -1, -1]]),
    logps_BT=torch.tensor([[-1.0, -1.2, 9.0, -0.5], [0.0, -2.0, 0.0, 0.0]]),
    old_logps_BT=torch.tensor([[-1.0, -1.3, -9e9, -0.5], [0.0, -2.2, 0.0, 0.0]]),
    ratio_BT=torch.tensor([[1.0, 1.2, 5.0, 1.0], [3.0, 1.5, 3.0, 3.0]]),
    clipped_BT=torch.tensor([[False, True, True, False], [True, True, True, True]]),
)


def test_update_gives_means_per_turn_and_values_per_token():
    # (1 + 1.2) / 2 and one of two tokens; the tool token never counts, whatever its value.
    assert UPDATE.of_turns(0, 2) == {"ratios": pytest.approx([1.1, 1.0]), "clip_fractions": [0.5, 0.0]}
    found = UPDATE.of_tokens(0, 5)  # one column was cut off because no row of the micro-batch needed it
    assert found["logps"] == [-1.0, -1.3, None, -0.5, None] and found["clipped"] == [0, 1, None, 0, None]
    assert found["ratios"] == [1.0, 1.105171, None, 1.0, None]  # exp(0.1)
    assert UPDATE.of_tokens(1, 2) == {"logps": [None, -2.2], "ratios": [None, 1.221403], "clipped": [None, 1]}


def test_loss_without_a_clip_range_records_no_clipping():
    update = Update(UPDATE.turn_BT, UPDATE.logps_BT, UPDATE.old_logps_BT, UPDATE.ratio_BT, None)
    assert set(update.of_turns(0, 2)) == {"ratios"} and set(update.of_tokens(0, 4)) == {"logps", "ratios"}


def test_non_finite_ratio_is_recorded_as_none():
    update = Update(UPDATE.turn_BT, UPDATE.logps_BT + 1e4, UPDATE.old_logps_BT, UPDATE.ratio_BT * torch.inf, None)
    assert update.of_turns(0, 2) == {"ratios": [None, None]} and update.of_tokens(0, 4)["ratios"] == [None] * 4


def test_last_update_of_a_rollout_is_recorded():
    def record() -> dict:
        return {"advantages": [0.5], "tokens": {"ids": [7, 8], "sampled": [0, 1]}}

    batch = TrainedBatch([record() for _ in range(3)], updates=2)
    later = Update(UPDATE.turn_BT, UPDATE.logps_BT, UPDATE.old_logps_BT, UPDATE.ratio_BT * 2, UPDATE.clipped_BT)
    assert not batch.see([2, 1], UPDATE) and not batch.see([0, 1], later)
    first, second, third = batch.records()
    assert [one["updates"] for one in (first, second, third)] == [1, 2, 1]
    assert (first["ratios"], second["ratios"], third["ratios"]) == ([pytest.approx(2.2)], [3.0], [pytest.approx(1.1)])
    assert batch.see([0, 2], later)  # six in total
    none = TrainedBatch([record()], updates=1).records()[0]
    assert none == {**record(), "updates": 0}


# ---- in training


WAYS = {
    "a2tgpo": {},
    "grpo": {"credit": "grpo"},
    "rows arranged": {"gradient_accumulation_steps": 2},
    "one sequence": {"importance_sampling_level": "sequence", "clip_adaptation": 0.0, "epsilon": 0.02},
    "no prefixes shared": {"shared_prefixes": False, "sorted_rows": False, "sampled_tokens_only": False},
    "no clip range": {"loss_type": "sapo", "clip_adaptation": 0.0},
}


def plain_logps(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """The log-probabilities of the completion's tokens, by one forward over this rollout alone."""
    ids = torch.tensor([prompt + completion])
    with torch.no_grad():
        logps = model(input_ids=ids).logits[0].float().log_softmax(-1)
    return logps[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :].unsqueeze(1)).squeeze(1)


def rows(inputs: dict) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Prompts and completions of a micro-batch, without padding."""
    parts = [(inputs[f"{part}_ids"], inputs[f"{part}_mask"].bool()) for part in ("prompt", "completion")]
    return list(
        zip(*([tuple(row[real].tolist()) for row, real in zip(*part, strict=True)] for part in parts), strict=True)
    )


def trained(trainer) -> tuple[dict, dict, dict]:
    """By the tokens of a rollout: its log-probabilities when made and at its last update, and what the loss had."""
    old, new, given = {}, {}, {}
    make_batch, compute = trainer._train_batch, trainer._compute_loss

    def with_old(given_rows):
        output = make_batch(given_rows)
        old.update({row: plain_logps(trainer.model, *map(list, row)) for row in rows(output)})
        return output

    def with_new(model, inputs):
        for i, row in enumerate(rows(inputs)):
            new[row] = plain_logps(trainer.model, *map(list, row))
            given[row] = {name: inputs[name][i, : len(row[1])] for name in ("advantages", "clip_scale", "turn_index")}
        return compute(model, inputs)

    trainer._train_batch, trainer._compute_loss = with_old, with_new
    trainer.train()
    return old, new, given


@pytest.mark.parametrize("way", WAYS)
def test_recorded_ratios_equal_plain_forwards_before_the_last_update(way, tokenizer, tmp_path):
    # Eight rollouts in four micro-batches of two, each updated twice: TRL shuffles them, and another micro-batch comes
    # between a rollout's updates.
    shape = {"per_device_train_batch_size": 2, "steps_per_generation": 4, "num_iterations": 2, "max_steps": 8}
    changes = {**shape, "record_every": 8, "learning_rate": 1e-3, **WAYS[way]}
    args = A2TGPOConfig(**settings(tmp_path, **changes))
    args.max_steps //= args.gradient_accumulation_steps
    trainer = make(tokenizer, args, reward_funcs=spread)
    old, new, given = trained(trainer)
    records = records_of(tmp_path)
    found = {(tuple(one["prompt_ids"]), tuple(one["tokens"]["ids"])): one for one in records}
    assert len(records) == 8 and found.keys() == old.keys() == new.keys()
    moved = 0
    for row, record in found.items():
        tokens, turn_T = record["tokens"], given[row]["turn_index"]
        assert record["updates"] == 2 and tokens["sampled"] == (turn_T >= 0).int().tolist()
        inside = [place for place, sampled in enumerate(tokens["sampled"]) if sampled]
        # The record belongs to this rollout: its texts are what its messages were made of.
        text = "".join(tokens["texts"][place] for place in inside)
        assert text == tokenizer.decode([row[1][place] for place in inside])
        assert record["completion"][-1]["content"] in text and record["prompt"][-1]["content"] in tokenizer.decode(
            row[0]
        )
        ratios_T = (new[row] - old[row]).exp()
        assert [tokens["logps"][place] for place in inside] == pytest.approx(old[row][inside].tolist(), abs=1e-5)
        assert [tokens["ratios"][place] for place in inside] == pytest.approx(
            ratios_T[inside].tolist(), rel=1e-5, abs=1e-6
        )
        moved += sum(abs(ratio - 1) > 1e-3 for ratio in ratios_T[inside].tolist())
        read = [place for place in range(len(row[1])) if place not in inside]
        assert all(tokens[name][place] is None for name in ("texts", "logps", "ratios") for place in read)
        # Per turn: the mean of the ratio that the loss used, and the share of tokens outside the clip range.
        log_T, level = new[row] - old[row], args.importance_sampling_level
        for turn, ratio in enumerate(record["ratios"]):
            of_turn = (turn_T == turn).nonzero().flatten()
            span = {"token": None, "turn": of_turn, "sequence": inside}[level]
            taken = log_T[of_turn].exp() if span is None else log_T[span].mean().exp().expand(len(of_turn))
            assert ratio == pytest.approx(taken.mean().item(), rel=1e-5, abs=1e-5)
            if way == "no clip range":
                assert "clip_fractions" not in record and "clipped" not in tokens
                continue
            advantage, scale = (given[row][name][of_turn] for name in ("advantages", "clip_scale"))
            low, high = 1 - args.epsilon * scale, 1 + args.epsilon_high * scale
            clipped = ((taken < low) & (advantage < 0)) | ((taken > high) & (advantage > 0))
            assert record["clip_fractions"][turn] == pytest.approx(clipped.float().mean().item())
            assert [tokens["clipped"][place] for place in of_turn] == clipped.int().tolist()
    assert moved > 50  # by far not all of them are 1


def test_with_one_update_of_a_batch_its_ratios_are_one(tokenizer, tmp_path):
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, record_every=1)))
    old, _, _ = trained(trainer)
    records = records_of(tmp_path)
    assert len(records) == 8
    for record in records:
        assert record["updates"] == 1 and record["ratios"] == [1.0] * len(record["turns"])
        expected = old[tuple(record["prompt_ids"]), tuple(record["tokens"]["ids"])]
        known = [(value, place) for place, value in enumerate(record["tokens"]["logps"]) if value is not None]
        assert [value for value, _ in known] == pytest.approx(
            expected[[place for _, place in known]].tolist(), abs=1e-5
        )


def test_a_run_that_ends_between_updates_writes_what_was_made_until_then(tokenizer, tmp_path):
    shape = {"per_device_train_batch_size": 2, "steps_per_generation": 2, "num_iterations": 2, "max_steps": 3}
    make(tokenizer, A2TGPOConfig(**settings(tmp_path, **shape, record_every=1))).train()
    records = records_of(tmp_path)
    assert sorted(record["updates"] for record in records) == [1, 1, 2, 2]
    short = tmp_path / "short"
    make(tokenizer, A2TGPOConfig(**settings(short, **{**shape, "max_steps": 1}, record_every=1))).train()
    records = records_of(short)
    assert sorted(record["updates"] for record in records) == [0, 0, 1, 1]
    for record in records:
        assert ("ratios" in record) == ("logps" in record["tokens"]) == (record["updates"] == 1)
        assert record["tokens"]["texts"] and len(record["advantages"]) == len(record["turns"])


def test_run_resumed_between_updates_records_the_remaining_ones(tokenizer, tmp_path):
    shape = {"num_iterations": 2, "record_every": 2, "save_strategy": "steps", "save_steps": 1}
    make(tokenizer, A2TGPOConfig(**settings(tmp_path, **shape, max_steps=1))).train()
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, **shape, max_steps=4)))
    trainer.train(resume_from_checkpoint=True)
    updates = {record["step"]: record["updates"] for record in records_of(tmp_path)}
    # The first batch was written when the run ended; its second update came after.
    assert updates == {1: 1, 3: 2}


def test_without_tokens_turns_have_their_ratios_still(tokenizer, tmp_path):
    args = A2TGPOConfig(**settings(tmp_path, record_every=1, record_tokens=False, num_iterations=2))
    make(tokenizer, args).train()
    records = records_of(tmp_path)
    assert len(records) == 4 and not any("tokens" in one or "prompt_ids" in one for one in records)
    assert all(len(one["ratios"]) == len(one["clip_fractions"]) == len(one["turns"]) for one in records)


def test_columns_named_like_record_keys_are_kept_apart(tokenizer, tmp_path):
    rows = questions(1).add_column("tokens", [7]).add_column("prompt_ids", ["own"])
    changes = {"record_every": 1, "max_steps": 1, "record_tokens": False}
    make(tokenizer, A2TGPOConfig(**settings(tmp_path, **changes)), train_dataset=rows).train()
    for one in records_of(tmp_path):
        assert one["columns"] == {"tokens": 7, "prompt_ids": "own"}
        assert one["ratios"] and "tokens" not in one


def test_rollouts_out_of_the_loss_have_tokens_without_numbers(tokenizer, tmp_path):
    # A rollout function's: cut off in a turn, right after a result, empty, and without any call. One has an end.
    changes = {"mask_truncated_completions": True, "max_completion_length": 5}
    args = A2TGPOConfig(**settings(tmp_path, record_every=1, max_steps=1, **changes))
    keywords = {"tools": None, "rollout_func": rollouts_of_tokens, "reward_funcs": spread, "scripted": False}
    make(tokenizer, args, train_dataset=questions(1), **keywords).train()
    records = records_of(tmp_path)
    assert [len(record["tokens"]["ids"]) for record in records] == [5, 4, 1, 3]
    for record in records:
        tokens, left_out = record["tokens"], not record["advantages"]
        known = [value is not None for value in tokens.get("ratios", [])]
        assert known == [bool(one) and not left_out for one in tokens["sampled"]]
    assert any(record["tokens"]["ids"] and not record["advantages"] for record in records)
