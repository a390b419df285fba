"""a call -> its result, kept in a file -> the same result in a later run, without a call.

    {"tool": "search", "of": "3f0a", "arguments": {"query": "Velm"}, "status": "ok", "text": "Velm lies on the Oss."}

One line per call, as JSON. Failures are kept too, but only a replay uses them: a run that can call tries again. `of`
is the tool's `identity`: a tool with the same name but another signature, docstring or version is a different tool,
and the file does not answer for it. Changes in its code, or in a server behind it, cannot be seen here.
"""

import glob
import json
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from .calls import CallStatus, Outcome


logger = logging.getLogger(__name__)

LONGEST_SHOWN = 500  # characters of a call's arguments in a message


class ReplayMiss(LookupError):
    """A replay was asked for a call that is not in its file."""


class CallCache:
    """Calls and results of a file; new ones are written to it immediately, one line each."""

    def __init__(self, path: str | Path, replay: bool = False, rank: int = 0):
        self.path, self.replay = Path(path), replay
        # Each rank writes its own file and reads all files: two processes must not append to one file.
        self._own = self.path if rank == 0 else self.path.with_name(f"{self.path.name}.rank{rank}")
        self._lock = threading.Lock()
        self._kept: dict[str, dict[str, Outcome]] = {}  # by key of the call, then identity of the tool
        self._told: set[str] = set()  # tools of which other versions were found
        others = self.path.parent.glob(f"{glob.escape(self.path.name)}.rank*")
        files = [file for file in {self.path, *others} if file.is_file()]
        if replay and not files:
            raise ValueError(f"tool_cache: there is no file {self.path} to replay from.")
        for file in sorted(files, key=lambda file: (file == self._own, file)):  # the rank's own results win
            whole = self._read(file)
            if file == self._own and not replay:
                os.truncate(file, whole)  # a partial line must not become the beginning of the next one
                self._end_last_line(whole)
        self._can_write = not replay
        if not replay:  # fail now if the file cannot be written
            self._append("")

    def get(self, tool: str, arguments: Mapping[str, Any], of: str = "") -> Outcome | None:
        """The call's outcome, or None if it must be made. In a replay, a missing call raises an error that names it.

        `of`: which tool of that name it is (`settings.identity`).
        """
        of_others = self._kept.get(call_key(tool, arguments), {})
        kept = of_others.get(of)
        if kept is None and self.replay:
            raise self._miss(tool, arguments, bool(of_others))
        if kept is None and of_others and tool not in self._told:
            self._told.add(tool)
            logger.warning(
                f"tool_cache: {self.path} holds calls of another version of the tool {tool} (its signature, "
                "docstring or version has changed). They are made again, and the new results are kept beside the old "
                "ones."
            )
        return kept if kept is None or kept.status == "ok" or self.replay else None

    def _miss(self, tool: str, arguments: Mapping[str, Any], of_another: bool) -> ReplayMiss:
        shown = json.dumps(arguments, ensure_ascii=False)
        shown = shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}..."
        if of_another:
            return ReplayMiss(
                f"{self.path} holds this call of another version of {tool}: its signature, docstring or version has "
                f"changed. Record {tool}({shown}) in a run without tool_replay, or change the tool back."
            )
        return ReplayMiss(
            f"{self.path} holds no call {tool}({shown}). Record it in a run without tool_replay, or fix what made "
            "the rollouts differ from the recorded ones (seed, policy, data)."
        )

    def put(self, tool: str, arguments: Mapping[str, Any], status: CallStatus, text: str, of: str = "") -> None:
        entry = {"tool": tool, "of": of, "arguments": arguments, "status": status, "text": text}
        line = json.dumps(entry, ensure_ascii=False) + "\n"
        with self._lock:
            kept = self._kept.setdefault(call_key(tool, arguments), {})
            if kept.get(of) == Outcome(status, text):
                return
            kept[of] = Outcome(status, text)
            if self._can_write:
                self._append_while_possible(line)

    def _append_while_possible(self, line: str) -> None:
        try:
            self._append(line)
        except OSError as error:  # such as a full disk; the run still has its results
            self._can_write = False  # the last line may be cut off, so nothing may follow it
            logger.warning(
                f"tool_cache: {self._own} can no longer be written to ({error}). The run continues, but keeps no "
                "further calls there."
            )

    def _append(self, line: str) -> None:
        self._own.parent.mkdir(parents=True, exist_ok=True)
        # A lone surrogate, which a policy can write, is not valid UTF-8; escaped as \udc80 it is JSON.
        with self._own.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line)

    def _end_last_line(self, length: int) -> None:
        """A file that was edited by hand may lack the end of its last line."""
        with self._own.open("rb") as file:
            file.seek(max(length - 1, 0))
            last = file.read()
        if last not in (b"", b"\n"):
            self._append("\n")

    def _read(self, file: Path) -> int:
        """Read a file; return the number of bytes in its whole lines: the last may have been cut off in writing."""
        whole = 0
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    key, of, found = _entry(line)
                except (ValueError, KeyError, TypeError) as error:
                    if not line.endswith(b"\n"):
                        break
                    raise ValueError(
                        f"tool_cache: line {number} of {file} is not a recorded call ({error!r})."
                    ) from error
                kept = self._kept.setdefault(key, {})
                if of not in kept or found.status == "ok":  # a success replaces earlier failures
                    kept[of] = found
                whole += len(line)
        return whole


def _entry(line: bytes) -> tuple[str, str, Outcome]:
    """The key of a call, the identity of its tool, and its outcome."""
    entry = json.loads(line)
    if entry["status"] not in get_args(CallStatus):
        raise ValueError(f"unknown status {entry['status']!r}")
    key, of = call_key(entry["tool"], entry["arguments"]), str(entry.get("of", ""))  # "": files from before `of`
    return key, of, Outcome(entry["status"], str(entry["text"]))


def call_key(tool: str, arguments: Mapping[str, Any]) -> str:
    """A key that is equal for equal calls, whatever the order of their arguments.

    Example: search(query="x", top=1) and search(top=1, query="x")
    """
    return json.dumps([tool, arguments], sort_keys=True, ensure_ascii=False)
