"""Alarms: when they go off, when they do not, and that each is reported once."""

import logging

import pandas as pd
import pytest
import tiny
from places import ROOT
from training import logged, make, settings

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.report.alarms import ALARMS, LINES, MUCH_CLIPPED, Alarms, averaged


NAN = float("nan")
CALM = {
    **{"turns/mean": 3.4, "entropy": 0.5, "groups/teach_nothing": 0.3, "gain/cells_below_floor": 0.3},
    **{"clip_fraction/mean": 0.01, "reward": 0.5, "reward_std": 0.4},
}
RAISES = {
    "alarms/calls": {"turns/mean": 1.2},  # 0.2 of 2.4 tool turns: below a quarter, and below 0.5
    "alarms/entropy": {"entropy": 0.02},  # below 5 % of 0.5
    "alarms/teach_nothing": {"groups/teach_nothing": 1.0},
    "alarms/gains": {"gain/cells_below_floor": 1.0},
    "alarms/clipping": {"clip_fraction/mean": 0.06},
}


def watched(lines, alarms=None) -> tuple[list[dict[str, float]], list[tuple[int, str]]]:
    """What each line is logged with, and which alarm was reported after which line."""
    alarms, log, found, told = alarms or Alarms(), [], [], []
    for number, line in enumerate(lines, start=1):
        now, texts = alarms.see(log, line)
        log.append({**line, **now})
        found.append(now)
        told += [(number, text.partition(":")[0]) for text in texts]
    return found, told


def test_normal_run_raises_no_alarm():
    found, told = watched([CALM] * 40)
    assert found == [dict.fromkeys(RAISES, 0.0)] * 40 and told == []


@pytest.mark.parametrize("name", RAISES)
def test_alarm_goes_off_after_five_lines_and_is_reported_once(name):
    found, told = watched([*[CALM] * 10, *[{**CALM, **RAISES[name]}] * 10])
    on = [number for number, line in enumerate(found, start=1) if line[name]]
    assert on[-1] == 20 and on == list(range(on[0], 21)) and 11 < on[0] <= 15
    assert told == [(on[0], name)]
    assert not any(line[other] for line in found for other in RAISES if other != name)


@pytest.mark.parametrize("name", RAISES)
def test_single_batch_raises_no_alarm_and_an_alarm_can_end(name):
    # In a mean of five lines one may be far off: clip fractions of 0.2 x 0.06, entropy of 0.8 x 0.5.
    _, told = watched([*[CALM] * 10, {**CALM, **RAISES[name]}, *[CALM] * 10])
    assert told == []
    found, told = watched([*[CALM] * 6, *[{**CALM, **RAISES[name]}] * 6, *[CALM] * 6])
    assert found[-1][name] == 0 and [one for _, one in told] == [name]


def test_tool_calls_absent_from_the_start_raise_no_alarm():
    assert watched([{**CALM, "turns/mean": 1.1}] * 5 + [{**CALM, "turns/mean": 1.0}] * 10)[1] == []


def test_fewer_tool_calls_than_at_first_are_no_collapse():
    # 7 tool turns at first, 1.6 now: less than a quarter, but still a call or two per rollout.
    assert watched([{**CALM, "turns/mean": 8.0}] * 5 + [{**CALM, "turns/mean": 2.6}] * 10)[1] == []


SURE = {"entropy": 0.01, "groups/teach_nothing": 1.0, "gain/cells_below_floor": 1.0}
SOLVED_OR_STUCK = ["alarms/entropy", "alarms/teach_nothing", "alarms/gains"]


def sure_from(reward, spread, now) -> list[str]:
    """The alarms that are reported when a policy becomes sure of itself."""
    first = {**CALM, "reward": reward, "reward_std": spread}
    return [
        name for _, name in watched([*[first] * 5, *[{**first, **SURE, "reward": now, "reward_std": 0.0}] * 60])[1]
    ]


@pytest.mark.parametrize(
    ("reward", "spread", "now"),
    [
        (0.3, 0.4, 0.6),  # a rise by more than 0.25
        (0.0, 0.0, 0.3),  # from nothing
        (-3.0, 2.0, -1.9),  # by more than half of 2
        (0.88, 0.3, 1.0),  # nearly solved at first: it cannot rise by 0.25
        (0.95, 0.2, 0.93),
        (0.76, 0.65, 1.0),  # rewards of -1 and 1
        (9.0, 2.0, 9.5),  # rewards of 0 and about 10
    ],
)
def test_low_entropy_after_a_reward_rise_raises_no_alarm(reward, spread, now):
    assert sure_from(reward, spread, now) == []


@pytest.mark.parametrize(
    ("reward", "spread", "now"),
    [
        (0.0, 0.0, 0.1),  # the form earns 0.1, and no answer was ever right
        (0.02, 0.04, 0.1),  # some of the first rollouts earned it too
        (0.01, 0.1, 0.1),
        (0.3, 0.4, 0.5),
        (0.6, 0.5, 0.8),
        (-3.0, 2.0, -2.1),  # by less than half of 2
        (0.9, 1.0, 1.0),  # rewards of 0 and 2: each rollout now has half
        (0.8, 0.3, 0.2),
    ],
)
def test_low_entropy_without_a_reward_rise_raises_alarms(reward, spread, now):
    assert sorted(sure_from(reward, spread, now)) == sorted(SOLVED_OR_STUCK)


@pytest.mark.parametrize("name", SOLVED_OR_STUCK)
def test_alarms_for_solved_or_stuck_runs_say_how_to_tell(name):
    (alarm,) = (alarm for alarm in ALARMS if alarm.name == name)
    assert "rewards/NAME/mean" in alarm.do and "Then the task is solved: stop" in alarm.do
    assert alarm.when.startswith("gains credit no turn: " if name == "alarms/gains" else "solved or stuck: ")


def test_clipping_alarm_is_a_hint_with_the_numbers_of_the_study():
    (alarm,) = (alarm for alarm in ALARMS if alarm.name == "alarms/clipping")
    assert "a hint, not a collapse" in alarm.when
    results = pd.read_parquet(ROOT / "recipes" / "study" / "main.parquet")
    of_best = results[
        (results.metric == "clip_fraction/mean")
        & (results.step > 0)
        & (results.learning_rate == 2e-4)
        & (results.seed < 8)
    ]
    narrow, wide = (of_best[of_best.cell == cell].value.mean() for cell in ("a2tgpo", "a2tgpo_wide"))
    assert f"clipped {narrow:.3f} of turns; a range ten times as wide clipped {wide:.3f}," in alarm.do
    assert wide < MUCH_CLIPPED < narrow


def test_run_without_any_reward_is_alarmed_after_five_lines():
    line = {**CALM, "groups/teach_nothing": 1.0, "reward": 0.0, "reward_std": 0.0}
    found, told = watched([line] * 7)
    assert [one["alarms/teach_nothing"] for one in found] == [0, 0, 0, 0, 1, 1, 1]
    assert told == [(LINES, "alarms/teach_nothing")]


def test_lines_without_a_metric_have_no_alarm_of_it_and_do_not_count():
    # A batch that is trained on twice appears in every other line; evaluations have other names.
    lines = [
        line for _ in range(10) for line in ({**CALM, "groups/teach_nothing": 1.0}, {"entropy": 0.5}, {"eval_x": 1})
    ]
    found, told = watched(lines)
    assert set(found[0]) == set(RAISES) and set(found[1]) == {"alarms/entropy"} and found[2] == {}
    assert told == [(13, "alarms/teach_nothing")]  # the fifth of the first kind


def test_resumed_run_has_the_alarms_of_an_uninterrupted_one():
    lines = [*[CALM] * 6, *[{**CALM, "turns/mean": 1.0}] * 6, *[{**CALM, "entropy": 0.0}] * 6]
    whole, told = watched(lines)
    assert [name for _, name in told] == ["alarms/calls", "alarms/entropy"]
    for at in range(len(lines)):
        alarms, log = Alarms(), [{**line, **now} for line, now in zip(lines[:at], whole[:at], strict=True)]
        later = []
        for line in lines[at:]:
            now, texts = alarms.see(log, line)
            log.append({**line, **now})
            later += texts
        assert [{name: entry[name] for name in RAISES if name in entry} for entry in log] == whole
        # Alarms reported before are not reported again.
        assert [text.partition(":")[0] for text in later] == [name for number, name in told if number > at]


def test_alarms_start_anew_with_a_second_training():
    alarms = Alarms()
    lines = [{**CALM, "groups/teach_nothing": 1.0, "reward": 0.0, "reward_std": 0.0}] * 6
    assert watched(lines, alarms) == watched(lines, alarms) == watched(lines)


def test_alarm_input_is_averaged_like_the_log():
    entries = {"reward": [0.5, NAN, 1.0], "loss": [3.0], "reward_std": [NAN], "entropy": [0.25]}
    assert averaged(entries) == {"reward": 0.75, "entropy": 0.25}


@pytest.mark.parametrize("alarm", ALARMS, ids=lambda alarm: alarm.name)
def test_alarm_text_says_when_it_goes_off_and_what_to_do(alarm):
    line = {**CALM, **RAISES[alarm.name]}
    (text,) = Alarms().see([*[CALM] * 5, *[line] * 4], line)[1]
    assert text == f"{alarm.name}: {alarm.when}. What to do: {alarm.do}" and text.endswith(".")


@pytest.mark.parametrize(
    ("study", "on"), [("quickstart", {}), ("main", dict.fromkeys(["a2tgpo", "atpo", "gspo"], {"alarms/clipping"}))]
)
def test_of_the_study_runs_only_narrow_clip_ranges_raise_an_alarm(study, on):
    # Their lines are means of several steps.
    results = pd.read_parquet(ROOT / "recipes" / "study" / f"{study}.parquet")
    runs = results[results.metric.isin(CALM) & (results.step > 0)].groupby(
        ["cell", "learning_rate", "seed"], dropna=False
    )
    assert len(runs) >= 8
    for (cell, *_), run in runs:
        lines = [dict(zip(step.metric, step.value, strict=True)) for _, step in run.groupby("step")]
        assert len(lines) >= LINES
        assert {name for _, name in watched(lines)[1]} == on.get(cell, set()), cell


# ---- in a run


def test_trainer_logs_alarms_and_warns_once(tmp_path, caplog):
    # The scripted policy writes the same in every batch, and its rewards never differ.
    tokenizer = tiny.make_tokenizer()
    args = A2TGPOConfig(**settings(tmp_path, max_steps=8, learning_rate=0.0, credit="grpo"))
    trainer = make(tokenizer, args, reward_funcs=lambda completions, **_: [0.0] * len(completions))
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert logged(trainer, "alarms/teach_nothing") == [0.0] * 4 + [1.0] * 4
    assert logged(trainer, "alarms/calls") == logged(trainer, "alarms/clipping") == [0.0] * 8
    assert "alarms/gains" not in trainer.state.log_history[0]  # no gains are computed
    said = [record.message for record in caplog.records if "alarms/teach_nothing:" in record.message]
    assert len(said) == 1 and "What to do: is each rewards/NAME/mean" in said[0]


def test_resumed_run_logs_the_same_alarms_and_does_not_repeat_warnings(tmp_path, caplog):
    tokenizer = tiny.make_tokenizer()

    def run(folder, steps, resume=None):
        changes = {
            "max_steps": steps,
            "learning_rate": 0.0,
            "credit": "grpo",
            "save_strategy": "steps",
            "save_steps": 1,
        }
        args = A2TGPOConfig(**settings(folder, **changes))
        trainer = make(tokenizer, args, reward_funcs=lambda completions, **_: [0.0] * len(completions))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            trainer.train(resume_from_checkpoint=resume)
        return logged(trainer, "alarms/teach_nothing"), sum("alarms/" in one.message for one in caplog.records)

    assert run(tmp_path / "early", 3) == ([0.0] * 3, 0)
    assert run(tmp_path / "early", 7, resume=True) == ([0.0] * 4 + [1.0] * 3, 1)
    assert run(tmp_path / "early", 9, resume=True) == ([0.0] * 4 + [1.0] * 5, 0)
