"""A study: what its file says, what its runs measured, what its report makes of them, and repeated runs."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from places import ROOT

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.cli import main
from a2tgpo_trl.cli.study import check, write_recipe
from a2tgpo_trl.credit import DEFAULTS
from a2tgpo_trl.errors import RecipeError
from a2tgpo_trl.recipe.recipe import read_recipe
from a2tgpo_trl.study import figures as study_figures
from a2tgpo_trl.study import report as study_report
from a2tgpo_trl.study.claims import claimed_better, claims
from a2tgpo_trl.study.comparison import best_rates, differences, first_at, holm, outcome, outcomes_of, p_value
from a2tgpo_trl.study.figures import draw_figures
from a2tgpo_trl.study.mechanism import auc, mechanism, mechanism_of_training
from a2tgpo_trl.study.report import draw, report, runs_by_cell
from a2tgpo_trl.study.results import Results, measured
from a2tgpo_trl.study.runs import identity
from a2tgpo_trl.study.study import Run, read_study


CONTENT = {
    "recipe": "quickstart",
    "seeds": [0, 1, 2, 3, 4],
    "every": 10,
    "target": 0.5,
    "cells": {"grpo": {"credit": "grpo"}, "a2tgpo": {"credit": "a2tgpo"}},
}


@pytest.fixture
def file(tmp_path):
    return write(tmp_path, CONTENT)


def write(folder, content):
    (folder / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "study.yaml"


def enter(results, run, curve, tokens=1000.0):
    """Enter a run with these held-out scores, ten steps apart."""
    rows = [(10 * i, "held_out/exact_match", height) for i, height in enumerate(curve)]
    rows += [(10 * i, "num_tokens", tokens * i) for i in range(1, len(curve))]
    results.put(run, "identity", rows)


def identity_of(study, run):
    with TemporaryDirectory() as folder:
        return identity([str(write_recipe(study, run, Path(folder)))], without=["seed"])


# ---- its file


def test_a_run_has_the_settings_of_the_study_of_its_cell_and_its_own(tmp_path):
    rates = {"values": [1e-4, 1e-3], "seeds": [1000]}
    settings = {"max_steps": 7, "credit": "igpo"}
    (tmp_path / "own.yaml").write_text("")
    study = read_study(
        write(tmp_path, {**CONTENT, "recipe": "own.yaml", "learning_rates": rates, "settings": settings})
    )
    assert study.recipe == tmp_path / "own.yaml" and study.against == "grpo"
    assert [run.name for run in study.tried()] == [
        *("grpo/0.0001/1000", "a2tgpo/0.0001/1000", "grpo/0.001/1000", "a2tgpo/0.001/1000")
    ]
    assert {run.kind for run in study.kinds()} == {(cell, rate) for cell in CONTENT["cells"] for rate in (1e-4, 1e-3)}
    reported = list(study.reported({"a2tgpo": 1e-3}))  # grpo's rate is not known yet
    assert reported == [Run("a2tgpo", seed, 1e-3) for seed in range(5)]
    assert study.settings_of(reported[1]) == {
        **{"stream_turns": False},
        **{"eval_strategy": "steps", "eval_steps": 10, "record_every": 2, "max_steps": 7},
        **{"learning_rate": 1e-3, "credit": "a2tgpo", "seed": 1},
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cell": {}}, "there is no key 'cell'. Did you mean 'cells'?"),
        ({"cells": {}}, "the key 'cells' is missing"),
        ({"cells": {"grpo": "grpo"}}, "cell 'grpo' must hold settings, such as {credit: grpo}; got"),
        ({"against": "a2tgop"}, "against or post_hoc names a cell that does not exist. Did you mean 'a2tgpo'?"),
        ({"cells": ["grpo"]}, "cells must map names to settings"),
        ({"cells": {"../up": {"credit": "grpo"}}}, "a cell's name must consist of letters"),
        ({"cells": {"grpo": {"seed": 3}}}, "cell 'grpo': the study itself sets seed"),
        ({"settings": {"eval_steps": 3}}, "settings: the study itself sets eval_steps"),
        ({"seeds": [0, 0]}, "name each seed only once"),
        ({"every": "often"}, "every must be a number of steps"),
        ({"learning_rates": {"values": ["much"], "seeds": [9]}}, "the values of learning_rates must be numbers"),
        (
            {"learning_rates": {"values": [1e-4], "seeds": [9]}, "cells": {"grpo": {"learning_rate": 1e-3}}},
            "cell 'grpo': learning_rate is given, but learning_rates tries out several",
        ),
        (
            {"learning_rates": {"values": [1e-4], "seeds": [9]}, "settings": {"learning_rate": 1e-3}},
            "settings: learning_rate is given, but learning_rates tries out several",
        ),
        ({"seeds": 8}, "seeds must be a list of whole numbers; got 8"),
        ({"learning_rates": [1e-4]}, "learning_rates must have the form {values: ["),
        ({"learning_rates": {"values": [1e-4], "seeds": [0]}}, "chosen on other seeds"),
        ({"learning_rates": {"values": [1e-4], "seeds": []}}, "learning_rates, seeds: name at least one; got []"),
        ({"learning_rates": {"values": [], "seeds": [9]}}, "learning_rates, values: name at least one; got []"),
        ({"target": None}, "target must be a score (0.7); got None"),
        ({"target": [0.5]}, "target must be a score (0.7); got [0.5]"),
        ({"target": math.nan}, "target must be a score (0.7); got nan"),
        ({"reward": None}, "reward must be the name of a reward; got None"),
        ({"post_hoc": None}, "post_hoc must be a list of cells; got None"),
        ({"post_hoc": "a2tgpo"}, "post_hoc must be a list of cells; got 'a2tgpo'"),
        ({"post_hoc": [["a2tgpo"]]}, "post_hoc must be a list of cells; got [['a2tgpo']]"),
        ({"settings": ["max_steps"]}, "settings must be keys of a recipe ({max_steps: 100}); got ['max_steps']"),
        ({"settings": {"files_in": "."}}, "settings: the study itself sets files_in"),
        (
            {"against": {"a2tgpo": [["grpo"]]}},
            "against must be a cell, or one or more for each of several ({igpo: grpo",
        ),
        ({"against": {"a2tgpo": None}}, "against must be a cell, or one or more for each of several ({igpo: grpo"),
        ({"against": {"a2tgpo": ["grpo", "gspo"]}}, "against or post_hoc names a cell that does not exist"),
        ({"against": ["grpo"]}, "against must be a cell, or one or more for each of several ({igpo: grpo"),
        ({"against": None}, "against must be a cell, or one or more for each of several ({igpo: grpo"),
    ],
)
def test_invalid_study_file_is_an_error_naming_the_key(changed, message, tmp_path):
    with pytest.raises(RecipeError, match=re.escape(message)):
        read_study(write(tmp_path, {**CONTENT, **changed}))


def test_learning_rates_may_be_strings_and_the_recipe_a_shipped_one(tmp_path):
    file = write(tmp_path, {**CONTENT, "recipe": "quickstart", "learning_rates": {"values": ["1e-4"], "seeds": [9]}})
    study = read_study(file)
    assert study.learning_rates.values == [1e-4] and study.recipe.name == "quickstart.yaml"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"recipe": "nowhere.yaml"}, "nowhere.yaml"),
        ({"cells": {"grpo": {"credit": "grop"}}}, "Did you mean 'grpo'?"),
        ({"cells": {"grpo": {"crdit": "grpo"}}}, "Did you mean 'credit'?"),
        ({"reward": "bleu"}, "reward is 'bleu', but the task has exact_match, answer_format, f1"),
    ],
)
def test_error_of_any_run_is_reported_before_the_first_starts(changed, message, tmp_path, capsys):
    content = {**CONTENT, "recipe": "own.yaml", **changed}
    (tmp_path / "own.yaml").write_text("task: atlas\nmodel_name_or_path: atlas-tiny\nbf16: false\n")
    assert main(["study", str(write(tmp_path, content)), "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


CREDIT = """
from a2tgpo_trl.credit import method

@method(gain_weight=1.0)
def own(evidence, switches):
    return evidence.gains_NK.nan_to_num()
"""
REWARD = "def each(record):\n    return [1.0 for _ in record['turns']]\n"


def test_files_named_in_a_study_are_found_beside_it_or_its_recipe(tmp_path):
    studies, recipes = tmp_path / "studies", tmp_path / "recipes"
    studies.mkdir()
    recipes.mkdir()
    (recipes / "own.yaml").write_text("base: quickstart\ntask_kwargs: {train_questions: 8, test_questions: 6}\n")
    cells = {"own": {"credit": "my_credit.py:own"}}
    cells["rewarded"] = {"credit": "mt_grpo", "turn_rewards": {"studies/rewards.py:each": 0.1}}
    study = read_study(write(studies, {**CONTENT, "recipe": "../recipes/own.yaml", "cells": cells}))
    own, rewarded = map(study.first_of, cells)
    with pytest.raises(RecipeError) as error:
        check(study)
    assert str(error.value).startswith(f"{study.file}, cell 'own' on ")
    assert f"credit: there is no file 'my_credit.py' in {studies} or {recipes} or " in str(error.value)
    (studies / "my_credit.py").write_text(CREDIT)
    with pytest.raises(RecipeError) as error:
        check(study)
    assert f"{study.file}, cell 'rewarded', turn_rewards: There is no file 'studies/rewards.py' in" in str(error.value)
    (recipes / "studies").mkdir()
    (recipes / "studies" / "rewards.py").write_text(REWARD)
    check(study)
    # A run is another once one of these files changes; where the study is does not matter.
    before = [identity_of(study, run) for run in (own, rewarded)]
    (studies / "my_credit.py").write_text(CREDIT + "# another\n")
    assert [identity_of(study, run) == one for run, one in zip((own, rewarded), before, strict=True)] == [False, True]
    found = read_recipe(["--config", str(write_recipe(study, own, tmp_path / "run"))])
    assert found.args.credit == f"{studies / 'my_credit.py'}:own"


def test_jobs_below_one_are_an_error(tmp_path, capsys):
    assert main(["study", str(tmp_path / "nowhere.yaml"), "--jobs", "0"]) == 2
    assert "argument --jobs: must be a whole number of at least 1, got '0'" in capsys.readouterr().err


def test_foreign_report_picture_or_results_are_not_overwritten(tmp_path, capsys):
    (tmp_path / "own.yaml").write_text("task: atlas\nmodel_name_or_path: atlas-tiny\nbf16: false\n")
    file = write(tmp_path, {**CONTENT, "recipe": "own.yaml"})
    (tmp_path / "study.md").write_text("my thoughts")
    assert main(["study", str(file), "--minutes", "0", "-o", str(tmp_path / "out")]) == 2
    assert "study.md is not a report of this study" in capsys.readouterr().err
    assert (tmp_path / "study.md").read_text() == "my thoughts"
    (tmp_path / "study.md").unlink()
    (tmp_path / "study.png").write_bytes(b"a photograph")
    assert main(["study", str(file), "--minutes", "0", "-o", str(tmp_path / "out")]) == 2
    assert "study.png is not a picture of this study" in capsys.readouterr().err
    (tmp_path / "study.png").unlink()
    pd.DataFrame({"mine": [1]}).to_parquet(tmp_path / "study.parquet")
    assert main(["study", str(file), "--minutes", "0", "-o", str(tmp_path / "out")]) == 2
    assert "study.parquet holds no results of a study" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted((ROOT / "recipes" / "study").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_studies_have_valid_run_settings(file, monkeypatch):
    monkeypatch.chdir(ROOT / "recipes")  # where a recipe's own credit is looked for
    study = read_study(file)
    assert study.recipe.is_file() and len(study.cells) > 1
    assert len(study.seeds) >= (8 if file.stem in ("main", "quickstart") else 5)
    for run in study.kinds():
        said = study.settings_of(run)
        A2TGPOConfig("out", bf16=False, **{key: said[key] for key in said if key == "credit" or key in DEFAULTS})


# ---- what runs measured


def test_logged_metrics_are_averaged_since_the_previous_evaluation(tmp_path):
    history = [{"step": step, "loss": 0.1 * step, "num_tokens": 100 * step, "epoch": 0.1} for step in (1, 2, 3)]
    history[1]["gain/seconds"] = 4.0
    history[0]["rewards/own/mean"], history[1]["rewards/own/mean"] = None, 0.5  # nobody scored the first batch
    history[2]["rewards/own/mean"] = None
    history += [{"step": 2, "eval_rewards/exact_match/mean": 0.4, "eval_loss": 0.0}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    (tmp_path / "evaluation").mkdir()
    for when, score in (("before", 0.2), ("after", 0.6)):
        means = {name: {"mean": value} for name, value in (("exact_match", score), ("tool turns", 3.0))}
        scores = {"everything": means, "groups": {"hops 4": means}}
        (tmp_path / "evaluation" / f"{when}.json").write_text(json.dumps(scores))
        (tmp_path / "evaluation" / f"{when}.jsonl").write_text("")
    found = {(step, metric): value for step, metric, value in measured(tmp_path, every=2)}
    curve = {step: value for (step, metric), value in found.items() if metric == "held_out/exact_match"}
    assert curve == {0: 0.2, 2: 0.4, 3: 0.6}
    assert found[3, "held_out/exact_match/hops 4"] == 0.6 and found[0, "held_out/tool turns"] == 3.0
    # The mean of steps 1 and 2; for tokens, which add up, the number so far.
    assert (found[2, "loss"], found[3, "loss"]) == pytest.approx((0.15, 0.3))
    assert (found[2, "num_tokens"], found[3, "num_tokens"]) == (200, 300)
    assert found[2, "gain/seconds"] == 2.0  # step 1 spent none
    assert found[2, "rewards/own/mean"] == 0.5 and (3, "rewards/own/mean") not in found
    assert not {metric for _, metric in found} & {"epoch", "step"}
    # A study needs its reward at the start and at the end: otherwise the area would be that of a part of the run.
    measured(tmp_path, every=2, reward="exact_match")
    (tmp_path / "evaluation" / "after.json").write_text(
        json.dumps({"everything": {"exact_match": {"mean": math.nan}}, "groups": {}})
    )
    with pytest.raises(ValueError, match=r"held-out exact_match is a number after steps \[0, 2\], but .* at 0 and 3"):
        measured(tmp_path, every=2, reward="exact_match")


def test_auc_counts_correctly_ordered_pairs():
    # Four pairs: 3 > 2, 3 > 1, 1 < 2 and 1 = 1.
    assert auc([3, 1], [2, 1]) == pytest.approx(2.5 / 4)
    assert auc([2, 3], [0, 1]) == 1.0 and auc([1], []) is None
    rng = np.random.default_rng(0)
    above, below = rng.normal(0.5, 1, 40).round(1), rng.normal(0, 1, 50).round(1)
    by_hand = np.mean([(a > b) + (a == b) / 2 for a in above for b in below])
    assert auc(above.tolist(), below.tolist()) == pytest.approx(by_hand)


def test_gains_are_compared_with_the_usefulness_of_searches():
    def record(hops, gains, results):
        turns = [{"calls": [{"result": result}]} for result in results] + [{"calls": []}]
        found = {"hops": hops, "gains": gains, "turns": turns, "tool_turns": len(results)}
        return {**found, "supporting_documents": ["A", "B"]}

    # Useful: A, then B; a search that brings up C, or A again, is not.
    records = [
        record(2, [0.5, 2.0], ["A", "B"]),
        record(2, [1.0, -1.0], ["C", "A"]),
        record(4, [0.1, 0.0], ["A", "A"]),
    ]
    found = dict(mechanism(records))
    assert found["useful/share_turn_1"] == pytest.approx(2 / 3)
    assert found["useful/share_turn_2"] == pytest.approx(2 / 3)
    # Useful turns gained 0.5, 2.0, -1.0 and 0.1; the others 1.0 and 0.0. Pairs: 1, 2, 0, 1 of 8.
    assert found["useful/auc/gains"] == pytest.approx(4 / 8)
    assert found["useful/auc/gains/hops 4"] == 1.0
    assert found["useful/auc/gains_turn_1"] == 0.0  # 0.5 and 0.1 are both below 1.0
    assert dict(mechanism([{"gains": [1.0]}])) == {}  # a task whose rows do not say what they need


def test_training_records_give_credit_and_gains_by_turn(file):
    def record(group, queries, gains, advantages):
        calls = [{"calls": [{"arguments": {"query": query}, "result": "A"}]} for query in queries]
        found = {"step": 1, "round": 1, "group": group, "outcome_advantage": 0.5, "tool_turns": len(queries)}
        return {**found, "turns": [*calls, {"calls": []}], "gains": gains, "advantages": advantages}

    records = [
        record(0, ["mayor of Rome", "wife of B"], [1.0, 2.0], [0.8, 0.2, 0.5]),
        record(0, ["mayor of Paris"], [3.0], [0.4, 0.5]),
        record(1, ["king"], [5.0], [0.6, 0.5]),
    ]
    found = dict(mechanism_of_training(records))
    # First turns gained 1, 3 and 5; beyond the outcome's 0.5 their credit is 0.3, -0.1 and 0.1. The answer has none.
    assert found["by_turn/gains/mean_turn_1"] == pytest.approx(3.0)
    assert found["by_turn/gains/std_turn_1"] == pytest.approx(math.sqrt(8 / 3))
    assert found["by_turn/credit/mean_turn_1"] == pytest.approx(0.1)
    assert found["by_turn/credit/mean_turn_2"] == pytest.approx(-0.3) and "by_turn/credit/mean_turn_3" not in found
    assert found["by_turn/advantages/mean_turn_1"] == pytest.approx(0.6)  # of 0.8, 0.4 and 0.6
    # mayor, of, Rome and mayor, of, Paris share 2 of 4 words; wife, of, B and mayor, of, Paris 1 of 5.
    assert found["similarity/same_depth"] == found["similarity/turn_1"] == pytest.approx(2 / 4)
    assert found["similarity/across_depths"] == pytest.approx(1 / 5)
    # If answer turns have more or less than the outcome's advantage, the method adds nothing to the outcome.
    records[0]["advantages"][-1] = 0.3
    found = dict(mechanism_of_training(records))
    assert "by_turn/credit/mean_turn_1" not in found and found["by_turn/gains/number_turn_1"] == 3.0
    # Records of a task without tools have no turns.
    without = record(0, [], [], [0.5])
    del without["turns"]
    assert {name.partition("/")[0] for name in dict(mechanism_of_training([without, without]))} == {"advantages"}


# ---- results


def test_results_round_trip_and_a_repeated_run_replaces_itself(file):
    study = read_study(file)
    results = Results(study.results)
    enter(results, Run("grpo", 0), [0.1, 0.2])
    enter(results, Run("grpo", 0, 1e-4), [0.3, 0.4])
    enter(results, Run("a2tgpo", 0), [0.5, 0.6])
    again = Results(study.results)
    pd.testing.assert_frame_equal(again.table, results.table)
    assert again.curve(Run("grpo", 0), "held_out/exact_match") == [(0, 0.1), (10, 0.2)]
    assert again.curve(Run("grpo", 0, 1e-4), "held_out/exact_match") == [(0, 0.3), (10, 0.4)]
    assert again.curve(Run("grpo", 1), "held_out/exact_match") == []
    assert again.has(Run("grpo", 0)) and not again.has(Run("grpo", 1))
    enter(again, Run("grpo", 0), [0.7, 0.8])
    assert again.curve(Run("grpo", 0), "held_out/exact_match") == [(0, 0.7), (10, 0.8)]
    assert len(again.table) == len(results.table)


def test_runs_of_other_settings_are_kept_and_left_out_of_the_report(file):
    study = read_study(file)
    results = Results(study.results)
    for seed in study.seeds:
        enter(results, Run("grpo", seed), [0.1, 0.2])
        enter(results, Run("a2tgpo", seed), [0.5, 0.6])
    now = Results(study.results, {("grpo", None): "identity", ("a2tgpo", None): "another"})
    assert now.has(Run("grpo", 0)) and not now.has(Run("a2tgpo", 0)) and now.stale == ["a2tgpo"]
    text = report(study, now)
    assert "| grpo | 5 |" in text and "| a2tgpo |" not in text and "Some runs of a2tgpo have other settings" in text
    enter(now, Run("renamed", 0), [0.5, 0.6])
    now = Results(study.results, {("grpo", None): "identity", ("a2tgpo", None): "identity"})
    assert "Runs of renamed are left out here: study.yaml has no such cell now." in report(study, now)
    assert "other settings" not in report(study, now)
    results.file.unlink()
    results = Results(study.results)
    for seed in study.seeds:
        enter(results, Run("grpo", seed), [0.1, 0.2])
        enter(results, Run("a2tgpo", seed), [0.5, 0.6])
    now = Results(study.results, {("grpo", None): "identity", ("a2tgpo", None): "another"})
    enter(now, Run("grpo", 0), [0.3, 0.4])
    assert len(Results(study.results).table) == len(results.table)  # the others are still in the file


def test_results_added_by_another_process_are_kept(file):
    study = read_study(file)
    one, other = Results(study.results), Results(study.results)
    enter(one, Run("grpo", 0), [0.1, 0.2])
    enter(other, Run("a2tgpo", 0), [0.5, 0.6])
    assert other.has(Run("grpo", 0)) and Results(study.results).has(Run("grpo", 0))


def test_identical_run_of_another_study_is_reused(file, tmp_path):
    others = Results(tmp_path / "other.parquet")
    enter(others, Run("whole", 3, 2e-4), [0.1, 0.2])
    enter(others, Run("the_same_by_another_name", 3, 2e-4), [0.1, 0.2])
    pd.DataFrame({"neither": [1]}).to_parquet(tmp_path / "no_study.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    results = Results(read_study(file).results)
    assert not results.take(Run("grpo", 3), "other settings") and not results.take(Run("grpo", 4), "identity")
    assert results.take(Run("grpo", 3), "identity")
    assert results.curve(Run("grpo", 3), "held_out/exact_match") == [(0, 0.1), (10, 0.2)]
    assert results.table["made"].unique().tolist() == others.table["made"].unique().tolist()
    assert len(results.table) == len(others.table) / 2
    assert len(Results(others.file).table) == len(others.table)


def test_a_target_is_reached_between_two_evaluations():
    assert first_at([(0, 0.2), (10, 0.4), (20, 0.8)], 0.5) == pytest.approx(12.5)
    assert first_at([(0, 0.6), (10, 0.4)], 0.5) == 0 and first_at([(0, 0.2), (10, 0.4)], 0.5) is None


def test_outcome_of_a_run_worked_out_by_hand(file):
    study = read_study(file)
    results = Results(study.results)
    enter(results, Run("grpo", 0), [0.2, 0.4, 0.8])
    found = outcome(study, results, Run("grpo", 0))
    # (0.3 x 10 + 0.6 x 10) / 20; the target 0.5 at step 12.5, where 1250 tokens were read and written
    assert (found.area, found.end, found.steps, found.tokens) == pytest.approx((0.45, 0.8, 12.5, 1250))
    assert outcome(study, results, Run("grpo", 1)) is None


def test_p_values_are_those_of_students_t():
    # A sample with this t is at the border of the 95 % interval, for any degrees of freedom.
    for number, quantile in ((2, 12.706), (5, 2.776), (8, 2.365), (16, 2.131)):
        values = np.array([1.0, -1.0] * (number // 2) + [0.0] * (number % 2))
        values += quantile * np.std(values, ddof=1) / math.sqrt(number)
        assert p_value(values.tolist()) == pytest.approx(0.05, abs=2e-4)
    assert p_value([1.0, 2.0, 3.0]) == pytest.approx(0.0742, abs=1e-4)  # t = 3.464 with two degrees of freedom
    assert (p_value([0.5]), p_value([0.0, 0.0]), p_value([0.1, 0.1])) == (1.0, 1.0, 0.0)


def test_holm_correction_worked_out_by_hand():
    found = holm({("a", "x"): 0.01, ("b", "x"): 0.04, ("c", "x"): 0.03})
    assert found == pytest.approx({("a", "x"): 0.03, ("c", "x"): 0.06, ("b", "x"): 0.06})
    assert holm({("a", "x"): 0.9, ("b", "x"): 0.8}) == {("a", "x"): 1.0, ("b", "x"): 1.0}


def test_a_difference_is_decided_by_five_seeds_or_more_whose_p_is_small(file):
    study = read_study(file)
    results = Results(study.results)
    pair = ("a2tgpo", "grpo")

    def found(heights, further=()):
        for seed, height in enumerate(heights):
            enter(results, Run("grpo", seed), [0.2, 0.4])
            enter(results, Run("a2tgpo", seed), [0.2, 0.4 + height])
        runs = {cell: [Run(cell, seed) for seed in range(len(heights))] for cell in pair}
        return differences(outcomes_of(study, results, runs), [pair, *further])[pair]

    one = found([0.2, 0.24, 0.22, 0.18, 0.2])
    # Mean of areas 0.104, deviation 0.0114; t of four degrees of freedom 2.776: 0.104 +- 2.776 x 0.0114 / sqrt(5)
    assert (one.area.mean, one.area.low, one.area.high) == pytest.approx((0.104, 0.0898, 0.1182), abs=1e-3)
    assert one.end.mean == pytest.approx(0.208) and one.verdict == "better" and one.p < 1e-4
    assert found([-0.2, -0.24, -0.22, -0.18, -0.2]).verdict == "worse"
    assert found([0.2, 0.24, 0.22, 0.18]).verdict == "not decided"
    assert found([0.2, -0.24, 0.22, -0.18, 0.2]).verdict == "not decided"
    # One of two comparisons must be clearer than one alone, but a pair and its reverse are one.
    near = [0.2, 0.02, 0.15, 0.04, 0.1]
    assert found(near).verdict == "better" and 0.025 < found(near).p < 0.05
    assert found(near, [("grpo", "grpo")]).verdict == "not decided"
    assert found(near, [pair[::-1]]) == found(near)
    runs = {cell: [Run(cell, seed) for seed in range(5)] for cell in pair}
    forth, back = differences(outcomes_of(study, results, runs), [pair, pair[::-1]]).values()
    assert back.verdict == "worse" and back.p == forth.p and back.end.mean == -forth.end.mean
    assert (back.area.mean, back.area.low, back.area.high) == (-forth.area.mean, -forth.area.high, -forth.area.low)


def test_each_cell_uses_its_best_learning_rate(tmp_path):
    rates = {"values": [1e-4, 1e-3], "seeds": [1000, 1001]}
    study = read_study(write(tmp_path, {**CONTENT, "learning_rates": rates}))
    results = Results(study.results)
    heights = {"grpo": {1e-4: (0.1, 0.2), 1e-3: (0.5, 0.4)}, "a2tgpo": {1e-4: (0.9, 0.2), 1e-3: (0.5, 0.4)}}
    for cell, of_cell in heights.items():
        for rate, of_rate in of_cell.items():
            for seed, height in zip((1000, 1001), of_rate, strict=True):
                if (cell, rate, seed) != ("a2tgpo", 1e-3, 1001):
                    enter(results, Run(cell, seed, rate), [height, height])
    assert best_rates(study, results) == {"grpo": 1e-3}  # one of a2tgpo is missing
    assert "a2tgpo: left out here, because trials of learning rates are missing or have failed." in report(
        study, results
    )
    enter(results, Run("a2tgpo", 1001, 1e-3), [0.4, 0.4])
    assert best_rates(study, results) == {"grpo": 1e-3, "a2tgpo": 1e-4}
    assert "| grpo | 0.150 | **0.450** |" in report(study, results) and "left out" not in report(study, results)
    for seed in (1000, 1001):  # trials that solve nothing are shown as well
        for rate in (1e-4, 1e-3):
            enter(results, Run("grpo", seed, rate), [0.0, 0.0])
    assert "| grpo | **0.000** | 0.000 |" in report(study, results)


# ---- the report


def test_the_report_is_made_of_the_results_alone(file):
    study = read_study(file)
    results = Results(study.results)
    for seed in study.seeds:
        enter(results, Run("grpo", seed), [0.2, 0.2 + 0.01 * seed, 0.4])
        if seed != 2:
            enter(results, Run("a2tgpo", seed), [0.2, 0.5 + 0.01 * seed, 0.6])
    text = report(study, Results(study.results))
    # Areas of grpo: (0.2 + h) / 4 + (h + 0.4) / 4 = 0.15 + h / 2, with h from 0.2 to 0.24: 0.26 on average.
    line = next(line for line in text.splitlines() if line.startswith("| grpo | 5"))
    assert "| 0.260 (" in line and "| 0.400 (0.400 to 0.400) | - (0 of 5) | - |" in line
    # Of a2tgpo: 0.2 + h / 2, with h 0.50, 0.51, 0.53, 0.54: 0.46; each seed 0.2 above. Four seeds decide nothing.
    line = next(line for line in text.splitlines() if line.startswith("| a2tgpo | 4"))
    # They reached 0.5 in 10 x 0.3 / (h - 0.2) steps: 10, 9.7, 9.1 and 8.8, with median 9.4.
    assert "| 0.460 (" in line and "| 9 (4 of 4) |" in line
    assert "| grpo | 0.200 (0.200 to 0.200) | 0.200 (0.200 to 0.200) | 0.000 | not decided |" in line
    enter(results, Run("a2tgpo", 2), [0.2, 0.52, 0.6])
    line = next(line for line in report(study, results).splitlines() if line.startswith("| a2tgpo | 5"))
    assert "| grpo | 0.200 (0.200 to 0.200) | 0.200 (0.200 to 0.200) | 0.000 | better |" in line
    assert f"- grpo, a2tgpo: `{results.table['made'].iloc[0]}`" in report(study, results)
    draw(study, results, study.picture)
    assert study.picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("reward", "limits"), [("exact_match", (0, 1)), ("points", None)])
def test_pictures_show_scores_outside_0_to_1(reward, limits, file, monkeypatch):
    study, drawn = replace(read_study(file), reward=reward), []
    for module in (study_report, study_figures):
        monkeypatch.setattr(module, "save", lambda figure, *_, **__: drawn.append(figure))
    results = Results(study.results)
    for seed in study.seeds:
        rows = [(step, f"held_out/{reward}", height) for step, height in ((0, -30.0), (10, 12.0))]
        results.put(Run("grpo", seed), "identity", rows)
    draw(study, results, study.picture)
    draw_figures(results, runs_by_cell(study, results), reward, study.figures)
    curves = drawn[0].axes[0], next(axes for axes in drawn[1].axes if axes.yaxis.get_ticks_position() == "right")
    for axes in curves:
        low, high = axes.get_ylim()
        assert (low, high) == limits if limits else (low < -30.0 and high > 12.0)


def test_median_step_to_target_counts_seeds_that_never_reach_it(file):
    study = read_study(file)
    results = Results(study.results)
    for seed, height in enumerate([0.8, 0.6, 0.4, 0.4, 0.8]):  # at the target 0.5 after 5, 7.5, -, -, 5 steps
        enter(results, Run("grpo", seed), [0.2, height])
        enter(results, Run("a2tgpo", seed), [0.2, 0.4 if seed else 0.8])
    lines = report(study, results).splitlines()
    assert "| 8 (3 of 5) |" in next(line for line in lines if line.startswith("| grpo | 5"))
    assert "| - (1 of 5) | - |" in next(line for line in lines if line.startswith("| a2tgpo | 5"))


def test_each_cell_may_be_compared_with_its_own_baseline(tmp_path):
    cells = {name: {"credit": "grpo"} for name in ("one", "other", "one_guess", "other_guess")}
    against = {"other": "one", "other_guess": "one_guess"}
    study = read_study(write(tmp_path, {**CONTENT, "cells": cells, "against": against, "post_hoc": ["other_guess"]}))
    results = Results(study.results)
    for seed in study.seeds:
        for cell, height in (("one", 0.2), ("other", 0.3), ("one_guess", 0.6), ("other_guess", 0.5)):
            enter(results, Run(cell, seed), [height, height])
    lines = report(study, results).splitlines()
    rows = {cell: next(line for line in lines if line.startswith(f"| {cell} |")) for cell in cells}
    ends = {cell: [entry.strip() for entry in row.strip("|").split("|")[6:]] for cell, row in rows.items()}
    same = "(0.100 to 0.100)"
    assert ends["other"] == ["one", f"0.100 {same}", f"0.100 {same}", "0.000", "better"]
    less = "-0.100 (-0.100 to -0.100)"
    assert ends["other_guess"] == ["one_guess", less, less, "0.000", "worse (post hoc)"]
    assert ends["one"] == ends["one_guess"] == [""] * 5
    # With two, the second stands in a table of its own, and both count for p.
    more = {"other": ["one", "one_guess"], "other_guess": ["one_guess", "other"]}
    study = read_study(write(tmp_path, {**CONTENT, "cells": cells, "against": more, "post_hoc": ["other_guess"]}))
    lines = report(study, results).splitlines()
    further = lines[lines.index("## Further comparisons") :]
    lower, higher = "-0.300 (-0.300 to -0.300)", "0.200 (0.200 to 0.200)"
    assert further[4:6] == [
        f"| other | one_guess | {lower} | {lower} | 0.000 | worse |",
        f"| other_guess | other | {higher} | {higher} | 0.000 | better (post hoc) |",
    ]
    steps = further[further.index("## Differences at each evaluation") :]
    assert steps[2] == "|  | step 10 |" and f"| other, less one | 0.100 {same} |" in steps
    assert f"| other_guess, less other | {higher} |" in steps


def enter_turns(results, run, score, deviations, auc):
    """Enter a run with these means of z-scores, deviations of credit and AUCs of clip scales by turn, at two steps."""
    rows = [
        (step, "held_out/exact_match", height) for step, height in ((0, 0.2), (10, 0.5 if "a2" in run.cell else 0.3))
    ]
    for step in (0, 10):
        rows += [(step, f"by_turn/scores/mean_turn_{k}", value) for k, value in enumerate(score, start=1)]
        rows += [(step, f"by_turn/scores/std_turn_{k}", value) for k, value in ((1, 0.4), (2, 0.8))]
        rows += [(step, f"by_turn/credit/std_turn_{k}", value) for k, value in enumerate(deviations, start=1)]
        for k in (1, 2, 3):  # few rollouts reach the third turn
            rows += [
                (step, f"by_turn/{name}/number_turn_{k}", 16.0 if k < 3 else 2.0) for name in ("scores", "credit")
            ]
        rows += [(step, f"useful/auc/clip_scale_turn_{k}", value) for k, value in enumerate(auc, start=1)]
        rows += [(step, f"useful/share_turn_{k}", 0.5) for k in (1, 2)]
        rows += [(step, f"by_turn/clip_scale/number_turn_{k}", 16.0) for k in (1, 2)]
    results.put(run, "identity", rows)


def judged(study, results, runs=None):
    """The claims, with differences of their pairs only."""
    runs = runs_by_cell(study, results) if runs is None else runs
    return list(claims(results, runs, differences(outcomes_of(study, results, runs), claimed_better(runs))))


def test_claims_are_judged_by_the_results(tmp_path):
    cells = {name: {"credit": name} for name in ("grpo", "igpo", "a2tgpo")}
    cells["a2tgpo_unscaled"] = {"credit": "a2tgpo", "rescale_accumulation": False}
    cells["a2tgpo_no_gain"] = {"credit": "a2tgpo", "gain_weight": 0.0, "clip_adaptation": 0.0}
    study = read_study(write(tmp_path, {**CONTENT, "cells": cells}))
    results = Results(study.results)
    for seed in study.seeds:
        enter_turns(results, Run("a2tgpo_unscaled", seed), [0.0, 0.0], [0.3, 0.2 + 0.005 * seed], [0.5])
        enter_turns(results, Run("grpo", seed), [], [], [0.5])
        enter(results, Run("a2tgpo_no_gain", seed), [0.2, 0.4])
        enter_turns(results, Run("igpo", seed), [0.4, -0.4], [1.0, 0.2], [0.5])
        enter_turns(results, Run("a2tgpo", seed), [0.0, 0.01], [0.3, 0.24], [0.8 + 0.01 * seed, 0.7])
    found = judged(study, results)
    assert {held for *_, held in found} == {"held"}
    better, better_than_igpo, gains, drift, level, follows = (text for _, text, _ in found)
    assert gains == "area, less that of a2tgpo_no_gain: 0.050 (0.050 to 0.050)"
    assert better == "area, less that of grpo: 0.100 (0.100 to 0.100)" and "that of igpo:" in better_than_igpo
    assert drift.endswith("a2tgpo 0.010 (0.010 to 0.010), igpo 0.800 (0.800 to 0.800)")
    # 0.3 / 0.24; without the root 0.3 / 0.20 to 0.3 / 0.22, 1.43 on average.
    assert "divided by the smallest: a2tgpo 1.250 (1.250 to 1.250), a2tgpo_unscaled 1.430" in level
    assert "(for z-scores before they are summed: 2.000 (2.000 to 2.000))" in level
    assert "a chance of 0.820 (" in follows and follows.endswith("at turn 1, 0.700 (0.700 to 0.700) at turn 2")
    assert f"| {better} | held |" in report(study, results)
    # Claims that do not hold are reported as plainly; fewer than five seeds decide nothing.
    for seed in study.seeds:
        enter_turns(results, Run("a2tgpo", seed), [0.5, 0.0], [0.3, 0.1], [0.4, 0.5 + 0.1 * (-1) ** seed])
    found = [held for *_, held in judged(study, results)]
    assert found == ["held", "held", "held", "not held", "not held", "not held"]
    # Early turns are not hidden by later ones.
    for seed in study.seeds:
        enter_turns(results, Run("a2tgpo", seed), [0.5, 0.0], [0.3, 0.1], [0.4, 0.9])
    assert judged(study, results)[-1][-1] == "held at turn 2 only"
    # A depth that few rollouts reach is left out, and an interval on both sides of one half decides nothing.
    for seed in study.seeds:
        enter_turns(results, Run("a2tgpo", seed), [0.0, 0.0, 0.9], [0.3, 0.3, 0.0], [0.5 + 0.1 * (-1) ** seed])
    found = [held for *_, held in judged(study, results)]
    assert found == ["held", "held", "held", "held", "held", "not decided"]
    # Drifts of 0 in three seeds and of 0.2 in two: 0.08 on average, but perhaps more than 0.1.
    for seed in study.seeds:
        enter_turns(results, Run("a2tgpo", seed), [0.0, 0.2 * (seed > 2)], [0.3, 0.3], [0.8])
    assert judged(study, results)[3][-1] == "not decided"
    # Seeds missing from the other cell, or no A2TGPO at all, make no claim.
    apart = {"a2tgpo": runs_by_cell(study, results)["a2tgpo"], "grpo": []}
    assert len(judged(study, results, apart)) == 3
    without = {"grpo": runs_by_cell(study, results)["grpo"]}
    assert not judged(study, results, without)
    few = {cell: runs[:4] for cell, runs in runs_by_cell(study, results).items()}
    assert {held for *_, held in judged(study, results, few)} == {"not decided"}


# ---- runs


@pytest.mark.slow
def test_a_run_whose_results_are_deleted_gives_the_same_ones_again(tmp_path, capfd):
    (tmp_path / "own.yaml").write_text("base: quickstart\n")
    small = {
        **{"max_steps": 2, "eval_rows": 6, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
        "task_kwargs": {"train_questions": 8, "test_questions": 6, "supporting_documents": True},
        "eval_gains": True,
    }
    content = {**CONTENT, "recipe": "own.yaml", "settings": small, "seeds": [3], "every": 1}
    file = write(tmp_path, content)
    words = ["study", str(file), "--jobs", "2", "-o", str(tmp_path / "out")]
    assert main(words) == 0
    results = Results(file.with_suffix(".parquet"))
    assert set(results.table["cell"]) == {"grpo", "a2tgpo"} and not list((tmp_path / "out").rglob("*.yaml"))
    table = results.table
    metrics = set(table["metric"])
    of_training = {"by_turn/credit/mean_turn_1", "similarity/same_depth", "useful/auc/credit"}
    assert "held_out/useful/auc/gains" in metrics
    assert of_training <= metrics
    assert {"held_out/exact_match", "held_out/exact_match/hops 2", "useful/auc/gains", "loss", "num_tokens"} <= metrics
    assert [step for step, _ in results.curve(Run("grpo", 3), "held_out/exact_match")] == [0, 1, 2]
    table[table["cell"] == "grpo"].to_parquet(results.file)
    capfd.readouterr()
    assert main(words) == 0
    printed = capfd.readouterr().out
    assert "grpo/own/3:" not in printed.replace("a2tgpo/own/3:", "") and "a2tgpo/own/3:" in printed
    timed = table["metric"].str.contains("seconds|time|per_second")
    again = Results(results.file).table
    pd.testing.assert_frame_equal(again[~timed], table[~timed])
    text = file.with_suffix(".md").read_text()
    assert "| grpo | 1 |" in text and "## Made by" in text
    # Another study in the folder that asks for the same runs makes none of them.
    (tmp_path / "second.yaml").write_text(yaml.safe_dump({**content, "against": "a2tgpo"}))
    assert main([*words[:1], str(tmp_path / "second.yaml"), *words[2:]]) == 0
    assert capfd.readouterr().out.count("results taken from another study in the same folder") == 2
    pd.testing.assert_frame_equal(Results(tmp_path / "second.parquet").table, again)
    # Other settings are other runs; a run that fails says where its log is and does not affect the others.
    file.write_text(yaml.safe_dump({**content, "settings": {**small, "learning_rate": -1.0}}))
    assert main(words) == 1
    assert "grpo/own/3 failed" in capfd.readouterr().err
    pd.testing.assert_frame_equal(Results(results.file).table, again)


@pytest.mark.slow
def test_terminated_study_ends_its_runs(tmp_path):
    (tmp_path / "own.yaml").write_text("base: quickstart\n")
    small = {"max_steps": 1000, "eval_rows": 6, "task_kwargs": {"train_questions": 8, "test_questions": 6}}
    file = write(tmp_path, {**CONTENT, "recipe": "own.yaml", "settings": small, "seeds": [3], "every": 1000})
    words = [sys.executable, "-m", "a2tgpo_trl", "study", str(file), "--jobs", "2", "-o", str(tmp_path / "out")]
    study = subprocess.Popen(words)
    while len(logs := list((tmp_path / "out").rglob("log.txt"))) < 2 or not all(map(os.path.getsize, logs)):
        assert study.poll() is None
        time.sleep(0.5)
    runs = psutil.Process(study.pid).children(recursive=True)
    assert len(runs) >= 2
    study.terminate()
    assert study.wait(timeout=120) == 128 + signal.SIGTERM
    assert not any(map(psutil.Process.is_running, runs))
    assert not file.with_suffix(".parquet").exists()
