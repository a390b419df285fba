"""The same seed and global batch give the same run on one process or several, however the policy is sharded."""

import json
from pathlib import Path

import pytest
from places import HELPERS
from ranks import reports


SCRIPT = HELPERS / "three_steps.py"
# How to tell each backend, so that none is silently replaced by another; `held`: the share of weights a rank keeps.
BACKENDS = {
    "ddp": {"type": "MULTI_CPU", "wrapped": "DistributedDataParallel", "kinds": ["Parameter"], "zero_stage": 0},
    "zero2": {"type": "DEEPSPEED", "wrapped": "DeepSpeedEngine", "kinds": ["Parameter"], "zero_stage": 2},
    "zero3": {"type": "DEEPSPEED", "wrapped": "DeepSpeedEngine", "kinds": ["Parameter"], "zero_stage": 3},
    "fsdp2": {"type": "FSDP", "wrapped": "FSDPPeftModel", "kinds": ["DTensor"], "zero_stage": 0},
}
SHARDED = ("zero3", "fsdp2")
# Some others are times; TRL averages some over micro-batches, so they depend on the micro-batch size.
COMPARED = ("loss", "grad_norm", "reward", "gain/", "value/", "turns/", "tools/", "clip_scale/", "groups/")
COSTS = ("gain/seconds", "gain/forwards", "tools/seconds")


def run(folder: Path, backend: str, processes: int, *words: str, script: Path = SCRIPT) -> list[dict]:
    return reports(folder, [str(script), str(folder), backend, *words], processes, timeout=400)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    (found,) = run(tmp_path_factory.mktemp("runs") / "alone", "alone", 1, "1", "20")
    assert found["moved"] > 1e-2  # it learns something,
    assert all(any(len(row["values"]) > 2 for rows in batch.values() for row in rows) for batch in found["batches"])
    return found  # from rollouts with several tool turns


def rollouts_of(reports: list[dict], step: int) -> dict[str, list[dict]]:
    """The rollouts of all ranks in a step, by their tokens; rollouts with equal tokens are sorted by advantages."""
    found: dict[str, list[dict]] = {}
    for report in reports:
        for tokens, rows in report["batches"][step].items():
            found.setdefault(tokens, []).extend(rows)
    return {tokens: sorted(rows, key=lambda row: row["advantages"]) for tokens, rows in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "processes", "at_once"),
    [("ddp", 2, 10), ("ddp", 2, 2), ("ddp", 4, 5), ("zero2", 2, 5), ("zero3", 2, 5), ("fsdp2", 2, 5)],
)
def test_three_steps_with_tools_and_lora_are_those_of_one_process(backend, processes, at_once, alone, tmp_path):
    # Two ranks have two groups each and share the third. Four have five rows each: 4|1, 3|2, 2|3, 1|4.
    ranks = run(tmp_path / "run", backend, processes, str(processes), str(at_once))
    for rank in ranks:
        assert rank["processes"] == processes
        assert {
            name: rank[name].rpartition(".")[2] if name == "type" else rank[name] for name in BACKENDS[backend]
        } == (BACKENDS[backend])
        assert rank["held"] == pytest.approx(1 / processes if backend in SHARDED else 1.0, abs=0.01)

    for step in range(3):
        one, together = rollouts_of([alone], step), rollouts_of(ranks, step)
        assert together.keys() == one.keys()
        for tokens, rows in one.items():
            for found, wanted in zip(together[tokens], rows, strict=True):
                assert found["turns"] == wanted["turns"]
                for name in ("values", "advantages", "clip_scale"):
                    assert found[name] == pytest.approx(wanted[name], abs=2e-5), (step, name)
    for found, wanted in zip(ranks[0]["history"], alone["history"], strict=True):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            if name.startswith(COMPARED) and name not in COSTS:
                assert found[name] == pytest.approx(value, abs=1e-4, rel=1e-4), name

    for rank in ranks:
        # Ranks split rows into micro-batches differently from one process, and Adam magnifies the rounding.
        assert rank["adapter"] == pytest.approx(alone["adapter"], abs=5e-5)
        assert rank["frozen"] == alone["frozen"]


GTPO = {
    "credit": "gtpo",
    "gain_weight": 0.1,
    "turn_rewards": {"bad_format": -0.1, "read_only": 0.05},
    "shaping_embedding": "ngrams",
    "max_steps": 1,
}


def logs_of_equal_steps(folder: Path, settings: dict) -> tuple[dict, dict]:
    """The logs of one process and of two ranks, whose only step gives each rollout the same advantages."""
    words = json.dumps(settings)
    alone = run(folder / "alone", "alone", 1, "1", "20", words)
    ranks = run(folder / "ranks", "ddp", 2, "2", "10", words)
    one, together = rollouts_of(alone, 0), rollouts_of(ranks, 0)
    assert together.keys() == one.keys()
    for tokens, rows in one.items():
        for found, wanted in zip(together[tokens], rows, strict=True):
            assert found["advantages"] == pytest.approx(wanted["advantages"], abs=2e-4)
    (entry,), (of_ranks,) = alone[0]["history"], ranks[0]["history"]
    return entry, of_ranks


@pytest.mark.slow
def test_turn_rewards_and_shaped_failures_of_two_ranks_are_those_of_one_process(tmp_path):
    entry, of_ranks = logs_of_equal_steps(tmp_path, GTPO)
    compared = [name for name in entry if name.startswith(("turn_rewards/", "shaping/")) and name != "shaping/seconds"]
    assert entry["shaping/share"] > 0 and entry["turn_rewards/read_only/mean"] > 0 and len(compared) >= 6
    for name in compared:
        assert of_ranks[name] == pytest.approx(entry[name], abs=1e-5), name


GIGPO = {"credit": "gigpo", "beta": 0.0, "gain_weight": 0.1}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [GIGPO, {"gain_groups": "state"}], ids=str)
def test_states_of_two_ranks_are_those_of_one_process(changes, tmp_path):
    # The third of five prompts has its rollouts on both ranks.
    entry, of_ranks = logs_of_equal_steps(tmp_path, {**changes, "state_likeness": 0.9, "max_steps": 1})
    for name in ("states/alone", "states/turns"):
        assert 0 < entry[name] == pytest.approx(of_ranks[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("backend", SHARDED)
def test_gain_pass_gathers_sharded_weights_once_per_forward_on_all_ranks(backend, tmp_path):
    # Rank 0 has the longer rollouts. The first pass also tries packing, in two more forwards; the last one takes one
    # forward for each of the five rollouts. A plain forward gathers in its usual order from the second time on.
    one, other = run(tmp_path / "run", backend, 2, script=SCRIPT.with_name("gathers.py"))
    assert one == other
    plain = one["plain"][-1]
    assert plain > 0
    assert one["gain"] == [[3 * plain, 1], [plain, 1], [5 * plain, 5]]
