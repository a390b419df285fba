"""Tools that a policy calls: how to write your own, what a run may expect of it, and what happens if it fails.

A tool is a function with type hints and a docstring that describes its arguments. The chat template shows both to the
policy, so their wording matters. The function's return value becomes the text that the policy reads next.

    from a2tgpo_trl.tools import ToolDown, tool

    @tool(timeout=10, retries=3, concurrency=16, check=ping)
    def search(query: str) -> str:
        \"\"\"Search the encyclopedia.

        Args:
            query: What to look for.
        \"\"\"
        return index.search(query)

    trainer = A2TGPOTrainer(..., tools=[search])        # in a recipe: tools: ["my_tools.py:search"]

Async functions work too. For tools that keep state, write an environment class: its public methods are the tools, and
each rollout has one instance (`a2tgpo help environments`). `a2tgpo check RECIPE --call-tools` calls every tool once.

Settings. `@tool(...)` sets how calls are made. A recipe can do the same: `tool_settings: {search: {timeout: 5}}`.

    timeout            seconds per attempt (default: `tool_timeout` of the config)
    ends_after         seconds after which a call ends by itself; warns if `timeout` is not longer. Python only
    retries, backoff   further attempts after an exception or a timeout; seconds before the first of them
    retry_on           a tuple of the exceptions after which a call is retried. Python only
    concurrency        calls of this tool at a time (all tools: `tool_concurrency`). With 1, all run on one thread
    max_result_tokens  a longer result is cut to this length and says so
    cache              equal arguments give equal results, so a run asks once
    final              a successful call ends the rollout, like submit(answer); rewards read its argument `answer`
    changes_state      a call does more than look something up; turn rewards read it
    process            run calls in separate processes, which can be killed: for code that may hang or crash in C
    version            what results depend on besides the arguments, such as the data; for tool_cache. Python only
    check              a function that raises if something the tool needs is missing. Python only
    cancel, release    for environment methods: make a late call return; free what a rollout held. Python only

Failures. A call with wrong arguments is not made. The policy is told of an exception, a timeout or a cut result as the
result of its call, and the rollout goes on; `failure_policy` can end the rollout or leave it out of its group instead.
A call that never returns costs a thread, not the step; when such calls hold more than `max_hung_calls` threads,
further calls of their tools wait until some have returned. Nothing that a tool returns can become a special token, a
call or a turn: control text in it is broken up. Values of environment variables that look like secrets are replaced by
the variable's name.

Outages. A tool with a `check` must be up before the first step. If its calls fail later, the check is repeated for up
to `outage_patience` seconds. When the tool is up again, the failed calls are made once more. If it stays down, the run
saves a checkpoint and stops, or goes on without it (`on_outage: continue`). A tool can raise `ToolDown` to say that
the call is not at fault, even if `check` passes again immediately.

Threads. Several threads call tools at the same time, and never the thread that imported them. If something belongs to
one thread, such as an SQLite connection, open it in the call itself, or with `concurrency=1`, or in an environment,
which has its own thread.

Model Context Protocol servers provide tools too: `mcp_tools("python my_server.py")` (`tools/mcp.py`) lists them, and a
recipe names them like this: `tools: ["mcp:python my_server.py"]` or `["mcp+http://localhost:8000/mcp"]`.

Recorded calls. `tool_cache: calls.jsonl` records every call and its result, and a later run answers from the file;
with `tool_replay: true`, a call that is not in the file stops the run. The file answers only for a tool with the same
name, signature, docstring and `version`. Calls of a tool that differs are made again, with a warning; in a replay they
stop the run. The file cannot tell whether a tool's code, or a server behind it, has changed: raise the `version`, or
start a new file. The tools of this package have a version: a search tool's names its server or index and its settings,
but not the data there. Calls on environments and calls of tools with `changes_state` are always made.
"""

from .results import ToolDown
from .settings import ToolSettings, tool


__all__ = ["ToolDown", "ToolSettings", "tool"]
