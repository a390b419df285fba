"""tools and environments -> one call of each, made as training makes it, not on the thread that imported them."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from ..config import A2TGPOConfig
from ..tasks import Task
from ..tools.calls import Limits, Outcome, ToolCall
from ..tools.results import describe
from ..tools.runner import ToolRunner
from ..tools.settings import check_tool_settings
from .chat import Datasets, Verdict, tool_call
from .data import first_row
from .loading import factories, public_methods


SHOWN = 80  # characters of a result
THREADS = (
    "Training calls tools from threads of its own, never from the one that imports them. Open what is bound to one "
    "thread (an SQLite connection, for example) in the call, once per thread (threading.local), or once for a tool "
    "with concurrency=1, whose calls are all made on one thread. Or make the tools methods of an environment, which "
    "is made and called on a thread of its own."
)
# Texts of errors from calls on another thread, or event loop, than the one their resources were made on.
OF_ANOTHER_THREAD = re.compile(
    r"Error: (ProgrammingError: SQLite objects created in a thread"
    r"|RuntimeError: (.*attached to a different loop|.*bound to a different event loop"
    r"|.*no current event loop in thread|main thread is not in main loop)"
    r"|ValueError: signal only works in main thread"
    r"|error: cannot switch to a different thread)",  # of greenlets
    re.IGNORECASE | re.DOTALL,
)


def check_settings(tools: list[Callable], args: A2TGPOConfig) -> Verdict:
    """Check that the recipe's settings of tools are valid, and for tools that there are."""
    assert not isinstance(args.tool_settings, str)  # it has been read
    check_tool_settings(tools, args.tool_settings or {})
    return "pass", ", ".join(args.tool_settings) if args.tool_settings else "none"


def check_calls(tools: list[Callable], task: Task, args: A2TGPOConfig, data: Datasets, call: bool) -> Verdict:
    """Check that each tool answers a call with arguments made up from its schema."""
    if not tools:
        return "pass", "no tools"
    if not call:
        names = ", ".join(tool.__name__ for tool in tools)
        return "pass", f"not called ({names}): `a2tgpo check RECIPE --call-tools` calls each once, as training does"
    limits = Limits(args.tool_concurrency, args.tool_timeout, args.max_hung_calls, patience=0.0, stop_when_down=False)
    runner = ToolRunner(limits, args.tool_settings)  # type: ignore[arg-type]  # a mapping, once it is constructed
    try:
        runner.check(tools)
        verdicts = [_verdict(*made) for made in _calls(runner, task, data)]
    except RuntimeError as error:
        return "fail", str(error)
    finally:
        runner.close()
    statuses = [status for status, _ in verdicts]
    worst = next(status for status in ("fail", "warn", "pass") if status in statuses)
    return worst, " ".join(text for status, text in verdicts if status == worst)


def _calls(runner: ToolRunner, task: Task, data: Datasets) -> list[tuple[str, Mapping[str, Any], Outcome]]:
    """Call each tool once. Return what was called, with which arguments, and the outcome."""
    made = [_made(runner, tool) for tool in task.tools]
    row = {name: value for name, value in first_row(data).items() if name != "environment"}
    for factory in factories(task):
        try:
            environment = runner.construct(factory)
        except Exception as error:  # noqa: BLE001  # whatever a constructor raises is reported
            made.append(("environment_factory", {}, Outcome("tool_error", describe(error))))
            continue
        reset = ToolCall(environment.reset, row, environment)
        (outcome,) = runner.run([reset])
        made.append((f"{type(environment).__name__}.reset", {}, outcome))
        if outcome.status == "ok":
            made += [_made(runner, tool, environment) for tool in public_methods(environment)]
    return made


def _made(runner: ToolRunner, tool: Callable, environment: Any = None) -> tuple[str, Mapping[str, Any], Outcome]:
    arguments = tool_call(tool)["function"]["arguments"]
    (outcome,) = runner.run([ToolCall(tool, arguments, environment)])
    return tool.__name__, arguments, outcome


def _verdict(name: str, arguments: Mapping[str, Any], outcome: Outcome) -> Verdict:
    call = f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
    text = outcome.text if len(outcome.text) <= SHOWN else f"{outcome.text[:SHOWN]}..."
    if outcome.status == "ok":
        return "pass", f"{call} -> {text!r} in {outcome.seconds:.2g} s."
    if outcome.status == "timeout":
        return "fail", (
            f"{call}: {outcome.text} Make sure that what it needs is available, or raise its limit (tool_timeout)."
        )
    if OF_ANOTHER_THREAD.match(outcome.text):
        return "fail", f"{call}: {outcome.text}. {THREADS}"
    if not arguments:
        return "fail", f"{call}: {outcome.text}. Every call of the run would fail like this."
    return "warn", (
        f"{call}: {outcome.text}. If this is its answer to made-up arguments, all is well; otherwise every call of "
        "the run would fail like this."
    )
