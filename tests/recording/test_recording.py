"""Rollouts of batches, written during training: what is in them, and failures that do not reach the training."""

import errno
import functools
import json
import logging
import shutil
import threading
import time
from pathlib import Path

import pytest
import tiny
import torch
from datasets import load_dataset
from disks import mounted
from recorded import rollouts_of
from training import TOOL_TURNS, make, settings, weights

from a2tgpo_trl import A2TGPOConfig, recording
from a2tgpo_trl.recording import Masks, Recorder, Schedule, credited, trained_on
from a2tgpo_trl.resume.own_files import OwnFiles
from a2tgpo_trl.rollout import record_files
from a2tgpo_trl.rollout.record_files import FORMATS
from a2tgpo_trl.rollout.records import read_jsonl


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.make_tokenizer()


def run(tokenizer, folder, **changes):
    changes = {"record_every": 1, "max_steps": 3, **changes}
    trainer = make(tokenizer, A2TGPOConfig(**settings(folder, **changes)))
    trainer.train()
    return trainer


def files(folder) -> list[str]:
    return sorted(file.name for file in Path(folder, "rollouts").glob("*"))


@pytest.mark.parametrize("outcome_weight", [1.0, 0.5, 0.0])
def test_each_rollout_of_a_step_is_there_with_the_credit_of_its_turns(outcome_weight, tokenizer, tmp_path):
    seen = []
    changes = {"record_every": 1, "max_steps": 1, "outcome_weight": outcome_weight}
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, **changes)))
    parents = trainer.credit_batch
    trainer.credit_batch = lambda output, batch: seen.append(parents(output, batch)) or seen[-1]
    trainer.train()
    assert files(tmp_path) == ["step-000001-rank-0.jsonl"]
    records = read_jsonl(tmp_path / "rollouts" / "step-000001-rank-0.jsonl")
    output = seen[0]
    assert [record["tool_turns"] for record in records] == TOOL_TURNS
    for i, record in enumerate(records):
        assert (record["schema"], record["step"], record["rank"], record["round"], record["group"]) == (2, 1, 0, 1, 0)
        assert record["answer"] == "Paris" and record["outcome"] == record["rewards"]["exact_match"]
        assert len(record["advantages"]) == len(record["turns"]) == record["tool_turns"] + 1
        assert record["scores"][-1] is None and record["clip_scale"][-1] == 1.0
        # What the loss was given for the tokens of each turn, in turn order.
        for name, tensor in (("advantages", output["advantages"]), ("clip_scale", output["clip_scale"])):
            of_tokens = [tensor[i][output["turn_index"][i] == turn] for turn in range(len(record["turns"]))]
            assert all((values == values[0]).all() for values in of_tokens)
            assert record[name] == pytest.approx([values[0].item() for values in of_tokens], abs=1e-6)
        # An advantage less `outcome_advantage` is the turn's credit, whatever the outcome's weight.
        assert record["advantages"][-1] == pytest.approx(record["outcome_advantage"], abs=1e-6)


def test_record_every_2_writes_every_other_batch_without_affecting_training(tokenizer, tmp_path):
    recorded = run(tokenizer, tmp_path / "recorded", record_every=2, max_steps=4)
    plain = run(tokenizer, tmp_path / "plain", record_every=0, max_steps=4)
    assert files(tmp_path / "recorded") == ["step-000001-rank-0.jsonl", "step-000003-rank-0.jsonl"]
    assert not (tmp_path / "plain" / "rollouts").exists()
    for name, tensor in weights(plain).items():
        assert torch.equal(tensor, weights(recorded)[name]), name


@pytest.fixture
def duckdb():
    """Import DuckDB late: these tests are also collected where vLLM is installed and DuckDB is not."""
    import duckdb

    return duckdb


def one_line(program: str, format: str) -> str:
    """The line for this program on the page about records."""
    lines = [line.strip() for line in str(recording.__doc__).splitlines()]
    (found,) = [line for line in lines if line.startswith(f"{program}(") and line.count(f"*.{format}")]
    return found


@pytest.mark.parametrize("format", FORMATS)
def test_files_are_read_by_the_one_line_of_datasets_and_that_of_duckdb(
    format, duckdb, tokenizer, tmp_path, monkeypatch
):
    run(tokenizer, tmp_path / "outputs" / "run", max_steps=2, record_format=format)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    known = {"load_dataset": load_dataset, "duckdb": duckdb}
    rows = eval(one_line("load_dataset", format), known)["train"]
    records = rollouts_of(tmp_path / "outputs" / "run")
    assert len(rows) == len(records) == 8
    for row, record in zip(rows, records, strict=True):
        for name in ("step", "outcome", "advantages", "tokens", "prompt_ids", "updates"):
            assert dict(leaves(row[name])) == pytest.approx(dict(leaves(record[name])), abs=1e-6)
    found = dict(eval(one_line("duckdb.sql", format), known).fetchall())
    steps = {step: [one["outcome"] for one in records if one["step"] == step] for step in (1, 2)}
    assert found == {step: pytest.approx(sum(outcomes) / 4) for step, outcomes in steps.items()}


def test_duckdb_reads_json_columns_of_parquet_records(duckdb, tokenizer, tmp_path, monkeypatch):
    run(tokenizer, tmp_path / "outputs" / "run", max_steps=1, record_format="parquet")
    monkeypatch.chdir(tmp_path)
    (line,) = [line.strip() for line in str(record_files.__doc__).splitlines() if "duckdb.sql" in line]
    assert eval(line, {"duckdb": duckdb}).fetchall() == [("1.0", None), ("0.0", None), ("1.0", None), ("0.0", None)]


def test_both_formats_have_the_same_records(tokenizer, tmp_path):
    for format in FORMATS:
        run(tokenizer, tmp_path / format, max_steps=2, record_format=format, num_iterations=2)
    jsonl, parquet = (dict(leaves(rollouts_of(tmp_path / format))) for format in FORMATS)
    assert len(jsonl) > 500 and parquet == pytest.approx(jsonl, abs=1e-6)


def leaves(value, *path):
    """The values in lists and dictionaries with their paths, except for the time that something took."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inside is None:
        yield path, value
    for name, one in inside or ():
        if name != "seconds":
            yield from leaves(one, *path, name)


def test_resuming_in_another_format_leaves_no_duplicate_batch(tokenizer, tmp_path):
    saved = {"save_strategy": "steps", "save_steps": 1}
    run(tokenizer, tmp_path, max_steps=2, **saved)
    shutil.rmtree(tmp_path / "checkpoint-2")
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, record_every=1, record_format="parquet", max_steps=3)))
    trainer.train(resume_from_checkpoint=True)
    numbers = ["000001-rank-0.jsonl", "000002-rank-0.parquet", "000003-rank-0.parquet"]
    assert files(tmp_path) == [f"step-{number}" for number in numbers]
    assert [record["step"] for record in rollouts_of(tmp_path)] == [1] * 4 + [2] * 4 + [3] * 4


def test_resampled_batch_records_what_is_trained_on(tokenizer, tmp_path):
    # In the first round, the answers in each group of four are alike; in the second they are not.
    def spread(prompts, trainer_state, **kwargs):
        seen.append(len(prompts))
        return [float(i % 4 > 1 and len(seen) > 1) for i in range(len(prompts))]

    seen = []
    changes = {"max_steps": 1, "resample_limit": 1, "credit": "grpo", "per_device_train_batch_size": 8}
    args = A2TGPOConfig(**settings(tmp_path, record_every=1, **changes))
    make(tokenizer, args, reward_funcs=spread).train()
    assert seen == [8, 8] and files(tmp_path) == ["step-000001-rank-0.jsonl"]
    records = read_jsonl(tmp_path / "rollouts" / "step-000001-rank-0.jsonl")
    assert [(record["round"], record["group"], record["outcome"]) for record in records] == [
        (2, group, outcome) for group in (0, 1) for outcome in (0.0, 0.0, 1.0, 1.0)
    ]


def test_each_rank_records_the_rollouts_it_made_of_the_final_batch():
    # Two ranks, groups of two: the batch's second group is the first of the second round. The first rank made the
    # first of its rollouts, which the second rank trains on.
    rounds = [(0, [{"n": 0}, {"n": 1}]), (0, [{"n": 10}])]
    others = [(2, [{"n": 2}, {"n": 3}]), (1, [{"n": 11}])]
    sources = [(0, 0), (1, 0)]
    found = [
        [(place, one["n"], one["round"], one["group"]) for place, one in trained_on(of, sources, 2)]
        for of in (rounds, others)
    ]
    assert found == [[(0, 0, 1, 0), (1, 1, 1, 0), (2, 10, 2, 1)], [(3, 11, 2, 1)]]


def test_a_step_of_several_batches_has_a_file_for_each(tokenizer, tmp_path):
    run(tokenizer, tmp_path, max_steps=2, gradient_accumulation_steps=2, steps_per_generation=1)
    names = ["step-000001-rank-0-batch-2", "step-000001-rank-0", "step-000002-rank-0-batch-2", "step-000002-rank-0"]
    assert files(tmp_path) == [f"{name}.jsonl" for name in names]


def test_resumed_run_records_the_same_batches(tokenizer, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(tokenizer, whole, record_every=2, max_steps=4, save_strategy="steps", save_steps=1)
    run(tokenizer, broken, record_every=2, max_steps=1, save_strategy="steps", save_steps=1)
    trainer = make(tokenizer, A2TGPOConfig(**settings(broken, record_every=2, max_steps=4)))
    trainer.train(resume_from_checkpoint=True)
    assert files(broken) == files(whole) == ["step-000001-rank-0.jsonl", "step-000003-rank-0.jsonl"]
    for name in files(whole):
        mine, theirs = (read_jsonl(folder / "rollouts" / name) for folder in (broken, whole))
        assert [one["completion"] for one in mine] == [one["completion"] for one in theirs]


def test_resuming_removes_records_of_later_steps(tokenizer, tmp_path):
    run(tokenizer, tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    of_ranks = [f"rollouts/step-{step:06}-rank-1{further}.jsonl" for step in (2, 4) for further in ("", "-batch-2")]
    for name in of_ranks:  # of a run of two ranks that is resumed with one
        (tmp_path / name).write_text("{}\n")
    OwnFiles(tmp_path).add(*of_ranks)
    theirs = tmp_path / "rollouts" / "step-000004-notes.txt"
    theirs.write_text("mine")
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, record_every=1, max_steps=3)))
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert files(tmp_path) == sorted(
        [f"step-00000{step}-rank-0.jsonl" for step in (1, 2, 3)]
        + ["step-000002-rank-1-batch-2.jsonl", "step-000002-rank-1.jsonl", theirs.name]
    )


def test_a_second_training_is_recorded_as_the_first_was(tokenizer, tmp_path):
    trainer = run(tokenizer, tmp_path, record_every=2, max_steps=4)
    before = {name: (tmp_path / "rollouts" / name).stat().st_mtime_ns for name in files(tmp_path)}
    trainer.train()
    after = {name: (tmp_path / "rollouts" / name).stat().st_mtime_ns for name in files(tmp_path)}
    assert after.keys() == before.keys() and all(after[name] > before[name] for name in before)


def test_a_batch_that_a_resumed_run_makes_first_is_recorded_if_it_was_due(tokenizer, tmp_path):
    changes = {"record_every": 3, "steps_per_generation": 2, "save_strategy": "steps", "save_steps": 2}
    run(tokenizer, tmp_path, **changes, max_steps=6)
    written = ["step-000001-rank-0.jsonl", "step-000005-rank-0.jsonl"]
    assert files(tmp_path) == written
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, **{**changes, "max_steps": 6})))
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert files(tmp_path) == written


def test_each_rank_removes_a_disjoint_share_of_old_records(tmp_path):
    folder = tmp_path / "rollouts"
    folder.mkdir()
    names = [f"rollouts/step-{step:06}-rank-{rank}.jsonl" for step in (1, 2) for rank in range(5)]
    for name in names:
        (tmp_path / name).write_text("{}\n")
    OwnFiles(tmp_path).add(*names)
    for rank, removed in ((0, {0, 2, 4}), (1, {1, 3})):
        before = {*files(tmp_path)}
        Recorder(tmp_path, rank, Schedule(1), 1e9).begin(1, ranks=2)
        assert before - {*files(tmp_path)} == {f"step-000002-rank-{other}.jsonl" for other in removed}


# ---- what goes wrong


def recorder(folder, most=1e9, every=1) -> Recorder:
    return Recorder(Path(folder), 0, Schedule(every), most)


def put(one: Recorder, step: int = 0) -> None:
    one.put(step, [{"completion": "text"}])


def warnings(caplog) -> list[str]:
    return [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_ends_the_recording_with_one_warning_and_not_the_run(format, tokenizer, tmp_path, caplog):
    with mounted(tmp_path / "small", "size=64k") as small:
        trainer = run(tokenizer, small, max_steps=12, record_format=format)
        assert trainer.state.global_step == 12
        told = [line for line in warnings(caplog) if "recorded" in line]
        assert len(told) == 1 and "No space left on device" in told[0] and "The run continues" in told[0]
        # Files written before are complete, and nothing else is there.
        names = files(small)
        assert 1 <= len(names) < 12 and names == [f"step-{i + 1:06}-rank-0.{format}" for i in range(len(names))]
        assert len(rollouts_of(small)) == 4 * len(names)


def test_a_disk_that_fails_ends_the_recording_with_one_warning(tmp_path, monkeypatch, caplog):
    def full(*args):
        raise OSError(errno.EIO, "Input/output error")

    one = recorder(tmp_path)
    put(one)
    monkeypatch.setattr(OwnFiles, "_enter", full)  # the end of the recording needs it as well
    put(one, 1)
    one.close()
    assert len(warnings(caplog)) == 1 and "Input/output error" in warnings(caplog)[0] and not one.wants(2)


def test_recording_stops_at_record_megabytes(tmp_path, caplog):
    one = recorder(tmp_path, most=100)
    for step in range(4):
        put(one, step)
    one.close()
    assert files(tmp_path) == ["step-000001-rank-0.jsonl"]
    assert [line for line in warnings(caplog) if "record_megabytes" in line]
    assert not one.wants(99)


def test_a_disk_that_is_slower_than_the_training_does_not_hold_it_up(tmp_path, monkeypatch, caplog):
    let_go = threading.Event()
    monkeypatch.setattr(Path, "write_bytes", lambda *args: let_go.wait(20))
    one = recorder(tmp_path)
    for step in range(12):
        put(one, step)  # none of these waits
    assert any("slower than the training" in line for line in warnings(caplog))
    monkeypatch.setattr("a2tgpo_trl.recording.recorder.PATIENCE", 0.2)
    begin = time.monotonic()
    one.close()  # its writer is stuck and its queue is full
    assert time.monotonic() - begin < 5 and "the last rollouts are missing" in warnings(caplog)[-1]
    let_go.set()


def test_unserialisable_record_ends_recording_with_a_warning(tmp_path, caplog):
    one = recorder(tmp_path)
    one.put(0, [{("a", "key"): 1}])
    one.close()
    assert "TypeError" in warnings(caplog)[0] and not one.wants(5)


def test_foreign_file_at_a_record_path_is_left_unchanged(tmp_path, caplog):
    theirs = tmp_path / "rollouts" / "step-000001-rank-0.jsonl"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    one = recorder(tmp_path)
    put(one)
    one.close()
    assert theirs.read_text() == "mine" and "did not write" in warnings(caplog)[0]


def test_lone_surrogates_and_nan_can_be_recorded(tmp_path):
    record = {"completion": "\ud83d", "asked\ud83d": {"\ud83d": 3}}
    record = credited(record, float("nan"), 0.5, {"scores": torch.tensor([1.5, torch.nan, 9.0])}, 2)
    one = recorder(tmp_path)
    one.put(0, [record])
    one.close()
    (line,) = (tmp_path / "rollouts" / "step-000001-rank-0.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert (found["outcome"], found["outcome_advantage"], found["scores"]) == (None, 0.5, [1.5, None])
    assert (found["schema"], found["step"], found["rank"]) == (2, 1, 0)
    assert "ratios" not in found  # there was no update
    assert found["completion"] == "\\ud83d" and found["asked\\ud83d"] == {"\\ud83d": 3}


def test_secrets_are_masked_by_their_names():
    masked = Masks(
        {"API_KEY": "s3cr3t-value", "MY_TOKEN": 'quo"ted-one', "PATH": "/usr/local/bin", "PASSWORD": "short"}
    )
    text = "key s3cr3t-value in /usr/local/bin, short"
    assert masked({"a": [text, 3]}) == {"a": ["key <API_KEY> in /usr/local/bin, short", 3]}
    assert masked('a quo"ted-one') == "a <MY_TOKEN>"
    assert Masks({"PATH": "/usr/local/bin"})("as it is") == "as it is"


@pytest.mark.parametrize("name", ["DB_PASS", "GITHUB_PAT", "AUTH_BEARER", "apiKey", "PASS_OF_ME"])
def test_secret_word_within_a_variable_name_is_enough(name):
    assert Masks({name: "abcdefgh12"})("abcdefgh12!") == f"<{name}>!"


@pytest.mark.parametrize(
    "name", ["PATH", "GIT_AUTHOR_NAME", "TOKENIZERS_PARALLELISM", "BYPASS", "KEYBOARD", "PAD_TOKEN"]
)
def test_part_of_a_word_in_a_variable_name_is_not_enough(name):
    assert not Masks({name: "abcdefgh12"}).any


def test_names_of_arguments_are_masked_and_columns_are_not():
    masked = Masks({"API_KEY": "s3cr3t-value"})
    assert masked({"s3cr3t-value": {"s3cr3t-value": 1.5, (3,): ["s3cr3t-value"]}}) == {
        "s3cr3t-value": {"<API_KEY>": 1.5, (3,): ["<API_KEY>"]}
    }


@pytest.mark.parametrize("written", [json.dumps, functools.partial(json.dumps, ensure_ascii=False), repr])
def test_a_secret_is_masked_as_json_and_python_write_it(written):
    secret = "abc\"d'e\\f\né"
    assert written({"k": secret}).count("abc") == 1
    assert "abc" not in Masks({"API_KEY": secret})(written({"k": secret}))


def test_password_within_a_url_is_masked():
    masked = Masks({"DATABASE": "postgres://u:secret@host/db", "PROXY": "http://me:long%20password@host:80"})
    assert masked("to postgres://u:secret@host/db, secret") == "to postgres://u:<DATABASE>@host/db, secret"
    assert masked("http://me:long%20password@host:80") == "http://me:<PROXY>@host:80"
    assert masked("long%20password, long password") == "<PROXY>, <PROXY>"
    assert not Masks({"HOME_PAGE": "http://host:8000/a@b", "MAIL": "me@host-of-me"}).any


@pytest.mark.parametrize("setting", [{"record_megabytes": 5}, {"record_format": "parquet"}, {"record_tokens": False}])
def test_record_settings_without_record_every_are_refused(setting, tmp_path):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} has no effect without record_every"):
        A2TGPOConfig(**settings(tmp_path, **setting))
