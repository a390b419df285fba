"""Evaluation: rollouts by the trainer itself, written batch by batch and resumed where they stopped."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from a2tgpo_trl.evaluation import evaluate, evaluate_recipe
from a2tgpo_trl.recipe.recipe import Recipe, read_recipe
from a2tgpo_trl.rollout.records import as_text, count_tool_turns, read_jsonl, write_jsonl
from a2tgpo_trl.rollout.trainer import ToolTrainer
from a2tgpo_trl.tasks.atlas import POLICY


ROWS = 10
SMALL = [
    "--config",
    "quickstart",
    *("--eval_rows", str(ROWS)),
    *("--per_device_eval_batch_size", "4"),
    *("--per_device_train_batch_size", "8"),
    *("--task_kwargs", '{"train_questions": 8, "test_questions": 12}'),
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return read_recipe([*SMALL, "--output_dir", str(tmp_path_factory.mktemp("run"))])


@pytest.fixture(scope="module")
def trainer(recipe):
    return recipe.build_trainer()


@pytest.fixture(scope="module")
def whole(trainer, recipe, tmp_path_factory):
    """The records and the file of an uninterrupted evaluation."""
    file = tmp_path_factory.mktemp("whole") / "whole.jsonl"
    return evaluate(trainer, recipe.test_dataset, file, seed=3), file


def test_each_question_has_a_record_with_its_rewards_and_turns(whole, recipe):
    records, file = whole
    assert [record["row"] for record in records] == list(range(ROWS))
    assert read_jsonl(file) == records
    for record, row in zip(records, recipe.test_dataset, strict=True):
        assert record["prompt"] == row["prompt"] and record["answer"] == row["answer"]
        assert set(record["rewards"]) == {"exact_match", "answer_format", "f1"}
        assert "values" not in record and "gains" not in record  # an evaluation only samples and scores
        assert record["tool_turns"] == sum(message["role"] == "tool" for message in record["completion"])


def test_recorded_reward_matches_the_answer(whole):
    for record in whole[0]:
        last = record["completion"][-1]
        right = last["role"] == "assistant" and f"<answer>{record['answer']}</answer>" in last.get("content", "")
        assert record["rewards"]["exact_match"] == float(right)


def test_records_say_how_each_turn_ended_and_what_its_calls_found(whole):
    for record in whole[0]:
        assert len(record["turns"]) >= record["tool_turns"] and not record["excluded"]
        results = [message["content"] for message in record["completion"] if message["role"] == "tool"]
        read = [call["result"] for turn in record["turns"] for call in turn["calls"] if turn["tokens_in"]]
        assert read == results and record["ended"] in ("answer", "over_budget", "context_full")


def timeless(records: list[dict]) -> list[dict]:
    """Records with all times set to 0."""
    copies = json.loads(json.dumps(records))
    for timed in [one for record in copies for turn in record["turns"] for one in (turn, *turn["calls"])]:
        timed["seconds"] = 0
    return copies


def test_an_evaluation_that_was_cut_off_ends_with_the_same_rollouts(whole, trainer, recipe, tmp_path):
    records, _ = whole
    file = tmp_path / "cut.jsonl"
    # Five records and half of a sixth: one whole batch of four, and a part of the next, which is repeated.
    write_jsonl(file, records[:5])
    with file.open("a") as cut:
        cut.write(json.dumps(records[5])[:40])
    asked = []
    generate = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: asked.append(len(inputs)) or generate(inputs)
    try:
        again = evaluate(trainer, recipe.test_dataset, file, seed=3, resume=True)
    finally:
        del trainer._generate_and_score_completions
    assert read_jsonl(file) == again and timeless(again) == timeless(records)
    assert asked == [4, 2]  # the last batch has two rows and needs no padding
    assert evaluate(trainer, recipe.test_dataset, file, seed=3, resume=True) == again


class Killed(BaseException):
    """An exception that the program never catches, like SIGKILL."""


def test_evaluation_killed_twice_gives_the_scores_of_an_uninterrupted_one(tmp_path, monkeypatch):
    def scores_of(name: str) -> tuple[str, str, list[dict]]:
        folder = tmp_path / name / "evaluation" / "policy"
        files = [(folder / f"scores.{kind}").read_text() for kind in ("json", "md")]
        return *files, timeless(read_jsonl(folder / "rollouts.jsonl"))

    def killed_while_writing(batch: int, share: float):
        """A function that writes only a share of this batch's bytes, then raises; batches count from this start."""
        written = []

        def write(file, records, mode="w"):
            written.append(len(records))
            if len(written) < batch:
                return write_jsonl(file, records, mode)
            whole = "".join(json.dumps(record, default=str) + "\n" for record in records)
            with file.open(mode) as half:
                half.write(whole[: int(len(whole) * share)])
            raise Killed

        return write

    words = ["--output_dir", str(tmp_path / "killed")]
    rolled_out = []
    roll_out = ToolTrainer.roll_out
    monkeypatch.setattr(
        ToolTrainer, "roll_out", lambda self, rows, **how: rolled_out.append(len(rows)) or roll_out(self, rows, **how)
    )
    for batch, share in ((2, 0.6), (1, 0.3)):
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr("a2tgpo_trl.evaluation.write_jsonl", killed_while_writing(batch, share))
            evaluate_recipe(read_recipe([*SMALL, *words]))
    evaluate_recipe(read_recipe([*SMALL, *words]))
    # Batches of 4, 4 and 2. The first runs once; the second is cut off twice, and completed by the third start.
    assert rolled_out == [4, 4, 4, 4, 2]
    evaluate_recipe(read_recipe([*SMALL, "--output_dir", str(tmp_path / "whole")]))
    assert scores_of("killed") == scores_of("whole")


def test_another_seed_gives_other_rollouts_and_training_draws_are_left_alone(whole, trainer, recipe, tmp_path):
    before = torch.random.get_rng_state()
    mode = trainer.model.training
    other = evaluate(trainer, recipe.test_dataset, tmp_path / "other.jsonl", seed=4)
    assert [r["completion"] for r in other] != [r["completion"] for r in whole[0]]
    assert torch.equal(before, torch.random.get_rng_state())
    assert trainer.model.training == mode and not trainer._metrics["eval"] and trainer.on_rollouts is None


def test_several_rollouts_per_question_are_adjacent(trainer, recipe, tmp_path):
    trainer.num_generations_eval = 2
    try:
        records = evaluate(trainer, recipe.test_dataset, tmp_path / "twice.jsonl", seed=3)
    finally:
        trainer.num_generations_eval = 1
    assert [record["row"] for record in records] == [row for row in range(ROWS) for _ in range(2)]


def test_eval_command_writes_its_files_and_refuses_other_settings(tmp_path, capsys):
    words = [*SMALL, "--output_dir", str(tmp_path)]
    scores = evaluate_recipe(read_recipe(words))
    folder = tmp_path / "evaluation" / "policy"
    assert {file.name for file in folder.iterdir()} == {"rollouts.jsonl", "scores.json", "scores.md", "settings.json"}
    written = json.loads((folder / "scores.json").read_text())
    assert written["everything"]["exact_match"]["mean"] == scores.everything["exact_match"].mean
    assert sum(group["exact_match"]["number"] for group in written["groups"].values()) == ROWS
    assert "rollouts.jsonl" in capsys.readouterr().out

    assert evaluate_recipe(read_recipe(words)) == scores
    assert f"{ROWS} rollouts already exist" in capsys.readouterr().out

    with pytest.raises(ValueError, match="different temperature.*--overwrite true"):
        evaluate_recipe(read_recipe([*words, "--temperature", "0.5"]))
    assert evaluate_recipe(read_recipe([*words, "--temperature", "0.5", "--overwrite", "true"])) != scores


def test_resuming_keeps_settings_json_and_a_damaged_one_is_an_error(tmp_path):
    words = [*SMALL, "--eval_rows", "2", "--output_dir", str(tmp_path)]
    evaluate_recipe(read_recipe(words))
    settings = tmp_path / "evaluation" / "policy" / "settings.json"
    before = settings.stat().st_mtime_ns
    evaluate_recipe(read_recipe(words))
    assert settings.stat().st_mtime_ns == before
    settings.write_text(settings.read_text()[:-20])
    with pytest.raises(ValueError, match=r"settings.json cannot be read .*--overwrite true"):
        evaluate_recipe(read_recipe(words))


LOOK = """
def look(query: str) -> str:
    \"""Look something up.

    Args:
        query: What to look for.
    \"""
    return "Paris"
"""
WORLD = """
class World:
    def reset(self, **row):
        pass
"""


def test_rollouts_of_other_code_or_settings_are_not_resumed(tmp_path):
    reward, look, world = (tmp_path / name for name in ("mine.py", "look.py", "world.py"))
    reward.write_text("def good(completions, **kwargs):\n    return [1.0] * len(completions)\n")
    look.write_text(LOOK)
    world.write_text(WORLD)
    file = tmp_path / "recipe.yaml"
    kwargs = "{train_questions: 8, test_questions: 12}"
    file.write_text(
        f"model_name_or_path: atlas-tiny\ntask: atlas\ntask_kwargs: {kwargs}\nreward_funcs: [mine.py:good]\n"
        f"tools: [look.py:look]\nenvironment_factory: world.py:World\n"
        f"bf16: false\neval_rows: 3\nnum_generations_eval: 1\nmax_completion_length: 8\noutput_dir: {tmp_path}/out\n"
    )
    words = ["--config", str(file)]
    evaluate_recipe(read_recipe(words))
    with pytest.raises(ValueError, match="different num_generations_eval"):
        evaluate_recipe(read_recipe([*words, "--num_generations_eval", "2"]))
    with pytest.raises(ValueError, match="different probe_template"):
        evaluate_recipe(read_recipe([*words, "--probe_template", "{answer}"]))
    for code in (look, world, reward):
        before = code.read_text()
        code.write_text(f"{before}# edited\n")
        with pytest.raises(ValueError, match="different code of tools and rewards"):
            evaluate_recipe(read_recipe(words))
        code.write_text(before)
    reward.write_text(reward.read_text().replace("1.0", "0.5"))
    del sys.modules["a2tgpo_recipe_mine"]
    assert evaluate_recipe(read_recipe([*words, "--overwrite", "true"])).everything["good"].mean == 0.5


def test_rollouts_of_retrained_weights_or_a_changed_answer_are_not_resumed(tmp_path):
    policy = Path(shutil.copytree(POLICY, tmp_path / "policy"))
    words = [*SMALL, "--eval_rows", "2", "--model_name_or_path", str(policy), "--output_dir", str(tmp_path / "run")]
    evaluate_recipe(read_recipe(words))
    other = read_recipe(words)
    other.task.test_dataset = other.task.test_dataset.map(
        lambda row, i: {"answer": "none" if i == 1 else row["answer"]}, with_indices=True
    )
    with pytest.raises(ValueError, match=r"different test set\."):
        evaluate_recipe(other)
    (policy / "model.safetensors").touch()
    with pytest.raises(ValueError, match=r"different weights\."):
        evaluate_recipe(read_recipe(words))


def test_rollouts_of_another_sample_count_are_not_resumed(trainer, recipe, whole, tmp_path):
    file = tmp_path / "rollouts.jsonl"
    write_jsonl(file, [record for record in whole[0][:4] for _ in range(2)])
    with pytest.raises(ValueError, match="different test set or number of samples"):
        evaluate(trainer, recipe.test_dataset, file, resume=True)


def test_a_policy_under_bfloat16_rolls_out_as_in_training(tmp_path, monkeypatch):
    # Generation uses the model as Accelerate wraps it: its forward runs in 16 bits.
    words = [*SMALL, "--eval_rows", "2", "--bf16", "true", "--use_cpu", "true", "--output_dir", str(tmp_path)]
    seen = set()
    build = Recipe.build_trainer

    def watched(recipe, **how):
        trainer = build(recipe, **how)
        layer = trainer.model.model.layers[0].mlp
        layer.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
        return trainer

    monkeypatch.setattr(Recipe, "build_trainer", watched)
    evaluate_recipe(read_recipe(words))
    assert seen == {torch.bfloat16}


def test_zero_eval_rows_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to evaluate on"):
        evaluate_recipe(read_recipe([*SMALL, "--eval_rows", "0", "--output_dir", str(tmp_path)]))


def test_parallel_calls_of_one_message_are_one_tool_turn():
    call = {"role": "assistant", "tool_calls": [{}, {}]}
    tool = {"role": "tool", "content": "x"}
    assert count_tool_turns([call, tool, tool, call, tool, {"role": "assistant", "content": "a"}]) == 2
    assert count_tool_turns("plain text") == 0


def test_the_gain_of_a_turn_stands_behind_the_results_of_all_its_calls():
    call = {"type": "function", "function": {"name": "search", "arguments": {"query": "a"}}}
    completion = [
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "name": "search", "content": "first"},
        {"role": "tool", "name": "search", "content": "second"},
        {"role": "assistant", "content": "done"},
    ]
    lines = as_text({"prompt": "q", "completion": completion, "gains": [1.0], "rewards": {"f1": 0.0}}).splitlines()
    assert [line.strip() for line in lines[3:7]] == ["first", "second", "gain +1.00", "done"]


def test_a_rollout_reads_as_text(whole):
    evaluated = whole[0][0]
    record = {**evaluated, "gains": [0.25] * evaluated["tool_turns"]}  # as in a training record
    console = Console(width=100, record=True, file=open("/dev/null", "w"))
    console.print(as_text(record), markup=False)
    text = console.export_text()
    assert record["prompt"][-1]["content"] in as_text(record)
    assert as_text(record).count("search(") == record["tool_turns"]
    assert f"gain {record['gains'][0]:+.2f}" in text


def test_lone_surrogate_in_a_record_round_trips(tmp_path):
    write_jsonl(tmp_path / "records.jsonl", [{"completion": "half: \ud83d"}])
    assert read_jsonl(tmp_path / "records.jsonl") == [{"completion": "half: \ud83d"}]


def test_eval_gains_equal_a_plain_forward_and_leave_rollouts_unchanged(whole, recipe, tmp_path):
    with_gains = read_recipe([*SMALL, "--credit", "grpo", "--eval_gains", "true", "--output_dir", str(tmp_path)])
    trainer = with_gains.build_trainer()
    records = evaluate(trainer, recipe.test_dataset, tmp_path / "gains.jsonl", seed=3)
    values = [record.pop("values") for record in records]
    gains = [record.pop("gains") for record in records]
    assert timeless(records) == timeless(whole[0])
    tokenizer, model = trainer.processing_class, trainer.model.eval()
    for record, values_V, gains_K in zip(records, values, gains, strict=True):
        assert len(values_V) == record["tool_turns"] + 1
        assert gains_K == [after - before for before, after in zip(values_V, values_V[1:], strict=False)]
        text = tokenizer.apply_chat_template(
            record["prompt"], tools=trainer.tools, add_generation_prompt=True, tokenize=False, enable_thinking=False
        )
        start = tokenizer(f"{text}<answer>").input_ids
        whole_ids = tokenizer(f"{text}<answer>{record['answer']}").input_ids
        with torch.no_grad():
            logps = model(torch.tensor([whole_ids])).logits.log_softmax(-1)[0, :-1]
        answer = logps[torch.arange(len(whole_ids) - 1), torch.tensor(whole_ids[1:])][len(start) - 1 :]
        assert values_V[0] == pytest.approx(answer.mean().item(), abs=1e-4)
