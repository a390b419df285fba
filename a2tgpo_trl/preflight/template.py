"""a chat -> whether training can read and write its template: prefixes, borders, calls, mask, probe."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import (
    DocstringParsingException,
    TypeHintParsingException,
    get_json_schema,
)
from trl.chat_template_utils import add_response_schema, parse_response, supports_tool_calling
from trl.data_utils import is_conversational

from ..config import A2TGPOConfig
from ..information_gain.probes import check_seam, thought_before_answer
from ..turns import count_turns, turn_index
from .chat import THOUGHTS, Chat, Datasets, Messages, Verdict, conversation, difference, play, tool_call
from .data import first_row


def check_tool_format(tokenizer: PreTrainedTokenizerBase, tools: Sequence[Callable]) -> Verdict:
    """Check that the tools have schemas, and that the template writes calls and results."""
    if not tools:
        return "pass", "no tools"
    for tool in tools:
        try:
            get_json_schema(tool)
        except (DocstringParsingException, TypeHintParsingException) as error:
            return "fail", (
                f"The tool {tool.__name__!r} has no schema: {error} Give it type hints and a docstring that describes "
                "each argument."
            )
    if not supports_tool_calling(tokenizer):
        return "fail", (
            "The chat template has no tool format: it cannot write an assistant's tool call and the tool's result, "
            "and training would refuse it. Use a model whose template has one (an instruct model of Qwen2.5, Qwen3, "
            "Llama 3.1 or Gemma 4, say), or train without tools."
        )
    return "pass", f"the template writes calls and results; {', '.join(tool.__name__ for tool in tools)}"


def check_parser(tokenizer: PreTrainedTokenizerBase, tools: Sequence[Callable]) -> Verdict:
    """Check that calls in this template's form can be parsed. Gives the tokenizer the parser, as training would."""
    if not tools:
        return "pass", "no tools"
    for name in ("response_template", "response_schema"):
        if getattr(tokenizer, name, None) is not None:
            return "pass", f"the tokenizer's own {name}"
    try:
        add_response_schema(tokenizer)
    except ValueError:
        return "fail", (
            "TRL has no parser for the tool calls of this chat template: it compares templates character by "
            "character, and this is not one that it knows, so training would refuse it. Use the model's original "
            "template, or set response_template on the tokenizer and save it."
        )
    return "pass", "TRL's, for this template"


def check_prefixes(chat: Chat) -> Verdict:
    """Check that earlier text, thoughts included, stays as it was when the conversation goes on."""
    if not chat.tools:
        return "pass", "no tools, so a rollout is one turn"
    cure = (
        "Training appends tokens and keeps what was sampled, so it would train on contexts that the template never "
        "shows to the policy. Use a template that leaves earlier turns as they were"
    )
    if chat.problem is not None:
        messages = conversation(chat.tools)
        changed = difference(chat.text(messages[:2]), chat.text(messages[:3]))
        return "fail", f"A tool result changes the text before it: {changed}. Training would refuse this. {cure}."
    if not chat.conversations:
        messages = conversation(chat.tools)
        changed = difference(chat.text(messages[:1], generation_prompt=True), chat.text(messages[:2]))
        return "fail", f"A finished turn is rendered differently from how it began: {changed}. {cure}."
    thoughts_kept = [False for name in chat.conversations if "with thinking" in name]
    for name, messages in chat.conversations.items():
        changed_to = _changed_prefix(chat, messages)
        if changed_to:
            off = (
                ", or turn thinking off (chat_template_kwargs: {enable_thinking: false})"
                if "with thinking" in name
                else ""
            )
            return "fail", f"Earlier turns change ({name}): {changed_to}. {cure}{off}."
        if "with thinking" in name:
            thoughts_kept.append(all(thought in chat.text(messages) for thought in THOUGHTS))
    # A template that knows of thoughts but writes none removes them.
    if thoughts_kept and not any(thoughts_kept) and "</think>" in chat.source:
        return "fail", f"The template drops the thinking of every turn. {cure}, or turn thinking off."
    if chat.chat_template is not None:
        return "pass", (
            "kept by TRL's variant of this template, which training uses in its place; serve the trained policy with "
            "that variant too (trl.chat_template_utils.get_training_chat_template)"
        )
    return "pass", f"kept ({', '.join(chat.conversations)})"


def _changed_prefix(chat: Chat, messages: Messages) -> str | None:
    """Return the first difference between a conversation up to one of its turns and the same part of the whole."""
    whole = chat.text(messages)
    for turn in _assistant_turns(messages):
        prompt, done = chat.text(messages[:turn], generation_prompt=True), chat.text(messages[: turn + 1])
        if not done.startswith(prompt):
            return difference(prompt, done)
        ends = [done.rfind(end) + len(end) for end in chat.end_texts if end in done[len(prompt) :]]
        done = done[: max(ends, default=len(done))]
        if not whole.startswith(done):
            return difference(done, whole)
    return None


def _assistant_turns(messages: Messages) -> list[int]:
    return [i for i, message in enumerate(messages) if message["role"] == "assistant"]


def check_separators(chat: Chat, data: Datasets) -> Verdict:
    """Check that prompt, sampled turns and results, joined as in training, are the conversation as rendered."""
    if not chat.tools and not is_conversational(first_row(data)):
        return "pass", "no tools and plain-text prompts"
    if not chat.tools and not chat.conversations:
        return "warn", (
            "The template renders a finished turn differently from how it begins one, so how turns end cannot be "
            "checked. Watch completions/clipped_ratio: near 1, the policy does not stop."
        )
    messages = chat.conversation
    ids = chat.pieces(messages)
    rendered = chat.text(messages[:-1], generation_prompt=True) + chat.turn_text(messages, len(messages) - 1)
    whole = chat.ids(rendered)
    end = chat.tokenizer.decode(ids[-1:])
    if ids == whole:
        return "pass", f"kept after {end!r}, the end of a turn"
    expected, found = chat.tokenizer.decode(whole), chat.tokenizer.decode(ids)
    if expected == found:
        at = next(i for i, pair in enumerate(zip(ids, whole, strict=False)) if pair[0] != pair[1])
        return "warn", (
            "The text is kept, but tokenised in one piece it has different tokens around "
            f"{chat.tokenizer.decode(whole[max(0, at - 4) : at + 4])!r}. Training is sound; serve the policy from "
            "tokens, or its contexts differ slightly from those it was trained on."
        )
    cure = (
        f"Set eos_token of the tokenizer to {end!r}, the token that ends a turn in this template."
        if ids[-1] != chat.tokenizer.eos_token_id
        else "Use a template that renders a turn the same with and without a message after it."
    )
    return "fail", f"Between turns, {difference(expected, found)}. {cure}"


def check_mask(chat: Chat) -> Verdict:
    """Check that training's tool loop returns the turns that went in, and the mask tells them from results."""
    if not chat.tools:
        return "pass", "no tools, so every token is the policy's"
    messages = chat.conversation
    turns = _assistant_turns(messages)
    written = [chat.turn_ids(messages, turn) for turn in turns]
    completion_ids, mask = play(chat, messages[:1], written)
    turn_T = turn_index(torch.tensor([mask]))[0]
    found = count_turns(turn_T[None])
    if found != len(turns):
        return "fail", (
            f"Of {len(turns)} turns that the policy wrote, the mask shows {found}: the template writes nothing "
            "between a turn and the next. Use a template that writes tool results."
        )
    for number, (turn, ids) in enumerate(zip(turns, written, strict=True)):
        sampled = torch.tensor(completion_ids)[turn_T == number].tolist()
        if sampled != ids:
            changed = difference(chat.tokenizer.decode(ids), chat.tokenizer.decode(sampled))
            return "fail", f"The mask of turn {number + 1} does not show what the policy wrote: {changed}."
        text = chat.turn_text(messages, turn)
        if chat.tokenizer.decode(sampled) != text:
            return "warn", (
                f"Decoding turn {number + 1} changes it: {difference(text, chat.tokenizer.decode(sampled))}. Rewards "
                "and tools read the decoded text; set clean_up_tokenization_spaces of the tokenizer to false."
            )
    return "pass", f"{len(turns)} turns in, {found} out, {sum(mask)} of {len(mask)} tokens the policy's"


def check_tool_calls(chat: Chat) -> Verdict:
    """Check that a call of each tool, as the template writes it, is parsed back to its name and arguments."""
    if not chat.tools:
        return "pass", "no tools"
    for tool in chat.tools:
        call = tool_call(tool)
        parsed = _parsed_calls(chat, [call])
        if parsed != [call["function"]]:
            return "fail", (
                f"A call of {tool.__name__!r} is not read back: {call['function']} became {parsed or 'plain text'}. "
                "Training would not run it as written. Set a response_template on the tokenizer that fits its chat "
                "template, or use a model whose template TRL knows."
            )
    return "pass", f"parsed: {', '.join(tool.__name__ for tool in chat.tools)}"


def check_parallel_calls(chat: Chat) -> Verdict:
    """Check that two calls in one turn are both parsed, or that the template has no form for them."""
    if not chat.tools:
        return "pass", "no tools"
    calls = [tool_call(chat.tools[0], number) for number in range(2)]
    try:
        parsed = _parsed_calls(chat, calls)
    except TemplateError as error:
        return "pass", (
            f"one call per turn: the template has no form for more ({error}), so the prompt should ask for one"
        )
    if parsed == [call["function"] for call in calls]:
        return "pass", "two calls in a turn are both parsed"
    return "warn", (
        f"Of two calls in one turn, {len(parsed)} came back as written: the rest would count as unparsed_call. Ask "
        "for one call at a time in the prompt, or set a response_template on the tokenizer that reads them all."
    )


def _parsed_calls(chat: Chat, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write a turn with these calls as the policy would, and parse it as training does."""
    thinking = {key: value for key, value in chat.conversation[1].items() if key != "tool_calls"}
    messages = [chat.conversation[0], {**thinking, "tool_calls": calls}]
    prompt_ids = chat.prompt_ids([messages[:1]])[0]
    parsed = parse_response(chat.tokenizer, chat.turn_ids(messages, 1), prefix=prompt_ids, tools=chat.tools)
    return [found.get("function", found) for found in parsed.get("tool_calls") or []]


def check_probe(chat: Chat, args: A2TGPOConfig, data: Datasets) -> Verdict:
    """Check that the probe has the same tokens after the prompt and a result, and is where an answer would be."""
    if not args.uses_gain:
        return "pass", "no gain is computed"
    if not chat.tools and not is_conversational(first_row(data)):
        return "pass", "not tried: plain-text prompts may end in anything"
    places = {"the prompt": conversation(chat.tools)[:1]}
    if chat.tools:
        places["a tool result"] = chat.conversation[:3]
    for place, messages in places.items():
        try:
            check_seam(chat.tokenizer, args.probe_template, chat.text(messages, generation_prompt=True))
        except ValueError as error:
            return "fail", f"After {place}: {error}"
    prompt = places["the prompt"]
    without_thinking = chat.text(prompt, generation_prompt=True, enable_thinking=False)
    problem = thought_before_answer(args.probe_template, chat.text(prompt, generation_prompt=True), without_thinking)
    if problem is not None:
        return "warn", problem
    return "pass", f"the same tokens after {' and '.join(places)}"
