"""The task: rows of the named sets, prompts and probe of a family, a training step, an evaluation."""

import json

import pytest
from qa_files import ROWS, write_rows, write_sets

from a2tgpo_trl.cli import main as cli
from a2tgpo_trl.recipe.recipe import read_recipe
from a2tgpo_trl.tasks.qa.prompts import read_prompts
from a2tgpo_trl.tasks.qa.task import qa


TOOL = """
from qa_files import PASSAGES
from a2tgpo_trl.tools.search import search_tool

search = search_tool(PASSAGES)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("qa"))


def words(folder, tmp_path, *more: str, **kwargs) -> list[str]:
    (tmp_path / "tool.py").write_text(TOOL)
    recipe = tmp_path / "recipe.yaml"
    given = {"folder": str(folder), "prompts": "plain", **kwargs}
    recipe.write_text(
        f"model_name_or_path: atlas-tiny\ntask: qa\ntask_kwargs: {json.dumps(given)}\ntools: ['tool.py:search']\n"
        f"bf16: false\noutput_dir: {tmp_path / 'out'}\nreport_to: none\nnum_generations: 2\n"
        "per_device_train_batch_size: 4\nmax_steps: 1\nmax_completion_length: 48\nnum_generations_eval: 1\n"
        "per_device_eval_batch_size: 8\nsave_strategy: 'no'\n"
    )
    return ["--config", str(recipe), *more]


def test_named_sets_are_tested_on_and_hotpotqa_is_trained_on_by_default(folder):
    task = qa(folder=folder)
    assert task.train_dataset["set"][:] == ["hotpotqa"] * ROWS
    assert list(dict.fromkeys(task.test_dataset["set"])) == ["hotpotqa", "2wikimultihopqa", "musique", "bamboogle"]
    row = task.test_dataset[3]
    assert row["answer"] == ["Hamlet 3", "the hamlet 3"] and row["titles"] == ["Dyle Bridge", "Mason 3"]
    assert row["prompt"] == read_prompts("qwen3").ask("Where was the builder of Dyle Bridge born, hotpotqa dev?")
    assert task.group_by == "set" and task.reward_weights == [0.0, 1.0, 0.0]
    assert set(qa(sets="nq", train=["nq", "triviaqa"], folder=folder).train_dataset["set"]) == {"nq", "triviaqa"}


def test_averages_cover_each_kind_and_all_sets(folder):
    assert qa(sets=["popqa", "musique", "nq"], folder=folder).averages == {
        "multi-hop": {"set": ["musique"]},
        "single-hop": {"set": ["popqa", "nq"]},
        "all sets": {},
    }
    assert qa(sets="nq", folder=folder).averages == {"single-hop": {"set": ["nq"]}}


def test_search_is_a_server_url_or_an_index_folder(folder, tmp_path):
    passages = [{"id": str(i), "title": "Dyle Bridge", "text": f"It was built by Mason {i}."} for i in range(3)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(passage) + "\n" for passage in passages))
    assert cli(["serve-search", "--corpus", str(tmp_path / "corpus.jsonl"), "--build"]) == 0
    for search in (str(tmp_path / "corpus.jsonl.bm25"), {"index": str(tmp_path / "corpus.jsonl.bm25"), "top_k": 1}):
        (tool,) = qa(folder=folder, search=search).tools
        assert "built by Mason 0" in tool("Dyle Bridge")
    (tool,) = qa(folder=folder, search="http://127.0.0.1:1").tools
    with pytest.raises(ConnectionError, match="does not answer"):
        tool("Dyle Bridge")
    assert not qa(folder=folder).tools
    with pytest.raises(ValueError, match="topk must be a whole number from 1 to 3"):
        qa(folder=folder, search={"index": str(tmp_path / "corpus.jsonl.bm25"), "top_k": 4})


def test_a_limit_holds_for_each_set_and_draws_by_the_seed(folder):
    task = qa(sets="multi-hop", folder=folder, limit={"train": 5, "test": 2})
    assert len(task.train_dataset) == 5 and len(task.test_dataset) == 4 * 2
    assert len(qa(folder=folder, limit=3).train_dataset) == 3
    drawn = {tuple(qa(sets="nq", folder=folder, limit=4, seed=seed).test_dataset["id"][:]) for seed in (0, 0, 1)}
    assert len(drawn) == 2
    for limit in (0, True, {"dev": 3}):
        with pytest.raises(ValueError, match="limit must be a whole number of at least 1"):
            qa(folder=folder, limit=limit)


def test_a_training_question_that_is_tested_on_is_left_out(tmp_path, caplog):
    rows = [{"id": str(i), "question": f"Question {i}?", "golden_answers": ["Ada"]} for i in range(4)]
    write_rows(tmp_path / "nq" / "train.jsonl", rows)
    write_rows(tmp_path / "nq" / "test.jsonl", rows[:1])
    assert qa(sets="nq", folder=tmp_path).train_dataset["id"][:] == ["1", "2", "3"]
    assert "1 of 4 training questions are also test questions" in caplog.text
    with pytest.raises(ValueError, match="leakage: leave_out"):
        qa(sets="nq", folder=tmp_path, leakage="refuse")


def test_prompts_set_the_probe_unless_the_recipe_overrides_it(folder, tmp_path):
    args = read_recipe(words(folder, tmp_path, prompts="qwen3")).args
    assert args.probe_template == "<think>\n\n</think>\n\n<answer>\\boxed{{answer}}</answer>"
    assert args.chat_template_kwargs == {"enable_thinking": True}
    mine = ["--probe_template", "So: {answer}", "--chat_template_kwargs", '{"enable_thinking": false}']
    args = read_recipe(words(folder, tmp_path, *mine, prompts="qwen3")).args
    assert args.probe_template == "So: {answer}" and args.chat_template_kwargs == {"enable_thinking": False}


def test_training_step_runs_and_evaluation_reports_each_set(folder, tmp_path):
    from a2tgpo_trl.evaluation import evaluate_recipe

    recipe = read_recipe(words(folder, tmp_path, limit={"train": 4, "test": 2}))
    result = recipe.build_trainer().train()
    assert result.global_step == 1
    sets = {"hotpotqa": "dev", "2wikimultihopqa": "dev", "musique": "dev", "bamboogle": "test"}
    ids = [(name, f"{split}_{i}") for name, split in sets.items() for i in range(ROWS)]
    known = [{"set": name, "id": row, "answerable": name == "musique"} for name, row in ids]
    file = write_rows(tmp_path / "answerable.jsonl", known)
    given = {"limit": {"train": 4, "test": 2}, "answerable": str(file)}
    scores = evaluate_recipe(read_recipe(words(folder, tmp_path, **given)))
    assert set(scores.groups) == {"set hotpotqa", "set 2wikimultihopqa", "set musique", "set bamboogle"}
    assert all(one["exact_match"].number == one["f1"].number == 2 for one in scores.groups.values())
    assert {name: one["f1"].number for name, one in scores.averages.items()} == {
        "multi-hop": 8,
        "multi-hop, answerable": 2,
        "multi-hop, not answerable": 6,
    }
    assert set(scores.plain) == {"multi-hop, each set alike", "multi-hop, not answerable, each set alike"}
    assert "| multi-hop, each set alike | 8 |" in (tmp_path / "out/evaluation/policy/scores.md").read_text()
