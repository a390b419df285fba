"""runs while they are written to -> their page over HTTP, which asks for what is new.

    GET /                               the page
    GET /news?epoch=E&since=N           what changed after N: {"epoch", "number", "share", "entries"}; N is valid for
                                        server E only, and "share" is the share of the runs that was read so far; a
                                        server other than E adds the "names" of its runs
    GET /group?run=R&begun=B&key=K      a group, as the page shows it; 410: the run has started over
    GET /search?run=R&begun=B&from=S&words=W     keys of groups that contain these words: {"found", "next", "share"}

Anyone who can log in to this machine can read what a server on its loopback address shows. A server on any other
address shows it to those who have its token, first in the address, then in a cookie. Pages of other sites may link to
the page, and are told nothing else: on loopback, `Host` must be a name of this machine, and requests that the browser
marks as another site's (`Sec-Fetch-Site`) are refused. Over plain HTTP, browsers mark requests to loopback only;
elsewhere the cookie is not sent with requests of other sites.
"""

import contextlib
import gzip
import hmac
import ipaddress
import json
import secrets
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from ..addresses import is_loopback, is_of_this_machine, why_not
from .html import make_live_page
from .journal import Journal
from .run import names_of
from .watch import Gone, Watch


AT_ONCE = 0.5  # seconds that one request may read or search; the page asks again for the rest
APART = 1.0  # seconds between two looks at the folders
MOST_CHARACTERS = 2**19  # of news in one answer
MOST_REQUESTS = 64  # concurrent
SILENT, WHOLE = 10, 60  # seconds that a connection may be silent, and may take in all
COOKIE = "a2tgpo-view"
OF_OTHERS = ("cross-site", "same-site")  # "same-site" includes other ports of this host
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Runs:
    """The runs that are shown, and what is known about them. Requests may come from several threads."""

    def __init__(self, folders: Sequence[Path]):
        self.names = names_of(folders)
        self._epoch = secrets.token_hex(8)
        self._journal = Journal()
        self.watches = [Watch(folder, number, self._journal) for number, folder in enumerate(folders)]
        self._lock = threading.Lock()
        self._looked = -APART

    def news(self, epoch: str, since: int) -> str:
        """Return what has changed, as JSON."""
        with self._lock:
            self._look()
            known = since if epoch == self._epoch else 0
            texts, number = self._journal.since(known, MOST_CHARACTERS)
            due = sum(watch.due for watch in self.watches) + (number < self._journal.last)
            read = sum(len(watch.steps) for watch in self.watches)
        told = {"epoch": self._epoch, "number": number, "share": read / (read + due) if due else 1.0}
        if epoch != self._epoch:
            told["names"] = self.names
        return f'{json.dumps(told)[:-1]}, "entries": [{",".join(texts)}]}}'

    def _look(self) -> None:
        if time.monotonic() < self._looked + APART:
            return
        until = time.monotonic() + AT_ONCE
        if all([watch.look(until) for watch in self.watches]):
            self._looked = time.monotonic()

    def group(self, run: int, begun: int, key: str) -> dict[str, Any]:
        with self._lock:
            return self.watches[run].group(begun, key)

    def search(self, run: int, begun: int, first: int, words: str) -> dict[str, Any]:
        with self._lock:
            found, following, share = self.watches[run].search(begun, words, first, time.monotonic() + AT_ONCE)
        return {"found": found, "next": following, "share": share}


class ViewServer(ThreadingHTTPServer):
    """Serves the page of runs (`serve_forever`), with a thread for each connection."""

    daemon_threads = True

    def __init__(self, host: str, port: int, folders: Sequence[Path]):
        self.runs = Runs(folders)
        self.page = make_live_page(self.runs.names)
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self.address_family = family
            super().__init__((str(address[0]), port), Handler)
        except socket.gaierror as error:
            raise ValueError(f"--host {host}: {error.strerror}. Name an address of this machine.") from error
        except OSError as error:
            raise ValueError(why_not(host, port, error)) from error
        self.is_loopback = is_loopback(str(self.server_address[0]))
        self.token = None if self.is_loopback else secrets.token_urlsafe(32)
        self._free = threading.Semaphore(MOST_REQUESTS)
        self._ends: dict[Any, float] = {}  # connection -> its deadline

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # skips looking up the name of this host, which may take long
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def address(self) -> str:
        """The address to open in a browser."""
        host = str(self.server_address[0])
        if ipaddress.ip_address(host).is_unspecified:
            host = socket.gethostname()
        place = f"http://{f'[{host}]' if ':' in host else host}:{self.server_address[1]}/"
        return place if self.token is None else f"{place}?token={self.token}"

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        self._ends[request] = time.monotonic() + WHOLE
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread was started that would release it
            self._release(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._release(request)

    def _release(self, request: Any) -> None:
        self._ends.pop(request, None)
        self._free.release()

    def service_actions(self) -> None:
        """Close connections past their deadline, so that their threads end. Called now and then."""
        for request, end in self._ends.copy().items():
            if time.monotonic() > end:
                with contextlib.suppress(OSError):  # already closed
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        # A reader who left is not an error, nor is a connection that was closed here, as by Ctrl-C.
        if not isinstance(error, ConnectionError) and not (isinstance(error, OSError) and request.fileno() < 0):
            super().handle_error(request, client_address)


class Refused(Exception):
    """A request that is refused, with its HTTP code."""

    def __init__(self, code: int, reason: str = ""):
        super().__init__(reason)
        self.code = code


class Handler(BaseHTTPRequestHandler):
    server: ViewServer
    timeout = SILENT  # a connection serves one request

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        try:
            asked = _read_query(query)
            self._check(asked)
            if path != "/" and self.headers.get("Sec-Fetch-Site", "") in OF_OTHERS:
                raise Refused(403, "This request comes from a page of another site.")
            if path == "/":
                self._send_page(asked)
            else:
                self._send(200, "application/json", self._found(path, asked))
        except Refused as refusal:
            self._send(refusal.code, "text/plain; charset=utf-8", str(refusal))

    # ---- who may read

    def _check(self, asked: Mapping[str, str]) -> None:
        if self.server.token is None:
            if not is_of_this_machine(self.headers.get("Host", "")):
                raise Refused(403, f"This server is for this machine only: open {self.server.address}")
            return
        given = (asked.get("token", ""), self._cookie())
        # Both are compared, each in a time that does not depend on how much of it is right.
        if not any([hmac.compare_digest(self.server.token.encode(), one.encode()) for one in given]):
            raise Refused(401)

    def _cookie(self) -> str:
        pairs = (pair.strip().partition("=") for pair in self.headers.get("Cookie", "").split(";"))
        return next((value for name, _, value in pairs if name == self._cookie_name()), "")

    def _cookie_name(self) -> str:
        return f"{COOKIE}-{self.server.server_port}"  # cookies belong to a host, whatever the port

    # ---- what is asked

    def _found(self, path: str, asked: Mapping[str, str]) -> str:
        runs = self.server.runs
        try:
            if path == "/news":
                return runs.news(asked["epoch"], int(asked["since"]))
            if path not in ("/group", "/search"):
                raise Refused(404, "The paths are /, /news, /group and /search.")
            run, begun = int(asked["run"]), int(asked["begun"])
            if not 0 <= run < len(runs.names):
                raise Refused(400, f"There are {len(runs.names)} runs, numbered from 0.")
            if path == "/group":
                return json.dumps(runs.group(run, begun, asked["key"]))
            return json.dumps(runs.search(run, begun, int(asked["from"]), asked["words"].lower()))
        except Gone as error:
            raise Refused(410, "The run has started over.") from error
        except OSError as error:
            raise Refused(503, f"The folder of a run cannot be read now: {error}") from error
        except (KeyError, ValueError) as error:
            raise Refused(400, f"This cannot be answered: {error}") from error

    # ---- answers

    def _send_page(self, asked: Mapping[str, str]) -> None:
        if self.server.token is None or "token" not in asked:
            self._send(200, "text/html; charset=utf-8", self.server.page)
            return
        # From now on the cookie is used: others can see an address, on a screen or in a history.
        cookie = f"{self._cookie_name()}={self.server.token}; HttpOnly; SameSite=Lax; Path=/"
        self._send(303, "text/plain; charset=utf-8", "", {"Location": "/", "Set-Cookie": cookie})

    def _send(self, code: int, kind: str, text: str, more: Mapping[str, str] | None = None) -> None:
        body, headers = text.encode(), {**HEADERS, "Content-Type": kind, **(more or {})}
        if kind.startswith("text/html"):
            headers["Content-Security-Policy"] = (
                "frame-ancestors 'none'"  # the page sets the rest, but cannot set this
            )
        if len(body) > 1000 and "gzip" in self.headers.get("Accept-Encoding", ""):
            body, headers["Content-Encoding"] = gzip.compress(body, 5, mtime=0), "gzip"
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a malformed request with its code and nothing else."""
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def version_string(self) -> str:
        return "a2tgpo"

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the terminal is for errors, and a log of requests would contain the token."""


def _read_query(query: str) -> dict[str, str]:
    try:
        return {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
    except ValueError:  # more fields than any request of the page has
        return {}
