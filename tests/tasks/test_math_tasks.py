r"""GSM8K and MATH from files as published: answers found, prompts complete, and errors that say what to do."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from a2tgpo_trl.errors import RecipeError
from a2tgpo_trl.recipe.recipe import read_recipe
from a2tgpo_trl.rewards.math_answers import math_equal
from a2tgpo_trl.tasks.math.data import gsm8k_answer, math_answer, split_of
from a2tgpo_trl.tasks.math.task import INSTRUCTION, gsm8k, math, prompt


GSM8K = [
    {"question": "Ann has 3 bags of 24 nuts. How many nuts?", "answer": "3 * 24 = <<3*24=72>>72\n#### 72"},
    {"question": "A car costs $500 more than $1,000. How much?", "answer": "It is 1000 + 500.\n#### 1,500"},
]
MATH = [
    {
        "problem": r"What is $\frac{1}{2} + \frac{1}{4}$?",
        "level": "Level 1",
        "type": "Prealgebra",
        "solution": r"It is $\frac{2}{4} + \frac{1}{4} = \boxed{\frac{3}{4}}$.",
    },
    {
        "problem": r"Solve $x^2 = 1$.",
        "level": "Level 2",
        "type": "Algebra",
        "solution": r"Not $\boxed{1}$ alone: the solutions are $\boxed{\{-1, 1\}}$.",
    },
]


def write(folder, rows, kind: str = "jsonl"):
    for split in ("train", "test"):
        if kind == "parquet":
            (folder / "main").mkdir(exist_ok=True)
            Dataset.from_list(rows).to_parquet(folder / "main" / f"{split}-00000-of-00001.parquet")
        elif kind == "json":  # MATH as first published: one file per problem, in folders
            (folder / split / "algebra").mkdir(parents=True)
            for i, row in enumerate(rows):
                (folder / split / "algebra" / f"{i}.json").write_text(json.dumps(row))
        else:
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_gsm8k_is_read_from_its_files(kind, tmp_path):
    task = gsm8k(write(tmp_path, GSM8K, kind))
    assert task.train_dataset["answer"][:] == task.test_dataset["answer"][:] == ["72", "1500"]
    assert task.test_dataset[0]["prompt"] == prompt(GSM8K[0]["question"])
    assert task.group_by is None and task.reward_funcs[0] is math_equal
    environment = task.environment_factory()
    environment.reset(**task.test_dataset[0])
    assert environment.python("n = 3 * 24; n") == "72"


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_math_is_read_from_its_files(kind, tmp_path):
    task = math(str(write(tmp_path, MATH, kind)))
    assert task.test_dataset["answer"][:] == [r"\frac{3}{4}", r"\{-1, 1\}"]
    assert task.group_by == "level" and task.test_dataset["level"][:] == ["Level 1", "Level 2"]
    right = math_equal([r"<answer>0.75</answer>", r"so $\boxed{\{1,-1\}}$"], task.test_dataset["answer"][:])
    assert right == [1.0, 1.0]


def test_gold_answers_are_found_in_the_forms_that_were_published():
    assert gsm8k_answer({"answer": "10 #### 3\n#### -1,072"}) == "-1072"
    assert gsm8k_answer({"answer": "no mark"}) is None
    assert math_answer({"solution": r"so $x = \boxed{\frac{\sqrt{2}}{2}}$."}) == r"\frac{\sqrt{2}}{2}"
    assert math_answer({"solution": r"there are $\boxed 7$."}) == "7"
    assert math_answer({"solution": r"\fbox{(1, 2)}"}) == "(1, 2)"
    assert math_answer({"solution": r"\boxed{3}", "answer": " 4 "}) == "4"
    assert math_answer({"solution": "none"}) is None


def test_the_prompt_says_boxed_and_frac_and_holds_no_control_character():
    # "\b" in a string that is not raw is a backspace, and "\f" a form feed.
    assert r"\boxed{}" in INSTRUCTION and r"\frac{3}{4}" in INSTRUCTION
    assert INSTRUCTION.isprintable() and "<answer>ANSWER</answer>" in INSTRUCTION
    assert prompt(r"Is $\beta$ a letter?")[1]["content"] == r"Is $\beta$ a letter?"


def test_unusable_files_are_an_error_naming_the_problem(tmp_path):
    with pytest.raises(ValueError, match="There is no folder"):
        gsm8k(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no file for the split 'train'"):
        gsm8k(tmp_path)
    write(tmp_path, [*GSM8K, {"question": "And?", "answer": "Who knows."}])
    with pytest.raises(ValueError, match="No answer was found in row 2 .*Who knows"):
        gsm8k(tmp_path)
    with pytest.raises(ValueError, match="has no column 'problem'; it has question, answer"):
        math(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="files of several kinds"):
        gsm8k(tmp_path)


def test_split_is_read_from_the_nearest_name_and_versions_are_not_mixed(tmp_path, caplog):
    for name, split in (("train_test/train.jsonl", "train"), ("train/test.jsonl", "test"), ("training/1.json", None)):
        assert split_of(Path(name)) == split
    nested = tmp_path / "train_test_split"
    nested.mkdir()
    assert len(gsm8k(write(nested, GSM8K).parent).train_dataset) == len(GSM8K)
    assert "2 questions of the test set are also in the training set" in caplog.text
    for split in ("train", "test"):
        (nested / f"{split}_socratic.jsonl").write_text((nested / f"{split}.jsonl").read_text())
    with pytest.raises(ValueError, match="several files for the split 'train': train.jsonl, train_socratic.jsonl"):
        gsm8k(nested)
    # The hub's folder has two versions, one of which is GSM8K.
    (tmp_path / "hub").mkdir()
    both = write(tmp_path / "hub", GSM8K, "parquet")
    (both / "socratic").mkdir()
    for file in (both / "main").iterdir():
        (both / "socratic" / file.name).write_bytes(file.read_bytes())
    assert len(gsm8k(both).train_dataset) == len(GSM8K)


def test_missing_connection_names_the_download_command(tmp_path):
    words = ["--task", "gsm8k", "--model_name_or_path", "atlas-tiny", "--bf16", "false", "--output_dir", str(tmp_path)]
    with pytest.raises(RecipeError, match="hf download openai/gsm8k --repo-type dataset"):
        read_recipe(words)
    folder = write(tmp_path, GSM8K)
    recipe = read_recipe([*words, "--task_kwargs", json.dumps({"path": str(folder)})])
    assert recipe.args.reward_weights == [1.0, 0.1] and len(recipe.test_dataset) == 2
