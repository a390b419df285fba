"""words of Atlas -> the tokenizer of its tiny policy.

A word is the same token wherever it stands, after a space or after `<answer>` or a quotation mark; the decoder takes
the space out again where there was none. So a name takes two tokens.
"""

from collections.abc import Callable, Sequence

from tokenizers import Regex, decoders, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from word_tokenizer import build

from a2tgpo_trl.tasks.atlas.world import EMPTY_DEFINITIONS, EMPTY_DOCUMENTS, QUESTION_WORDS, RELATIONS, name_pools


CALL_START, CALL_END = '{"name": "search", "arguments": {"query": "', '"}}'
OTHER_WORDS = "No results What I cannot find it question answer search".split()

# Where a piece ends in one of these, the space that the next word's token brings was not in the text.
_NO_SPACE_AFTER = r"(?<=^|<answer>|\": \"|\n)"


def make_tokenizer(
    instruction: str, tools: list[Callable], words: Sequence[str] = (), pieces: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """The tokenizer for prompts with this instruction and these tools; `words` and `pieces` are further ones."""
    return build(
        words=("Ġ" + word for word in [*_words(), *words]),
        pieces=(CALL_START, CALL_END, *pieces),
        splitter=pre_tokenizers.ByteLevel(add_prefix_space=True),
        decoder=decoders.Sequence([decoders.ByteLevel(), decoders.Replace(Regex(_NO_SPACE_AFTER + " "), "")]),
        instruction=instruction,
        tools=tools,
    )


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
