"""a server of the Model Context Protocol -> its tools, as functions that a policy calls.

    mcp_tools("python my_server.py")          started here, used over its standard input and output
    mcp_tools("http://localhost:8000/mcp")    already running, used over HTTP

In a recipe: `tools: ["mcp:python my_server.py", "mcp+http://localhost:8000/mcp"]`.

Calls have the limits of other tools (`tool_timeout`; `tool_settings`, by the tool's name). The policy reads the
server's error message for a wrong call. A broken connection is an outage: it is opened again, a server that was
started here is started again, and calls wait for it for `outage_patience`. Each process of a run has its own session.
"""

import asyncio
import atexit
import itertools
import json
import os
import shlex
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from ..addresses import public_address
from .from_schema import describe_as
from .results import ToolDown, ToolFailed
from .settings import tool
from .workers import LoopThread


CONNECTING = 30.0  # seconds that a server may take to start and to answer
LEAVING = 5.0  # seconds that a session gets to end
URLS = ("http://", "https://")


def mcp_tools(server: str, names: Sequence[str] | None = None) -> list[Callable]:
    """The tools of a server, or those with these names.

    Args:
        server: the command that starts it, or the URL where it listens.
        names: which of its tools the policy may call. None: all.

    Example:

    ```python
    >>> A2TGPOTrainer(..., tools=[*mcp_tools("python weather.py", names=["forecast"]), search])
    ```
    """
    connection = Connection(server)
    try:
        found = {one.name: one for one in connection.list_tools()}
        missing = [name for name in names or [] if name not in found]
        if missing:
            raise ValueError(f"it has no tool {', '.join(missing)}; it has {', '.join(found) or 'none'}.")
        return [_function(connection, found[name]) for name in (found if names is None else names)]
    except Exception as error:
        connection.close()
        raise ValueError(f"Tools of {public_name(server)!r}: {error}") from error


def _function(connection: "Connection", described: Any) -> Callable:
    @tool(check=connection.list_tools, version=connection.server)
    async def call(**arguments: Any) -> str:
        return await connection.call(described.name, arguments)

    describe_as(call, described.name, described.description, described.input_schema)
    return call


class Connection:
    """A session with a server, in a separate thread: opened when it is needed, and again after it broke."""

    def __init__(self, server: str):
        self.server = server
        try:
            import mcp  # noqa: F401
        except ImportError as error:
            raise ValueError("Tools of MCP servers need the package mcp: pip install 'a2tgpo_trl[mcp]'.") from error
        self._loop = LoopThread("a2tgpo-mcp")
        self._session: _Session | None = None
        atexit.register(self.close)

    def list_tools(self) -> list[Any]:
        """The tools that the server lists. Raises ToolDown if the server is down."""
        return self._loop.submit(self._list_tools()).result()

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Call a tool, from any event loop. Cancelling the caller cancels the call."""
        return await asyncio.wrap_future(self._loop.submit(self._call(name, dict(arguments))))

    def close(self) -> None:
        """End the session, and the server if it was started here."""
        atexit.unregister(self.close)
        if self._session is not None:
            self._loop.submit(self._session.end()).result(LEAVING + 1)
        self._loop.stop()

    # ---- in the connection's thread

    async def _list_tools(self) -> list[Any]:
        """The server's tools. A session that does not answer this request is ended."""
        from mcp import MCPError

        found: list[Any] = []
        cursor: str | None = None
        try:
            async with asyncio.timeout(CONNECTING):
                while True:
                    page = await self._ask("list_tools", cursor=cursor)
                    found += page.tools
                    cursor = page.next_cursor
                    if not cursor:
                        return found
        except (MCPError, TimeoutError) as error:
            if self._session is not None:
                self._session.leave()
            raise ToolDown(f"{public_name(self.server)} does not say what tools it has: {_cause(error)}") from error

    async def _call(self, name: str, arguments: dict[str, Any]) -> str:
        from mcp import MCPError

        try:
            result = await self._ask("call_tool", name, arguments)
        except MCPError:
            await self._list_tools()  # raises ToolDown if the session, not the call, is at fault
            raise
        text = "\n".join(map(_text_of, result.content)) or _structured(result) or "The tool returned nothing."
        if result.is_error:
            raise ToolFailed(f"Error: {text}", [])
        return text

    async def _ask(self, method: str, *args: Any, **options: Any) -> Any:
        if self._session is None or self._session.broken:
            self._session = _Session(self.server)
        return await self._session.ask(method, *args, **options)


def _structured(result: Any) -> str:
    """The structured part of a result, for a server that sends nothing else."""
    return "" if result.structured_content is None else json.dumps(result.structured_content, ensure_ascii=False)


def public_name(server: str) -> str:
    """What of an address or a command may be shown: a query, or an option, may hold a key.

    Example: "python weather.py --key sk-1" -> "python weather.py ..."
    """
    if "://" in server:
        return public_address(server)
    words = server.split()
    plain = list(itertools.takewhile(lambda word: not word.startswith("-") and "=" not in word, words))
    return server if len(plain) == len(words) else " ".join([*plain, "..."])


class _Session:
    """One session, from its start to its end. Lives in one event loop."""

    def __init__(self, server: str):
        self._server = server
        self._client: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._end = asyncio.Event()
        self._why = ""
        # The task that opens a session must also close it.
        self._task = asyncio.ensure_future(self._live())

    @property
    def broken(self) -> bool:
        return self._task.done() or self._end.is_set()

    async def ask(self, method: str, *args: Any, **options: Any) -> Any:
        """The answer to a request. Raises ToolDown if the session breaks first."""
        from mcp import MCPError
        from mcp_types import CONNECTION_CLOSED

        client = await asyncio.shield(self._client)
        request: Awaitable[Any] = getattr(client, method)(*args, **options)
        asked = asyncio.ensure_future(request)
        try:
            await asyncio.wait({asked, self._task}, return_when=asyncio.FIRST_COMPLETED)
            if asked.done() and not asked.cancelled():
                return asked.result()
        except MCPError as error:
            if error.code != CONNECTION_CLOSED:
                raise  # the server answered: the request is at fault
            self._why = error.message
        finally:
            asked.cancel()
        self.leave()
        raise ToolDown(f"{public_name(self._server)}: the connection broke{f': {self._why}' if self._why else ''}")

    def leave(self) -> None:
        """End the session without waiting: the next request opens another."""
        self._end.set()

    async def end(self) -> None:
        """End the session, and wait until the server has ended."""
        self.leave()
        await asyncio.wait({self._task}, timeout=LEAVING)

    async def _live(self) -> None:
        from mcp import Client

        try:
            async with asyncio.timeout(CONNECTING) as limit, Client(_transport(self._server), cache=None) as client:
                limit.reschedule(None)
                self._client.set_result(client)
                await self._end.wait()
        except Exception as error:
            self._why = _cause(error)
            if not self._client.done():
                hint = (
                    "" if self._server.startswith(URLS) else " Does the command start a server? Its output says more."
                )
                self._client.set_exception(ToolDown(f"no session could be opened: {self._why}.{hint}"))
        finally:
            self._client.cancel()


def _transport(server: str) -> Any:
    from mcp import StdioServerParameters
    from mcp.client.stdio import stdio_client

    if server.startswith(URLS):
        return server
    command, *args = shlex.split(server)
    # The server inherits this process's variables, as from a shell: it may need keys of services. Its standard error
    # goes where this process's goes; a notebook's own stream is not a file.
    parameters = StdioServerParameters(command=command, args=args, env=dict(os.environ))
    return stdio_client(parameters, errlog=sys.__stderr__ or sys.stderr)


def _cause(error: BaseException) -> str:
    """The innermost exception of nested exception groups, in words."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return f"it did not answer within {CONNECTING:g} s"
    return f"{type(error).__name__}: {error}"


def _text_of(block: Any) -> str:
    """A block of a result as text; for one that is not text, a note of its type."""
    text = getattr(block.resource, "text", None) if block.type == "resource" else getattr(block, "text", None)
    return f"[{block.type}, which cannot be shown]" if text is None else text
