"""the tokens of a turn -> its message, its calls, and the calls that cannot be read.

TRL's parser takes a turn as plain text if one of its calls is broken, so the other calls vanish silently, and it lets
a RecursionError through. Here every call that was started is either read or reported.
"""

import inspect
import json
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_parsing import parse_response as parse_text
from transformers.utils.chat_parsing.response_templates import load_response_template
from trl.chat_template_utils import parse_response

from ..tools.arguments import schema_of


SHORTEST_END = 64  # tokens of a prefix to look at first: a generation prompt is shorter
MOST_REMEMBERED = 1024  # turns
DEEPEST = 50  # levels of nesting in the arguments of a call
REASONING = ("reasoning_content", "thinking")
# How calls begin in all families of models: a model that writes a call in another family's way has started one.
BLOCK = "<|tool_call_start|>"
MARKS = ("<tool_call>", "<|tool_call>", BLOCK, "<function=", "to=functions.", "<|python_tag|>", "[TOOL_CALLS]")


@dataclass(frozen=True)
class Parsed:
    """A turn that was read. `unread` counts the calls that were started but cannot be read."""

    message: dict[str, Any]
    unread: int = 0

    @property
    def calls(self) -> list[dict[str, Any]]:
        """Name and arguments of each call."""
        return [call.get("function", call) for call in self.message.get("tool_calls") or ()]


class _Reader:
    """What TRL's parser needs of a tokenizer, with the response template compiled once instead of at each turn."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.response_template = load_response_template(tokenizer.response_template)
        self.decode, self.eos_token = tokenizer.decode, tokenizer.eos_token

    def parse_response(self, ids: list[int], prefix: str, tools: list[Any]) -> dict[str, Any]:
        return parse_text(self.decode(ids), self.response_template, prefix=prefix, tools=tools)


class TurnParser:
    """Reads turns with the tokenizer's response template, which TRL sets for the chat templates it knows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._remembered: dict[tuple, Parsed] = {}

    def parse(self, ids: list[int], prefix: list[int], tools: Sequence[Callable]) -> Parsed:
        """Read a turn, or return what was read before: rollouts of a prompt often take the same turn."""
        schemas, names, end = self._schemas(tools), [tool.__name__ for tool in tools], self._end_of(prefix)
        key = (tuple(ids), end, repr(schemas), *names)
        if key not in self._remembered:
            if len(self._remembered) >= MOST_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[key] = self._parse(ids, end, schemas, names)
        return deepcopy(self._remembered[key])

    def _parse(self, ids: list[int], prefix: str, schemas: list[Any], names: Sequence[str]) -> Parsed:
        try:
            message = parse_response(self._reader, ids, prefix=prefix, tools=schemas)
        except RecursionError:
            message = self._as_text(ids)
        if any(depth_exceeds(call.get("function", call)["arguments"]) for call in message.get("tool_calls") or ()):
            message = self._as_text(ids)
        if message.get("tool_calls") and self._block is not None and self._block not in self._tokenizer.decode(ids):
            message = self._as_text(ids)  # the pattern for the second call of a block also fits ordinary prose
        return Parsed(message, self._unread(ids, message, names))

    def _end_of(self, prefix: list[int]) -> str:
        """The prefix as text from its last anchor, where the parser begins to read."""
        length, anchor = SHORTEST_END, self._reader.response_template.start_anchor_re
        while length < len(prefix):
            text = self._tokenizer.decode(prefix[-length:])
            if found := list(anchor.finditer(text)):
                last = text[found[-1].start() :]
                return last if anchor.match(last) else text
            length *= 4
        return self._tokenizer.decode(prefix)

    def _schemas(self, tools: Sequence[Callable]) -> list[Any]:
        """The tools, with schemas in place of functions; the parser would make these again at each turn."""
        return [
            schema_of(getattr(tool, "__func__", tool)) if inspect.isfunction(tool) or inspect.ismethod(tool) else tool
            for tool in tools
        ]

    @cached_property
    def _reader(self) -> "_Reader":
        return _Reader(self._tokenizer)

    def _as_text(self, ids: list[int]) -> dict[str, Any]:
        return {"role": "assistant", "content": self._tokenizer.decode(ids, skip_special_tokens=True)}

    def _unread(self, ids: list[int], message: dict[str, Any], names: Sequence[str]) -> int:
        """How many calls the turn starts, outside of its thoughts, that were not read."""
        if self._call is None:
            return 0
        text = self._tokenizer.decode(ids, skip_special_tokens=False)
        for name in REASONING:
            text = text.replace(message.get(name) or "", "", 1)
        text = self._thoughts.sub("", text)
        read = len(message.get("tool_calls") or ())
        if read:
            text = self._call.sub("", text, count=read)
        bare = any(_is_bare_call(text, name) for name in names)
        openings = 0 if self._block else len(self._opening.findall(text))
        return max(openings, int(bare), *(text.count(mark) for mark in MARKS))

    @property
    def _fields(self) -> dict[str, Any]:
        template = getattr(self._tokenizer, "response_template", None)  # set by TRL if it knows the template
        return template["fields"] if template else {}

    @cached_property
    def _opening(self) -> re.Pattern[str]:
        return re.compile(_opening(self._fields["tool_calls"]))

    @cached_property
    def _call(self) -> re.Pattern[str] | None:
        """A pattern for a whole call; None if the template has no calls."""
        field = self._fields.get("tool_calls")
        return None if field is None else re.compile(_span(field), re.DOTALL)

    @cached_property
    def _block(self) -> str | None:
        """The mark that precedes all calls of a turn, in templates that write several calls into one block."""
        return BLOCK if re.escape(BLOCK) in _opening(self._fields.get("tool_calls", {"open": ""})) else None

    @cached_property
    def _thoughts(self) -> re.Pattern[str]:
        fields = [self._fields[name] for name in REASONING if name in self._fields]
        return re.compile("|".join(map(_span, fields)) or r"(?!)", re.DOTALL)


def _opening(field: dict[str, Any]) -> str:
    return field.get("open_pattern") or re.escape(field["open"])


def _span(field: dict[str, Any]) -> str:
    return f"(?:{_opening(field)}).*?(?:{field.get('close_pattern') or re.escape(field['close'])})"


def _is_bare_call(text: str, tool: str) -> bool:
    """Whether the text begins with a call as JSON without its marks, as a model writes that forgets them."""
    return re.match(rf'\s*(```\w*\s*)?\{{[^{{}}]*"name"\s*:\s*{re.escape(json.dumps(tool))}', text) is not None


def depth_exceeds(value: Any, limit: int = DEEPEST) -> bool:
    """Whether lists and objects are nested deeper than this. Uses no recursion, because it guards against that."""
    level = [value]
    for _ in range(limit + 1):
        level = [
            inner
            for item in level
            if isinstance(item, (dict, list))
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True
