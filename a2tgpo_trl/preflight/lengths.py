"""prompts and settings -> whether rollouts fit the model and their budget."""

from itertools import islice

from transformers import (
    PreTrainedConfig,
)

from ..config import A2TGPOConfig
from ..rollout.engines import context_of
from .chat import Chat, Datasets, Verdict
from .data import ROWS_READ, ROWS_TOKENIZED


def check_fit(chat: Chat, args: A2TGPOConfig, data: Datasets, config: PreTrainedConfig, resets: bool) -> Verdict:
    """Check that the longest prompt and a completion of full length fit in the model's context."""
    limit, name = context_length(args, config)
    longest, where = longest_prompt(chat, data)
    budget = args.max_completion_length
    numbers = f"the longest prompt ({longest} tokens, {where}) + max_completion_length {budget} = {longest + budget}"
    if limit is not None and longest + budget > limit:
        room = limit - longest
        cure = f"Lower max_completion_length to at most {room}, drop the" if room > 0 else "Drop"
        return "fail", f"{numbers} is above {name} {limit}. {cure} longest prompts, or use a model with more room."
    seen = f"{numbers} of {name} {limit}" if limit is not None else f"{numbers}; the model states no limit"
    if resets:
        return "warn", f"{seen}. What the environment's reset() adds to the prompts is not known: leave room for it."
    return "pass", seen


def check_tool_turn(chat: Chat, args: A2TGPOConfig) -> Verdict:
    """Check that one call with a short result leaves room for an answer."""
    if not chat.tools:
        return "pass", "no tools"
    messages, budget = chat.conversation, args.max_completion_length
    length = len(chat.turn_ids(messages, 1)) + len(chat.suffix_ids([messages[2]]))
    seen = f"a call of {chat.tools[0].__name__!r} with a result of one sentence takes {length} tokens"
    if length >= budget:
        return "warn", f"{seen}, but max_completion_length is {budget}: a longer result ends the rollout. Raise it."
    return "pass", f"{seen} of max_completion_length {budget}"


def context_length(args: A2TGPOConfig, config: PreTrainedConfig) -> tuple[int | None, str]:
    """Return the most tokens that prompt and completion may have, and the name of that limit."""
    if args.use_vllm and args.vllm_max_model_length is not None:
        return args.vllm_max_model_length, "vllm_max_model_length"
    return context_of(config), "the model's max_position_embeddings"


def longest_prompt(chat: Chat, data: Datasets) -> tuple[int, str]:
    """Return the tokens of the longest prompt, and its data set. Tokenises those with the most characters."""
    longest, where = 0, "no data set"
    for name, rows in data.items():
        prompts = [row["prompt"] for row in islice(rows, ROWS_READ)]
        candidates = sorted(prompts, key=lambda prompt: len(str(prompt)), reverse=True)[:ROWS_TOKENIZED]
        length = max(map(len, chat.prompt_ids(candidates)))
        if length > longest:
            longest, where = length, f"{name} data"
    return longest, where
