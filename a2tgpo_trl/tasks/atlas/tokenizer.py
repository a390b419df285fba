"""words of Atlas and pieces of Qwen3's chat template -> the tokenizer of the tiny policy.

One token a word, so that a model of a few million weights can copy a name in two steps; what the template repeats in
every conversation (the tools' preamble, the schema of `search`, the start of a call) is one token a piece. Any other
text still goes in and comes out, byte by byte: a user's own prompt works, it only takes more tokens.

A word is the same token wherever it stands, after a space or after `<answer>` or a quotation mark; the decoder takes
the space out again where there was none.
"""

import importlib.resources
from collections.abc import Callable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from .world import EMPTY_DEFINITIONS, EMPTY_DOCUMENTS, QUESTION_WORDS, RELATIONS, name_pools


END = "<|im_end|>"
PADDING = "<|endoftext|>"
# Qwen3's control tokens. Only the first three are "special", as in Qwen3: decoding for the reader drops those.
CONTROL = (PADDING, "<|im_start|>", END)
TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<answer>", "</answer>")
CALL_START, CALL_END = '{"name": "search", "arguments": {"query": "', '"}}'
NO_THOUGHT = "<think>\n\n</think>\n\n"
PIECES = ("<think>", "</think>", NO_THOUGHT, "system\n", "user\n", "assistant\n", "\n", "\n\n", CALL_START, CALL_END)
OTHER_WORDS = "No results What I cannot find it question answer search".split()

# Where a piece ends in one of these, the space that the next word's token brings was not in the text.
_NO_SPACE_AFTER = r"(?<=^|<answer>|\": \"|\n)"


def template() -> str:
    """Qwen3's chat template, from the copy in TRL: the one that TRL knows how to parse tool calls of."""
    return importlib.resources.files("trl").joinpath("chat_templates", "qwen3.jinja").read_text()


def make_tokenizer(instruction: str, tools: list[Callable]) -> PreTrainedTokenizerFast:
    """The tokenizer for prompts with this instruction and these tools."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = dict.fromkeys("Ġ" + word for word in _words())  # Ġ is a space
    vocabulary = {token: i for i, token in enumerate([*CONTROL, *symbols, *(w for w in words if w not in symbols)])}
    core = Tokenizer(
        models.WordPiece(vocabulary, unk_token=PADDING, continuing_subword_prefix="", max_input_chars_per_word=10_000)
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(Regex(_NO_SPACE_AFTER + " "), "")])
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in CONTROL])
    core.add_tokens([AddedToken(text, normalized=False) for text in (*TAGS, *PIECES)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PADDING,
        chat_template=template(),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in _preamble(tokenizer, instruction, tools)])
    return tokenizer


def _words() -> list[str]:
    sentences = [
        "The the of is",
        *EMPTY_DOCUMENTS,
        *EMPTY_DEFINITIONS,
        *QUESTION_WORDS.values(),
        *OTHER_WORDS,
        *RELATIONS,
    ]
    relations = [relation for leads in RELATIONS.values() for relation in leads]
    names = [word for pools in name_pools().values() for pool in pools for word in pool]
    return [word.strip(",.:") for text in sentences for word in text.split() if "{" not in word] + relations + names


def _preamble(tokenizer: PreTrainedTokenizerFast, instruction: str, tools: list[Callable]) -> list[str]:
    """The instruction, the template's words before and after the tools, and each tool's schema."""
    messages = [{"role": "system", "content": instruction}]
    text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    inside = text.removeprefix("<|im_start|>system\n" + instruction).removesuffix(END + "\n")
    before, schemas = inside.split("<tools>\n")
    schemas, after = schemas.split("\n</tools>")
    return [instruction, before + "<tools>\n", *schemas.split("\n"), "\n</tools>" + after]
