"""Ranks as processes of this machine: started under torchrun or by hand, waited for, stopped, and their reports.

A program is the words after `python`: a script or `-m MODULE`, with its arguments. Its processes print to `log0`,
`log1` ... in a folder and report in `rank0.json`, `rank1.json` ... there.
"""

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest


ON_CPU = {"ACCELERATE_USE_CPU": "true"}


def free_port() -> int:
    """A port below the system's range for connections, where a port may be taken before the rank binds."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
    mine = range(12_000 + 2_000 * worker, 14_000 + 2_000 * worker)  # other test processes look in other ranges
    for port in random.SystemRandom().sample(mine, len(mine)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no port is free from {mine.start} to {mine.stop - 1}")


def environment(**more: str) -> dict[str, str]:
    """The tests' environment, without what a launcher, or TRL starting vLLM in this process, may have left in it."""
    left = ("ACCELERATE_", "FSDP_", "MASTER_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left)}
    return {**kept, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **more}


def under_torchrun(processes: int) -> list[str]:
    """The words before a program that start this many processes of it."""
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--master_addr=127.0.0.1"]
    return [*launcher, f"--master_port={free_port()}"]


def start(
    folder: Path, program: Sequence[str], processes: int = 2, by_hand: bool = False, **variables: str
) -> list[subprocess.Popen]:
    """Start a program's ranks: under torchrun, one process to watch; by hand, one per rank, with no cleanup."""
    if by_hand:
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        where |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        ranks = [{**where, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        return [_start(folder, number, program, {**variables, **rank}) for number, rank in enumerate(ranks)]
    launcher = under_torchrun(processes) if processes > 1 else []
    return [_start(folder, 0, [*launcher, *program], variables)]


def _start(folder: Path, number: int, words: Sequence[str], variables: dict[str, str]) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    with (folder / f"log{number}").open("w") as log:
        return subprocess.Popen(
            [sys.executable, *words], env=environment(**variables), stdout=log, stderr=subprocess.STDOUT
        )


def stop(processes: list[subprocess.Popen]) -> None:
    """End what still runs; torchrun ends its ranks when terminated, but not when killed."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=45)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("log*")))


def finish(folder: Path, processes: list[subprocess.Popen], timeout: float) -> int:
    """The exit code of the first process, within `timeout` seconds."""
    try:
        return processes[0].wait(timeout=timeout)
    except subprocess.TimeoutExpired:
        pytest.fail(f"not finished after {timeout:g} seconds\n" + logs(folder))
    finally:
        stop(processes)


def printed(folder: Path, program: Sequence[str], processes: int = 2, timeout: float = 300, **variables: str) -> str:
    """What a program prints; it must succeed."""
    assert finish(folder, start(folder, program, processes, **variables), timeout) == 0, logs(folder)
    return logs(folder)


def reports(
    folder: Path, program: Sequence[str], processes: int = 2, timeout: float = 300, **variables: str
) -> list[dict]:
    """What each rank of a program reports; the program must succeed."""
    printed(folder, program, processes, timeout, **variables)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]
