"""Two processes over gloo with unequal tool turns: each trains to the end on its own rollouts, however it is sharded.

Every use of a sharded model is collective: with ZeRO-3 and FSDP2 a rank that generates once more than another waits
for it forever, or reads what the other sent for something else.
"""

import math
import re
import subprocess
import time
from pathlib import Path

import pytest
from places import HELPERS
from ranks import logs, reports, stop
from ranks import start as start_ranks


SCRIPT = HELPERS / "unequal_turns.py"
SHARDED = {
    "ddp": {
        "type": "MULTI_CPU",
        "wrapped": "DistributedDataParallel",
        "parameters": ["Parameter"],
        "zero_stage": 0,
        "held": 1.0,
    },
    "zero3": {
        "type": "DEEPSPEED",
        "wrapped": "DeepSpeedEngine",
        "parameters": ["Parameter"],
        "zero_stage": 3,
        "held": 0.5,
    },
    "fsdp2": {
        "type": "FSDP",
        "wrapped": "FSDPScripted",
        "parameters": ["DTensor"],
        "zero_stage": 0,
        "held": 0.5,
    },
}


def start(folder: Path, words: tuple[str, ...], by_hand: bool = False) -> list[subprocess.Popen]:
    """Start two ranks of the script."""
    return start_ranks(folder, [str(SCRIPT), str(folder), *words], by_hand=by_hand)


def run(folder: Path, *words: str, timeout: float = 150) -> list[dict]:
    """Train on two ranks; return what each reports."""
    return reports(folder, [str(SCRIPT), str(folder), *words], timeout=timeout)


def check(ranks: list[dict], backend: str) -> None:
    """Check that the backend is the named one, training went on, and each rollout belongs to its rank and prompt."""
    for number, rank in enumerate(ranks):
        assert (rank["rank"], rank["processes"], rank["steps"]) == (number, 2, 2)
        assert {key: rank[key] for key in SHARDED[backend]} == SHARDED[backend]
        assert len(rank["losses"]) == 2 and all(map(math.isfinite, rank["losses"]))
        assert rank["moved"] > 1e-4
        # Two batches of two prompts with two generations each; marks are counted over the ranks, from 10 and from 20.
        assert [rollout["asked"][0] for rollout in rank["rollouts"]] == [
            str(10 * batch + 2 * number + prompt) for batch in (1, 2) for prompt in (0, 1) for _ in range(2)
        ]
        for rollout in rank["rollouts"]:
            check_rollout(rollout, number)
        numbers = [text.split()[-1] for rollout in rank["rollouts"] for text in rollout["heard"]]
        assert len(set(numbers)) == len(numbers)  # no result was given to two rollouts
    assert ranks[0]["weights"] == ranks[1]["weights"]


def check_rollout(rollout: dict, rank: int) -> None:
    mark, calls, letters = rollout["asked"]
    assert rollout["called"] == [mark] * calls
    assert len(rollout["heard"]) == calls
    numbers = [re.fullmatch(rf"{mark} is heard as (\d+)", text)[1] for text in rollout["heard"]]
    assert all(int(number) // 1000 == rank for number in numbers)  # this rank's tool answered
    assert re.fullmatch(" ".join(["answer", mark, *numbers, f"[a-h]{{{letters}}}"]), rollout["answer"])
    call = f'<tool_call>\n{{"name": "echo", "arguments": {{"mark": "{mark}"}}}}\n</tool_call><|im_end|>'
    assert rollout["sampled"] == call * calls + rollout["answer"] + "<|im_end|>"
    assert re.findall(r"<tool_response>\n(.*)\n</tool_response>", rollout["given"]) == rollout["heard"]


# ---- every rank is done when all are


@pytest.mark.parametrize(
    "backend", ["ddp", *(pytest.param(one, marks=pytest.mark.slow) for one in SHARDED if one != "ddp")]
)
def test_a_rank_without_calls_waits_for_one_with_six(backend, tmp_path):
    check(run(tmp_path / "run", "ours", backend, "one_side"), backend)


@pytest.mark.slow
@pytest.mark.parametrize("backend", SHARDED)
def test_rows_and_ranks_with_none_to_three_calls_get_their_own_turns(backend, tmp_path):
    check(run(tmp_path / "run", "ours", backend, "mixed"), backend)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "seconds"), [("zero3", 20), ("fsdp2", 8)])
def test_a_rank_waits_for_the_slow_tool_of_another(backend, seconds, tmp_path):
    begin = time.monotonic()
    check(run(tmp_path / "run", "ours", backend, "slow", str(seconds)), backend)
    assert time.monotonic() - begin > seconds


@pytest.mark.slow
def test_rank_with_short_completions_generates_in_step_and_weights_agree(tmp_path):
    # No tools, because their numbers depend on who asks first: with the same seeds, the rollouts are the same.
    norms = {}
    for backend in SHARDED:
        ranks = run(tmp_path / backend, "ours", backend, "lengths")
        check(ranks, backend)
        norms[backend] = ranks[0]["norm"]
    assert norms["zero3"] == pytest.approx(norms["ddp"], rel=1e-7)
    assert norms["fsdp2"] == pytest.approx(norms["ddp"], rel=1e-7)


# ---- a rank that is gone


def seconds_until_stopped(folder: Path, processes: list[subprocess.Popen], survivors: list[subprocess.Popen]) -> float:
    """Seconds from when rank 1 killed itself until every survivor had ended with an error."""
    try:
        for process in survivors:
            assert process.wait(timeout=150) != 0, logs(folder)
        assert (folder / "killed").exists(), "ended before rank 1 had killed itself\n" + logs(folder)
        return time.time() - float((folder / "killed").read_text())
    except subprocess.TimeoutExpired:
        pytest.fail("still running\n" + logs(folder))
    finally:
        stop(processes)


@pytest.mark.slow
@pytest.mark.parametrize("backend", SHARDED)
def test_rank_stops_by_itself_when_another_dies(backend, tmp_path):
    processes = start(tmp_path, ("ours", backend, "killed"), by_hand=True)
    assert seconds_until_stopped(tmp_path, processes, survivors=processes[:1]) < 60
    assert processes[1].returncode == -9
    assert re.search("Connection (closed|reset) by peer", (tmp_path / "log0").read_text()), logs(tmp_path)
    assert not list(tmp_path.glob("rank*.json"))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ddp", "zero3"])
def test_a_launcher_stops_the_other_rank_when_one_dies(backend, tmp_path):
    processes = start(tmp_path, ("ours", backend, "killed"))
    assert seconds_until_stopped(tmp_path, processes, survivors=processes) < 60
    assert not list(tmp_path.glob("rank*.json"))


# ---- why: the parent's own loop


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["zero3", "fsdp2"])
def test_control_trl_loop_fails_on_unequal_turns(backend, tmp_path):
    """Not a test of this package: it shows that the tests above can fail, with TRL's loop in place of ours.

    If it fails, TRL keeps its ranks in step by itself.
    """
    processes = start(tmp_path, ("parent", backend, "one_side"))
    try:
        processes[0].wait(timeout=60)
    except subprocess.TimeoutExpired:
        pass  # ranks wait for each other in different collectives: the usual outcome on accelerators
    finally:
        stop(processes)
    assert (tmp_path / "asked1").exists() and not (tmp_path / "asked0").exists(), logs(tmp_path)  # it got that far
    assert not all((tmp_path / f"rank{rank}.json").exists() for rank in range(2)), logs(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["zero3", "fsdp2"])
def test_control_trl_loop_works_with_equal_turns(backend, tmp_path):
    """Not a test of this package: it shows that only the unequal turns are to blame above."""
    check(run(tmp_path / "run", "parent", backend, "equal"), backend)
