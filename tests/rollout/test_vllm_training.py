"""Training with turns from a real vLLM: on one process and on two, full weights and LoRA, split and as a server.

The same runs show what a wrong sampler looks like: in the last step, vLLM is told of no update.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
from places import HELPERS
from ranks import environment, free_port, reports


pytestmark = pytest.mark.vllm

SCRIPT = HELPERS / "vllm_run.py"
ROUNDING = 0.03  # nats: vLLM computes in bfloat16, which makes 0.01 on this policy
OUT_OF_DATE = 0.05
MOST_ROUNDING = 0.1  # of any token: at most 0.045 in four runs, and 0.3 to 0.9 if contexts are mixed up
SYNCED, STEPS = 2, 3


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = tiny.make_tokenizer()
    tiny.make_model(tokenizer, head_dim=32).save_pretrained(folder)  # on CPU, vLLM has no attention for smaller heads
    tokenizer.save_pretrained(folder)
    return folder


# No compiling, which takes longer than all tests together.
VARIABLES = {
    "ACCELERATE_USE_CPU": "true",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_CI_ENV": "1",
    "HF_HUB_OFFLINE": "1",
}


def run(folder: Path, policy: Path, *words: str, processes: int = 1) -> list[dict]:
    """Train on this many processes; return what each reports."""
    ranks = reports(folder, [str(SCRIPT), str(folder), str(policy), *words], processes, **VARIABLES)
    assert [rank["rank"] for rank in ranks] == list(range(processes))
    assert all(rank["processes"] == processes and rank["steps"] == STEPS for rank in ranks)
    return ranks


def check_trained(ranks: list[dict]) -> None:
    """Check that the policy moved to the same weights on all ranks, and that vLLM followed while it was told."""
    assert all(rank["weights"] == ranks[0]["weights"] and rank["moved"] > 1e-3 for rank in ranks)
    for rank in ranks:
        assert rank["gaps"] == ranks[0]["gaps"] and len(rank["gaps"]) == STEPS  # summed over ranks
        assert max(rank["gaps"][:SYNCED]) < ROUNDING, rank["gaps"]
        assert min(rank["gaps"][SYNCED:]) > OUT_OF_DATE, rank["gaps"]  # the control
        assert len(set(rank["turns"])) > 1
        # The gap between sampler and policy does not grow with depth, not even when vLLM is out of date.
        assert all(entry["sampler_gap/alarm"] == 0 for entry in rank["history"])
        assert all("sampler_gap/turn_3" in entry for entry in rank["history"])


def test_vllm_samples_from_the_current_weights(policy, tmp_path):
    ranks = run(tmp_path, policy, "full")
    check_trained(ranks)
    # Four prompts in two batches, two rollouts each, with 2, 1, 0 and 3 calls; the last ones may run out of room.
    assert ranks[0]["turns"][:6] == [3, 3, 2, 2, 1, 1] and min(ranks[0]["turns"][6:8]) > 2


def test_two_processes_with_a_vllm_each_train_one_policy(policy, tmp_path):
    ranks = run(tmp_path, policy, "full", processes=2)
    check_trained(ranks)
    assert [rank["split"] for rank in ranks] == [1, 1]
    assert ranks[0]["turns"] != ranks[1]["turns"]


def test_lora_adapter_is_merged_for_vllm_and_unmerged_afterwards(policy, tmp_path):
    (rank,) = run(tmp_path, policy, "lora")
    check_trained([rank])
    adapter = rank["adapter"]
    assert adapter["layers"] == 8 and not adapter["merged"]
    assert adapter["adapter"] > 0.01  # vLLM was given other weights than at the start
    assert adapter["base_moved"] < 1e-6  # merged and unmerged twice, in float32


def test_two_processes_share_a_vllm_whose_weights_are_split(policy, tmp_path):
    ranks = run(tmp_path, policy, "parallel", processes=2)
    check_trained(ranks)
    assert [rank["split"] for rank in ranks] == [2, 2]
    assert ranks[0]["turns"] != ranks[1]["turns"]


@pytest.mark.parametrize("way", ["full", "lora"])
def test_the_best_weights_are_evaluated_by_a_vllm_that_has_them(way, policy, tmp_path):
    (rank,) = run(tmp_path, policy, way, "best")
    found = rank["best"]
    assert found["best"] == 1 and found["rollouts"] == 4
    assert found["before"] > 1e-3  # the control: vLLM had the weights of the last step
    assert found["after"] < 5e-3 and found["after"] < found["before"] / 2  # 8 bits of a weight of at most 1


# ---- as a server


@pytest.fixture(scope="module")
def server(policy, tmp_path_factory) -> str:
    """The address of a server with the flags that TRL asks for."""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    # This is what `vllm serve` runs. In the CPU build, that command itself needs metadata of a package named `vllm`.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(policy)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "480"]
    command += ["--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1"]
    with log.open("w") as file, started(command, file) as process:
        deadline = time.monotonic() + 180
        while "Application startup complete" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def started(command: list[str], log):
    """A process that is ended together with all processes it starts."""
    process = subprocess.Popen(
        command,
        env={**environment(**VARIABLES), "VLLM_SERVER_DEV_MODE": "1"},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_ranks_with_unequal_turns_get_their_own_completions_from_a_server(policy, server, tmp_path):
    # The server keeps its first weights, and so does the policy, at a learning rate of 0: TRL sends weights only from
    # GPU to GPU. Tokens sampled for another context would differ like those of other weights.
    ranks = run(tmp_path, policy, server, processes=2)
    assert ranks[0]["turns"] != ranks[1]["turns"]
    for rank in ranks:
        assert len(rank["gaps"]) == STEPS and max(rank["gaps"]) < MOST_ROUNDING, rank["gaps"]
    # A rollout ends before the server would refuse to continue it because another whole turn might not fit.
    assert "context_full" in ranks[1]["ends"]


def test_control_trl_loop_mixes_up_completions_between_ranks(policy, server, tmp_path):
    """Not a test of this package: it shows that the test above would fail with TRL's loop in place of ours.

    If it fails, TRL gives each rank its own completions by itself.
    """
    ranks = run(tmp_path, policy, server, "parent", processes=2)
    assert max(ranks[0]["gaps"]) > MOST_ROUNDING
