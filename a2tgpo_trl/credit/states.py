"""records of rollouts -> what the policy had just read when it began each turn -> its number (N,K).

    a   prompt           0   search -> "no results"   1   search -> "Paris is ..."   2
    b   prompt           0   search -> "Paris is ..." 2   answer
    c   prompt           0   answer

A state is the prompt for a first turn, and for any other the results of the calls of the turn before, whatever came
earlier. States of a prompt are numbered in the order in which they are met, along its rollouts one after the other.
A state that is like one that was met has its number: 2 above is the same one, although b came there sooner.

Two texts are like each other by difflib's ratio, twice the characters in matching runs over all characters of both. In
texts of 200 characters or more difflib starts no run with a frequent character, which makes scattered changes count
for more. A text is compared with the first of each state, and goes with the first state that it is like. All of this
is as in GiGPO's code.

The ratio takes milliseconds, and pairs are many. So equal texts are looked up, and most of the others are told apart
by what the ratio cannot exceed: by the characters that both have, whatever their order, and by their longest common
subsequence, which is given up as soon as it has missed too many.

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


PLACES = 512  # of characters: those that share one can only seem more alike
CHARACTERS_AT_ONCE = 64  # between two looks at whether texts can still be alike


def read_before_turns(record: Record) -> list[str]:
    """What the policy had just read when it began each turn; nothing for a rollout that is left out of its group.

    Example: "capital of France?", search(...) -> "Paris is ...", an answer -> ["capital of France?", "Paris is ..."]
    """
    turns = record["turns"]
    if record["excluded"] or not turns:
        return []
    prompt = record["prompt"]
    first = prompt if isinstance(prompt, str) else "\n".join(map(text_of, prompt))
    return [first, *map(_read_after, turns[:-1])]


def _read_after(turn: Any) -> str:
    """The results of a turn's calls; of a rollout function's turn, all that stands between it and the next."""
    return turn["read"] if turn["calls"] is None else "\n".join(call["result"] for call in turn["calls"])


def number_states(rollouts: Sequence[Sequence[str]], likeness: float) -> list[list[int]]:
    """Numbers of the states of one prompt's rollouts. With a likeness of 1 only equal ones share theirs.

    Example: [["q", "none", "Paris, a city"], ["q", "Paris, a city."]] -> [[0, 1, 2], [0, 3]]; from 0.9 on
    [[0, 1, 2], [0, 2]]: 2 x 13 of 27 characters match
    """
    texts = list(dict.fromkeys(text for rollout in rollouts for text in rollout))
    only_equal = likeness == 1 or not texts
    numbers = dict(zip(texts, range(len(texts)) if only_equal else _like_states(texts, likeness), strict=True))
    return [[numbers[text] for text in rollout] for rollout in rollouts]


def _like_states(texts: Sequence[str], likeness: float) -> list[int]:
    """The state of each text, none of which are equal."""
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
    """Whether each two texts (U,U) have enough characters in common: 2 common = both - |differences of counts|."""
    counts_UC = torch.from_numpy(np.stack([_characters(text) for text in texts])).float()
    lengths_U = counts_UC.sum(dim=1)
    both_UU = lengths_U.unsqueeze(0) + lengths_U.unsqueeze(1)
    common_UU = both_UU - torch.cdist(counts_UC, counts_UC, p=1.0)
    return (common_UU >= likeness * both_UU - 1e-2).numpy()  # less than a character, more than rounding


def _characters(text: str) -> np.ndarray:
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return np.bincount(points % PLACES, minlength=PLACES)


class _State:
    """A state, by the text with which it was met."""

    def __init__(self, place: int, text: str):
        self.place, self._text = place, text
        self._places: dict[str, int] = {}  # of each character, as bits
        for i, character in enumerate(text):
            self._places[character] = self._places.get(character, 0) | 1 << i

    def is_like(self, text: str, likeness: float) -> bool:
        may_be = self.longest_common(text, likeness * (len(self._text) + len(text)) / 2 - 1e-6) is not None
        return may_be and difflib.SequenceMatcher(None, text, self._text).ratio() >= likeness

    def longest_common(self, text: str, least: float = 0.0) -> int | None:
        """Length of the longest common subsequence, or None if it is below `least`.

        A bit is 0 where one more character of the state's text belongs to it (Hyyro 2004).

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
    """Numbers of the states of this rank's rollouts, each among those of its prompt, wherever its rollouts are.

    All ranks call it together; each numbers the states of some prompts, and tells the others.
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
    """Numbers of states (B,K), -1 where a rollout has no such turn."""
    table = torch.full((len(numbers), num_turns), -1, dtype=torch.long)
    for row, of_rollout in zip(table, numbers, strict=True):
        row[: len(of_rollout)] = torch.tensor(list(of_rollout), dtype=torch.long)[:num_turns]
    return table
