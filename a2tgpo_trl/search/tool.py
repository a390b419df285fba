"""a server with Search-R1's protocol, or an index in this process -> a search tool that a policy calls."""

import http.client
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..addresses import public_address
from ..tools import ToolDown, tool
from ..tools.calls import SECONDS
from ..tools.search import NOTHING_FOUND
from .corpus import Passage
from .retriever import Retriever, check_query, check_top_k, open_retriever


CONNECTING = 5.0  # seconds
MOST_ANSWER = 2**28  # bytes

Search = Callable[[Sequence[str], int], list[list[Passage]]]


class SearchServerDown(ConnectionError, ToolDown):
    """The server does not answer, or answers incorrectly."""


def SearchTool(
    *,
    url: str | None = None,
    index: Retriever | str | Path | None = None,
    top_k: int = 3,
    max_passage_words: int | None = None,
    timeout: float = 30.0,
    retries: int = 3,
    max_result_tokens: int | None = None,
    cache: bool = True,
    name: str = "search",
) -> Callable[[str | list[str]], str]:
    """A tool named `search`, for `tools=[SearchTool(url="http://localhost:8000")]`.

    A second search tool needs another `name`, which tells the policy what it searches: "search_news".

    The tool asks a server (`url`; the path is /retrieve if none is given), or searches an index in this process
    (`index`: a retriever, or the folder of an existing index). A call has one query or several, which are sent in one
    request. Passages are cut to `max_passage_words` each; the whole result to `max_result_tokens`. A recipe can change
    `timeout` (which also applies to the server), `retries`, `max_result_tokens` and `cache` (`tool_settings`).
    """
    if (url is None) == (index is None):
        raise ValueError("SearchTool takes either url or index.")
    for setting, value in (("top_k", top_k), ("max_passage_words", max_passage_words)):
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"SearchTool's {setting} must be a whole number, at least 1; got {value!r}.")
    if not name.isidentifier():
        raise ValueError(f"SearchTool's name must be one word, valid as a function's name; got {name!r}.")
    place = index.corpus.file if isinstance(index, Retriever) else url or index
    find = passages_of(url=url, index=index, top_k=top_k, timeout=timeout)

    @tool(
        timeout=timeout,
        retries=retries,
        retry_on=(ToolDown,),
        max_result_tokens=max_result_tokens,
        cache=cache,
        version=f"{place}, {top_k} shown, of {max_passage_words or 'all'} words",
        check=lambda: find(["a"], 1),
    )
    def search(query: str | list[str]) -> str:
        """Search the encyclopedia.

        Args:
            query: What to look for: one query, or a list of several.

        Returns:
            The passages that fit best.
        """
        queries = [query] if isinstance(query, str) else query
        for one in queries:
            check_query(one)
        results = [passages_text(found, max_passage_words) for found in find(queries, top_k)] if queries else []
        if len(results) == 1:
            return results[0]
        return "\n\n".join(f"{one}\n{text}" for one, text in zip(queries, results, strict=True)) or NOTHING_FOUND

    search.__name__ = search.__qualname__ = name
    return search


def passages_text(passages: Sequence[Passage], most_words: int | None) -> str:
    """The text of a query's passages that the policy reads.

    Example: '[1] Paris\\nParis is the capital of France.\\n[2] ...'
    """
    parts = []
    for number, passage in enumerate(passages, 1):
        text = passage.text.strip()
        words = text.split()
        if most_words is not None and len(words) > most_words:
            text = " ".join(words[:most_words]) + " ..."
        parts.append(f"[{number}] {passage.title}\n{text}" if passage.title else f"[{number}] {text}")
    return "\n".join(parts) or NOTHING_FOUND


# ---- where passages come from


def passages_of(
    *, url: str | None = None, index: Retriever | str | Path | None = None, top_k: int, timeout: float = 30.0
) -> Search:
    """A function from queries to the passages of each, from a server or an index with at least `top_k` passages.

    `timeout`: seconds within which a server must answer, unless the tool call has its own limit.
    """
    return _over_http(url, timeout) if url is not None else _in_process(index, top_k)


def _in_process(index: Retriever | str | Path | None, top_k: int) -> Search:
    retriever = index if isinstance(index, Retriever) else open_retriever(str(index))
    check_top_k(top_k, len(retriever.corpus))
    return lambda queries, top_k: [[one.passage for one in found] for found in retriever.search(queries, top_k)]


def _over_http(url: str, timeout: float) -> Search:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url must be an address like http://localhost:8000; got {url!r}.")
    if parts.username is not None:
        raise ValueError("url: names and passwords are not sent. Leave them out, and let a proxy add them.")
    path = (parts.path if parts.path not in ("", "/") else "/retrieve") + (f"?{parts.query}" if parts.query else "")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    shown = public_address(url)  # the policy reads errors, and runs are shared

    def find(queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        seconds = SECONDS.get(None) or timeout
        connection = kind(parts.hostname or "", parts.port, timeout=min(CONNECTING, seconds))
        try:
            connection.connect()
            connection.sock.settimeout(seconds)
            asked = {"queries": list(queries), "topk": top_k, "return_scores": True}
            connection.request("POST", path, json.dumps(asked), {"Content-Type": "application/json"})
            response = connection.getresponse()
            body = response.read(MOST_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            raise SearchServerDown(
                f"the search server at {shown} does not answer ({type(error).__name__}: {error}). Start one with: "
                "a2tgpo serve-search"
            ) from error
        finally:
            connection.close()
        return _passages(shown, response.status, body, len(queries))

    return find


def _passages(url: str, code: int, body: bytes, asked: int) -> list[list[Passage]]:
    """The passages in an answer. A 4xx code is an error of the request; other codes are the server's failure."""
    shown = body[:300].decode("utf-8", errors="replace")
    if 400 <= code < 500 and code not in (408, 429):
        raise ValueError(f"the search server refuses ({code}): {shown}")
    try:
        lists = json.loads(body)["result"]
        found = [[_passage(one) for one in documents] for documents in lists]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SearchServerDown(f"the search server at {url} answers {code}, and no passages: {shown}") from error
    if code != 200 or len(found) != asked:
        raise SearchServerDown(f"the search server at {url} answers {code}, {len(found)} lists for {asked} queries")
    return found


def _passage(shown: dict[str, Any]) -> Passage:
    """Read a document of the protocol; some servers give its title only in the first line of its contents."""
    document = shown.get("document", shown)
    contents = str(document["contents"])
    first, broken, _ = contents.partition("\n")
    title = document.get("title") or (first.strip().strip('"') if broken else "")
    return Passage(str(document.get("id", "")), str(title), contents)
