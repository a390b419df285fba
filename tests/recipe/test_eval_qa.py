"""The recipe of the paper's evaluation: seven sets from files, a search server, scores by set, by kind and by call."""

import json
import subprocess
import sys
from urllib.request import urlopen

import pytest
import yaml
from qa_files import RIVERS, row, write_rows

from a2tgpo_trl.cli import main
from a2tgpo_trl.evaluation import evaluate_recipe
from a2tgpo_trl.recipe.recipe import read_recipe
from a2tgpo_trl.recipe.recipe_file import find_recipe
from a2tgpo_trl.rollout.records import read_jsonl
from a2tgpo_trl.tasks.qa.sets import SETS


QUESTIONS = 2  # of each set


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with test questions only, and a corpus."""
    folder = tmp_path_factory.mktemp("qa")
    for name, qa_set in SETS.items():
        write_rows(folder / name / f"{qa_set.test}.jsonl", [row(name, qa_set.test, i) for i in range(QUESTIONS)])
    bridges = [{"title": f"{river} Bridge", "text": f"Built by Mason {i}."} for i, river in enumerate(RIVERS)]
    write_rows(folder / "corpus.jsonl", bridges)
    return folder


def words(folder, output, search) -> list[str]:
    """The recipe's own keys, except for what a machine without a GPU and a policy without thoughts need."""
    kwargs = yaml.safe_load(find_recipe("eval_qa").read_text())["task_kwargs"]
    kwargs |= {"folder": str(folder), "prompts": "plain", "search": search}
    return [
        *("--task_kwargs", json.dumps(kwargs)),
        *("--use_vllm", "false", "--bf16", "false", "--vllm_max_model_length", "2048"),
        *("--per_device_eval_batch_size", "16", "--max_completion_length", "48"),
        *("--report_to", "none", "--output_dir", str(output)),
    ]


def test_eval_qa_scores_sets_and_kinds_and_refuses_to_train(world, tmp_path):
    from a2tgpo_trl.search.retriever import bm25_retriever

    bm25_retriever(world / "corpus.jsonl")
    given = ["--config", "eval_qa", "--model_name_or_path", "atlas-tiny"]
    given += words(world, tmp_path, str(world / "corpus.jsonl.bm25"))
    scores = evaluate_recipe(read_recipe(given))
    # Four sets are multi-hop and three single-hop.
    kinds = {"multi-hop": 4, "single-hop": 3, "all sets": 7}
    assert set(scores.groups) == {f"set {name}" for name in SETS}
    assert {name: one["f1"].number for name, one in scores.averages.items()} == {
        kind: sets * QUESTIONS for kind, sets in kinds.items()
    }
    assert list(scores.plain) == [f"{kind}, each set alike" for kind in kinds]
    for row_of_table in (scores.everything, *scores.lines.values()):
        assert {"exact_match", "f1", "tool turns", "tool calls"} <= row_of_table.keys()
    lines = (tmp_path / "evaluation" / "policy" / "scores.md").read_text().splitlines()
    assert len(lines) == 6 + 1 + 7 + 3 + 3
    with pytest.raises(ValueError, match="there is nothing to train on"):
        read_recipe(given).build_trainer()


@pytest.mark.parametrize("option", ["--model", "--model_name_or_path"])
def test_model_is_a_short_option_for_model_name_or_path(option, monkeypatch):
    started = []
    monkeypatch.setattr("os.execve", lambda program, words, environment: started.append(words))
    main(["eval", "quickstart", "--seed", "1", option, "mine", "--eval_rows", "2"])
    (asked,) = started
    assert asked[-6:] == ["--seed", "1", "--eval_rows", "2", "--model_name_or_path", "mine"]


@pytest.mark.slow
def test_the_command_asks_a_server_and_takes_the_policy_by_a_short_name(world, tmp_path):
    server = [sys.executable, "-m", "a2tgpo_trl", "serve-search", "--corpus", str(world / "corpus.jsonl")]
    with subprocess.Popen([*server, "--port", "0"], stdout=subprocess.PIPE, text=True) as served:
        try:
            url = served.stdout.readline().split()[0]
            given = ["eval", "eval_qa", "--model", "atlas-tiny", *words(world, tmp_path, url)]
            done = subprocess.run([sys.executable, "-m", "a2tgpo_trl", *given], capture_output=True, text=True)
            metrics = urlopen(url.replace("/retrieve", "/metrics")).read().decode()
        finally:
            served.terminate()
    assert done.returncode == 0, done.stderr
    assert "all sets, each set alike" in done.stdout
    assert 'requests_total{code="200"}' in metrics  # at least the check that it is there: this policy hardly calls
    records = read_jsonl(tmp_path / "evaluation" / "policy" / "rollouts.jsonl")
    assert len(records) == 7 * QUESTIONS and all(record["completion"] for record in records)
