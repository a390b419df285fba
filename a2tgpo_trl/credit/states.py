"""records of rollouts -> what the policy had just read when it began each turn -> its number (N,K).

    a   prompt           0   search -> "no results"   1   search -> "Paris is ..."   2
    b   prompt           0   search -> "Paris is ..." 2   answer
    c   prompt           0   answer

The state of a first turn is the prompt; that of any other turn is the results of the previous turn's calls, whatever
came earlier. States of a prompt are numbered in the order in which they are met, one rollout after the other. A state
similar to an earlier one gets the same number: 2 above is one state, although b reached it sooner.

The similarity of two texts is difflib's ratio: twice the characters in matching runs over all characters of both. In
texts of 200 characters or more difflib starts no run with a frequent character, so scattered changes count for more. A
text is compared with the first text of each state, and joins the first state that is similar enough. All of this is as
in GiGPO's code.

The ratio takes milliseconds, and there are many pairs. So equal texts are looked up, and most others are separated by
upper bounds of the ratio: the characters that both have, in any order, and the longest common subsequence, whose
search stops as soon as too many characters are missing.

Shapes: N rollouts of all ranks, B of this rank, K turns; U texts, C places of characters.
"""

import difflib
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ranks import Ranks
from ..rollout.records import Record, text_of


PLACES = 512  # of characters; characters that share a place only raise the bound
CHARACTERS_AT_ONCE = 64  # between two checks of whether texts can still be similar


def read_before_turns(record: Record) -> list[str]:
    """Return what the policy had just read when it began each turn; empty for a rollout left out of its group.

    Example: "capital of France?", search(...) -> "Paris is ...", an answer -> ["capital of France?", "Paris is ..."]
    """
    turns = record["turns"]
    if record["excluded"] or not turns:
        return []
    prompt = record["prompt"]
    first = prompt if isinstance(prompt, str) else "\n".join(map(text_of, prompt))
    return [first, *map(_read_after, turns[:-1])]


def _read_after(turn: Any) -> str:
    """The results of a turn's calls; for a rollout function, all text between the turn and the next."""
    return turn["read"] if turn["calls"] is None else "\n".join(call["result"] for call in turn["calls"])


def number_states(rollouts: Sequence[Sequence[str]], likeness: float) -> list[list[int]]:
    """Number the states of one prompt's rollouts. With a likeness of 1 only equal states share a number.

    Example: [["q", "none", "Paris, a city"], ["q", "Paris, a city."]] -> [[0, 1, 2], [0, 3]]; from 0.9 on
    [[0, 1, 2], [0, 2]]: 2 x 13 of 27 characters match
    """
    texts = list(dict.fromkeys(text for rollout in rollouts for text in rollout))
    only_equal = likeness == 1 or not texts
    numbers = dict(zip(texts, range(len(texts)) if only_equal else _like_states(texts, likeness), strict=True))
    return [[numbers[text] for text in rollout] for rollout in rollouts]


def _like_states(texts: Sequence[str], likeness: float) -> list[int]:
    """The state of each text; all texts are different."""
    possible_UU = _by_characters(texts, likeness)
    states: list[_State] = []
    numbers = []
    for i, text in enumerate(texts):
        candidates = np.flatnonzero(possible_UU[i, [state.place for state in states]])
        number = next((int(n) for n in candidates if states[n].is_like(text, likeness)), len(states))
        if number == len(states):
            states.append(_State(i, text))
        numbers.append(number)
    return numbers


def _by_characters(texts: Sequence[str], likeness: float) -> np.ndarray:
    """Whether each pair of texts (U,U) shares enough characters: 2 common = both - |differences of counts|."""
    counts_UC = torch.from_numpy(np.stack([_characters(text) for text in texts])).float()
    lengths_U = counts_UC.sum(dim=1)
    both_UU = lengths_U.unsqueeze(0) + lengths_U.unsqueeze(1)
    common_UU = both_UU - torch.cdist(counts_UC, counts_UC, p=1.0)
    return (common_UU >= likeness * both_UU - 1e-2).numpy()  # less than a character, more than rounding


def _characters(text: str) -> np.ndarray:
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return np.bincount(points % PLACES, minlength=PLACES)


class _State:
    """A state, represented by the first text that had it."""

    def __init__(self, place: int, text: str):
        self.place, self._text = place, text
        self._places: dict[str, int] = {}  # the positions of each character, as bits
        for i, character in enumerate(text):
            self._places[character] = self._places.get(character, 0) | 1 << i

    def is_like(self, text: str, likeness: float) -> bool:
        may_be = self.longest_common(text, likeness * (len(self._text) + len(text)) / 2 - 1e-6) is not None
        return may_be and difflib.SequenceMatcher(None, text, self._text).ratio() >= likeness

    def longest_common(self, text: str, least: float = 0.0) -> int | None:
        """Return the length of the longest common subsequence, or None if it is below `least`.

        A bit is 0 if its character of the state's text makes the subsequence longer (Hyyro 2004).

        Example: "kitchen" and "sitting" have "itn": 3
        """
        everything = (1 << len(self._text)) - 1
        bits, found = everything, 0
        for start in range(0, len(text), CHARACTERS_AT_ONCE):
            for character in text[start : start + CHARACTERS_AT_ONCE]:
                matches = bits & self._places.get(character, 0)
                bits = (bits + matches | bits - matches) & everything
            found = len(self._text) - bits.bit_count()
            if found + max(len(text) - start - CHARACTERS_AT_ONCE, 0) < least:
                return None
        return found if found >= least else None


def number_states_of_ranks(
    ranks: Ranks, rollouts: Sequence[Sequence[str]], group_size: int, likeness: float
) -> list[list[int]]:
    """Number the states of this rank's rollouts among all of their prompt's, on whichever ranks its rollouts are.

    All ranks call it together; each numbers the states of some prompts and sends them to the others.
    """
    sent = [[_digest(text) for text in rollout] for rollout in rollouts] if likeness == 1 else list(rollouts)
    gathered = [rollout for of_rank in ranks.gather_lists(sent) for rollout in of_rank]
    groups = range(len(gathered) // group_size)[ranks.index :: ranks.number]
    mine = [
        (group, number_states(gathered[group * group_size : (group + 1) * group_size], likeness)) for group in groups
    ]
    numbers = dict(pair for of_rank in ranks.gather_lists(mine) for pair in of_rank)
    of_all = [rollout for group in sorted(numbers) for rollout in numbers[group]]
    return of_all[ranks.own_rows(len(rollouts))]


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def to_tensor(numbers: Sequence[Sequence[int]], num_turns: int) -> Tensor:
    """Return the numbers of states (B,K), -1 where a rollout has no such turn."""
    table = torch.full((len(numbers), num_turns), -1, dtype=torch.long)
    for row, of_rollout in zip(table, numbers, strict=True):
        row[: len(of_rollout)] = torch.tensor(list(of_rollout), dtype=torch.long)[:num_turns]
    return table
