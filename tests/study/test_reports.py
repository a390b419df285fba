"""The studies whose results come with the project: their reports hold what the results say, and nothing else."""

import json

import pandas as pd
import pytest
from places import ROOT

from a2tgpo_trl.study.report import report, runs_by_cell
from a2tgpo_trl.study.results import Results
from a2tgpo_trl.study.study import read_study


FOLDER = ROOT / "recipes" / "study"
STUDIES = sorted(file.with_suffix(".yaml") for file in FOLDER.glob("*.parquet"))


def test_there_are_results_and_every_report_has_them():
    assert STUDIES
    assert {file.stem for file in FOLDER.glob("*.md")} - {"README"} == {file.stem for file in STUDIES}


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_a_report_is_what_its_results_say_to_the_letter(file):
    study = read_study(file)
    assert study.report.read_text() == report(study, Results(study.results)) + "\n"
    assert study.picture.exists() and study.figures.exists()


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_result_says_of_which_run_it_is_and_by_what_it_was_made(file):
    study = read_study(file)
    results = Results(study.results)
    table = results.table
    assert set(table["cell"]) <= set(study.cells) and table["value"].notna().all()
    made = pd.DataFrame([json.loads(one) for one in table["made"].unique()])
    assert {"version", "commit", "torch", "trl", "machine", "date"} <= set(made)
    for cell, runs in runs_by_cell(study, results).items():
        assert all(run.seed in study.seeds for run in runs), cell
