"""requests of Search-R1's protocol -> the best passages, over HTTP.

    POST /retrieve  {"queries": [TEXT, ...], "topk": NUMBER, "return_scores": BOOL}
        -> 200 {"result": [[{"document": {"id", "title", "contents"}, "score": NUMBER}, ...], ...]}
           without return_scores, the lists hold the documents themselves
    GET /healthz    -> 200 {"status": "ok", "passages": NUMBER}
    GET /metrics    -> number and times of requests, and how many are waiting, in Prometheus format

A request that cannot be served gets a 4xx code and {"error": REASON}. 503: too many are waiting; ask again.
"""

import asyncio
import json
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..addresses import is_of_this_machine
from .retriever import Found, Retriever, check_query, check_top_k


logger = logging.getLogger(__name__)

TOP_K = 3
MOST_QUERIES = 4096  # per request: enough for a batch of a thousand rollouts with several each
MOST_BYTES = 2**24  # per request
MOST_PASSAGES = 100_000  # per answer
PIECE = 16  # queries that a thread takes at a time, so that a large request leaves room for small ones
REMEMBERED = 10_000  # request times, for the percentiles


class Refused(Exception):
    """A request that is not served, with its HTTP status code."""

    def __init__(self, code: int, reason: str):
        super().__init__(reason)
        self.code = code


class SearchServer:
    """Answers requests with a retriever: `threads` searches at a time, and at most `most_waiting` open requests.

    With `is_loopback`, searches are for this machine alone: not for a page in a browser here, which could ask, and
    read the answer, by a name of its own that leads here.
    """

    def __init__(
        self,
        retriever: Retriever,
        *,
        threads: int | None = None,
        most_waiting: int = 1024,
        is_loopback: bool = False,
    ):
        self._retriever, self._is_loopback = retriever, is_loopback
        self._most = most_waiting
        self._threads = ThreadPoolExecutor(threads or os.cpu_count())
        self._open, self._queries = 0, 0
        self._codes: Counter[int] = Counter()
        self._seconds, self._latest = 0.0, deque[float](maxlen=REMEMBERED)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/retrieve", self._answer, methods=["POST"]),
                Route("/healthz", self._health),
                Route("/metrics", self._metrics),
            ]
        )

    def close(self) -> None:
        self._threads.shutdown()

    # ---- searches

    async def _answer(self, request: Request) -> Response:
        began = time.perf_counter()
        self._open += 1
        try:
            code, content = 200, await self._serve(request)
        except Refused as refusal:
            code, content = refusal.code, {"error": str(refusal)}
        except ClientDisconnect:  # nobody will read this
            code, content = 400, {"error": "the request was broken off"}
        except Exception as error:  # a request must never take the server down
            logger.exception("a request failed")
            code, content = 500, {"error": f"{type(error).__name__}: {error}"}
        finally:
            self._open -= 1
        self._count(code, time.perf_counter() - began)
        return JSONResponse(content, code)

    async def _serve(self, request: Request) -> dict[str, Any]:
        if self._is_loopback and not is_of_this_machine(request.headers.get("host", "")):
            raise Refused(403, "the request names another machine as its host")
        if self._open > self._most:
            raise Refused(503, f"{self._most} requests wait already (--most-waiting). Ask again later.")
        queries, top_k, with_scores = self._read(await _body(request))
        pieces = [queries[start : start + PIECE] for start in range(0, len(queries), PIECE)]
        loop = asyncio.get_running_loop()
        search = self._retriever.search
        found = await asyncio.gather(*(loop.run_in_executor(self._threads, search, piece, top_k) for piece in pieces))
        self._queries += len(queries)
        return {"result": [[_shown(one, with_scores) for one in hits] for piece in found for hits in piece]}

    def _read(self, body: bytes) -> tuple[list[str], int, bool]:
        """The parts of a request. Raises `Refused` if it is invalid."""
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the request is not JSON: {error}") from error
        if not isinstance(asked, Mapping) or not isinstance(asked.get("queries"), list):
            raise Refused(422, 'the request must be {"queries": [TEXT, ...], "topk": NUMBER, "return_scores": BOOL}')
        queries, with_scores = asked["queries"], asked.get("return_scores") or False
        top_k = TOP_K if asked.get("topk") is None else asked["topk"]
        if len(queries) > MOST_QUERIES:
            raise Refused(
                413, f"there are {len(queries):,} queries; the most is {MOST_QUERIES:,}. Send several requests."
            )
        if not isinstance(with_scores, bool):
            raise Refused(422, f"return_scores must be true or false; got {with_scores!r}.")
        try:
            check_top_k(top_k, len(self._retriever.corpus))
            for query in queries:
                check_query(query)
        except ValueError as error:
            raise Refused(422, str(error)) from error
        if top_k * len(queries) > MOST_PASSAGES:
            raise Refused(
                413, f"{len(queries):,} queries of {top_k:,} passages are more than {MOST_PASSAGES:,} passages."
            )
        return queries, top_k, with_scores

    # ---- state and metrics

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok", "passages": len(self._retriever.corpus)})

    def _count(self, code: int, seconds: float) -> None:
        self._codes[code] += 1
        self._seconds += seconds
        self._latest.append(seconds)

    async def _metrics(self, _: Request) -> Response:
        times = sorted(self._latest)
        lines = [f'a2tgpo_search_requests_total{{code="{code}"}} {n}' for code, n in sorted(self._codes.items())]
        lines += [f"a2tgpo_search_queries_total {self._queries}", f"a2tgpo_search_waiting {self._open}"]
        for share in (0.5, 0.99) if times else ():
            lines.append(f'a2tgpo_search_seconds{{quantile="{share}"}} {times[int(share * (len(times) - 1))]:.6f}')
        lines.append(f"a2tgpo_search_seconds_sum {self._seconds:.6f}")
        lines.append(f"a2tgpo_search_seconds_count {self._codes.total()}")
        return PlainTextResponse("\n".join(lines) + "\n")


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > MOST_BYTES:
            raise Refused(413, f"the request is longer than {MOST_BYTES:,} bytes. Send several.")
    return bytes(body)


def _shown(found: Found, with_scores: bool) -> dict[str, Any]:
    passage = found.passage
    document = {"id": passage.id, "title": passage.title, "contents": passage.contents}
    return {"document": document, "score": found.score} if with_scores else document
