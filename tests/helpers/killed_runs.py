"""Run by test_resume.py: a process that has imported everything and forks a training for each line it reads.

usage: killed_runs.py    (lines of JSON on stdin, one answer on stdout for each)

    {"folder": "...", "resume": true, "kill": {...}}  ->  {"signal": 9, "events": 61, "seconds": 3.2}

`kill` is {"at_event": n}: the n-th time that the process opens, makes, renames or removes something in a checkpoint,
that is, while it writes one; or {"after": s}: s seconds after its start. Both send SIGKILL to the real process.
Settings of the recipe may be given as "words".
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path


WORDS = [
    *("--config", "quickstart"),
    *("--max_steps", "9"),
    *("--num_generations", "4"),
    *("--per_device_train_batch_size", "4"),
    *("--gradient_accumulation_steps", "1"),
    # A window of four steps: two micro-batches, each trained on twice. Two windows are an epoch.
    *("--steps_per_generation", "2"),
    *("--num_iterations", "2"),
    *("--gradient_checkpointing", "false"),
    *("--max_completion_length", "64"),
    *("--max_tool_calling_iterations", "2"),
    *("--task_kwargs", '{"train_questions": 4, "test_questions": 3}'),
    *("--beta", "0.04", "--sync_ref_model", "true", "--ref_model_sync_steps", "3"),
    *("--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "2"),
    *("--eval_strategy", "steps", "--eval_steps", "3", "--eval_rows", "2", "--per_device_eval_batch_size", "2"),
    *("--logging_steps", "2"),
]
TOUCHING = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


def count_events(folder: str, limit: int | None) -> list[int]:
    """Count the process's operations on files of the folder, and kill it at the given one."""
    counted = [0]

    def hook(event: str, args: tuple) -> None:
        if event not in TOUCHING or not isinstance(args[0], (str, os.PathLike)):
            return
        if event == "open" and not (args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
        if "checkpoint-" in os.fspath(args[0]) and os.fspath(args[0]).startswith(folder):
            counted[0] += 1
            if counted[0] == limit:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return counted


def train(task: dict, report: Path) -> None:
    from a2tgpo_trl.train import main

    counted = count_events(task["folder"], task.get("kill", {}).get("at_event"))
    words = [*WORDS, *task.get("words", ()), "--output_dir", task["folder"]]
    code = main([*words, "--resume_from_checkpoint", "true"] if task.get("resume") else words)
    report.write_text(json.dumps({"code": code, "events": counted[0]}))


def run(task: dict) -> dict:
    report = Path(f"{task['folder']}.json")
    report.unlink(missing_ok=True)
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        log = os.open(f"{task['folder']}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            train(task, report)
        except BaseException:
            traceback.print_exc()
            os._exit(70)
        os._exit(0)
    after = task.get("kill", {}).get("after")
    if after is not None:
        timer = threading.Timer(after, os.kill, (child, signal.SIGKILL))
        timer.start()
    _, status = os.waitpid(child, 0)
    if after is not None:
        timer.cancel()
    done = json.loads(report.read_text()) if report.exists() else {}
    ended = {"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, "exit": os.waitstatus_to_exitcode(status)}
    return {**ended, **done, "seconds": time.perf_counter() - start}


def main() -> None:
    import torch

    import a2tgpo_trl.train  # noqa: F401  # takes seconds, so only once

    torch.set_num_threads(1)
    answer({"ready": True})
    for line in sys.stdin:
        answer(run(json.loads(line)))


def answer(content: dict) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
