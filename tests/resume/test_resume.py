"""Interrupted runs: what they resume from, that nothing differs afterwards, and what is refused."""

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import killed_runs
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from datasets import Dataset
from disks import mounted
from peft import LoraConfig
from training import without_times
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.errors import RecipeError, ResumeError, RunInterrupted, RunStopped
from a2tgpo_trl.recipe.recipe import read_recipe
from a2tgpo_trl.resume import folders
from a2tgpo_trl.resume.choice import Choice, Run
from a2tgpo_trl.resume.disk import told_if_not_written
from a2tgpo_trl.resume.folders import checkpoints_of, step_of
from a2tgpo_trl.resume.manifest import fault, read_manifest, write_manifest
from a2tgpo_trl.resume.own_files import MARKER
from a2tgpo_trl.resume.same_run import data_digest, settings_of
from a2tgpo_trl.resume.trainer import Resumable
from a2tgpo_trl.rewards import exact_match
from a2tgpo_trl.rollout.settings import ToolConfig
from a2tgpo_trl.rollout.trainer import ToolTrainer
from a2tgpo_trl.tools import tool
from a2tgpo_trl.train import make_room


STEPS = 11  # a window is four steps, an epoch is two windows: this ends in the second epoch
KILLS = int(os.environ.get("A2TGPO_KILLS", "10"))
ANSWERS = ["Paris", "Rome", "Oslo"]
OF_A_PROCESS = ("train_loss", "total_flos")  # since it started


@pytest.fixture(scope="module")
def policy(tokenizer, tmp_path_factory):
    """A tiny policy on the disk, from which a reference model can be loaded as well."""
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    tiny.make_model(tokenizer).save_pretrained(folder)
    return folder


def write(turn: int, row: int) -> str:
    """Up to two calls, then one of three answers, all drawn with the random numbers of sampling."""
    if turn < 2 and torch.randint(2, ()):
        return tiny.call(f"thing {int(torch.randint(10, ()))}")
    return tiny.final(ANSWERS[int(torch.randint(3, ()))])


def reward(completions, **_) -> list[float]:
    """A reward from the answer and from random numbers of Python's own generator and NumPy's."""
    return [len(messages[-1]["content"]) + random.random() + np.random.random() for messages in completions]


def questions(rows: int = 4) -> Dataset:
    prompts = [[{"role": "user", "content": f"question {i}"}] for i in range(rows)]
    return Dataset.from_dict({"prompt": prompts, "answer": ["Paris"] * rows})


class Stop(TrainerCallback):
    """Interrupts the run when a step begins, as a machine error would."""

    def __init__(self, after: int | None):
        self.after = after

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.after:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def make(tokenizer, policy):
    def make(folder: Path, stop: int | None = None, trainer=A2TGPOTrainer, config=A2TGPOConfig, **changes):
        keywords = {
            "train_dataset": questions(),
            "eval_dataset": questions(1),
            "tools": [tiny.search],
            "model": str(policy),
            "reward_funcs": reward,
            "peft_config": None,
        }
        keywords |= {name: changes.pop(name) for name in list(changes) if name in keywords}
        settings = {
            "use_cpu": True,
            "bf16": False,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "num_generations": 4,
            "steps_per_generation": 2,
            "gradient_accumulation_steps": 1,
            "num_iterations": 2,
            "max_steps": STEPS,
            "max_completion_length": 300,
            "learning_rate": 1e-2,
            "beta": 0.1,
            "sync_ref_model": True,
            "ref_model_sync_steps": 3,
            "eval_strategy": "steps",
            "eval_steps": 3,
            "logging_steps": 2,
            "save_strategy": "steps",
            "save_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            **changes,
        }
        made = trainer(
            args=config(str(folder), **settings), processing_class=tokenizer, callbacks=[Stop(stop)], **keywords
        )
        tiny.script(made.model, tokenizer, write)
        return made

    return make


def weights(trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def log_of(history: list[dict]) -> list[dict]:
    """A log without times and what begins anew in each process."""
    return [{k: v for k, v in entry.items() if k not in OF_A_PROCESS} for entry in without_times(history)]


def broken(make, folder: Path, after: int, **changes) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(folder, stop=after, **changes).train()


@pytest.fixture(scope="module")
def unbroken(make, tmp_path_factory):
    trainer = make(tmp_path_factory.mktemp("unbroken") / "run")
    trainer.train()
    return trainer


# ---- resuming changes nothing


@pytest.mark.parametrize("after", [2, 8, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 4, 9))])
def test_interrupted_run_ends_with_the_weights_and_log_of_an_uninterrupted_one(after, make, unbroken, tmp_path):
    # After 1, 2 and 9 steps in the middle of a window; after 4 between two; after 8 between two epochs.
    broken(make, tmp_path, after)
    again = make(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(weights(again), weights(unbroken))
    assert torch.equal(*(torch.cat([p.flatten() for p in t.ref_model.parameters()]) for t in (again, unbroken)))
    assert log_of(again.state.log_history) == log_of(unbroken.state.log_history)


@pytest.mark.parametrize(("trainer", "config"), [(Resumable, GRPOConfig), (ToolTrainer, ToolConfig)])
def test_base_trainers_resume_identically_too(trainer, config, make, tmp_path):
    layer = {"trainer": trainer, "config": config, "max_steps": 4, "eval_steps": 2}
    whole = make(tmp_path / "whole", **layer)
    whole.train()
    broken(make, tmp_path / "broken", 2, **layer)
    again = make(tmp_path / "broken", **layer)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(weights(again), weights(whole))
    assert log_of(again.state.log_history) == log_of(whole.state.log_history)
    with pytest.raises(ResumeError, match=r"different settings: temperature \(1.0, now 0.5\)\."):
        make(tmp_path / "broken", **layer, temperature=0.5).train(resume_from_checkpoint=True)


def test_run_of_a_base_trainer_is_refused_by_the_method_trainer(make, tmp_path):
    make(tmp_path, trainer=ToolTrainer, config=ToolConfig, max_steps=1).train()
    with pytest.raises(ResumeError, match=r"different settings: .*credit \(None, now a2tgpo\)"):
        make(tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(ResumeError, match="different class of trainer, which does not save packing. Resume with that"):
        make(tmp_path, resume_changed=True).train(resume_from_checkpoint=True)


def test_logged_completions_equal_those_of_an_uninterrupted_run(make, tmp_path):
    make(tmp_path / "whole", max_steps=4, log_completions=True).train()
    broken(make, tmp_path / "broken", 1, max_steps=4, log_completions=True)
    make(tmp_path / "broken", max_steps=4, log_completions=True).train(resume_from_checkpoint=True)
    for name in ("completions_00002.parquet", "completions_00004.parquet"):
        whole, again = (pd.read_parquet(tmp_path / run / "completions" / name) for run in ("whole", "broken"))
        assert len(whole) > 0 and whole.astype(str).equals(again.astype(str))


def test_evaluation_does_not_change_the_trained_weights(make, unbroken, tmp_path):
    without = make(tmp_path, eval_strategy="no", save_strategy="no")
    without.train()
    assert torch.equal(weights(without), weights(unbroken))


def test_resuming_a_finished_run_takes_no_further_step(make, unbroken, tmp_path):
    trainer = make(tmp_path)
    trainer.train()
    again = make(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == STEPS and torch.equal(weights(again), weights(unbroken))


@pytest.mark.slow
def test_resuming_may_change_max_steps_and_save_and_log_intervals(make, unbroken, tmp_path):
    make(tmp_path, max_steps=6, save_steps=2, lr_scheduler_type="constant").train()
    whole = make(tmp_path / "whole", lr_scheduler_type="constant")
    whole.train()
    again = make(tmp_path, save_steps=3, logging_steps=1, lr_scheduler_type="constant")
    again.train(resume_from_checkpoint=True)
    assert torch.equal(weights(again), weights(whole))
    assert {folder.name for folder in checkpoints_of(tmp_path)} == {f"checkpoint-{n}" for n in (2, 4, 6, 9, 11)}


def test_run_stopped_by_a_tool_failure_within_a_step_resumes_identically(make, tmp_path):
    # Steps of two micro-batches, with a batch of rollouts for each: the second batch of step 3 finds the tool down,
    # when the step already has a gradient, random numbers, metrics and tokens.
    layout = {"gradient_accumulation_steps": 2, "steps_per_generation": 1, "num_iterations": 1, "max_steps": 4}
    down = []

    def up() -> None:
        if down:
            raise ConnectionError("refused")

    @tool(check=up, backoff=0.0)
    def search(query: str) -> str:
        """Look something up.

        Args:
            query: What to look for.
        """
        up()
        return f"The {query} is Paris."

    def failing(completions, trainer_state, **_):
        failing.batches += 1
        if failing.batches == 5:
            down.append(True)
        return reward(completions)

    def sound(completions, **_):
        return reward(completions)

    sound.__name__ = failing.__name__ = "judge"
    failing.batches = 0
    changes = {**layout, "tools": [search], "eval_strategy": "no", "outage_patience": 0.0}
    whole = make(tmp_path / "whole", reward_funcs=sound, **changes)
    whole.train()
    with pytest.raises(RunStopped, match="checkpoint-2: fix the problem and resume from there"):
        make(tmp_path / "broken", reward_funcs=failing, save_steps=100, **changes).train()
    down.clear()
    again = make(tmp_path / "broken", reward_funcs=sound, save_steps=100, **changes)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(weights(again), weights(whole))
    assert log_of(again.state.log_history) == log_of(whole.state.log_history)


@pytest.fixture(scope="module")
def saved(make, tmp_path_factory):
    """Checkpoints of steps 1 to 4."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    broken(make, folder, 4)
    return folder


def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


def test_train_loss_of_a_resumed_run_is_the_mean_over_its_own_steps(saved, make, tmp_path):
    # Step 3 is logged together with step 4, so its loss is in the checkpoint.
    folder = copied(saved, tmp_path)
    again = make(folder, max_steps=5)
    losses, step = [], again.training_step

    def noting(*given):
        losses.append(step(*given))
        return losses[-1]

    again.training_step = noting
    found = again.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    assert len(losses) == 2 and found.training_loss == pytest.approx(torch.stack(losses).mean().item())


# ---- complete and torn checkpoints


TEARS = {
    "manifest.json": lambda file: file.unlink(),
    "model.safetensors": lambda file: os.truncate(file, 100),
    "rank_0.pt": lambda file: file.unlink(),
    "optimizer.pt": lambda file: file.unlink(),
    "trainer_state.json": lambda file: file.write_text("{"),
}


@pytest.mark.parametrize("name", TEARS)
def test_incomplete_checkpoint_is_set_aside_and_the_previous_one_is_used(name, saved, make, tmp_path, caplog):
    folder = copied(saved, tmp_path)
    TEARS[name](folder / "checkpoint-4" / name)
    again = make(folder, max_steps=3)  # checkpoint-3 has already made these steps
    with caplog.at_level(logging.WARNING):
        again.train(resume_from_checkpoint=True)
    assert "checkpoint-4 is incomplete" in caplog.text and "Resuming from checkpoint-3" in caplog.text
    assert name in caplog.text or "it has no manifest" in caplog.text
    assert (folder / "torn-checkpoint-4").is_dir() and again.state.global_step == 3


def test_named_incomplete_checkpoint_is_refused_with_the_latest_complete_one(saved, make, tmp_path):
    folder = copied(saved, tmp_path)
    os.truncate(folder / "checkpoint-4" / "optimizer.pt", 10)
    instead = "The latest complete checkpoint is .*checkpoint-3"
    with pytest.raises(ResumeError, match=rf"optimizer.pt has 10 bytes of \d+. {instead}"):
        make(folder).train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    with pytest.raises(ResumeError, match=f"no folder .*checkpoint-7.* {instead}"):
        make(folder).train(resume_from_checkpoint=str(folder / "checkpoint-7"))
    assert (folder / "checkpoint-4").is_dir()  # a refusal moves nothing


def test_resuming_without_a_complete_checkpoint_is_an_error(saved, make, tmp_path):
    folder = copied(saved, tmp_path)
    for one in checkpoints_of(folder):
        (one / "manifest.json").unlink()
    with pytest.raises(ResumeError, match="no complete checkpoint .*checkpoint-4: it has no manifest.*overwrite"):
        make(folder).train(resume_from_checkpoint=True)
    with pytest.raises(ResumeError, match="holds no checkpoint to resume from"):
        make(tmp_path / "empty").train(resume_from_checkpoint=True)


class TwoMachines:
    """Ranks with folders of their own: the second finds no step later than `last`."""

    number = 2

    def __init__(self, last: int):
        self.last = last

    def gather_lists(self, steps: list[tuple]) -> list[list[tuple]]:
        return [steps, [(step, why) for step, why in steps if step <= self.last]]


def test_checkpoint_that_one_rank_cannot_find_is_not_used(saved):
    facts = read_manifest(saved / "checkpoint-4")
    run = Run(saved, facts["settings"], {}, facts["layout"], False, True, False)
    assert Choice(run, TwoMachines(last=3)).choose(True).folder == saved / "checkpoint-3"
    with pytest.raises(ResumeError, match="no complete checkpoint .*checkpoint-4: a process cannot find it"):
        Choice(run, TwoMachines(last=0)).choose(True)


def test_resuming_from_an_earlier_checkpoint_sets_later_ones_aside(saved, make, tmp_path):
    folder = copied(saved, tmp_path)
    again = make(folder, max_steps=3)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    assert sorted(f.name for f in folder.glob("*checkpoint*")) == [
        *("checkpoint-1", "checkpoint-2", "checkpoint-3"),
        *("left-checkpoint-3", "left-checkpoint-4"),
    ]


def test_a_checkpoint_of_plain_trl_is_accepted_with_a_warning(make, tmp_path, caplog):
    plain = make(tmp_path, trainer=GRPOTrainer, config=GRPOConfig, max_steps=2)
    plain.train()
    with pytest.raises(ResumeError, match="no complete checkpoint"):
        make(tmp_path, max_steps=3).train(resume_from_checkpoint=True)
    with pytest.raises(ResumeError, match="holds no reference model for sync_ref_model to resume from"):
        make(tmp_path, max_steps=3).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    trainer = make(tmp_path, max_steps=3, sync_ref_model=False)
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "has no manifest (plain TRL saved it" in caplog.text
    assert trainer.state.global_step == 3


def test_checkpoint_with_weights_only_cannot_be_resumed(make, tmp_path):
    make(tmp_path, max_steps=1, save_only_model=True).train()
    with pytest.raises(ResumeError, match="only weights .save_only_model"):
        make(tmp_path).train(resume_from_checkpoint=True)


def test_older_checkpoints_are_removed_only_after_the_new_one_is_complete(make, tmp_path, monkeypatch):
    seen = []

    def watched(folder, facts, manifest=folders.write_manifest):
        seen.append([one.name for one in checkpoints_of(tmp_path) if fault(one) is None])
        manifest(folder, facts)

    monkeypatch.setattr(folders, "write_manifest", watched)
    make(tmp_path, max_steps=3, save_total_limit=1).train()
    assert seen == [[], ["checkpoint-1"], ["checkpoint-2"]]
    assert [one.name for one in checkpoints_of(tmp_path)] == ["checkpoint-3"]
    assert torch.load(tmp_path / "checkpoint-3" / "training_args.bin", weights_only=False).save_total_limit == 1


def test_rotation_keeps_foreign_checkpoints_and_added_files(make, tmp_path, caplog):
    (tmp_path / "checkpoint-900").mkdir()
    (tmp_path / "checkpoint-900" / "model.safetensors").write_text("of another run")
    (tmp_path / "checkpoint-best").mkdir()
    made = make(tmp_path, max_steps=3, save_total_limit=1)
    made.add_callback(Noting())
    made.train()
    assert made.args.save_total_limit == 1
    names = {*("checkpoint-3", "checkpoint-900", "checkpoint-best", "torn-checkpoint-1", "torn-checkpoint-2")}
    assert {folder.name for folder in tmp_path.glob("*checkpoint-*")} == names
    assert [file.name for file in (tmp_path / "torn-checkpoint-1").iterdir()] == ["notes.txt"]
    assert (
        tmp_path / "checkpoint-900" / "model.safetensors"
    ).is_file() and "What else was in it is kept in torn-checkpoint-2" in caplog.text


class Noting(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        for folder in checkpoints_of(args.output_dir)[:2]:
            (folder / "notes.txt").write_text("good so far")


@pytest.mark.parametrize(("limit", "left"), [(1, [1]), (2, [3, 1]), (3, [3, 2, 1])])
def test_best_checkpoint_survives_save_total_limit(limit, left, make, tmp_path):
    (tmp_path / "checkpoint-900").mkdir()
    made = make(
        tmp_path,
        max_steps=3,
        save_total_limit=limit,
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="reward",
    )
    made.evaluate = lambda *args, **kwargs: {"eval_reward": -made.state.global_step}  # the first is the best
    made.train()
    assert [step_of(folder) for folder in checkpoints_of(tmp_path)] == [900, *left]


# ---- what must be the same


def other_policy(tokenizer, folder: Path) -> str:
    tiny.make_model(tokenizer, intermediate_size=96).save_pretrained(folder / "larger")
    return str(folder / "larger")


def test_resuming_with_changed_settings_or_data_is_refused_unless_allowed(saved, make, tmp_path, tokenizer, caplog):
    folder = copied(saved, tmp_path)
    different = r"different settings: learning_rate \(0.01, now 0.02\); seed \(42, now 1\)\."
    with pytest.raises(ResumeError, match=different):
        make(folder, learning_rate=0.02, seed=1).train(resume_from_checkpoint=True)
    with pytest.raises(ResumeError, match=r"data \(4 rows, \w+, now 6 rows, \w+\)"):
        make(folder, train_dataset=questions(6)).train(resume_from_checkpoint=True)
    with pytest.raises(ResumeError, match=r"architecture \(.*policy \(tiny, now larger\)"):
        make(folder, model=other_policy(tokenizer, tmp_path)).train(resume_from_checkpoint=True)
    with pytest.raises(ResumeError, match=r"rollouts per optimizer step \(4, now 8\)"):
        make(folder, gradient_accumulation_steps=2).train(resume_from_checkpoint=True)
    with pytest.raises(ResumeError, match=r"settings: rewards \(\['reward'\], now \['exact_match'\]\)\."):
        make(folder, reward_funcs=exact_match).train(resume_from_checkpoint=True)
    brief = partial(A2TGPOTrainer, turn_reward_funcs={"brief": lambda record: [1.0 for _ in record["turns"]]})
    with pytest.raises(ResumeError, match=r"settings: turn rewards \(\[\], now \['brief'\]\)\."):
        make(folder, trainer=brief).train(resume_from_checkpoint=True)
    trainer = make(folder, learning_rate=0.02, max_steps=5, resume_changed=True)
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=True)
    assert "learning_rate (0.01, now 0.02)" in caplog.text and "Resuming anyway" in caplog.text
    assert trainer.state.global_step == 5


def test_resuming_with_other_adapter_settings_is_refused(make, tmp_path):
    def adapted(alpha: int, **changes):
        plain = {"sync_ref_model": False, "eval_strategy": "no", "max_steps": 1, **changes}
        return make(
            tmp_path, peft_config=LoraConfig(r=4, lora_alpha=alpha, target_modules=["v_proj", "q_proj"]), **plain
        )

    adapted(8).train()
    with pytest.raises(ResumeError, match=r"adapter: lora_alpha \(8, now 16\)"):
        adapted(16).train(resume_from_checkpoint=True)
    again = adapted(8, max_steps=2)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 2
    # PEFT holds them as a set, whose order is another one in each process.
    assert settings_of(again)["adapter: target_modules"] == ["q_proj", "v_proj"]


@pytest.mark.parametrize(("rows", "stop"), [(8, 2), (2, 2), (2, 3)], ids=["first pass", "its end", "second pass"])
def test_run_on_a_streamed_dataset_resumes_identically(rows, stop, make, tmp_path):
    changes = {"max_steps": 4, "num_iterations": 1, "steps_per_generation": 1, "eval_strategy": "no"}

    def streamed(folder: Path, stop: int | None = None):
        stream = questions(rows).to_iterable_dataset().shuffle(seed=0, buffer_size=rows)
        return make(folder, stop, train_dataset=stream, **changes)

    whole = streamed(tmp_path / "whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        streamed(tmp_path / "broken", stop=stop).train()
    again = streamed(tmp_path / "broken")
    again.train(resume_from_checkpoint=True)
    assert torch.equal(weights(again), weights(whole))


def test_resuming_with_one_changed_word_in_the_data_is_refused(saved, make, tmp_path):
    rows = questions().map(lambda row, i: {"answer": "Rome" if i == 3 else row["answer"]}, with_indices=True)
    with pytest.raises(ResumeError, match=r"data \(4 rows, \w+, now 4 rows, \w+\)"):
        make(copied(saved, tmp_path), train_dataset=rows).train(resume_from_checkpoint=True)


def test_changed_row_near_the_end_of_a_large_data_set_is_noticed():
    # Of 5000 rows every second one is read.
    answers = ["Paris"] * 5000
    before = data_digest(Dataset.from_dict({"answer": answers}))
    answers[4998] = "Rome"
    assert data_digest(Dataset.from_dict({"answer": answers})) != before


def test_batch_layout_may_change_only_between_generation_windows(saved, make, tmp_path):
    # The same four rollouts per step and eight per window, as two micro-batches of two instead of one of four.
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    folder = copied(saved, tmp_path)
    inside = str(folder / "checkpoint-3")
    with pytest.raises(ResumeError, match="in the middle of a batch of rollouts.*or resume from .*checkpoint-4"):
        make(folder, **split).train(resume_from_checkpoint=inside)
    trainer = make(folder, max_steps=6, **split)
    trainer.train(resume_from_checkpoint=True)
    assert trainer._step == 12  # micro-batches: eight of the first window, and two each for steps 5 and 6


# ---- runs of an earlier version


BEFORE = json.loads(Path(__file__).with_name("layout_of_1ccd31c.json").read_text())
TRL_SETTINGS = GRPOConfig.__dataclass_fields__.keys()


def as_of_1ccd31c(one: Path) -> None:
    """Turn a current checkpoint into what that version wrote: what it knew, under its names."""
    manifest, saved = read_manifest(one), torch.load(one / "rank_0.pt", weights_only=True)
    assert {file.name for file in one.iterdir()} == set(BEFORE["files"])
    of_trl = {name: value for name, value in manifest["settings"].items() if name in TRL_SETTINGS}
    batch = [{name: rows[name] for name in BEFORE["batch"]} for rows in saved["batch"]]
    torch.save({**{name: saved[name] for name in BEFORE["rank"]}, "batch": batch}, one / "rank_0.pt")
    write_manifest(one, {**BEFORE["manifest"], "settings": {**of_trl, **BEFORE["settings"]}})


def test_run_of_an_earlier_version_resumes_and_keeps_its_checkpoints(saved, make, unbroken, tmp_path):
    folder = copied(saved, tmp_path)
    for later in (3, 4):
        shutil.rmtree(folder / f"checkpoint-{later}")
    (folder / MARKER).unlink()  # that version wrote none
    as_of_1ccd31c(folder / "checkpoint-2")
    assert make_room(folder, overwrite=False, resume=True) == []
    again = make(folder, save_total_limit=1)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(weights(again), weights(unbroken))
    assert log_of(again.state.log_history) == log_of(unbroken.state.log_history)
    # Nothing says that this package wrote the earlier ones, so they are not removed.
    assert {one.name for one in checkpoints_of(folder)} == {"checkpoint-1", "checkpoint-2", f"checkpoint-{STEPS}"}


def test_setting_missing_in_an_older_manifest_counts_as_its_default(saved, make, tmp_path):
    folder = copied(saved, tmp_path)
    for one in checkpoints_of(folder):
        manifest = read_manifest(one)
        del manifest["settings"]["gain_groups"]
        write_manifest(one, manifest)
    with pytest.raises(ResumeError, match=r"gain_groups \(turn, now state\)"):
        make(folder, gain_groups="state").train(resume_from_checkpoint=True)
    make(folder).train(resume_from_checkpoint=True)


def test_settings_that_an_earlier_version_pickled_are_read(saved):
    file = saved / "checkpoint-2" / "training_args.bin"
    with zipfile.ZipFile(file) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        assert b"a2tgpo_trl.config\nA2TGPOConfig" in archive.read(name)  # as that version wrote it
    assert type(torch.load(file, weights_only=False)) is A2TGPOConfig


# ---- SIGTERM


def test_sigterm_finishes_the_step_saves_and_exits_with_75(make, unbroken, tmp_path, caplog):
    # In the fifth batch of rewards; an evaluation belongs to this step, and the resumed run makes it.
    def asked(completions, trainer_state, **_):
        if trainer_state.global_step == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return reward(completions)

    asked.__name__ = "reward"
    trainer = make(tmp_path, reward_funcs=asked, save_steps=100)
    with pytest.raises(RunInterrupted) as left, caplog.at_level(logging.WARNING):
        trainer.train()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert left.value.code == 75 and "after step 9 of 11" in caplog.text and "--resume_from_checkpoint" in caplog.text
    assert read_manifest(tmp_path / "checkpoint-9")["evaluation_is_due"]
    again = make(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(weights(again), weights(unbroken))
    assert log_of(again.state.log_history) == log_of(unbroken.state.log_history)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


class Terminate(TrainerCallback):
    """Sends SIGTERM in this step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def terminated(make, folder: Path, step: int, scores: dict[int, float] | None = None, **changes):
    """A run that was ended by SIGTERM in this step, then resumed, and the steps that it evaluated.

    `scores`: of its evaluations, by step.
    """
    evaluated = []
    for resumes in (False, True):
        trainer = make(folder, **changes)
        evaluate = trainer.evaluate

        def evaluate_and_note(*args, trainer=trainer, evaluate=evaluate, **kwargs):
            evaluated.append(trainer.state.global_step)
            if scores is None:
                return evaluate(*args, **kwargs)
            trainer.control.should_evaluate = False  # as after an evaluation
            return {"eval_reward": scores[evaluated[-1]]}

        trainer.evaluate = evaluate_and_note
        if resumes:
            trainer.train(resume_from_checkpoint=True)
        else:
            trainer.add_callback(Terminate(step))
            with pytest.raises(RunInterrupted):
                trainer.train()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return trainer, evaluated


@pytest.mark.parametrize(
    ("strategy", "steps", "scores"),
    [("best", 4, {1: 1.0, 2: 2.0, 3: 0.0, 4: 0.0}), ("steps", 2, {1: 1.0, 2: 2.0})],
)
def test_run_ended_by_sigterm_before_its_best_evaluation_loads_the_best_weights(
    strategy, steps, scores, make, tmp_path
):
    changes = {"max_steps": steps, "save_strategy": strategy, "eval_steps": 1, "load_best_model_at_end": True}
    changes |= {"metric_for_best_model": "reward", "sync_ref_model": False}
    trainer, evaluated = terminated(make, tmp_path, 2, scores, **changes)
    assert evaluated == [*range(1, steps + 1)] and trainer.state.best_global_step == 2
    assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-2"


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        (8, {"eval_steps": 8}),  # the last step of the only epoch
        (8, {"eval_strategy": "epoch", "num_train_epochs": 2}),
        (16, {"eval_strategy": "epoch", "num_train_epochs": 2}),
        (3, {"eval_strategy": "epoch", "max_steps": 3}),  # training ends within an epoch
    ],
)
def test_run_ended_by_sigterm_makes_up_for_the_evaluation_of_its_step(step, changes, make, tmp_path):
    changes = {"max_steps": -1, "num_train_epochs": 1, "save_steps": 100, **changes}
    whole = make(tmp_path / "whole", **changes)
    whole.train()
    expected = [entry["step"] for entry in whole.state.log_history if "eval_reward" in entry]
    trainer, evaluated = terminated(make, tmp_path / "run", step, **changes)
    assert evaluated == expected and step in evaluated
    assert torch.equal(weights(trainer), weights(whole))
    assert log_of(trainer.state.log_history) == log_of(whole.state.log_history)


def test_run_that_stops_during_an_evaluation_repeats_it(make, unbroken, tmp_path):
    trainer = make(tmp_path)
    step = trainer.prediction_step

    def fail(*args, **kwargs):
        if trainer.state.global_step == 6:
            trainer._save_checkpoint(trainer.model, None)  # as after an outage
            raise RunStopped("a tool is down")
        return step(*args, **kwargs)

    trainer.prediction_step = fail
    with pytest.raises(RunStopped):
        trainer.train()
    assert read_manifest(tmp_path / "checkpoint-6")["evaluation_is_due"]
    assert not read_manifest(tmp_path / "checkpoint-3")["evaluation_is_due"]
    again = make(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(weights(again), weights(unbroken))
    assert log_of(again.state.log_history) == log_of(unbroken.state.log_history)


class StopBetweenMicroSteps(TrainerCallback):
    def on_substep_end(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def test_training_again_after_an_interruption_begins_with_new_rollouts(make, tmp_path):
    changes = {"gradient_accumulation_steps": 2, "num_iterations": 1, "save_strategy": "no", "sync_ref_model": False}
    trainer = make(tmp_path, max_steps=2, **changes)
    trainer.add_callback(StopBetweenMicroSteps)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer._step % 2 == 1
    trainer.remove_callback(StopBetweenMicroSteps)
    trainer.train()
    fresh = make(tmp_path / "fresh", max_steps=2, **changes)
    fresh.train()
    assert trainer._step == fresh._step == 4


def test_existing_sigterm_handler_is_kept(make, tmp_path, caplog):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(True))
    try:
        with caplog.at_level(logging.WARNING):
            make(tmp_path, max_steps=1, save_strategy="no").train()
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard and "SIGTERM already has a handler" in caplog.text
    finally:
        signal.signal(signal.SIGTERM, before)


def test_enable_jit_checkpoint_is_refused(make, tmp_path):
    with pytest.raises(ValueError, match="enable_jit_checkpoint: leave it out. On SIGTERM, all processes save"):
        make(tmp_path, enable_jit_checkpoint=True)


# ---- disks


def test_full_disk_stops_the_run_and_it_resumes_identically(make, unbroken, tmp_path):
    make(tmp_path / "one", max_steps=1).train()
    size = sum(file.stat().st_size for file in (tmp_path / "one" / "checkpoint-1").rglob("*"))
    with mounted(tmp_path / "small", f"size={int(1.5 * size)}") as small:
        with pytest.raises(RunStopped) as stopped:
            make(small, save_total_limit=1).train()
        message = str(stopped.value)
        assert "checkpoint-2 could not be written" in message and "MiB free. Free some space there" in message
        assert "checkpoint-1 is complete: resume from it" in message
        subprocess.run(["mount", "-o", "remount,size=100%", small], check=True)
        again = make(small, save_total_limit=1)
        again.train(resume_from_checkpoint=True)
        assert torch.equal(weights(again), weights(unbroken))


def test_full_disk_becomes_run_stopped_and_other_errors_pass_through(saved, tmp_path):
    with mounted(tmp_path / "small", "size=64k") as small:
        with pytest.raises(RunStopped, match="No space left on device.*small has 0 MiB free.*no complete checkpoint"):
            with told_if_not_written(small):
                (small / "results").write_bytes(bytes(10**6))
    with pytest.raises(ConnectionError, match="refused"), told_if_not_written(saved):
        raise ConnectionError("refused")


def test_adapter_folder_without_weights_is_a_recipe_error(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(RecipeError, match="but not its weights .adapter_model.safetensors"):
        read_recipe(["--config", "quickstart", "--model_name_or_path", str(tmp_path)])


def test_unwritable_output_dir_is_an_error_before_the_first_step(make, tmp_path):
    with mounted(tmp_path / "fixed", "size=1m") as fixed:
        subprocess.run(["mount", "-o", "remount,ro", fixed], check=True)
        with pytest.raises(ResumeError, match="output_dir .*fixed/run cannot be written to: Read-only file system"):
            make(fixed / "run").train()


# ---- killed


@pytest.fixture
def warm():
    """A process that has imported everything and runs trainings in forks of itself."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, killed_runs.__file__]
    with subprocess.Popen(words, stdin=-1, stdout=-1, text=True, env=environment) as process:

        def ask(folder: Path, **task) -> dict:
            process.stdin.write(json.dumps({"folder": str(folder), **task}) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        assert json.loads(process.stdout.readline()) == {"ready": True}
        yield ask
        process.stdin.close()


@pytest.mark.slow
def test_runs_killed_at_any_moment_end_like_an_uninterrupted_one(warm, tmp_path):
    # Every second kill comes while a checkpoint is written. A larger sweep: A2TGPO_KILLS=200.
    whole = warm(tmp_path / "whole")
    assert whole["exit"] == 0, (tmp_path / "whole.log").read_text()
    expected = (tmp_path / "whole" / "model.safetensors").read_bytes()
    log = json.loads((tmp_path / "whole" / "trainer_state.json").read_text())["log_history"]
    draw = random.Random(0)
    for number in range(KILLS):
        folder = tmp_path / f"run{number}"
        aimed = {"at_event": draw.randrange(10, whole["events"])}
        kill = aimed if number % 2 == 0 else {"after": draw.uniform(0.3, 1.0) * whole["seconds"]}
        if warm(folder, kill=kill)["signal"] == signal.SIGKILL:
            resumed = any(fault(one) is None for one in checkpoints_of(folder))
            again = warm(folder, resume=resumed, words=[] if resumed else ["--overwrite", "true"])
            assert again["exit"] == again["code"] == 0, (kill, Path(f"{folder}.log").read_text())
        assert (folder / "model.safetensors").read_bytes() == expected, kill
        again_log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        assert log_of(again_log) == log_of(log), kill
        shutil.rmtree(folder)
