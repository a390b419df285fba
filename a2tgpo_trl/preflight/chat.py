"""tokenizer, tools, template settings -> the tokens of a made-up rollout, as `GRPOTrainer` would make them."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import get_json_schema
from trl import GRPOTrainer
from trl.chat_template_utils import (
    get_training_chat_template,
    is_chat_template_prefix_preserving,
    supports_tool_calling,
)

from ..rollout.engines import LockStep
from ..rollout.failures import DEFAULT_POLICY
from ..rollout.parsing import TurnParser
from ..rollout.rollout import Rollout, Rules, behind_end, roll_out
from ..tools.control import ControlText
from ..tools.runner import ToolRunner


Status = Literal["pass", "warn", "fail"]
Verdict = tuple[Status, str]
Messages = list[dict[str, Any]]
Datasets = Mapping[str, Dataset | IterableDataset]

QUESTION, RESULT, ANSWER = "Which city lies on the river?", "The river runs through Marrow.", "The city is Marrow."
THOUGHTS = ("I know no river.", "One page is not enough.", "Both pages name it.")


class Chat:
    """The tokens of prompts and turns, made by `GRPOTrainer`'s own methods, without a trainer and without a model.

    `chat_template` is what training uses: None for the tokenizer's own template, or TRL's variant of it if that
    template does not keep prefixes. `problem` says why there is no variant.
    """

    # What the borrowed methods also read.
    _is_vlm = False
    environment_factories = None

    _tokenize_prompts = GRPOTrainer._tokenize_prompts
    _get_tool_suffix_ids = GRPOTrainer._get_tool_suffix_ids

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tools: Sequence[Callable] = (),
        end_ids: Sequence[int] = (),
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        self.processing_class = self._tokenizer = self.tokenizer = tokenizer
        self.tools = list(tools)
        self.end_ids = list(end_ids) or [tokenizer.eos_token_id]
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.chat_template: str | None = None
        self.problem: str | None = None
        if tools and supports_tool_calling(tokenizer) and not is_chat_template_prefix_preserving(tokenizer):
            try:
                self.chat_template = get_training_chat_template(tokenizer)
            except ValueError as error:
                self.problem = str(error)

    @property
    def source(self) -> str:
        """The template's text."""
        return self.chat_template or self.tokenizer.get_chat_template()

    @property
    def end_texts(self) -> list[str]:
        return [self.tokenizer.decode([end]) for end in self.end_ids]

    def text(self, messages: Messages, generation_prompt: bool = False, **template_kwargs: Any) -> str:
        """Return the conversation as the template writes it."""
        return self.tokenizer.apply_chat_template(
            messages,
            tools=self.tools or None,
            chat_template=self.chat_template,
            add_generation_prompt=generation_prompt,
            tokenize=False,
            **{**self.chat_template_kwargs, **template_kwargs},
        )

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def prompt_ids(self, prompts: list) -> list[list[int]]:
        return self._tokenize_prompts(prompts)[0]

    def suffix_ids(self, results: Messages) -> list[int]:
        """Return what follows the sampled tokens: the turn's separator, tool results, generation prompt."""
        return self._get_tool_suffix_ids(results)

    def pieces(self, messages: Messages) -> list[int]:
        """Return the conversation as a rollout assembles it: prompt, turns as they are sampled, results after them."""
        first = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
        ids = self.prompt_ids([messages[:first]])[0]
        for place in range(first, len(messages)):
            if messages[place]["role"] == "assistant":
                ids = ids + self.turn_ids(messages, place)
            else:
                ids = ids + behind_end(ids[-1], self.suffix_ids([messages[place]]), self.end_ids)
        return ids

    @cached_property
    def conversations(self) -> dict[str, Messages]:
        """The made-up conversations that a policy could write under this template, by name.

        If the generation prompt closes a thinking block, those with thoughts are left out; if it opens one, those
        without. So are those whose thoughts the template writes after the call that they led to.
        """
        written = {
            "without thinking": conversation(self.tools),
            "with thinking in reasoning_content": conversation(self.tools, "reasoning_content"),
            "with thinking in content": conversation(self.tools, "content"),
        }
        return {name: messages for name, messages in written.items() if self._is_written_so(messages)}

    @property
    def conversation(self) -> Messages:
        if not self.conversations:
            raise ValueError("The template renders finished turns differently from how it begins them.")
        return next(iter(self.conversations.values()))

    def _is_written_so(self, messages: Messages) -> bool:
        prompt, done = self.text(messages[:1], generation_prompt=True), self.text(messages[:2])
        written = done.removeprefix(prompt)
        thought_first = not self.tools or THOUGHTS[0] not in written.partition(self.tools[0].__name__)[2]
        return done.startswith(prompt) and thought_first

    def turn_text(self, messages: Messages, turn: int) -> str:
        """Return what the policy writes for this message: from the generation prompt to the turn's end token."""
        prompt = self.text(messages[:turn], generation_prompt=True)
        written = self.text(messages[: turn + 1])[len(prompt) :]
        if not any(end in written for end in self.end_texts):
            written += self._beginning_behind(messages[turn])
        ends = [written.find(end) + len(end) for end in self.end_texts if end in written]
        if not ends:
            raise ValueError(
                f"The template ends a turn with {written[-20:]!r}, which holds none of the tokens that end a "
                f"completion ({', '.join(map(repr, self.end_texts))}): sampling would run on to "
                "max_completion_length. Set eos_token of the tokenizer to the token that the template writes there."
            )
        return written[: min(ends)]

    def _beginning_behind(self, message: dict[str, Any]) -> str:
        """Return the end token that the next message begins with, if that is what ends this one; else nothing."""
        calls = bool(message.get("tool_calls"))
        said = conversation(self.tools if calls else ())[:2]
        following = {"role": "tool", "name": self.tools[0].__name__} if calls else {"role": "user"}
        before, whole = self.text(said), self.text([*said, {**following, "content": RESULT}])
        begun = whole.removeprefix(before)
        return next((end for end in self.end_texts if whole.startswith(before) and begun.startswith(end)), "")

    def turn_ids(self, messages: Messages, turn: int) -> list[int]:
        """Return the tokens of `turn_text`, as they are in the whole conversation if they can be found there."""
        prompt, written = self.text(messages[:turn], generation_prompt=True), self.turn_text(messages, turn)
        before, whole = self.ids(prompt), self.ids(prompt + written)
        return whole[len(before) :] if whole[: len(before)] == before else self.ids(written)


def play(chat: Chat, prompt: Messages, turns: list[list[int]]) -> tuple[list[int], list[int]]:
    """Make, as training does, the rollout of a policy that writes these turns; all tools return `RESULT`.

    Returns the token ids of the completion, and which of them the policy wrote.
    """
    left = list(turns)
    rules = Rules(
        chat.tokenizer,
        TurnParser(chat.tokenizer),
        ControlText(chat.tokenizer, chat.source, chat.suffix_ids),
        {**DEFAULT_POLICY, "over_budget": "end"},
        max_tokens=sys.maxsize,
        max_context=sys.maxsize,
        end_ids=chat.end_ids,
        max_turns=len(turns) - 1,  # under a broken template, an answer may look like a call
    )
    runner = ToolRunner()
    tools = {tool.__name__: _stub(tool) for tool in chat.tools}
    rollout = Rollout(chat.prompt_ids([prompt])[0], rules, runner, tools, chat.tools)
    try:
        roll_out([rollout], LockStep(lambda contexts: ([left.pop(0)], None)), runner)
    finally:
        runner.close()
    return rollout.completion_ids, rollout.mask


def _stub(tool: Callable) -> Callable:
    """Return a function with the tool's schema and none of its settings, which does nothing."""

    def stub(**_: Any) -> str:
        return RESULT

    return functools.wraps(tool, updated=())(stub)


def conversation(tools: Sequence[Callable], thinking: str | None = None) -> Messages:
    """Return a question, two calls of the first tool with their results (if there are tools), and an answer."""
    messages: Messages = [{"role": "user", "content": QUESTION}]
    for number, thought in enumerate(THOUGHTS[:2] if tools else ()):
        messages.append({"role": "assistant", "content": "", "tool_calls": [tool_call(tools[0], number)]})
        _think(messages[-1], thought, thinking)
        messages.append({"role": "tool", "name": tools[0].__name__, "content": RESULT})
    messages.append({"role": "assistant", "content": ANSWER})
    _think(messages[-1], THOUGHTS[-1], thinking)
    return messages


def _think(message: dict[str, Any], thought: str, place: str | None) -> None:
    if place == "reasoning_content":
        message["reasoning_content"] = thought
    elif place == "content":
        message["content"] = f"<think>\n{thought}\n</think>\n\n{message['content']}"


def tool_call(tool: Callable, number: int = 0) -> dict[str, Any]:
    """Return a call with arguments of the types in the tool's schema; other numbers give other arguments."""
    properties = get_json_schema(tool)["function"]["parameters"]["properties"]
    arguments = {name: _value(schema, number) for name, schema in properties.items()}
    return {"type": "function", "function": {"name": tool.__name__, "arguments": arguments}}


def _value(schema: Mapping[str, Any], number: int) -> Any:
    if "enum" in schema:
        return schema["enum"][number % len(schema["enum"])]
    kind = schema.get("type", "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "array":
        return [_value(schema.get("items", {}), number)]
    values: dict[str, Any] = {"integer": 7 + number, "number": 0.5 + number, "boolean": number % 2 == 0, "object": {}}
    return values.get(kind, ("river", "city")[number % 2])


def difference(expected: str, found: str) -> str:
    """Return the first place where two texts differ, with the text around it."""
    pairs = zip(expected, found, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(found)))
    start = max(0, at - 20)
    return f"{expected[start : at + 30]!r} became {found[start : at + 30]!r}"
