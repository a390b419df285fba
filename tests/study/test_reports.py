"""The studies whose results come with the project: their reports hold what the results say, and nothing else."""

import json
import re

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


TABLE = re.compile(r"^\| `(\w+)` \| (.+) \|$", re.MULTILINE)
NUMBER = re.compile(r"-?\d+\.\d+")


def test_the_numbers_of_the_readme_are_those_of_the_report():
    readme = (ROOT / "README.md").read_text()
    section = readme.partition("## Does credit for turns help?")[2].partition("\n## ")[0]
    rows = {found[1]: found[2] for found in TABLE.finditer(section)}
    assert {"grpo", "a2tgpo"} <= set(rows)
    report_rows = (FOLDER / "main.md").read_text().splitlines()
    for cell, row in rows.items():
        (of_report,) = [line for line in report_rows if line.startswith(f"| {cell} | ") and line.count("|") == 9]
        for part in row.split(" | "):
            assert part in of_report, (cell, part)
    # And what the sentences say, somewhere in the report.
    for number in NUMBER.findall(section.partition("|---")[2].rpartition("|\n")[2]):
        assert number in "\n".join(report_rows), number
