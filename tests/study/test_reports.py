"""The studies whose results come with the project: their reports contain what the results say, and nothing else."""

import itertools
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


def test_every_report_belongs_to_a_study_with_results():
    assert STUDIES
    assert {file.stem for file in FOLDER.glob("*.md")} - {"README"} == {file.stem for file in STUDIES}


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_report_equals_what_its_results_generate(file):
    study = read_study(file)
    assert study.report.read_text() == report(study, Results(study.results)) + "\n"
    assert study.picture.exists() and study.figures.exists()


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_result_names_its_run_and_environment(file):
    study = read_study(file)
    results = Results(study.results)
    table = results.table
    assert set(table["cell"]) <= set(study.cells) and table["value"].notna().all()
    made = pd.DataFrame([json.loads(one) for one in table["made"].unique()])
    assert {"version", "commit", "torch", "trl", "machine", "date"} <= set(made)
    for cell, runs in runs_by_cell(study, results).items():
        assert all(run.seed in study.seeds for run in runs), cell


MEASURED = re.compile(r"-?\b\d+\.\d{3}\b")  # reports have three digits


def cells_of(row: str) -> list[str]:
    return [part.strip() for part in row.strip().removeprefix("|").removesuffix("|").split("|")]


def main_table(study: str) -> dict[str, dict[str, str]]:
    """The main table of a study's report: by cell, the entry under each heading."""
    lines = (FOLDER / f"{study}.md").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("| cell | seeds |"))
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[first + 2 :])
    head = cells_of(lines[first])
    return {cells_of(row)[0]: dict(zip(head, cells_of(row), strict=True)) for row in rows}


def test_the_table_of_the_readme_is_that_of_the_reports_column_by_column():
    section = (ROOT / "README.md").read_text().partition("## Does credit for turns help?")[2].partition("\n## ")[0]
    of_main, confirmed = main_table("main"), main_table("confirm")
    shown = [cells_of(line) for line in section.splitlines() if line.startswith("| `")]
    assert {"`grpo`", "`a2tgpo`"} <= {cell for cell, *_ in shown}
    for cell, *row in shown:
        found = of_main[cell.strip("`")]
        again = confirmed.get(cell.strip("`"), {"seeds": "16", "compared with": "", "area, less its": ""})
        assert row == [*(found[head] for head in ("area", "at the end", "area, less its")), again["area, less its"]]
        assert (found["seeds"], again["seeds"]) == ("8", "16")
        assert {found["compared with"], again["compared with"]} <= {"grpo", ""}


@pytest.mark.parametrize("place", ["README.md", "recipes/study/README.md"])
def test_numbers_in_readmes_occur_in_the_reports(place):
    text = (ROOT / place).read_text()
    if place == "README.md":
        text = text.partition("## Does credit for turns help?")[2].partition("\n## ")[0]
    reports = " ".join(file.read_text() for file in FOLDER.glob("*.md") if file.stem != "README")
    known = {number.lstrip("-") for number in MEASURED.findall(reports)}
    said = {number.lstrip("-") for number in MEASURED.findall(text)}
    assert len(said) > 5 and said - known - {"0.003", "0.004"} == set()  # these are the clip range
