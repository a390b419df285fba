"""made-up passages -> seconds to build a BM25 index, its size; a server's times and memory under many clients."""

import argparse
import http.client
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memory import MIB, most_resident
from search_world import random_passages, random_queries, write_lines

from a2tgpo_trl.cli.bench import add_numbers, show


@dataclass(frozen=True)
class Load:
    passages: int
    clients: int
    seconds: int


@dataclass(frozen=True)
class Measured:
    build_seconds: float
    build_mib: float  # peak resident memory while it was built
    corpus_mib: float
    index_mib: float
    requests: int
    errors: int
    p50: float  # seconds per request
    p99: float
    server_mib: float  # peak resident memory while it served


def measure(load: Load, folder: Path) -> Measured:
    """Build an index, serve it and query it, with the command's own index and server."""
    corpus = write_lines(folder / "wiki.jsonl", random_passages(load.passages))
    command = [sys.executable, "-m", "a2tgpo_trl", "serve-search", "--corpus", str(corpus)]
    began = time.monotonic()
    build_mib = 0.0
    with subprocess.Popen([*command, "--build"]) as building:
        while building.poll() is None:
            build_mib = most_resident(building.pid) or build_mib
            time.sleep(0.1)
    if building.returncode:
        raise RuntimeError(f"the build ended with {building.returncode}")
    build_seconds = time.monotonic() - began
    with subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        port = int(serving.stdout.readline().split("/")[2].partition(":")[2])
        times, errors = _ask(port, load)
        server_mib = most_resident(serving.pid)
        serving.terminate()
    return Measured(
        build_seconds=build_seconds,
        build_mib=build_mib,
        corpus_mib=corpus.stat().st_size / MIB,
        index_mib=sum(file.stat().st_size for file in folder.glob("wiki.jsonl.bm25/*")) / MIB,
        requests=len(times),
        errors=errors + (serving.returncode != 0),
        p50=statistics.median(times),
        p99=statistics.quantiles(times, n=100)[98],
        server_mib=server_mib,
    )


def _ask(port: int, load: Load) -> tuple[list[float], int]:
    """Seconds of each request of clients that send one query after another, and how many requests failed."""
    queries, times, errors = random_queries(5000), [], []
    end = time.monotonic() + load.seconds

    def client(seed: int) -> None:
        rng, connection = random.Random(seed), http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while time.monotonic() < end:
            body = json.dumps({"queries": [rng.choice(queries)], "topk": 3, "return_scores": True})
            began = time.perf_counter()
            try:
                connection.request("POST", "/retrieve", body)
                answer = connection.getresponse()
                found = json.loads(answer.read())["result"]
                assert answer.status == 200 and len(found[0]) == 3
            except (OSError, http.client.HTTPException, ValueError, KeyError, AssertionError) as error:
                errors.append(error)
                connection.close()
            times.append(time.perf_counter() - began)
        connection.close()

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(load.clients)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    return times, len(errors)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Builds a BM25 index of made-up passages, serves it, and asks.")
    numbers = (
        ("--passages", 5000, 1_000_000, "passages of 60 words; among fewer, some queries find less than three"),
        ("--clients", 1, 16, "clients at once, each with one query after the other"),
        ("--seconds", 1, 60, "seconds of asking"),
    )
    add_numbers(parser, numbers)
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Load(args.passages, args.clients, args.seconds), Path(folder))
    show(f"corpus {found.corpus_mib:,.0f} MiB; built in {found.build_seconds:.0f} s with {found.build_mib:,.0f} MiB")
    show(f"index {found.index_mib:,.0f} MiB; resident while serving {found.server_mib:,.0f} MiB")
    show(
        f"{found.requests:,} requests of {args.clients} clients in {args.seconds} s: {found.errors} errors, "
        f"p50 {found.p50 * 1000:.0f} ms, p99 {found.p99 * 1000:.0f} ms"
    )
    return 1 if found.errors else 0


if __name__ == "__main__":
    sys.exit(main())
