"""The quickstart's learning curve, compared with the one that its study reports: `pytest -m study`, ten minutes."""

import math

import numpy as np
import pytest
import yaml
from places import ROOT

from a2tgpo_trl.cli import main
from a2tgpo_trl.study.comparison import outcome
from a2tgpo_trl.study.results import Results
from a2tgpo_trl.study.study import Run, read_study


QUICKSTART = ROOT / "recipes" / "study" / "quickstart.yaml"
CELL = "a2tgpo"
SEEDS = [0, 1, 2, 3]  # among those reported: on the machine of the report, the very same runs
# 99.95 % quantile of Student's t with 7 degrees of freedom: a sound package leaves the band once in a thousand times.
T_OF_EIGHT_SEEDS = 5.408


def band(reported: list[float], number: int) -> tuple[float, float]:
    """Where the mean of `number` new runs lies in 999 of 1,000 cases, if they are like the eight reported runs."""
    assert len(reported) == 8
    half = T_OF_EIGHT_SEEDS * np.std(reported, ddof=1) * math.sqrt(1 / len(reported) + 1 / number)
    return float(np.mean(reported) - half), float(np.mean(reported) + half)


def test_the_band_is_as_wide_as_eight_seeds_make_it():
    # Deviation 0.1069; 5.408 x 0.1069 x sqrt(1/8 + 1/4) = 0.3540
    low, high = band([0.4, 0.6] * 4, 4)
    assert (low, high) == (pytest.approx(0.5 - 0.3540, abs=1e-3), pytest.approx(0.5 + 0.3540, abs=1e-3))


def test_a_policy_that_does_not_learn_is_out_of_the_band():
    """Otherwise the guard could not fail: the start of the runs, compared with their end."""
    results, study = Results(QUICKSTART.with_suffix(".parquet")), read_study(QUICKSTART)
    curves = [results.curve(Run(CELL, seed), "held_out/exact_match") for seed in study.seeds]
    untrained = np.mean([curve[0][1] for curve in curves])
    for reported in (
        [outcome(study, results, Run(CELL, seed)).area for seed in study.seeds],
        [c[-1][1] for c in curves],
    ):
        assert untrained < band(reported, len(SEEDS))[0]


@pytest.mark.study
def test_the_quickstart_learns_as_its_study_reports(tmp_path):
    content = yaml.safe_load(QUICKSTART.read_text())
    recipe, cells = str(read_study(QUICKSTART).recipe), {CELL: content["cells"][CELL]}
    content = {**content, "recipe": recipe, "seeds": SEEDS, "cells": cells, "against": CELL}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(content))
    assert main(["study", str(tmp_path / "again.yaml"), "--jobs", "2", "-o", str(tmp_path / "out")]) == 0
    again, before = (
        {seed: outcome(study, Results(study.results), Run(CELL, seed)) for seed in study.seeds}
        for study in (read_study(tmp_path / "again.yaml"), read_study(QUICKSTART))
    )
    for what in ("area", "end"):
        low, high = band([getattr(one, what) for one in before.values()], len(SEEDS))
        found = float(np.mean([getattr(one, what) for one in again.values()]))
        assert low <= found <= high, f"{what}: {found:.3f}, where the study has {low:.3f} to {high:.3f}"
