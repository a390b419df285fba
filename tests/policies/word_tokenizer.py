"""words and pieces of a task, and Qwen3's chat template -> the tokenizer of a tiny policy.

A word is one token, so that a model of a few million weights can copy it in one step; what the template repeats in
every conversation (the tools' preamble, their schemas, the start of a call) is one token a piece. Any other text still
goes in and comes out, byte by byte: a user's own prompt works, it only takes more tokens.
"""

import importlib.resources
from collections.abc import Callable, Iterable

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.decoders import Decoder
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import PreTrainedTokenizerFast


END = "<|im_end|>"
PADDING = "<|endoftext|>"
# Qwen3's control tokens. Only the first three are "special", as in Qwen3: decoding for the reader drops those.
CONTROL = (PADDING, "<|im_start|>", END)
TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<answer>", "</answer>")
NO_THOUGHT = "<think>\n\n</think>\n\n"
PIECES = ("<think>", "</think>", NO_THOUGHT, "system\n", "user\n", "assistant\n", "\n", "\n\n")


def template() -> str:
    """Qwen3's chat template, from the copy in TRL: the one that TRL knows how to parse tool calls of."""
    return importlib.resources.files("trl").joinpath("chat_templates", "qwen3.jinja").read_text()


def build(
    words: Iterable[str],
    pieces: Iterable[str],
    splitter: PreTokenizer,
    decoder: Decoder,
    instruction: str,
    tools: list[Callable],
) -> PreTrainedTokenizerFast:
    """The tokenizer for prompts with this instruction and these tools.

    `words` are written as the splitter leaves them (Ġ is a space); `pieces` are tokens wherever they stand in a text.
    """
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*CONTROL, *symbols, *(word for word in dict.fromkeys(words) if word not in symbols)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    core = Tokenizer(
        models.WordPiece(vocabulary, unk_token=PADDING, continuing_subword_prefix="", max_input_chars_per_word=10_000)
    )
    core.pre_tokenizer = splitter
    core.decoder = decoder
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in CONTROL])
    core.add_tokens([AddedToken(text, normalized=False) for text in (*TAGS, *PIECES, *pieces)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PADDING,
        chat_template=template(),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in _preamble(tokenizer, instruction, tools)])
    return tokenizer


def _preamble(tokenizer: PreTrainedTokenizerFast, instruction: str, tools: list[Callable]) -> list[str]:
    """The instruction, the template's words before and after the tools, and each tool's schema."""
    messages = [{"role": "system", "content": instruction}]
    text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    inside = text.removeprefix("<|im_start|>system\n" + instruction).removesuffix(END + "\n")
    before, schemas = inside.split("<tools>\n")
    schemas, after = schemas.split("\n</tools>")
    return [instruction, before + "<tools>\n", *schemas.split("\n"), "\n</tools>" + after]
