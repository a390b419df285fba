"""The paper's table: copied as printed, and filled from evaluation scores beside the paper's figures."""

import json
import shutil
from pathlib import Path

import pytest
from places import ROOT

from a2tgpo_trl.cli import main as cli
from a2tgpo_trl.report.paper_table import COLUMNS, HERE, SetScore, cell_of, fill, read_scores, tables
from a2tgpo_trl.tasks.qa.sets import SETS


README = ROOT / "recipes" / "qa" / "README.md"
HEADS = list(COLUMNS)
OURS = ["A2TGPO as written", "ATPO", "GTPO"]
RUN = ["A2TGPO", "DAPO", "GRPO", "GSPO", "GiGPO", "IGPO", "ReAct"]


def rows(file: Path = README) -> dict[tuple[str, str, str], dict[str, str]]:
    """(model, method, "paper" or "here") -> column -> cell."""
    found = {}
    for model, lines in tables(file, file.read_text().splitlines()).items():
        head, _, *below = lines.values()
        for method, kind, *cells in below:
            found[model, method, kind] = dict(zip(head[2:], cells, strict=True))
    return found


def scores(folder: Path, name: str, **means: float | tuple[float, int]) -> Path:
    """Write an evaluation's scores: exact match over this many questions, or all, with an interval of 0.02."""
    groups = {}
    for one, mean in means.items():
        name_of_set = {"twowiki": "2wikimultihopqa"}.get(one, one)
        value, number = mean if isinstance(mean, tuple) else (mean, SETS[name_of_set].sizes[SETS[name_of_set].test])
        estimate = {"mean": value, "low": value - 0.01, "high": value + 0.01, "number": number}
        groups[f"set {name_of_set}"] = {"exact_match": estimate, "f1": {**estimate, "mean": 0.9}}
    file = folder / name
    file.write_text(json.dumps({"everything": {}, "groups": groups}))
    return file


@pytest.fixture
def readme(tmp_path) -> Path:
    return Path(shutil.copy(README, tmp_path / "README.md"))


# ---- as it is printed


def test_the_table_has_the_papers_rows_and_one_for_each_run_of_ours():
    found = rows()
    for model in ("Qwen3-4B", "Qwen3-8B", "Qwen2.5-7B"):
        more = ["AEPO", "Tree-GRPO"] if model == "Qwen2.5-7B" else ["AEPO"]
        assert sorted(method for one, method, kind in found if (one, kind) == (model, "paper")) == sorted(RUN + more)
        assert sorted(method for one, method, kind in found if (one, kind) == (model, HERE)) == sorted(RUN + OURS)
    assert all(set(cells) == {*COLUMNS} for cells in found.values())


def test_paper_averages_follow_from_their_cells_except_three():
    different = {}
    for (model, method, kind), cells in rows().items():
        for average in ("multi-hop", "single-hop") if kind == "paper" else ():
            of_sets = {COLUMNS[head][0]: float(cell) for head, cell in cells.items() if "-hop" not in head}
            numbers = {name: SETS[name].sizes[SETS[name].test] for name in COLUMNS[average]}
            weighted = sum(numbers[name] * of_sets[name] for name in numbers) / sum(numbers.values())
            if abs(weighted - float(cells[average])) > 0.02:  # cells are rounded, and so is their average
                different[model, method, average] = f"{weighted:.2f}"
    assert different == {
        ("Qwen3-4B", "A2TGPO", "multi-hop"): "47.89",
        ("Qwen3-8B", "A2TGPO", "single-hop"): "57.47",
        ("Qwen2.5-7B", "A2TGPO", "single-hop"): "56.20",
    }
    assert all(figure in README.read_text().split("<!-- results -->")[0] for figure in different.values())


# ---- filled


def test_a_row_is_filled_from_two_evaluations_and_all_else_stays(readme, tmp_path, capsys):
    multi = scores(tmp_path, "m.json", hotpotqa=0.5, twowiki=0.4, musique=0.2, bamboogle=0.6)
    single = scores(tmp_path, "s.json", nq=0.5, triviaqa=0.7, popqa=0.5)
    before = readme.read_text()
    assert cli(["table", str(readme), "Qwen3-8B", "DAPO", str(multi), str(single)]) == 0
    row = rows(readme)["Qwen3-8B", "DAPO", HERE]
    # (7,405 x 0.5 + 12,576 x 0.4 + 2,417 x 0.2 + 125 x 0.6) / 22,523 = 0.41252
    # sqrt(7,405^2 + 12,576^2 + 2,417^2 + 125^2) / 22,523 x 1 % = 0.66 %
    assert (row["HotpotQA"], row["Bamboogle"], row["multi-hop"]) == ("50.00 ± 1.00", "60.00 ± 1.00", "41.25 ± 0.66")
    # (3,610 x 0.5 + 11,313 x 0.7 + 14,267 x 0.5) / 29,190 = 0.57751
    assert (row["TriviaQA"], row["single-hop"]) == ("70.00 ± 1.00", "57.75 ± 0.64")
    changed = [
        pair for pair in zip(before.splitlines(), readme.read_text().splitlines(), strict=True) if len({*pair}) > 1
    ]
    assert len(changed) == 1 and changed[0][1] == capsys.readouterr().out.strip()


def test_sets_not_evaluated_stay_empty_and_partial_ones_give_their_size(readme, tmp_path):
    fill(readme, "Qwen3-4B", "ReAct", [scores(tmp_path, "a.json", nq=(0.25, 500), triviaqa=0.5)])
    row = rows(readme)["Qwen3-4B", "ReAct", HERE]
    assert (row["NQ"], row["TriviaQA"]) == ("25.00 ± 1.00 (500)", "50.00 ± 1.00")
    assert {cell for head, cell in row.items() if head not in ("NQ", "TriviaQA")} == {""}


def test_a_later_evaluation_takes_the_place_of_an_earlier_one(readme, tmp_path):
    for mean in (0.25, 0.75):
        fill(readme, "Qwen3-4B", "GTPO", [scores(tmp_path, "a.json", nq=mean)])
    assert rows(readme)["Qwen3-4B", "GTPO", HERE]["NQ"] == "75.00 ± 1.00"


def test_average_over_part_of_the_questions_gives_their_number():
    found = {"nq": SetScore(0.5, 0.01, 100), "triviaqa": SetScore(0.7, 0.01, 100), "popqa": SetScore(0.6, 0.01, 200)}
    # (50 + 70 + 120) / 400; sqrt(1 + 1 + 4) / 400 = 0.0061
    assert cell_of(found, COLUMNS["single-hop"]) == "60.00 ± 0.61 (400)"


# ---- what is wrong


@pytest.mark.parametrize(
    ("model", "method", "said"),
    [
        (
            "Qwen3-4",
            "DAPO",
            "has no table of 'Qwen3-4'. Did you mean 'Qwen3-4B'? It has Qwen3-4B, Qwen3-8B, Qwen2.5-7B.",
        ),
        ("Qwen3-4B", "DAPPO", "Qwen3-4B has no row 'DAPPO' that says 'here'. Did you mean 'DAPO'?"),
        ("Qwen3-4B", "AEPO", "no row 'AEPO' that says 'here'"),
    ],
)
def test_unknown_model_or_row_is_an_error_that_names_the_known_ones(model, method, said, readme, tmp_path, capsys):
    before = readme.read_text()
    assert cli(["table", str(readme), model, method, str(scores(tmp_path, "a.json", nq=0.5))]) == 2
    assert said in capsys.readouterr().err and readme.read_text() == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "a.json is not the scores.json of an evaluation"),
        ('{"rollouts": 3}', "(KeyError: 'groups')"),
        ('{"groups": {"set nq": {"f1": {}}}}', "(KeyError: 'exact_match')"),
        ('{"groups": {"set nq": {"exact_match": {"mean": "high", "high": 1, "low": 1, "number": 3}}}}', "ValueError"),
        ("[]", "TypeError"),
        ('{"groups": {"hops 2": {}}}', "has scores on none of hotpotqa, 2wikimultihopqa"),
    ],
)
def test_file_without_set_scores_is_an_error(text, said, readme, tmp_path, capsys):
    (tmp_path / "a.json").write_text(text)
    assert cli(["table", str(readme), "Qwen3-4B", "DAPO", str(tmp_path / "a.json")]) == 2
    assert said in capsys.readouterr().err


def test_set_in_two_files_is_an_error(tmp_path):
    files = [scores(tmp_path, name, nq=0.5) for name in ("a.json", "b.json")]
    with pytest.raises(ValueError, match="b.json and .*a.json both have scores on nq. Name only one of them."):
        read_scores(files)


def test_missing_table_or_unknown_column_is_an_error(readme, tmp_path):
    file = scores(tmp_path, "a.json", nq=0.5)
    text = readme.read_text()
    readme.write_text(text.replace("| Bamboogle |", "| Bambogle |", 1))
    with pytest.raises(ValueError, match=r"line \d+: there is no column 'Bambogle'. Did you mean 'Bamboogle'"):
        fill(readme, "Qwen3-4B", "DAPO", [file])
    readme.write_text(text.replace("<!-- end of results -->", ""))
    with pytest.raises(ValueError, match="must have the lines <!-- results --> and <!-- end of results --> once each"):
        fill(readme, "Qwen3-4B", "DAPO", [file])
