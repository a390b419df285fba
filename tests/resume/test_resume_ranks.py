"""Interrupted runs on several processes over gloo: each rank resumes its own state, however the policy is sharded."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import HELPERS
from ranks import environment, free_port

from a2tgpo_trl.resume.manifest import fault


SCRIPT = HELPERS / "resumed_ranks.py"
LAUNCHER = {
    # torchrun's launcher, whose exit code is always 1, and this package's.
    "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"],
    "ours": [
        *("-m", "a2tgpo_trl.launch.launcher", "--multi_gpu", "--num_processes=2", "--num_machines=1"),
        *("--mixed_precision=no", "--dynamo_backend=no", "--main_process_ip=127.0.0.1"),
    ],
}


def run(folder: Path, backend: str = "ddp", launcher: str | None = "torchrun", **task) -> tuple[int, str, list[dict]]:
    """The exit code, what was printed, and the report of each rank."""
    port = {"torchrun": f"--master_port={free_port()}", "ours": f"--main_process_port={free_port()}"}
    words = [*LAUNCHER[launcher], port[launcher]] if launcher else []
    for report in folder.glob("rank*.json"):
        report.unlink()
    task = {"folder": str(folder), "backend": backend, **task}
    variables = {} if backend.startswith("zero") else {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [sys.executable, *words, str(SCRIPT), json.dumps(task)],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=300,
    )
    reports = [json.loads(report.read_text()) for report in sorted(folder.glob("rank*.json"))]
    return done.returncode, done.stdout + done.stderr, reports


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ddp", "zero2", "zero3", "fsdp2"])
def test_run_resumes_identically_after_one_rank_is_killed(backend, tmp_path):
    code, out, whole = run(tmp_path / "whole", backend)
    assert code == 0, out
    assert len(whole) == 2 and whole[0] == whole[1] and whole[0]["steps"] == 7
    folder = tmp_path / "broken"
    # One rank is killed as it writes the third checkpoint; the second is from the middle of a window.
    code, out, _ = run(folder, backend, tear=[1, 3])
    assert code == 1 and fault(folder / "checkpoint-3") == "it has no manifest", out
    code, out, reports = run(folder, backend, resume=True)
    assert code == 0 and "Resuming from checkpoint-2" in out, out
    assert reports == whole


@pytest.mark.slow
def test_sigterm_on_one_rank_stops_all_ranks_with_a_checkpoint(tmp_path):
    whole = run(tmp_path / "whole")[2]
    for launcher, expected in (("torchrun", 1), ("ours", os.EX_TEMPFAIL)):
        folder = tmp_path / launcher
        code, out, _ = run(folder, launcher=launcher, terminate=[1, 4])
        assert code == expected and out.count("Interrupted by SIGTERM after step 5 of 7") == 1, out
        assert fault(folder / "checkpoint-5") is None
        code, out, reports = run(folder, resume=True)
        assert code == 0 and reports == whole, out


@pytest.mark.slow
@pytest.mark.parametrize("seeded", [True, False])
def test_world_size_may_change_only_between_generation_windows(seeded, tmp_path):
    folder, two = tmp_path / "run", {"seeded_rollouts": seeded}
    one = {**two, "per_device_train_batch_size": 4}  # as many rollouts as two processes with two each
    assert run(folder, settings={**two, "max_steps": 4})[0] == 0
    shutil.copytree(folder, tmp_path / "inside")
    code, out, _ = run(tmp_path / "inside", launcher=None, settings=one, resume=str(tmp_path / "inside/checkpoint-3"))
    assert code == 1 and "processes (2, now 1)" in out and "or resume from" in out and "checkpoint-4" in out
    code, out, (report,) = run(folder, launcher=None, settings={**one, "max_steps": 8}, resume=True)
    assert code == 0 and report["steps"] == report["micro_step"] == 8, out
    # With a separate seed for each rollout, sampling does not change, and there is nothing to warn of.
    assert ("Rollouts sampled from here on differ" in out) == (not seeded), out
    code, out, reports = run(folder, settings={**two, "max_steps": 9}, resume=True)
    assert code == 0 and ("Rollouts sampled from here on differ" in out) == (not seeded), out
    assert [report["micro_step"] for report in reports] == [9, 9]


@pytest.mark.slow
def test_deepspeed_sharded_optimizer_is_refused_on_another_world_size(tmp_path):
    assert run(tmp_path, "zero2", settings={"max_steps": 4})[0] == 0
    one = {"per_device_train_batch_size": 4}
    code, out, _ = run(tmp_path, "ddp", launcher=None, settings=one, resume=True)
    assert code == 1 and "sharding (DeepSpeed, ZeRO stage 2, now none)" in out and "Start the run with the old" in out
