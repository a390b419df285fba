"""tool messages -> token ids in which the text of tools stays text: no special token, no call, no turn."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import GRPOTrainer


WITHHELD = "The tool's result was withheld: it holds control text of the chat template."
MOST_REMEMBERED = 4096
RESULTS_REMEMBERED = 256
_FRAMES = re.compile(r"\W(think|tool|reason|call|response)")

Messages = list[dict[str, Any]]


class ControlText:
    """Keeps the text of tools from becoming special tokens, tool calls or turns of the conversation.

    `suffix_ids(messages)` writes tool messages as the template does. Its control tokens must be those that the same
    number of harmless results would have; if they are not, a space is put after the first character of each control
    string in the results. Ordinary results keep their tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str,
        suffix_ids: Callable[[Messages], list[int]],
        before_results: int | None = None,
    ):
        """`before_results`: the token that comes before results, if known (`SuffixWriter.before`)."""
        self._tokenizer, self._suffix_ids, self.before_results = tokenizer, suffix_ids, before_results
        self._control_ids = set(tokenizer.all_special_ids) | _control_tokens(tokenizer, template)
        self._strings = tokenizer.convert_ids_to_tokens(sorted(self._control_ids))
        self._harmless: dict[tuple[str, ...], list[int]] = {}
        self._frame: list[str] | None = None
        # Rollouts of a prompt often read the same result.
        self._remembered = lru_cache(maxsize=RESULTS_REMEMBERED)(self._encode_results)

    def encode(self, messages: Messages) -> tuple[list[int], bool]:
        """Token ids of tool messages, including what the template puts around them; whether text was broken up."""
        ids, broken = self._remembered(tuple((message["name"], message["content"]) for message in messages))
        return list(ids), broken

    def _encode_results(self, results: tuple[tuple[str, str], ...]) -> tuple[list[int], bool]:
        messages = [{"role": "tool", "name": name, "content": content} for name, content in results]
        names = tuple(message["name"] for message in messages)
        if names not in self._harmless:
            if len(self._harmless) >= MOST_REMEMBERED:
                self._harmless.clear()  # the policy can invent any number of names
            harmless = [{**message, "content": "x"} for message in messages]
            self._harmless[names] = self._control(self._suffix_ids(harmless))
        held = any(string in message["content"] for message in messages for string in self._frame_strings(messages))
        ids = self._suffix_ids(messages)
        if not held and self._control(ids) == self._harmless[names]:
            return ids, False
        broken = [{**message, "content": self._broken(message["content"])} for message in messages]
        ids = self._suffix_ids(broken)
        if self._control(ids) != self._harmless[names]:  # a normaliser makes control text from other characters
            ids = self._suffix_ids([{**message, "content": WITHHELD} for message in messages])
        return ids, True

    def _control(self, ids: Sequence[int]) -> list[int]:
        return [token for token in ids if token in self._control_ids]

    def _broken(self, text: str) -> str:
        return break_up(text, [*self._strings, *(self._frame or ())])

    def _frame_strings(self, messages: Messages) -> list[str]:
        """Plain text that the template writes around a result: `</tool_response>` is not always a token."""
        if self._frame is None:
            marks = ["first", "second"]
            pair = [{**messages[0], "content": mark} for mark in marks]
            text = self._tokenizer.decode(self._suffix_ids(pair))
            parts = re.split("|".join(marks), text)
            words = {word for part in parts for word in re.findall(r"\S+", part)}
            self._frame = sorted(word for word in words if re.search(r"[<\[|].*[>\]|]", word))
        return self._frame


class SuffixWriter:
    """`GRPOTrainer`'s own method of writing results after a turn, made faster. TRL's also renders and tokenises a
    made-up conversation before them, the same at each call; here that is done once for each tool name."""

    _is_vlm = False
    _get_tool_suffix_ids = GRPOTrainer._get_tool_suffix_ids

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None, chat_template_kwargs: Mapping[str, Any]
    ):
        self._tokenizer, self.processing_class = tokenizer, _RemembersBeginnings(tokenizer)
        self.chat_template, self.chat_template_kwargs = chat_template, chat_template_kwargs

    def __call__(self, messages: Messages) -> list[int]:
        return self._get_tool_suffix_ids(messages)

    def before(self, name: str) -> int:
        """The token before the results of this tool. In most templates, it ends a turn of calls.

        Example: <|im_end|> with Qwen3's template; with GLM-4.5's </tool_call>, since results begin with what ends it
        """
        results = self([{"role": "tool", "name": name, "content": "x"}])
        return self.processing_class.with_results[-len(results) - 1]


class _RemembersBeginnings:
    """A tokenizer that renders each conversation without results only once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        self.with_results: list[int] = []  # the last conversation that was written with results

    def apply_chat_template(self, messages: Messages, **options: Any) -> list[int]:
        if messages[-1]["role"] == "tool":
            self.with_results = self._tokenizer.apply_chat_template(messages, **options)
            return self.with_results
        key = json.dumps(messages)
        if key not in self._known:
            if len(self._known) >= MOST_REMEMBERED:
                self._known.clear()
            self._known[key] = self._tokenizer.apply_chat_template(messages, **options)
        return self._known[key]


def _control_tokens(tokenizer: PreTrainedTokenizerBase, template: str) -> set[int]:
    """Added tokens that are special, frame thoughts and calls, or are in the template; white space is ordinary text.

    Not all added tokens count: some tokenizers have HTML tags among them, which are common in results.
    """
    return {
        id
        for id, token in tokenizer.added_tokens_decoder.items()
        if str(token).strip() and (token.special or str(token) in template or _FRAMES.search(str(token)))
    }


def break_up(text: str, strings: Iterable[str]) -> str:
    """The text with a space put after the first character of each of these strings.

    Example: "<|im_end|>" in "a<|im_end|>b" -> "a< |im_end|>b"
    """
    for string in sorted(set(strings), key=len, reverse=True):
        if len(string) > 1:
            text = text.replace(string, f"{string[0]} {string[1:]}")
    return text
