"""The package removes or overwrites only what it wrote: folders of models, of users, of killed runs."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import Future
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
from datasets import Dataset
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.cli import main as cli
from a2tgpo_trl.evaluation import main as evaluation
from a2tgpo_trl.recipe.recipe import RecipeError
from a2tgpo_trl.resume.own_files import BLOCK, BLOCKS, MARKER, OwnFiles
from a2tgpo_trl.rewards import exact_match
from a2tgpo_trl.tasks.atlas import POLICY
from a2tgpo_trl.train import WHOLE, make_room
from a2tgpo_trl.train import main as train


TINY = [
    *("--config", "quickstart", "--max_steps", "1", "--logging_steps", "1"),
    *("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1", "--num_generations", "4"),
    *("--eval_rows", "2", "--per_device_eval_batch_size", "2", "--max_completion_length", "48"),
    *("--task_kwargs", '{"train_questions": 4, "test_questions": 2}'),
]


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} of somebody")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, with a checkpoint and completions."""
    folder = tmp_path_factory.mktemp("own") / "run"
    words = ["--save_strategy", "steps", "--save_steps", "1", "--log_completions", "true"]
    assert train([*TINY, *words, "--output_dir", str(folder)]) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it for a test to change, with the files' times, as `cp -a` would copy it."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


# ---- which files a run takes for its own


def test_a_run_leaves_a_marker_that_names_all_its_files_and_no_others(run):
    assert OwnFiles(run).all() == sorted(name for name in content(run) if name != MARKER)
    assert {"model.safetensors", "checkpoint-1/manifest.json", "completions/completions_00001.parquet"} < {
        *OwnFiles(run).all()
    }


def test_overwrite_removes_what_the_run_wrote_and_leaves_the_rest(run):
    write(run, "notes.txt", "runs/events", "checkpoint-1/why.txt")
    os.symlink(run / "notes.txt", run / "link.txt")
    lines = make_room(run, overwrite=True, resume=None)
    assert set(content(run)) == {MARKER, "notes.txt", "link.txt", "runs/events", "torn-checkpoint-1/why.txt"}
    assert not (run / "evaluation").exists() and lines == [
        "torn-checkpoint-1 keeps files that no complete checkpoint lists: remove it if you do not need it."
    ]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "evaluation/after.jsonl", "completions/completions_00001.parquet"]
)
def test_replaced_output_file_is_refused_and_left_alone(name, overwrite, run):
    (run / name).unlink()
    write(run, name)
    before = content(run)
    with pytest.raises(RecipeError, match=f"did not write, or that were changed since: {name}. They are left alone"):
        make_room(run, overwrite=overwrite, resume=None)
    assert content(run) == before


def test_changed_file_of_the_same_size_is_detected_by_its_mtime(run):
    weights = run / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    with pytest.raises(RecipeError, match="model.safetensors"):
        make_room(run, overwrite=True, resume=None)


def copied(folder: Path, place: Path) -> Path:
    """A copy with other times, as `cp -r` or a download from an object store makes it."""
    return Path(shutil.copytree(folder, place, copy_function=shutil.copyfile))


def test_copied_run_still_owns_its_files(run, tmp_path):
    copy = copied(run, tmp_path / "copy")
    assert (copy / "config.json").stat().st_mtime_ns != (run / "config.json").stat().st_mtime_ns
    assert OwnFiles(copy).all() == OwnFiles(run).all()
    assert make_room(copy, overwrite=False, resume=True) == [] == make_room(copy, overwrite=True, resume=None)
    assert set(content(copy)) == {MARKER}


def test_copied_run_can_be_resumed(run, tmp_path):
    copy = copied(run, tmp_path / "copy")
    words = ["--resume_from_checkpoint", "true", "--save_strategy", "steps", "--save_steps", "1"]
    assert train([*TINY, *words, "--max_steps", "2", "--output_dir", str(copy)]) == 0
    assert (copy / "checkpoint-2" / "manifest.json").is_file()


def test_run_without_a_marker_resumes_beside_foreign_files(run):
    # As an interrupted run leaves it: checkpoints and results, but no policy yet.
    for name in (MARKER, "learning_curve.png", "evaluation/after.jsonl", "evaluation/after.json"):
        (run / name).unlink()
    for file in run.glob("*.*"):
        if file.name != "README.md":
            file.unlink()
    write(run, "notes.json", "completions/completions_00002.parquet")
    words = ["--resume_from_checkpoint", "true", "--save_strategy", "steps", "--save_steps", "1"]
    assert train([*TINY, *words, "--max_steps", "2", "--output_dir", str(run)]) == 0
    assert (run / "notes.json").read_text() == "notes.json of somebody"


@pytest.mark.parametrize("name", ["config.json", "trainer_state.json", "evaluation/after.json"])
def test_foreign_file_at_a_final_output_path_is_refused_when_resuming(name, run):
    write(run, name)
    with pytest.raises(RecipeError, match=f"changed since: {name}. They are left alone"):
        make_room(run, overwrite=False, resume=True)


@pytest.mark.parametrize("size", [0, 10, BLOCK * BLOCKS, BLOCK * BLOCKS + 1, 3 * BLOCK * BLOCKS + 7])
def test_changed_content_is_detected_despite_equal_size_and_mtime(size, tmp_path):
    own, file = OwnFiles(tmp_path), tmp_path / "model.safetensors"
    file.write_bytes(bytes(size))
    own.add(file.name)
    os.utime(file, ns=(1, 1))
    assert own.owns(file.name)
    for place in {0, size - 1} if size else ():
        changed = bytearray(size)
        changed[place] = 1
        file.write_bytes(changed)
        os.utime(file, ns=(1, 1))
        assert not own.owns(file.name)


def test_marker_is_append_only_and_survives_a_truncated_line(tmp_path):
    own, marker = OwnFiles(tmp_path), tmp_path / MARKER
    write(tmp_path, *"abc")
    own.add(*(f"completions/{i}" for i in range(1000)))
    with own.writing("a"):
        before = marker.read_bytes()
        own.add("b")
    assert marker.read_bytes().startswith(before) and len(marker.read_bytes()) < len(before) + 500
    marker.write_bytes(marker.read_bytes()[:-5])
    own.add("c")
    assert own.all() == ["a", "b", "c"]  # a, whose second line is lost, is known by its first


BUSY = """
import sys
from pathlib import Path
from a2tgpo_trl.resume.own_files import OwnFiles

folder, rank = Path(sys.argv[1]), sys.argv[2]
own = OwnFiles(folder)
for number in range(60):
    name = f"rollouts/{rank}-{number}" + "x" * 100
    with own.writing(name):
        (folder / "rollouts").mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
        own.add(name)
    if number % 3 == 2:
        own.remove(name)
"""


def test_concurrent_processes_lose_no_marker_entries(tmp_path):
    ranks = [subprocess.Popen([sys.executable, "-c", BUSY, str(tmp_path), str(rank)]) for rank in range(3)]
    assert [rank.wait() for rank in ranks] == [0, 0, 0]
    there = {str(file.relative_to(tmp_path)) for file in (tmp_path / "rollouts").iterdir()}
    assert len(there) == 3 * 40 and set(OwnFiles(tmp_path).all()) == there
    assert OwnFiles(tmp_path).foreign(["rollouts/*"]) == []


def test_folder_recreated_by_a_user_counts_as_foreign(tmp_path):
    own = OwnFiles(tmp_path)
    write(tmp_path, "checkpoint-1/weights")
    own.add_folder("checkpoint-1")
    own.add("checkpoint-1/weights")
    own.remove("checkpoint-1/weights")
    assert not (tmp_path / "checkpoint-1").exists()
    write(tmp_path, "checkpoint-1/weights")
    assert own.foreign(["checkpoint-*"]) == ["checkpoint-1"]


def test_overwrite_removes_the_unfinished_draft_of_a_killed_run(tmp_path):
    draft = OwnFiles(tmp_path).draft()
    write(draft, "model.safetensors", "ref/adapter_config.json")
    write(tmp_path, "_unfinished-novel/chapter.txt")
    make_room(tmp_path, overwrite=True, resume=None)
    assert set(content(tmp_path)) == {MARKER, "_unfinished-novel/chapter.txt"}


def test_overwrite_does_not_follow_symlinks(run, tmp_path):
    # The weights and a checkpoint were moved unchanged to a larger disk, times included.
    elsewhere = tmp_path / "larger"
    elsewhere.mkdir()
    for name in ("model.safetensors", "checkpoint-1"):
        os.rename(run / name, elsewhere / name)
        os.symlink(elsewhere / name, run / name)
    before = content(elsewhere)
    with pytest.raises(RecipeError, match="model.safetensors"):
        make_room(run, overwrite=True, resume=None)
    (run / "model.safetensors").unlink()
    make_room(run, overwrite=True, resume=None)
    assert content(elsewhere) == before


def test_marker_entries_outside_the_folder_are_ignored(tmp_path):
    write(tmp_path, "mine.txt", "run/own.txt")
    names = ["../mine.txt", str(tmp_path / "mine.txt"), "own.txt"]
    (tmp_path / "run" / MARKER).write_text(json.dumps({"files": dict.fromkeys(names)}))
    own = OwnFiles(tmp_path / "run")
    assert own.all() == ["own.txt"]
    own.remove(*names)
    assert set(content(tmp_path)) == {"mine.txt", f"run/{MARKER}"}


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff"])
def test_unreadable_marker_owns_no_files(text, run):
    (run / MARKER).write_bytes(text.encode("utf-8", "surrogateescape"))
    before = content(run)
    with pytest.raises(RecipeError, match="They are left alone"):
        make_room(run, overwrite=True, resume=None)
    assert content(run) == before


# ---- folders of others


@pytest.fixture
def hub_folder(tmp_path):
    """A model folder as a download leaves it, with files that a run would write and others that it would read."""
    folder = Path(shutil.copytree(POLICY, tmp_path / "hub"))
    write(folder, "README.md", "pytorch_model.bin", "adapter_config.json", "completions/x", "checkpoint-7/config.json")
    return folder


@pytest.mark.parametrize("words", [[], ["--overwrite", "true"], ["--resume_from_checkpoint", "true"]])
def test_folder_with_a_foreign_model_is_refused_unchanged(words, hub_folder, capsys):
    before = content(hub_folder)
    assert train([*TINY, *words, "--output_dir", str(hub_folder)]) == 2
    message = capsys.readouterr().err
    assert "did not write" in message and "adapter_config.json" in message and "Name another folder" in message
    assert content(hub_folder) == before


def test_folder_written_by_save_model_is_refused_unchanged(tmp_path, tokenizer):
    args = A2TGPOConfig(
        str(tmp_path / "script"), report_to="none", use_cpu=True, bf16=False, per_device_train_batch_size=8
    )
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": "q"}], "answer": "Paris"}])
    trainer = A2TGPOTrainer(tiny.make_model(tokenizer), exact_match, args, data, processing_class=tokenizer)
    trainer.save_model(str(tmp_path / "saved"))
    before = content(tmp_path / "saved")
    for overwrite in (False, True):
        with pytest.raises(RecipeError, match="did not write.*config.json"):
            make_room(tmp_path / "saved", overwrite=overwrite, resume=None)
    assert content(tmp_path / "saved") == before


def test_training_leaves_unrelated_files_in_output_dir_unchanged(tmp_path):
    write(tmp_path, "notes.txt", "log.txt", "runs/events", "README.md", "evaluation/other/rollouts.jsonl")
    before = content(tmp_path)
    words = ["--save_strategy", "steps", "--save_steps", "1", "--overwrite", "true"]
    assert train([*TINY, *words, "--output_dir", str(tmp_path)]) == 0
    assert train([*TINY, *words, "--output_dir", str(tmp_path)]) == 0
    assert before.items() <= content(tmp_path).items()


@pytest.mark.parametrize("name", ["model.safetensors", "trainer_state.json"])
def test_foreign_file_created_during_a_run_is_not_overwritten(name, tmp_path, capsys):
    reward = tmp_path / "mine.py"
    reward.write_text(
        "from pathlib import Path\n\n\ndef good(completions, **_):\n"
        f"    Path(__file__).with_name('run').joinpath({name!r}).write_text('somebody')\n"
        "    return [1.0] * len(completions)\n"
    )
    folder = tmp_path / "run"
    words = ["--reward_funcs", f"{reward}:good", "--eval_rows", "0", "--output_dir", str(folder)]
    assert train([*TINY, *words]) == 2
    message = capsys.readouterr().err
    (draft,) = folder.glob("_unfinished-*")
    assert f"since: {name}. They are left alone. What was to replace them is saved in {draft}." in message
    assert (folder / name).read_text() == "somebody" and (draft / "model.safetensors").is_file()
    assert set(content(folder)) - {f"{draft.name}/{file}" for file in content(draft)} == {name, MARKER, WHOLE}


# ---- the hub


@pytest.fixture
def uploads(monkeypatch):
    """The names that would have been uploaded, one set per upload."""
    sent = []

    def upload(self, *, folder_path, ignore_patterns=(), run_as_future=False, **_):
        names = content(Path(folder_path))
        sent.append({name for name in names if not any(fnmatch(name, pattern) for pattern in ignore_patterns)})
        done = Future()
        done.set_result(None)
        return done if run_as_future else None

    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **_: SimpleNamespace(repo_id=f"someone/{name}"))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    return sent


PUSHED = [*TINY, "--save_strategy", "steps", "--save_steps", "1", "--push_to_hub", "true"]


def test_run_pushed_at_each_checkpoint_finishes_and_resumes(uploads, tmp_path):
    folder = tmp_path / "run"
    assert train([*PUSHED, "--output_dir", str(folder)]) == 0
    words = ["--resume_from_checkpoint", "true", "--max_steps", "2", "--output_dir", str(folder)]
    assert train([*PUSHED, *words]) == 0
    assert OwnFiles(folder).all() == sorted(name for name in content(folder) if name != MARKER)
    assert len(uploads) == 4 and all({"model.safetensors", "tokenizer.json"} < names for names in uploads)
    assert not any("unfinished" in name or MARKER in name for names in uploads for name in names)


def test_push_does_not_overwrite_a_file_created_during_the_run(uploads, tmp_path, capsys):
    folder = tmp_path / "run"
    (tmp_path / "mine.py").write_text(
        f"from pathlib import Path\n\n\ndef good(completions, **_):\n"
        f"    Path({str(folder)!r}, 'tokenizer.json').write_text('somebody')\n    return [1.0] * len(completions)\n"
    )
    words = ["--reward_funcs", f"{tmp_path / 'mine.py'}:good", "--eval_rows", "0", "--output_dir", str(folder)]
    assert train([*PUSHED, *words]) == 2
    assert "since: tokenizer.json. They are left alone" in capsys.readouterr().err
    assert (folder / "tokenizer.json").read_text() == "somebody" and not (folder / "config.json").exists()
    assert not uploads


def test_policy_saved_by_a_script_is_entered_in_the_marker(tmp_path, tokenizer):
    write(tmp_path, "notes.json", "adapter_config.json")
    args = A2TGPOConfig(str(tmp_path), report_to="none", use_cpu=True, bf16=False, per_device_train_batch_size=8)
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": "q"}], "answer": "Paris"}])
    A2TGPOTrainer(tiny.make_model(tokenizer), exact_match, args, data, processing_class=tokenizer).save_model()
    assert {*OwnFiles(tmp_path).all()} == {*content(tmp_path)} - {MARKER, "notes.json", "adapter_config.json"}


# ---- killed halfway


DYING = """
import os, signal


def reward(completions, trainer_state, **_):
    if trainer_state.global_step == 1 and os.environ.pop("A2TGPO_TEST_DIES", ""):
        {how}
    return [1.0] * len(completions)
"""


def test_restart_after_interruption_before_a_checkpoint_removes_no_file(tmp_path, capsys, monkeypatch):
    (tmp_path / "dying.py").write_text(DYING.format(how="raise KeyboardInterrupt"))
    words = [*TINY, "--max_steps", "2", "--reward_funcs", str(tmp_path / "dying.py:reward")]
    words += ["--log_completions", "true", "--output_dir", str(tmp_path / "run")]
    monkeypatch.setenv("A2TGPO_TEST_DIES", "1")
    assert train(words) == 130
    write(tmp_path / "run", "notes.txt")
    left = set(content(tmp_path / "run"))
    assert {"evaluation/before.jsonl", "completions/completions_00001.parquet"} < left
    removed = []
    monkeypatch.setattr(Path, "unlink", lambda self, **_: removed.append(self))
    monkeypatch.setattr(os, "unlink", lambda path, **_: removed.append(path))
    assert train(words) == 0
    assert "interrupted before its first checkpoint. This run starts from the beginning" in capsys.readouterr().out
    assert not [path for path in removed if str(tmp_path / "run") in str(path)]
    assert left < set(content(tmp_path / "run"))


def test_incomplete_checkpoint_is_set_aside_when_its_step_is_saved_again(tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    OwnFiles(tmp_path).add_folder("checkpoint-1")
    write(tmp_path, "checkpoint-1/model.safetensors")
    assert len(make_room(tmp_path, overwrite=False, resume=None)) == 1
    words = ["--save_strategy", "steps", "--save_steps", "1", "--eval_rows", "0"]
    assert train([*TINY, *words, "--output_dir", str(tmp_path)]) == 0
    assert (tmp_path / "torn-checkpoint-1" / "model.safetensors").read_text().endswith("of somebody")
    assert (tmp_path / "checkpoint-1" / "manifest.json").is_file()


@pytest.mark.slow
def test_a_run_that_was_killed_starts_again_by_the_same_command(tmp_path):
    (tmp_path / "dying.py").write_text(DYING.format(how="os.kill(os.getpid(), signal.SIGKILL)"))
    words = [sys.executable, "-m", "a2tgpo_trl.train", *TINY, "--max_steps", "2"]
    words += ["--reward_funcs", str(tmp_path / "dying.py:reward"), "--output_dir", str(tmp_path / "run")]
    killed = subprocess.run(words, env={**os.environ, "A2TGPO_TEST_DIES": "1"})
    assert killed.returncode == -9 and (tmp_path / "run" / "evaluation" / "before.jsonl").is_file()
    again = subprocess.run(words, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run" / "model.safetensors").is_file()


# ---- what a run starts from


@pytest.fixture
def policy(tmp_path):
    return Path(shutil.copytree(POLICY, tmp_path / "policy"))


def adapter(tmp_path: Path, base: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def test_output_dir_holding_the_policy_base_or_adapter_is_refused(policy, tmp_path, capsys):
    tuned, link = adapter(tmp_path, policy), tmp_path / "link"
    link.symlink_to(policy)
    checkpoint = Path(shutil.copytree(policy, tmp_path / "run" / "checkpoint-5"))
    before = content(tmp_path)
    for source, output, what in (
        (policy, policy, "policy"),
        (policy, link, "policy"),
        (link, policy, "policy"),
        (policy, tmp_path / "run" / ".." / "policy", "policy"),
        (tuned, tuned, "policy"),
        (tuned, policy, "base"),
        (checkpoint, tmp_path / "run", "policy"),
    ):
        words = ["--model_name_or_path", str(source), "--output_dir", str(output), "--overwrite", "true"]
        assert train([*TINY, *words]) == 2
        assert f"output_dir {output}: the {what} is loaded from there" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_scripts_refuse_an_output_dir_that_holds_the_policy(policy, monkeypatch):
    monkeypatch.chdir(policy.parent)
    args = A2TGPOConfig("policy", report_to="none", use_cpu=True, bf16=False)
    for model in ("policy", AutoModelForCausalLM.from_pretrained(str(policy))):
        with pytest.raises(ValueError, match="output_dir policy: the policy is loaded from there .* Name another"):
            A2TGPOTrainer(model, exact_match, args)
    # A name on the hub that is not a folder yet would become one.
    with pytest.raises(ValueError, match="is loaded from there .someone/model."):
        A2TGPOTrainer("someone/model", exact_match, A2TGPOConfig("someone/model", use_cpu=True, bf16=False))
    assert not Path("someone").exists()


def test_save_on_each_node_is_refused(tmp_path, capsys):
    assert train([*TINY, "--save_on_each_node", "true", "--output_dir", str(tmp_path)]) == 2
    assert "save_on_each_node: leave it out." in capsys.readouterr().err


# ---- the other commands


def test_evaluation_in_the_folder_of_the_policy_changes_no_existing_file(policy):
    before = content(policy)
    words = [*TINY, "--model_name_or_path", str(policy), "--output_dir", str(policy)]
    assert evaluation(words) == 0
    assert evaluation([*words, "--overwrite", "true"]) == 0
    written = {f"evaluation/policy/{name}" for name in ("rollouts.jsonl", "scores.json", "scores.md", "settings.json")}
    assert set(content(policy)) - set(before) == {MARKER, *written}
    assert before.items() <= content(policy).items()


@pytest.mark.parametrize("words", [[], ["--overwrite", "true"]])
@pytest.mark.parametrize("name", ["rollouts.jsonl", "scores.json", "scores.md", "settings.json"])
def test_an_evaluation_removes_no_results_that_it_did_not_write(words, name, tmp_path, capsys):
    write(tmp_path / "evaluation" / "policy", name)
    before = content(tmp_path)
    assert evaluation([*TINY, *words, "--output_dir", str(tmp_path)]) == 2
    said = f"did not write, or that were changed since: evaluation/policy/{name}. They are left alone"
    if not words and name in ("rollouts.jsonl", "scores.json"):  # it looks like an evaluation to be continued
        said = "evaluation/policy holds part of an evaluation, but not its settings"
    assert said in capsys.readouterr().err
    assert content(tmp_path) == before


def test_compare_refuses_a_cell_folder_that_holds_no_run(tmp_path, capsys):
    write(tmp_path, "quickstart/grpo/own/0/log.txt")
    before = content(tmp_path)
    words = ["compare", "quickstart", "--credit", "grpo", "--seeds", "0", "-o", str(tmp_path), *TINY[2:]]
    assert cli(words) == 2
    assert "quickstart/grpo/own/0 is not a run of a study" in capsys.readouterr().err
    assert before.items() <= content(tmp_path).items()


def test_merge_refuses_a_non_empty_output_folder(policy, tmp_path, capsys):
    tuned = adapter(tmp_path, policy)
    before = content(tmp_path)
    for output in (policy, tuned):
        assert cli(["merge", str(tuned), str(output)]) == 2
        assert "is not empty. Name a new folder" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_script_training_keeps_existing_foreign_checkpoints(tmp_path, tokenizer):
    write(tmp_path, "checkpoint-1/model.safetensors", "README.md")
    before = content(tmp_path)
    settings = {"report_to": "none", "use_cpu": True, "bf16": False, "per_device_train_batch_size": 4}
    settings |= {"num_generations": 4, "max_steps": 1, "save_steps": 1, "max_completion_length": 8}
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": "q"}], "answer": "Paris"}] * 4)
    model = tiny.make_model(tokenizer)
    A2TGPOTrainer(
        model, exact_match, A2TGPOConfig(str(tmp_path), **settings), data, processing_class=tokenizer
    ).train()
    after = content(tmp_path)
    assert after["torn-checkpoint-1/model.safetensors"] == before["checkpoint-1/model.safetensors"]
    assert after["README.md"] == before["README.md"] and "checkpoint-1/manifest.json" in after
