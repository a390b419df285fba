"""TextWorld's words for a house -> the tokenizer of the tiny policy that plays in them."""

from functools import cache

from numpy.random import RandomState
from tokenizers import Regex, decoders, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from word_tokenizer import build

from a2tgpo_trl.tasks.textworld.games import library
from a2tgpo_trl.tasks.textworld.play import Play
from a2tgpo_trl.tasks.textworld.questions import TEXTS
from a2tgpo_trl.tasks.textworld.task import INSTRUCTION


CALL_START, CALL_END = '{"name": "act", "arguments": {"command": "', '"}}'
TOLD = (
    "You are in the on of. The is closed. to the north, east, south, west You can go open empty carry nothing take "
    "from eat look inventory examine close drop cannot do not yes no insert into put"
)
# Where a piece ends in one of these, the space that the next word's token brings was not in the text.
_NO_SPACE_AFTER = r"(?<=^|<answer>|\": \"|\n)"


def make_tokenizer() -> PreTrainedTokenizerFast:
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=True)
    texts = [TOLD, *(text.format(thing="") for text in TEXTS.values()), *names()]
    return build(
        words=[word for text in texts for word, _ in splitter.pre_tokenize_str(text)],
        pieces=(CALL_START, CALL_END),
        splitter=splitter,
        decoder=decoders.Sequence([decoders.ByteLevel(), decoders.Replace(Regex(_NO_SPACE_AFTER + " "), "")]),
        instruction=INSTRUCTION,
        tools=[Play({}).act],
    )


@cache
def names() -> list[str]:
    """All that something in a house can be called: what comes up in many draws."""
    grammar = library().generator.Grammar({"theme": "house"}, RandomState(0))
    rooms = {grammar.expand("#room_type#") for _ in range(200)}
    drawn = {
        grammar.generate_name(kind, room_type=room)[0]
        for room in sorted(rooms)
        for kind in "rdcsfo"
        for _ in range(800)
    }
    return sorted(drawn)
