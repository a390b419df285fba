"""Tools that a policy calls: how to write one of your own, what a run may expect of it, and what happens if it fails.

A tool is a function with type hints and a docstring that describes its arguments. The chat template shows both to the
policy, so their wording matters. What the function returns becomes the text that the policy reads next.

    from a2tgpo_trl.tools import ToolDown, tool

    @tool(timeout=10, retries=3, concurrency=16, check=ping)
    def search(query: str) -> str:
        \"\"\"Search the encyclopedia.

        Args:
            query: What to look for.
        \"\"\"
        return index.search(query)

    trainer = A2TGPOTrainer(..., tools=[search])        # in a recipe: tools: ["my_tools.py:search"]

Async functions work as well. Tools that keep state are the public methods of an environment class, of which each
rollout has one instance (`a2tgpo help environments`). `a2tgpo check RECIPE --call-tools` calls every tool once.

Settings. `@tool(...)` says how calls are made. A recipe may say it, too: `tool_settings: {search: {timeout: 5}}`.

    timeout            seconds for one attempt (default: `tool_timeout` of the config)
    retries, backoff   further attempts after an exception or a timeout, and seconds before the first of them
    retry_on           the exceptions after which a call is tried again; a tuple. Python only
    concurrency        calls of this tool at once (all tools: `tool_concurrency`). With 1, all are made on one thread
    max_result_tokens  a longer result is cut there, and says so
    cache              equal arguments give equal results, so ask once in a run
    final              a successful call ends the rollout, like submit(answer); rewards read its argument `answer`
    changes_state      a call does more than look something up; read by rewards of turns
    process            make calls in separate processes, which can be killed: for code that may hang or crash in C
    version            what results depend on beside the arguments, such as the data; for tool_cache. Python only
    check              raises if what the tool needs is not there. Python only
    cancel, release    of an environment's method: make a late call return; give back what a rollout held. Python only

Failures. A call with wrong arguments is not made. An exception, a timeout and a cut result are told to the policy as
the result of its call, and the rollout goes on; `failure_policy` can end the rollout or leave it out of its group
instead. A call that never returns costs a thread and not the step; once more than `max_hung_calls` threads are held
so, further calls wait until some have returned. Nothing that a tool returns can become a special token, a call or a
turn: control text in it is broken up. Values of environment variables that look like secrets are replaced by the
variable's name.

Outages. A tool with a `check` must be up before the first step. When its calls fail later, it is asked again for
`outage_patience` seconds, and the calls that failed are then made once more. If it stays down, the run saves a
checkpoint and stops, or goes on without it (`on_outage: continue`). A tool can raise `ToolDown` to say that the
failure is no fault of the call, even where `check` passes again at once.

Threads. Tools are called from several threads at once, never from the one that imported them. Open what belongs to
one thread, such as a connection of SQLite, in the call itself, or with `concurrency=1`, or in an environment, which
has a thread of its own.

Servers of the Model Context Protocol have tools, too: `mcp_tools("python my_server.py")` (`tools/mcp.py`) lists them,
and a recipe names them so: `tools: ["mcp:python my_server.py"]` or `["mcp+http://localhost:8000/mcp"]`.

Recorded calls. `tool_cache: calls.jsonl` keeps every call and its result, and a later run answers from the file;
with `tool_replay: true` a call that is not in it stops the run. The file answers for a tool of the same name,
signature, docstring and `version`; calls of another are made anew, with a warning, and stop a replay. Whether the code
of a tool, or a server behind it, has changed cannot be seen: raise the `version`, or begin another file. The tools of
this package have a version: that of a search names its server or index and its settings, not what lies there. Calls on
environments, and of tools with `changes_state`, are made always.
"""

from .results import ToolDown
from .settings import ToolSettings, tool


__all__ = ["ToolDown", "ToolSettings", "tool"]
