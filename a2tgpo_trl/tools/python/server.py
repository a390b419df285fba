"""requests over HTTP (described in `remote.py`) -> code run in interpreters on this machine.

For a container or a machine that holds nothing of value. Sessions are isolated from each other as rollouts are.
"""

import hmac
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ...addresses import is_loopback, is_of_this_machine
from .interpreter import NotStarted
from .pool import Pool
from .remote import TOKEN
from .session import MOST_CODE, CodeFailed, LocalSession, Unavailable


MOST_REQUEST = 8 * MOST_CODE  # bytes: JSON writes some characters in six


class Refused(Exception):
    """A request that is not served, with its HTTP status code."""

    def __init__(self, code: int, reason: str):
        super().__init__(reason)
        self.code = code


class Entry:
    """A session, the lock that makes its calls one at a time, and the time of its last use."""

    def __init__(self, pool: Pool):
        self.session, self.lock, self.used = LocalSession(pool), threading.Lock(), time.monotonic()


class PythonServer(ThreadingHTTPServer):
    """Holds the sessions. `serve_forever` serves each request in its own thread."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], pool: Pool, *, most_sessions: int = 256, idle: float = 600.0):
        super().__init__(address, Handler)
        self.pool, self._most, self._idle = pool, most_sessions, idle
        self._entries: dict[str, Entry] = {}
        self._guard = threading.Lock()
        self.token = os.environ.get(TOKEN, "")
        self.is_loopback = is_loopback(str(self.server_address[0]))

    @property
    def sessions(self) -> int:
        return len(self._entries)

    def run(self, name: str, code: str, begun: bool) -> dict[str, Any]:
        entry = self._entry(name, begun)
        with entry.lock:
            try:
                return {"text": entry.session.run(code), "failed": False}
            except CodeFailed as error:
                return {"text": str(error), "failed": True}
            finally:
                entry.used = time.monotonic()

    def _entry(self, name: str, begun: bool) -> Entry:
        with self._guard:
            if name not in self._entries:
                self.check_room(name)
                self._entries[name] = Entry(self.pool)
                if begun:
                    self._entries[name].session.lose()
            entry = self._entries[name]
            entry.used = time.monotonic()
            return entry

    def check_room(self, name: str) -> None:
        """Raise `Refused` if a session is new and there is no room for it."""
        if name not in self._entries and len(self._entries) >= self._most:
            raise Refused(503, f"there are {self._most} sessions already (--most-sessions)")

    def end(self, name: str) -> None:
        with self._guard:
            entry = self._entries.pop(name, None)
        if entry is not None:
            entry.session.cancel()
            with entry.lock:
                entry.session.forget()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a trainer that gave up a call is not an error
            super().handle_error(request, client_address)

    def service_actions(self) -> None:
        """Regularly end sessions that have been idle for too long."""
        latest = time.monotonic() - self._idle
        for name, entry in list(self._entries.items()):
            if entry.used < latest and not entry.lock.locked():
                self.end(name)


class Handler(BaseHTTPRequestHandler):
    server: PythonServer
    timeout = 60  # seconds within which a request must have arrived

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: str) -> None:
        try:
            code, content = 200, self._serve(method)
        except Refused as refusal:
            code, content = refusal.code, {"error": str(refusal)}
        except (NotStarted, Unavailable) as error:  # no interpreter could be made
            code, content = 503, {"error": str(error)}
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _serve(self, method: str) -> dict[str, Any]:
        expected, given = f"Bearer {self.server.token}", self.headers.get("Authorization", "")
        if self.server.token and not hmac.compare_digest(expected.encode(), given.encode()):
            raise Refused(401, f"the token is missing or wrong; set {TOKEN} where the trainer runs")
        # A page in a browser on this machine can send requests here: by a name of its own that leads here, or of a
        # kind for which browsers do not ask first.
        if self.server.is_loopback and not is_of_this_machine(self.headers.get("Host", "")):
            raise Refused(403, "the request names another machine as its host")
        if method == "POST" and self.headers.get_content_type() != "application/json":
            raise Refused(415, "a request must be of the type application/json")
        path, _, asking = self.path.partition("?session=")
        if (method, path) == ("GET", "/health"):
            self.server.pool.check()
            if asking:
                self.server.check_room(asking)
            return {"isolation": self.server.pool.settings.isolation, "sessions": self.server.sessions}
        content = self._content()
        name = content.get("session")
        if not isinstance(name, str) or not 0 < len(name) <= 64:
            raise Refused(400, "session must be text of 1 to 64 characters")
        if (method, self.path) == ("POST", "/end"):
            self.server.end(name)
            return {}
        if (method, self.path) != ("POST", "/run"):
            raise Refused(404, "the paths are POST /run, POST /end and GET /health")
        code = content.get("code")
        if not isinstance(code, str):
            raise Refused(400, "code must be text")
        return self.server.run(name, code, content.get("begun") is True)

    def _content(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MOST_REQUEST:
            raise Refused(400, f"a request must state its length, at most {MOST_REQUEST} bytes")
        try:
            content = json.loads(self.rfile.read(int(length)))
        except ValueError as error:
            raise Refused(400, f"the request is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise Refused(400, "the request must be an object")
        return content

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: neither code nor thousands of calls."""
