"""records of the rounds that made a batch -> the records of the batch that is trained on, with their credit."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor

from ..rollout.records import Record, json_number


Rounds = Sequence[tuple[int, Sequence[Record]]]  # the number of a rank's first rollout in a round; its rollouts
Placed = list[tuple[int, Record]]  # place of a rollout in the batch of all ranks; its record


def credited(
    record: Record, outcome: float, outcome_advantage: float, of_turns: dict[str, Tensor], number: int
) -> Record:
    """Return a record with the credit of its rollout; `number` counts its turns, the answer turn included.

    Example: of_turns {"advantages": [0.9, 0.4, 0.0], "scores": [1.7, nan, nan]} and 2 turns
             -> {..., "advantages": [0.9, 0.4], "scores": [1.7, None]}
    """
    turns = {name: [json_number(value) for value in values[:number].tolist()] for name, values in of_turns.items()}
    found = {**record, "outcome": json_number(outcome), "outcome_advantage": json_number(outcome_advantage), **turns}
    return cast(Record, found)


def with_tokens(record: Record, prompt_ids: Sequence[int], ids: Sequence[int], sampled: Sequence[int]) -> Record:
    """Return a record with the tokens of its rollout, and 1 for each completion token that was sampled."""
    tokens = {"ids": list(ids), "sampled": list(map(int, sampled))}
    return cast(Record, {**record, "prompt_ids": list(prompt_ids), "tokens": tokens})


def trained_on(rounds: Rounds, sources: Sequence[tuple[int, int]], group_size: int) -> Placed:
    """Return this rank's rollouts of the rounds that are in the batch, whichever rank trains on them.

    Example: sources [(0, 0), (1, 0)], groups of two: the first group is that of the first round, and the second was
             rolled out again -> rollouts 0 and 1 of the first round at 0 and 1, and 0 and 1 of the second at 2 and 3
    """
    found = []
    for group, (number, place) in enumerate(sources):
        first, records = rounds[number]
        for member in range(group_size):
            i = place * group_size + member - first
            if 0 <= i < len(records):
                record = cast(Record, {**records[i], "round": number + 1, "group": group})
                found.append((group * group_size + member, record))
    return found
