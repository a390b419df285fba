"""The spread of gains, credit and clip ranges of a batch, and the tables and figures made from it."""

import json
import math
import re

import numpy as np
import pytest
import yaml

from a2tgpo_trl.study.averages import auc_over_runs, by_depth, first, last, over_runs
from a2tgpo_trl.study.figures import compared, draw_figures, mean_curve, numbers
from a2tgpo_trl.study.results import Results, measured
from a2tgpo_trl.study.spreads import calls, clip_scales, envelope, sums
from a2tgpo_trl.study.study import Run, read_study
from a2tgpo_trl.study.tables import cost_table, mechanism_tables


def rollout(scores=(), *, advantages=(0.5,), clip_scale=(1.0,), number_of_calls=(1,)):
    turns = [{"calls": [{}] * number} for number in number_of_calls]
    found = {"scores": [*scores, None], "advantages": advantages, "clip_scale": clip_scale, "turns": turns}
    return {**found, "tool_turns": len(scores)}


# ---- numbers of a batch


def test_advantage_envelope_is_smallest_mean_and_largest():
    found = dict(envelope([rollout(advantages=[1.0, -2.0]), rollout(advantages=[4.0])]))
    assert found == {"advantages/smallest": -2.0, "advantages/mean": 1.0, "advantages/largest": 4.0}


def test_rollouts_are_counted_by_their_calls():
    # Two calls, two in two turns, none, and ten, which counts as eight or more. Without tools there are no turns.
    numbers_of_calls = [[2, 0], [1, 1], [0], [10]]
    found = dict(calls([rollout(number_of_calls=numbers) for numbers in numbers_of_calls]))
    assert found == {f"calls/share_of_{k}": {0: 0.25, 2: 0.5, 8: 0.25}.get(k, 0.0) for k in range(9)}
    assert dict(calls([{"advantages": [1.0]}])) == {}


def test_clip_scales_are_those_of_tool_turns():
    # The answer turns' 9 is left out; the quartiles of 0.8, 1.0 and 1.2 are 0.9 and 1.1.
    found = dict(clip_scales([rollout([0, 0], clip_scale=[0.8, 1.0, 9.0]), rollout([0], clip_scale=[1.2, 9.0])]))
    assert found["clip_scale/quantile_25"] == pytest.approx(0.9)
    assert found["clip_scale/quantile_50"] == pytest.approx(1.0)
    assert found["clip_scale/quantile_75"] == pytest.approx(1.1)


def test_variance_of_score_sums_splits_into_terms_and_covariance():
    # z-scores 1, 1 and -1, -1: variance 1, covariance 1. Sums of two over the root of 2 are +-1.414.
    found = dict(sums([rollout([1.0, 1.0]), rollout([-1.0, -1.0])]))
    assert found["sums/variance_of_2"] == pytest.approx(2.0)
    assert found["sums/term_variance_of_2"] == pytest.approx(1.0) == found["sums/term_covariance_of_2"]
    # 1, -1 and -1, 1: what one turn gains the other loses, and sums are 0.
    found = dict(sums([rollout([1.0, -1.0]), rollout([-1.0, 1.0])]))
    assert found["sums/variance_of_2"] == pytest.approx(0.0) and found["sums/term_covariance_of_2"] == pytest.approx(
        -1
    )
    # Means that differ between depths are not covariance; a longer rollout counts with its last turns.
    rows = [[5.0, 1.0], [5.0, -1.0], [7.0, 5.0, 3.0]]
    found = dict(sums([rollout(row) for row in rows]))
    assert found["sums/number_of_2"] == 3 and "sums/number_of_3" not in found
    assert found["sums/term_variance_of_2"] == pytest.approx(np.var([1, -1, 3]) / 2)
    assert found["sums/term_covariance_of_2"] == pytest.approx(0.0)
    # In random scores, the first always equals the second plus n - 1 times the third.
    drawn = np.random.default_rng(0).normal(size=(50, 4))
    found = dict(sums([rollout(row.tolist()) for row in drawn]))
    for n in (2, 3, 4):
        parts = found[f"sums/term_variance_of_{n}"] + (n - 1) * found[f"sums/term_covariance_of_{n}"]
        assert found[f"sums/variance_of_{n}"] == pytest.approx(parts)
    # Turns without a score add no term.
    assert dict(sums([rollout([1.0, None]), rollout([-1.0])])) == {}


def test_records_are_averaged_up_to_the_next_evaluation(tmp_path):
    state = [{"step": step, "loss": 0.0} for step in (1, 2, 3)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": state}))
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "rollouts").mkdir()
    for when in ("before", "after"):
        (tmp_path / "evaluation" / f"{when}.json").write_text('{"everything": {}, "groups": {}}')
        (tmp_path / "evaluation" / f"{when}.jsonl").write_text("")
    record = '{"step": %d, "round": 1, "group": 0, "outcome_advantage": 0, "tool_turns": 0, "advantages": [%d]}\n'
    for step, advantage in ((1, 1), (2, 3), (3, 7)):
        (tmp_path / "rollouts" / f"step-{step}.jsonl").write_text(record % (step, advantage))
    found = {(step, metric): value for step, metric, value in measured(tmp_path, every=2)}
    # Steps 1 and 2 together, evaluated after 2; step 3 with the evaluation at the end.
    assert (found[2, "advantages/mean"], found[3, "advantages/mean"]) == (2.0, 7.0)


# ---- tables and figures


@pytest.fixture
def study(tmp_path):
    cells = {name: {"credit": name} for name in ("gtpo", "igpo", "a2tgpo")}
    content = {"recipe": "quickstart", "seeds": [0, 1, 2, 3, 4], "every": 10, "cells": cells}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return read_study(tmp_path / "study.yaml")


def enter(results, run, **metrics):
    """Enter measurements at steps 10 and 20."""
    rows = [
        (step, name, value) for name, values in metrics.items() for step, value in zip((10, 20), values, strict=True)
    ]
    results.put(run, "identity", rows)


@pytest.fixture
def results(study):
    found = Results(study.results)
    for seed in study.seeds:
        depths = {f"by_turn/scores/mean_turn_{k}": (mean, mean) for k, mean in ((1, 0.4), (2, -0.6), (3, 9.0))}
        turns = {f"by_turn/scores/number_turn_{k}": (n, n) for k, n in ((1, 32.0), (2, 16.0), (3, 2.0))}
        ranks = {"useful/auc/gains": (0.5, 0.7 + 0.02 * seed), "useful/auc/gains_turn_1": (0.6, 0.6)}
        parts = (("variance", 0.7), ("term_variance", 0.9), ("term_covariance", -0.2))
        of_two = {f"sums/{name}_of_2": (value, value) for name, value in parts}
        clips = {"clip_fraction/mean": (0.3, 0.1), "clip_scale/quantile_50": (1.0, 1.0)}
        numbers_of_sums = {"sums/number_of_2": (40.0, 40.0), "sums/number_of_3": (3.0, 3.0)}
        deviations = {f"by_turn/scores/std_turn_{k}": (0.4, 0.6) for k in (2, 3)}
        # Of 10 first searches half are useless, then a tenth: 25 pairs, then 9.
        searches = {"useful/share_turn_1": (0.5, 0.9), "by_turn/gains/number_turn_1": (10.0, 10.0)}
        of_scores = {**depths, **turns, **of_two, **numbers_of_sums, **deviations, "calls/share_of_0": (0.1, 1.0)}
        enter(found, Run("a2tgpo", seed), **of_scores, **ranks, **searches, **clips)
        enter(found, Run("igpo", seed), entropy=(0.3, 0.1 + 0.01 * seed))
    return found


@pytest.fixture
def runs(study):
    return {cell: [Run(cell, seed) for seed in study.seeds] for cell in ("igpo", "a2tgpo")}


def test_a_cell_is_the_mean_over_seeds_of_a_point_of_each_runs_curve(results, runs):
    # 0.7 to 0.78 at the end, 0.74 on average; over both measurements (0.5 + 0.74) / 2. A batch with many pairs counts
    # more: (25 x 0.5 + 9 x 0.74) / 34.
    assert over_runs(results, runs["a2tgpo"], "useful/auc/gains", last).mean == pytest.approx(0.74)
    assert over_runs(results, runs["a2tgpo"], "useful/auc/gains", first).mean == pytest.approx(0.5)
    assert over_runs(results, runs["a2tgpo"], "useful/auc/gains").mean == pytest.approx(0.62)
    assert auc_over_runs(results, runs["a2tgpo"], "gains").mean == pytest.approx((25 * 0.5 + 9 * 0.74) / 34)
    assert auc_over_runs(results, runs["a2tgpo"], "gains", "_turn_1").mean == pytest.approx(0.6)
    assert auc_over_runs(results, runs["igpo"], "gains") is None
    assert over_runs(results, runs["igpo"], "useful/auc/gains") is None


def test_mechanism_tables_show_only_what_was_measured(results, runs):
    text = "\n".join(mechanism_tables(results, runs))
    assert "| a2tgpo | 0.564 (0.553 to 0.574) | 0.500 (0.500 to 0.500) | 0.740 (0.701 to 0.779) |  |  |  |  |" in text
    assert "| a2tgpo | 0.600 (0.600 to 0.600) |" in text and "| cell | turn 1 |" in text
    # Sums of three terms are too few to have a variance.
    assert "| a2tgpo | 2 | 0.700 (0.700 to 0.700) | 0.900 (" in text and "| -0.200 (-0.200 to -0.200) | 40 |" in text
    assert "| a2tgpo | 3" not in text
    assert "which are older" not in text
    of_older = {"by_turn/scores/number_turn_2": (16.0, 16.0)}
    for seed in range(5):
        enter(results, Run("igpo", seed), **of_older)
    assert "Not measured in the runs of igpo, which are older." in "\n".join(mechanism_tables(results, runs))
    for seed in range(5):
        enter(results, Run("igpo", seed), entropy=(0.3, 0.1))
    # Deviations, but not at the third depth, which few rollouts reach.
    assert "| cell | turn 2 |\n" in text and "| a2tgpo | 0.500 (0.500 to 0.500) |\n" in text
    assert "| 0.200 (0.200 to 0.200) | 0.300 (0.300 to 0.300) | 0.100 (0.100 to 0.100) |" in text
    assert "| igpo |" not in text
    assert mechanism_tables(results, {"igpo": runs["igpo"]}) == []


def test_credit_that_only_some_batches_have_is_left_out(study):
    results, cells = Results(study.results), {"igpo": 1.0, "a2tgpo": math.nan}
    for cell, once_more in cells.items():
        for seed in study.seeds:
            searches = {"useful/share_turn_1": (0.5, 0.5), "useful/auc/credit_turn_1": (0.7, 0.8 * once_more)}
            searches |= {"useful/auc/gains": (0.6, 0.6), "by_turn/gains/number_turn_1": (8.0, 8.0)}
            searches |= {"useful/auc/credit": (0.7, 0.8 * once_more)}
            searches |= {"by_turn/credit/number_turn_1": (8.0, 8.0 * once_more), "calls/share_of_0": (0.0, 0.0)}
            searches |= {"by_turn/credit/mean_turn_1": (0.1, 0.3)}
            rows = [(step, name, value[i]) for name, value in searches.items() for i, step in enumerate((10, 20))]
            results.put(Run(cell, seed), "identity", [row for row in rows if not math.isnan(row[2])])
    text = "\n".join(mechanism_tables(results, {cell: [Run(cell, seed) for seed in study.seeds] for cell in cells}))
    assert text.count("0.750 (0.750 to 0.750)") == 2  # of igpo, in both tables
    assert "## Credit by turn" in text and "| igpo | 0.200 (0.200 to 0.200) |" in text
    assert "| a2tgpo | 0.600 (0.600 to 0.600) | 0.600 (0.600 to 0.600) | 0.600 (0.600 to 0.600) |  |  |  |  |" in text
    assert text.count("| a2tgpo |") == 1


def test_chances_of_turns_that_a_seed_lacks_and_numbers_that_are_the_same_for_all_turns_are_left_out(study):
    results = Results(study.results)
    for seed in study.seeds:
        searches = {"useful/share_turn_1": 0.5, "useful/share_turn_2": 0.5, "calls/share_of_0": 0.0}
        for name, chance in (("credit", 0.5), ("advantages", 0.8)):
            searches |= {f"by_turn/{name}/number_turn_{k}": 8.0 for k in (1, 2)}
            searches |= {f"useful/auc/{name}": chance, f"useful/auc/{name}_turn_1": chance}
        if seed:
            searches["useful/auc/advantages_turn_2"] = 1.0
        for cell in ("gtpo", "igpo"):
            results.put(Run(cell, seed), "identity", [(10, name, value) for name, value in searches.items()])
    results.put(Run("igpo", 0), "identity", [(10, name, 0.9 if "auc" in name else v) for name, v in searches.items()])
    lines = mechanism_tables(results, {cell: [Run(cell, seed) for seed in study.seeds] for cell in ("gtpo", "igpo")})
    # GTPO's advantage tells searches apart by their outcome; its credit is 0 for all turns.
    always = "0.800 (0.800 to 0.800)"
    assert f"| gtpo |  |  |  |  | 0.500 (0.500 to 0.500) | {always} |  |" in lines
    assert "| cell | turn 1 | turn 2 |" in lines and f"| gtpo | {always} |  |" in lines
    of_credit = lines[lines.index("## The same for credit, by turn and by hops") :]
    assert not any(
        line.startswith("| gtpo |")
        for line in of_credit[: of_credit.index("## The same for advantages, by turn and by hops")]
    )


def test_what_was_not_measured_at_the_end_has_no_value_there(results, runs):
    results.put(Run("igpo", 0), "identity", [(10, "entropy", 0.9), (20, "loss", 0.0)])
    assert over_runs(results, runs["igpo"], "entropy", last).number == 4


def test_cost_table_needs_runs_made_one_at_a_time(study):
    results = Results(study.results)
    cells = {"igpo": (2.0, 0.5), "a2tgpo": (3.0, 0.75)}
    for cell, (seconds, of_gain) in cells.items():
        for seed in study.seeds:
            metrics = {"step_time": seconds + 0.1 * seed, "rollouts/sampling_seconds": 1.0, "gain/seconds": of_gain}
            enter(results, Run(cell, seed), **{name: (value, value) for name, value in metrics.items()})
    runs = {cell: [Run(cell, seed) for seed in study.seeds] for cell in cells}
    text = "\n".join(cost_table({"a2tgpo": "igpo"}.get, results, runs))
    # igpo: 2.2 s on average; sampling is 1 / 2.2 = 45 % of it, the gain 23 %, and the rest 0.7 s, 32 %.
    assert "| igpo | 2.200 (2.004 to 2.396) |  | 45% | 0% | 23% | 32% |" in text
    assert re.search(r"\| a2tgpo \| 3.200 \(3.004 to 3.396\) \| 1.456 \(.*\) \(of igpo\) \|", text)
    results.put(Run("gtpo", 0), "identity", [(1, "step_time", 1.0)], jobs=2)
    assert cost_table({"a2tgpo": "igpo"}.get, results, runs) == []


def test_depths_with_few_rollouts_are_left_out(results):
    assert by_depth(results, Run("a2tgpo", 0), "scores", "mean") == pytest.approx({1: 0.4, 2: -0.6})


def test_the_papers_numbers_stand_beside_ours(results, runs):
    text = "\n".join(numbers(results, runs))
    assert "| figure |  | in the paper | igpo | a2tgpo |" in text
    assert "normalised | IGPO 1.54, A2TGPO 0.00 |  | 1.000 (1.000 to 1.000) |" in text  # from -0.6 to 0.4
    assert "| 3 | entropy, last stretch | GRPO's collapses, A2TGPO's does not | 0.120 (0.100 to 0.140) |  |" in text
    assert numbers(results, {"gtpo": []}) == []
    assert mean_curve(results, runs["igpo"], "entropy") == ([10, 20], pytest.approx([0.3, 0.12]))


def test_figures_are_drawn_from_any_subset_of_cells(results, runs, tmp_path):
    for number, cells in enumerate((runs, {"igpo": runs["igpo"]}, {"a2tgpo": runs["a2tgpo"][:1]})):
        draw_figures(results, cells, "exact_match", tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")
    names = {"gtpo": [], "gspo": [], "atpo": [], "hybrid": []}
    assert list(compared(names)) == ["gtpo", "gspo", "atpo"]
    assert list(compared({**names, "a2tgpo": []})) == ["a2tgpo"]
