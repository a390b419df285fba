"""record of a rollout -> which of its searches were useful: the truth that a credit method does not see.

A search is useful if it finds a document that the question still needs: a fact of its chain that no earlier turn has
found. The rows must list these documents (`task_kwargs: {supporting_documents: true}`).
"""

from collections.abc import Mapping
from typing import Any


COLUMN = "supporting_documents"


def useful_search(record: Mapping[str, Any]) -> list[float | None]:
    """For each turn, 1 if a call found a document that the question still needs, else 0; None without a call.

    It is also a turn reward. With the weight 0 it appears in each record and in the metrics, and credits nothing:

        turn_rewards: {"a2tgpo_trl.tasks.atlas.useful:useful_search": 0.0}

    Example: needed are A and B. Searches that bring up A, then C, then A and B, then B, and an answer
             -> [1, 0, 1, 0, None]
    """
    if COLUMN not in record:
        raise ValueError(
            f"useful_search reads the column {COLUMN!r} of a row, which this row does not have. Ask the task for it: "
            f"task_kwargs: {{{COLUMN}: true}}."
        )
    needed = set(record[COLUMN])
    useful: list[float | None] = []
    for turn in record["turns"]:
        if not turn["calls"]:
            useful.append(None)
            continue
        found = {document for call in turn["calls"] for document in call["result"].split("\n")} & needed
        useful.append(float(bool(found)))
        needed -= found
    return useful
