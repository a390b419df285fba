"""A server of tools, over standard input and output or over HTTP at the given port."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Literal

from mcp.server.mcpserver import MCPServer
from pydantic import BaseModel


server = MCPServer("tests", log_level="CRITICAL")


class Place(BaseModel):
    country: str
    near: str | None = None


@server.tool()
def search(query: str, kind: Literal["page", "title"] = "page", limit: int | None = None) -> str:
    """Look something up.

    Args:
        query: What to look for.
        limit: How many results.
    """
    return f"The {query} is Paris ({kind}, {limit})."


@server.tool()
def visit(places: list[Place]) -> str:
    """Go there."""
    return ", ".join(place.country for place in places)


@server.tool()
def fail(reason: str) -> str:
    """Fail."""
    raise ValueError(f"cannot: {reason}")


@server.tool()
def crash_once(file: str) -> str:
    """End the server, unless the file says that it was ended before."""
    if Path(file).exists():
        return "still here"
    Path(file).touch()
    os._exit(1)


@server.tool()
async def wait(seconds: float) -> str:
    """Take a while."""
    await asyncio.sleep(seconds)
    return "done"


class Silent(MCPServer):
    """Opens sessions, but never lists its tools."""

    async def list_tools(self):
        await asyncio.sleep(3600)


if __name__ == "__main__":
    if sys.argv[1:] == ["silent"]:
        Silent("silent", log_level="CRITICAL").run("stdio")
    elif len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run("stdio")
