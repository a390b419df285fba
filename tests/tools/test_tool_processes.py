"""Calls in separate processes: what is said about them, and that no process is left."""

import os
import subprocess
import sys
import threading
from concurrent.futures import CancelledError

import psutil
import pytest
import tools_for_processes
from calls import Notebook, anap, becomes, call, local_tool, nap, requests, timed
from places import HELPERS
from waiting import until

from a2tgpo_trl.tools.calls import Limits, ToolCall
from a2tgpo_trl.tools.runner import ToolRunner
from a2tgpo_trl.tools.settings import ToolSettings


def alive(process_id):
    try:
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def in_process(make_runner, function, timeout=30.0, **words):
    return make_runner({function.__name__: {"process": True, "timeout": timeout, **words}})


def test_a_process_makes_call_after_call(make_runner):
    runner = in_process(make_runner, tools_for_processes.process_id)
    first, second = (call(runner, tools_for_processes.process_id) for _ in range(2))
    assert first.status == "ok" and first.text == second.text != str(os.getpid())


def test_a_runner_that_is_dropped_during_a_call_leaves_no_process():
    runner = ToolRunner(Limits(), {"process_id": {"process": True}})
    process_id = int(call(runner, tools_for_processes.process_id).text)
    runner.submit([ToolCall(nap, {"seconds": 0.5})])
    del runner  # as in a notebook, where a cell was interrupted: the call has the last reference
    assert alive(process_id) and until(lambda: not alive(process_id))


def test_processes_work_at_once(make_runner):
    runner = in_process(make_runner, tools_for_processes.double)
    outcomes = runner.run([ToolCall(tools_for_processes.double, {"number": n}) for n in range(4)])
    assert [outcome.text for outcome in outcomes] == ["0", "2", "4", "6"]


def test_a_process_that_dies_is_an_error_with_its_code_and_the_next_call_works(make_runner):
    runner = in_process(make_runner, tools_for_processes.leave)
    for code in (3, 4):
        outcome = call(runner, tools_for_processes.leave, code=code)
        assert outcome.status == "tool_error" and f"ended with code {code}" in outcome.text


def test_exceptions_in_a_process_read_like_local_ones(make_runner):
    runner = make_runner({"leave_politely": {"process": True}, "fail": {"process": True}})
    assert call(runner, tools_for_processes.leave_politely).text == "Error: SystemExit: 3"
    outcome = call(runner, tools_for_processes.fail, text="no \ud800")
    assert outcome.text == "Error: ConnectionRefusedError: no ?"


@pytest.mark.parametrize(("kind", "attempts"), [(ConnectionError, 3), (ValueError, 1)])
def test_retry_on_holds_for_what_is_raised_in_a_process(make_runner, kind, attempts):
    settings = ToolSettings(process=True, retries=2, backoff=0, retry_on=(kind,))
    request = ToolCall(tools_for_processes.fail, {"text": "x"}, settings=settings)
    assert make_runner().run([request])[0].attempts == attempts


def test_printed_output_in_a_process_is_dropped_and_stdin_is_empty(make_runner):
    runner = in_process(make_runner, tools_for_processes.talk)
    for _ in range(2):
        assert call(runner, tools_for_processes.talk).text == "said; '' was there to read"


def test_a_process_that_hangs_in_c_is_killed_with_what_it_started(make_runner, tmp_path):
    runner = in_process(make_runner, tools_for_processes.hang, timeout=1.0)
    file = tmp_path / "ids"
    outcome, seconds = timed(lambda: call(runner, tools_for_processes.hang, path=str(file)))
    assert outcome.status == "timeout" and 1.0 <= seconds < 10
    assert becomes(lambda: not any(alive(int(one)) for one in file.read_text().split()))
    assert becomes(lambda: runner.hung == 0) and runner.abandoned == 1


def test_after_a_process_was_killed_the_next_call_works(make_runner):
    runner = make_runner({"sleep_or_double": {"process": True, "timeout": 0.5}}, hung=0)
    late = runner.run(requests(tools_for_processes.sleep_or_double, 4, number=-1))
    assert {outcome.status for outcome in late} == {"timeout"}
    assert (runner.hung, runner.abandoned, runner.trouble) == (0, 4, None)  # nothing is left of them
    assert call(runner, tools_for_processes.sleep_or_double, number=4).text == "8"


def test_the_limit_of_a_call_does_not_hold_for_the_start_of_its_process(make_runner, tmp_path, monkeypatch):
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(0.8)\n\ndef greet():\n    return 'hello'\n")
    monkeypatch.syspath_prepend(str(tmp_path))  # the process finds it there too
    import slow_to_import

    runner = in_process(make_runner, slow_to_import.greet, timeout=0.5)
    assert call(runner, slow_to_import.greet).text == "hello"


def test_a_module_that_cannot_be_imported_in_the_process_says_why(make_runner, tmp_path, monkeypatch):
    file = tmp_path / "gone_later.py"
    file.write_text("def greet():\n    return 'hello'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import gone_later

    file.write_text("raise RuntimeError('no licence')")
    os.utime(file, (1, 1))  # not the time recorded in the compiled file
    outcome = call(in_process(make_runner, gone_later.greet), gone_later.greet)
    assert (outcome.status, outcome.text) == ("tool_error", "Error: RuntimeError: no licence")


def test_file_descriptors_of_a_tool_process_do_not_leak_into_the_runner(make_runner):
    runner = in_process(make_runner, tools_for_processes.open_files)
    call(runner, tools_for_processes.open_files)
    before = len(os.listdir("/proc/self/fd"))
    for opened in range(2, 6):
        assert call(runner, tools_for_processes.open_files).text == str(50 * opened)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_processes_that_die_leave_no_pipes_open(make_runner):
    runner = in_process(make_runner, tools_for_processes.leave)
    call(runner, tools_for_processes.leave, code=3)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        call(runner, tools_for_processes.leave, code=3)
    assert len(os.listdir("/proc/self/fd")) <= before


def in_main() -> str:
    return ""


in_main.__module__ = "__main__"


@pytest.mark.parametrize(
    ("function", "what_to_do"),
    [
        (lambda: "", "at the top level of a module"),
        (local_tool(), "at the top level of a module"),
        (Notebook().open, "at the top level of a module"),
        (in_main, "move it to a module of its own"),
    ],
    ids=["lambda", "local", "method", "main"],
)
def test_a_function_that_another_process_cannot_find_is_refused_beforehand(make_runner, function, what_to_do):
    runner = make_runner({function.__name__: {"process": True}})
    with pytest.raises(ValueError, match=f"importable.*{what_to_do}"):
        runner.prepare([function])


def test_an_async_tool_in_a_process_is_refused_beforehand(make_runner):
    with pytest.raises(ValueError, match="must not be async"):
        in_process(make_runner, anap).prepare([anap])


def test_closing_a_runner_during_calls_leaves_no_process_or_thread(tmp_path):
    file, threads = tmp_path / "ids", threading.active_count()
    runner = ToolRunner(Limits(), {"hang": {"process": True}})
    out = runner.submit([*requests(tools_for_processes.hang, path=str(file)), *requests(nap, seconds=0.3)])
    runner.run([*requests(anap, seconds=0.0), *requests(Notebook().sleep, seconds=0.0)])
    assert becomes(file.exists)
    _, seconds = timed(runner.close)
    assert seconds < 8
    with pytest.raises(CancelledError):  # a waiting caller is told, and does not wait forever
        out.result(timeout=10)
    assert becomes(lambda: not any(alive(int(one)) for one in file.read_text().split()))
    assert becomes(lambda: threading.active_count() <= threads)


def script(tmp_path, text):
    file = tmp_path / "script.py"
    file.write_text(
        "import os, sys, threading, time\n"
        f"sys.path.insert(0, {str(HELPERS)!r})\n"
        "import tools_for_processes\n"
        "from a2tgpo_trl.tools.calls import Limits, ToolCall\nfrom a2tgpo_trl.tools.runner import ToolRunner\n" + text
    )
    return [sys.executable, str(file)]


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), 9)"], ids=["exits", "is killed"])
def test_no_process_outlives_the_run(tmp_path, end):
    file = tmp_path / "ids"
    text = (
        "runner = ToolRunner(Limits(), {'hang': {'process': True}, 'double': {'process': True}})\n"
        "runner.run([ToolCall(tools_for_processes.double, {'number': 1})])\n"
        f"runner.submit([ToolCall(tools_for_processes.hang, {{'path': {str(file)!r}}})])\n"
        f"while not os.path.exists({str(file)!r}):\n    time.sleep(0.01)\n{end}\n"
    )
    run = subprocess.run(script(tmp_path, text), capture_output=True, timeout=60)
    assert run.returncode == (-9 if end else 0)
    assert becomes(lambda: not any(alive(int(one)) for one in file.read_text().split()))


def test_the_interpreter_ends_although_a_tool_hangs(tmp_path):
    text = (
        "async def block(): time.sleep(600)\n"
        "def hang(): time.sleep(600)\n"
        "runner = ToolRunner(Limits(timeout=0.1))\n"
        "print([outcome.status for outcome in runner.run([ToolCall(hang, {}), ToolCall(block, {})])])\n"
    )
    run, seconds = timed(lambda: subprocess.run(script(tmp_path, text), capture_output=True, text=True, timeout=60))
    assert (run.returncode, run.stdout, run.stderr) == (0, "['timeout', 'timeout']\n", "")
    assert seconds < 20
