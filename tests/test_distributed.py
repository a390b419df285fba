"""Processes over gloo: groups split over ranks are compared as groups, in as many forwards on each rank."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = Path(__file__).with_name("two_ranks.py")


def run(folder: Path, processes: int, token_budget: int = 10**6) -> list[dict]:
    """One batch of eight rollouts in two groups of four, on this many ranks."""
    folder.mkdir()
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    result = subprocess.run(
        [*launcher, str(SCRIPT), str(folder), str(8 // processes), str(token_budget)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "alone", processes=1)[0]


@pytest.mark.parametrize(("processes", "token_budget"), [(2, 10**6), (4, 10**6), (2, 1)])
def test_ranks_together_credit_as_one_process_does(processes, token_budget, alone, tmp_path):
    # With four processes each rank holds half a group. With a budget of one token every rollout is a forward.
    ranks = run(tmp_path / "run", processes, token_budget)
    assert all(rank["processes"] == processes and rank["type"].endswith("MULTI_CPU") for rank in ranks)
    assert all(rank["wrapped"] == "DistributedDataParallel" for rank in ranks)
    together = {name: entry for rank in ranks for name, entry in rank["credited"].items()}
    assert together.keys() == alone["credited"].keys() and len(together) == 8
    for name, entry in alone["credited"].items():
        assert together[name]["turns"] == entry["turns"]
        for key in ("values", "advantages", "clip_scale", "old_logps"):
            assert together[name][key] == pytest.approx(entry[key], abs=1e-5), (name, key)
    assert {rank["forwards"] for rank in ranks} == {1 if token_budget > 1 else 8 // processes}
    for key, value in alone["metrics"].items():
        if key not in ("gain/seconds", "gain/forwards"):
            assert ranks[0]["metrics"][key] == pytest.approx(value, abs=1e-4), key
    for rank in ranks:
        assert rank["sample"] == pytest.approx(alone["sample"], abs=1e-5)
        assert rank["weights"] == ranks[0]["weights"]
