"""The gap between sampler and trainer by turn, its alarm, and settings that make the two incomparable."""

import logging

import pytest
import torch
from training import logged, make, settings, spread
from trl import GRPOConfig

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.rollout.sampler_gap import (
    ALARMING_BATCHES,
    GAP_GROWTH,
    NEUTRAL,
    GapWatch,
    incomparable_settings,
    sampler_gap_metrics,
    sampler_gap_sums,
    warn_of_incomparable,
)
from a2tgpo_trl.turns import LOGGED_TURNS


NAN = float("nan")
NOTHING = -7.0  # numbers of tokens that are not the policy's own must not matter


def metrics(sampler, trainer, turn, num_turns=None):
    turn = torch.tensor(turn)
    number = int(turn.max()) + 1 if num_turns is None else num_turns
    return sampler_gap_metrics(sampler_gap_sums(torch.tensor(sampler), torch.tensor(trainer), turn, number))


# ---- the metric


def test_gap_is_averaged_by_turn_and_growth_uses_absolute_gaps():
    # Gaps: turn 1 of rollout 0: 0.02, -0.04; its turn 2: 0.08. Rollout 1 has 0.10 in its second turn, and a token
    # without a number in its first.
    turn = [[0, 0, -1, 1], [0, -1, 1, -1]]
    trainer = [[-1.0, -2.0, NOTHING, -0.5], [-3.0, 0.0, -1.0, 0.0]]
    sampler = [[-0.98, -2.04, 0.0, -0.42], [NAN, NAN, -0.9, 0.0]]
    assert metrics(sampler, trainer, turn) == pytest.approx(
        {
            "sampler_gap/mean": (0.02 - 0.04 + 0.08 + 0.10) / 4,
            "sampler_gap/absolute": (0.02 + 0.04 + 0.08 + 0.10) / 4,
            "sampler_gap/turn_1": -0.01,
            "sampler_gap/turn_2": 0.09,
            "sampler_gap/absolute_turn_1": 0.03,
            "sampler_gap/absolute_turn_2": 0.09,
            "sampler_gap/growth": 3.0,
            "sampler_gap/alarm": 1.0,
        },
        abs=1e-5,
    )


def test_gap_growth_below_the_floor_raises_no_alarm():
    # Five times the gap of the first turn, but half of the floor of 0.01.
    found = metrics([[-1.001, -1.005]], [[-1.0, -1.0]], [[0, 1]])
    assert found["sampler_gap/growth"] == pytest.approx(0.5, abs=1e-3)
    assert found["sampler_gap/alarm"] == 0.0


def test_equal_gap_in_all_turns_raises_no_alarm():
    # 0.1 in turn 1; 0.05, 0.15 and 0.1 after it: growth 1.
    found = metrics([[-1.1, -1.05, -0.85, -1.1]], [[-1.0] * 4], [[0, 1, 2, 3]])
    assert found["sampler_gap/growth"] == pytest.approx(1.0, abs=1e-5)
    assert found["sampler_gap/alarm"] == 0.0


def test_gap_metrics_are_omitted_without_numbers_or_later_turns():
    assert metrics([[NAN, NAN]], [[-1.0, -1.0]], [[0, 1]]) == {}
    assert metrics([[-1.0]], [[-1.5]], [[-1]], num_turns=1) == {}
    single = metrics([[-1.0]], [[-1.5]], [[0]])
    assert set(single) == {
        *("sampler_gap/mean", "sampler_gap/absolute", "sampler_gap/turn_1", "sampler_gap/absolute_turn_1"),
    }
    only_later = metrics([[NAN, -1.0]], [[-1.0, -1.5]], [[0, 1]])
    assert "sampler_gap/growth" not in only_later and "sampler_gap/turn_1" not in only_later
    assert only_later["sampler_gap/turn_2"] == 0.5


def test_sums_of_ranks_add_up_to_those_of_all_rollouts():
    generator = torch.Generator().manual_seed(0)
    sampler, trainer = torch.randn(2, 6, 9, generator=generator)
    turn = torch.randint(-1, 4, (6, 9), generator=generator)
    halves = [sampler_gap_sums(sampler[rows], trainer[rows], turn[rows], 4) for rows in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(halves[0] + halves[1], sampler_gap_sums(sampler, trainer, turn, 4))


def test_turns_beyond_the_logged_ones_count_in_the_growth():
    turns = LOGGED_TURNS + 1
    trainer, sampler = [[-1.0] * turns], [[-1.0] * (turns - 1) + [-1.0 + 0.1 * (turns - 1)]]
    found = metrics(sampler, trainer, [list(range(turns))])
    assert found["sampler_gap/growth"] == pytest.approx(10)  # 0.1 on average over the later turns, against the floor
    assert f"sampler_gap/turn_{turns}" not in found and f"sampler_gap/turn_{turns - 1}" in found


# ---- the alarm


def watched(caplog, alarms) -> list[int]:
    """The batches after which the watch has warned."""
    watch, warned = GapWatch(), []
    for number, alarm in enumerate(alarms, start=1):
        before = len(caplog.records)
        watch.see({} if alarm is None else {"sampler_gap/alarm": alarm, "sampler_gap/growth": 3.0, **ABSOLUTE})
        warned += [number] * (len(caplog.records) - before)
    return warned


ABSOLUTE = {"sampler_gap/absolute": 0.1}


@pytest.mark.parametrize(
    ("alarms", "warned"),
    [
        ([1, 1, 1, 1, 1, 1], [3]),  # once
        ([1, 1, 0, 1, 1, 0], []),  # never three in a row
        ([1, None, 1, None, 1], [5]),  # batches without a second turn do not count
        ([0, 0, 1, 1, 1], [5]),
    ],
)
def test_watch_warns_once_after_three_alarms_in_a_row(alarms, warned, caplog, tmp_path, tokenizer):
    assert ALARMING_BATCHES == 3
    make(tokenizer, A2TGPOConfig(**settings(tmp_path)))  # accelerate's loggers need a state
    with caplog.at_level(logging.WARNING):
        assert watched(caplog, alarms) == warned


# ---- in the trainer


SHIFTS = {0: 0.1, 1: 0.3}  # added to the sampler's log-probabilities, by turn


def shifted_rollouts(prompts: list, trainer) -> dict:
    """Rollouts of two turns whose "sampler" is a plain forward of the policy, with a known error.

    Two of its tokens have no number. Each rank writes other rollouts, as many as it is asked for.
    """
    mask = [1, 1, 1, 0, 0, 1, 1]
    completions = [[40 + 3 * i + j for j in range(len(mask))] for i in range(len(prompts))]
    heads = [trainer.processing_class(prompt[-1]["content"])["input_ids"] for prompt in prompts]
    logprobs = []
    for i, (head, ids) in enumerate(zip(heads, completions, strict=True)):
        tokens = torch.tensor([head + ids])
        with torch.no_grad():
            logits = trainer.model(tokens).logits[0, len(head) - 1 : -1]
        plain = (logits / trainer.args.temperature).log_softmax(-1).gather(1, tokens[0, len(head) :, None])[:, 0]
        row = [value + SHIFTS[0 if j < 3 else 1] for j, value in enumerate(plain.tolist())]
        row[3] = row[4] = NOTHING
        if i == 0:
            row[0] = row[5] = None
        logprobs.append(row)
    return {
        "prompt_ids": heads,
        "completion_ids": completions,
        "logprobs": logprobs,
        "env_mask": [mask] * len(prompts),
    }


@pytest.mark.parametrize("gains", [True, False], ids=["shared with the gain pass", "by the parent"])
def test_the_trainer_logs_the_error_of_its_sampler_by_turn_and_warns_once(gains, tokenizer, tmp_path, caplog):
    switches = {} if gains else {"gain_weight": 0.0, "clip_adaptation": 0.0}
    args = A2TGPOConfig(**settings(tmp_path, max_steps=5, temperature=0.7, num_iterations=2, **switches))
    with caplog.at_level(logging.WARNING):
        trainer = make(tokenizer, args, tools=None, rollout_func=shifted_rollouts, reward_funcs=spread)
        trainer.train()
    # Three batches of rollouts, each used twice (the last one once).
    assert logged(trainer, "sampler_gap/turn_1") == pytest.approx([0.1] * 3, abs=1e-4)
    assert logged(trainer, "sampler_gap/turn_2") == pytest.approx([0.3] * 3, abs=1e-4)
    # Of 4 rollouts with 3 + 2 tokens, one lacks a token in each turn: 11 and 7.
    assert logged(trainer, "sampler_gap/mean") == pytest.approx([(11 * 0.1 + 7 * 0.3) / 18] * 3, abs=1e-4)
    assert logged(trainer, "sampler_gap/growth") == pytest.approx([3.0] * 3, abs=1e-2)
    assert logged(trainer, "sampler_gap/alarm") == [1.0] * 3 and GAP_GROWTH == 2.0
    said = [record.message for record in caplog.records if "sampler and trainer" in record.message]
    assert len(said) == 1 and "3 times as much" in said[0]


def test_no_gap_is_logged_if_the_policy_samples_itself(tokenizer, tmp_path):
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, max_steps=1, num_iterations=2)))
    trainer.train()
    assert not any(key.startswith("sampler_gap") for entry in trainer.state.log_history for key in entry)


# ---- settings


def config(tmp_path, **changes) -> A2TGPOConfig:
    return A2TGPOConfig(**settings(tmp_path, use_vllm=True, **changes))


def test_the_correction_is_on_by_default_and_sampling_is_not_truncated(tmp_path):
    args = config(tmp_path)
    assert args.vllm_importance_sampling_correction and args.vllm_importance_sampling_mode == "sequence_mask"
    assert incomparable_settings(args) == {}
    assert args.vllm_importance_sampling_clip_max == 3.0 and args.vllm_importance_sampling_clip_min is None


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"top_p": 0.9}, {"top_p": 0.9}),
        ({"top_k": 50, "min_p": 0.1}, {"top_k": 50, "min_p": 0.1}),
        ({"top_k": -1, "min_p": 0.0, "temperature": 0.6}, {}),
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        (
            {"generation_kwargs": {"stop_token_ids": [7], "presence_penalty": 0.5, "stop": ["x"]}},
            {"presence_penalty": 0.5},
        ),
        ({"top_p": 0.9, "generation_kwargs": {"top_p": 1.0}}, {}),  # the latter wins in TRL too
        ({"generation_kwargs": {"temperature": 0.5}}, {"generation_kwargs['temperature']": 0.5}),
        ({"temperature": 0.5, "generation_kwargs": {"temperature": 0.5}}, {}),
        ({"generation_kwargs": {"min_tokens": 5, "logit_bias": {3: 1.0}}}, {"min_tokens": 5, "logit_bias": {3: 1.0}}),
        ({"vllm_structured_outputs_regex": "a+"}, {"vllm_structured_outputs_regex": "a+"}),
    ],
)
def test_sampling_settings_unknown_to_the_trainer_are_detected(changes, found, tmp_path):
    assert incomparable_settings(config(tmp_path, **changes)) == found


def warnings_of(args, caplog) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        warn_of_incomparable(args)
    return [record.message for record in caplog.records]


def test_sampler_only_settings_warn_once_if_the_correction_would_be_biased(tmp_path, tokenizer, caplog):
    make(tokenizer, A2TGPOConfig(**settings(tmp_path)))  # accelerate's loggers need a state
    (said,) = warnings_of(config(tmp_path, top_p=0.9, generation_kwargs={"frequency_penalty": 0.2}), caplog)
    assert "top_p=0.9, frequency_penalty=0.2" in said and "vllm_importance_sampling_correction=False" in said
    assert "one weight for each rollout" in said
    (said,) = warnings_of(config(tmp_path, top_k=5, vllm_importance_sampling_mode="token_mask"), caplog)
    assert "one weight for each token" in said
    assert warnings_of(config(tmp_path), caplog) == []
    assert warnings_of(config(tmp_path, top_p=0.9, vllm_importance_sampling_correction=False), caplog) == []
    assert warnings_of(A2TGPOConfig(**settings(tmp_path, top_p=0.9)), caplog) == []  # transformers samples


def test_sampler_only_settings_warn_at_construction(tmp_path, tokenizer, caplog, monkeypatch):
    # This does not need the engine itself, and not every environment has it.
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", lambda **_: None)
    with caplog.at_level(logging.WARNING):
        make(tokenizer, config(tmp_path, top_p=0.5, vllm_mode="colocate"))
    assert sum("top_p=0.5" in record.message for record in caplog.records) == 1


def test_sampler_only_settings_still_exist_in_grpo_config():
    assert {"top_p", "top_k", "min_p", "repetition_penalty", "vllm_structured_outputs_regex"} <= set(
        GRPOConfig.__dataclass_fields__
    )
    assert {"top_p", "top_k", "min_p", "repetition_penalty"} <= set(NEUTRAL)
