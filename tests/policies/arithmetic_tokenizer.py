"""words and numbers of arithmetic -> the tokenizer of its tiny policy.

Up to three digits are one token, counted from the left: the numbers of a problem take one token, those that
Python prints one to three.
"""

from collections.abc import Callable, Iterator

from tokenizers import Regex, decoders, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from word_tokenizer import build

from a2tgpo_trl.tasks.arithmetic.problems import CHOICE, END, NOUNS, PLAIN, START, WORDS


CALL_START, CALL_END = '{"name": "python", "arguments": {"code": "', '"}}'
# What Python says of code that fails.
TRACEBACK = ("Traceback (most recent call last):\n", '  File "Cell ', '", line 1', ", in <module>", "\n    ")
FAILURES = (
    *("    " + "^" * width for width in range(1, 12)),
    "NameError: name 'm' is not defined",
    "SyntaxError: invalid syntax",
)
OTHER_WORDS = "The the code of your a an and Error: answer Answer interpreter tool"


def make_tokenizer(instruction: str, tools: list[Callable]) -> PreTrainedTokenizerFast:
    """The tokenizer for prompts with this instruction and these tools."""
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d{1,3}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    words = [word for text in _texts() for word, _ in splitter.pre_tokenize_str(text)]
    numbers = [str(i).zfill(digits) for digits in (1, 2, 3) for i in range(10**digits)]
    return build(
        words=[*words, *numbers],
        pieces=(CALL_START, CALL_END, *TRACEBACK, *_code()),
        splitter=splitter,
        decoder=decoders.ByteLevel(),
        instruction=instruction,
        tools=tools,
    )


def _texts() -> Iterator[str]:
    """Everything that a problem may say."""
    for noun in NOUNS:
        blanks = {name: 1 for name in ("x", "y", "k", "even", "odd", "it")} | {"noun": noun}
        for sayings in (START, *WORDS.values(), CHOICE, PLAIN, END):
            for saying in sayings:
                yield saying.format(**blanks)
                yield "Then " + saying.format(**blanks)  # in the middle of a sentence, where a space comes first
    yield from (*FAILURES, OTHER_WORDS)


def _code() -> Iterator[str]:
    """What the numbers in a line of code stand between."""
    for name in "nm":
        yield f"{name} = "
        yield f"; {name}"
        yield f"{name} % 2"
        for sign in WORDS:
            yield f"{name} {sign}= "
    yield " * "
