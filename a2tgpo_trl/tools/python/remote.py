"""code -> its output, from an interpreter on another machine (`server.py`), over HTTP.

    POST /run  {"session": ID, "code": CODE, "begun": BOOL}  ->  200 {"text": TEXT, "failed": BOOL}
    POST /end  {"session": ID}                               ->  200 {}
    GET  /health                                             ->  200 {"isolation": LEVEL, "sessions": NUMBER}
    GET  /health?session=ID                                  ->  the same, if there is room for that session

A session begins with its first call. `begun` says that there were calls before: a server that does not know of them,
because it was restarted or ended an idle session, says in its text that their state is gone. 401: a missing or wrong
token (the variable A2TGPO_PYTHON_TOKEN, on both sides). 400: an invalid request. 503: all sessions are taken; the run
waits as for a server that is down. Errors come with {"error": REASON}.
"""

import http.client
import json
import os
import threading
import uuid
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from ..results import ToolDown
from .session import CodeFailed


TOKEN = "A2TGPO_PYTHON_TOKEN"
CONNECTING = 5.0  # seconds
PATIENCE = 300.0  # seconds without an answer: the server ends code long before
ENDING = 2.0  # seconds to connect, and to wait for the answer, at the end of a session
MOST_ANSWER = 2**26  # bytes


class ServerDown(ConnectionError, ToolDown):
    """The server does not answer, or answers incorrectly."""


def ping(address: str, session: str | None = None) -> dict[str, Any]:
    """The server's state. Raises `ServerDown`, also if the server has no room for the named session."""
    path = "/health" if session is None else f"/health?session={session}"
    return _Exchange(address).ask("GET", path, None)


class RemoteSession:
    """Runs the code of a rollout on a server."""

    def __init__(self, address: str):
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
            raise ValueError(f"remote must be an address like http://sandbox:8400; got {address!r}.")
        self._address = address
        self._lock = threading.Lock()
        self._exchange: _Exchange | None = None
        self._id, self._asked, self._begun = uuid.uuid4().hex, False, False

    def run(self, code: str) -> str:
        """Run code and return what it printed. Raises `CodeFailed` or `ServerDown`."""
        with self._lock:
            exchange = self._exchange = _Exchange(self._address)
        self._asked = True
        answer = exchange.ask("POST", "/run", {"session": self._id, "code": code, "begun": self._begun})
        if not {"failed", "text"} <= answer.keys():
            raise ServerDown(f"the server at {self._address} is no Python server: it answers {str(answer)[:300]}")
        self._begun = True
        if answer["failed"]:
            raise CodeFailed(str(answer["text"]))
        return str(answer["text"])

    def check(self) -> None:
        """Raise `ServerDown` if the server does not answer, or has no room for a rollout that has called it before."""
        ping(self._address, self._id if self._asked else None)

    def forget(self) -> None:
        """End the session, so that the next rollout's code finds nothing of this one's."""
        if self._asked:  # the server may hold a session, even if the call failed
            with suppress(ServerDown):  # the server ends idle sessions itself
                _Exchange(self._address, ENDING).ask("POST", "/end", {"session": self._id})
        self._id, self._asked, self._begun = uuid.uuid4().hex, False, False

    def cancel(self) -> None:
        """From another thread: stop waiting for the current call. The server ends it at its own time limit."""
        with self._lock:
            if self._exchange is not None:
                self._exchange.close()


class _Exchange:
    """One request and its answer."""

    def __init__(self, address: str, patience: float = PATIENCE):
        self._address, self._patience, parts = address, patience, urlsplit(address)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=min(CONNECTING, patience))
        self._closed = False

    def ask(self, method: str, path: str, content: Any) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if os.environ.get(TOKEN):
            headers["Authorization"] = f"Bearer {os.environ[TOKEN]}"
        try:
            self._connect()
            self._connection.request(method, path, None if content is None else json.dumps(content), headers)
            response = self._connection.getresponse()
            answer = json.loads(response.read(MOST_ANSWER))
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            raise ServerDown(
                f"the Python server at {self._address} does not answer ({type(error).__name__}: {error}). Start it "
                "there with: a2tgpo serve-python"
            ) from error
        finally:
            self._connection.close()
        if not isinstance(answer, dict):
            raise ServerDown(f"the Python server at {self._address} answers {response.status}: {str(answer)[:300]}")
        if response.status != 200:
            raise ServerDown(f"the Python server at {self._address} refuses: {answer.get('error', answer)}")
        return answer

    def _connect(self) -> None:
        self._connection.connect()
        if self._closed:  # closed before there was a socket
            raise ConnectionAbortedError("the call was given up")
        self._connection.sock.settimeout(self._patience)

    def close(self) -> None:
        """From another thread: make the request fail."""
        self._closed = True
        open_socket = self._connection.sock  # read once: the request may end now and remove it
        if open_socket is not None:
            with suppress(OSError):  # it was closed
                open_socket.shutdown(2)
