"""Processes over gloo: groups split over ranks are compared whole, with the same number of forwards on each rank."""

import json
from pathlib import Path

import pytest
from places import HELPERS
from ranks import ON_CPU, printed, reports
from recorded import as_trained, rollouts_of


SCRIPT = HELPERS / "two_ranks.py"


def run(folder: Path, processes: int, token_budget: int = 10**6) -> list[dict]:
    """One batch of eight rollouts in two groups of four, on this many ranks."""
    program = [str(SCRIPT), str(folder), str(8 // processes), str(token_budget)]
    return reports(folder, program, processes, **ON_CPU)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "alone"
    return {**run(folder, processes=1)[0], "records": rollouts_of(folder)}


@pytest.mark.parametrize(
    ("processes", "token_budget"),
    [(2, 10**6), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((2, 1), (4, 10**6)))],
)
def test_ranks_together_credit_as_one_process_does(processes, token_budget, alone, tmp_path):
    # With four processes each rank holds half a group. With a budget of one token each rollout takes its own forward.
    ranks = run(tmp_path / "run", processes, token_budget)
    assert all(rank["processes"] == processes and rank["type"].endswith("MULTI_CPU") for rank in ranks)
    assert all(rank["wrapped"] == "DistributedDataParallel" for rank in ranks)
    together = {name: entry for rank in ranks for name, entry in rank["credited"].items()}
    assert together.keys() == alone["credited"].keys() and len(together) == 8
    for name, entry in alone["credited"].items():
        assert together[name]["turns"] == entry["turns"]
        for key in ("values", "advantages", "clip_scale", "old_logps"):
            assert together[name][key] == pytest.approx(entry[key], abs=1e-5), (name, key)
    records = rollouts_of(tmp_path / "run")
    assert [record["rank"] for record in records] == [rank for rank in range(processes) for _ in range(8 // processes)]
    recorded, expected = as_trained(records), as_trained(alone["records"])
    assert recorded.keys() == expected.keys() and len(recorded) == 8
    assert any(abs(ratio - 1) > 1e-3 for one in expected.values() for ratio in one["token ratios"] if ratio)
    for ids, entry in expected.items():
        for key, value in entry.items():
            assert recorded[ids][key] == pytest.approx(value, abs=1e-4), (ids, key)
    assert {rank["forwards"] for rank in ranks} == {1 if token_budget > 1 else 8 // processes}
    for key, value in alone["metrics"].items():
        if key not in ("gain/seconds", "gain/forwards"):
            assert ranks[0]["metrics"][key] == pytest.approx(value, abs=1e-4), key
    # Of the second step, which trains on the same rollouts.
    assert alone["ratios"]["turn_ratio/turn_1"] > 1.1 and 0 < alone["ratios"]["clip_fraction/turn_1"] < 1
    for rank in ranks:
        assert rank["ratios"] == pytest.approx(alone["ratios"], abs=1e-4)
        assert rank["sample"] == pytest.approx(alone["sample"], abs=1e-5)
        assert rank["weights"] == ranks[0]["weights"]


def launched(folder: Path, module: str, *words: str) -> str:
    """The output of the short recipe on two ranks, started as a launcher does."""
    small = ["--config", "quickstart", "--max_steps", "1"]
    small += ["--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "1"]
    kwargs = ["--task_kwargs", '{"train_questions": 8, "test_questions": 12}']
    return printed(folder, ["-m", module, *small, *kwargs, *words], **ON_CPU)


@pytest.mark.slow
def test_ranks_share_an_evaluation_and_resume_it(tmp_path):
    # 7 rows of 3 rollouts over 2 ranks: an odd row is padded to a pair, so that both ranks have the same number.
    words = ["--eval_rows", "7", "--num_generations_eval", "3", "--per_device_eval_batch_size", "6"]
    words += ["--num_generations", "4", "--output_dir", str(tmp_path)]
    launched(tmp_path, "a2tgpo_trl.evaluation", *words)
    folder = tmp_path / "evaluation" / "policy"
    assert json.loads((folder / "settings.json").read_text())["num_processes"] == 2
    lines = (folder / "rollouts.jsonl").read_text().splitlines(keepends=True)
    assert [json.loads(line)["row"] for line in lines] == [row for row in range(7) for _ in range(3)]
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["everything"]["exact_match"]["number"] == 7

    (folder / "rollouts.jsonl").write_text("".join(lines[:14]))  # cut off in the second batch of four rows
    assert "14 rollouts already exist" in launched(tmp_path, "a2tgpo_trl.evaluation", *words)
    again = (folder / "rollouts.jsonl").read_text().splitlines(keepends=True)
    assert again[:12] == lines[:12]  # the first batch is kept
    assert [json.loads(line)["completion"] for line in again] == [json.loads(line)["completion"] for line in lines]


def test_recipe_trains_on_two_ranks_and_only_rank_0_prints(tmp_path):
    out = launched(tmp_path, "a2tgpo_trl.train", "--eval_rows", "6", "--output_dir", str(tmp_path / "run"))
    assert sum(line.startswith("step 1/1") for line in out.splitlines()) == 1
    for when in ("before", "after"):
        assert len((tmp_path / "run" / "evaluation" / f"{when}.jsonl").read_text().splitlines()) == 6
    assert (tmp_path / "run" / "model.safetensors").exists()
