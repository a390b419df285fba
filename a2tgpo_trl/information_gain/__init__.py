"""rollouts and their answers -> values at every turn boundary -> information gain of each turn.

answers.py           rows -> the answers that are scored
probes.py            answer text -> token ids to score
rows.py              rollouts and probes -> padded rows of a forward, and where each score belongs
packed_attention.py  which token of a packed row sees which, for each attention implementation
values.py            rollouts and probes -> values -> gains
rounding.py          precision, values scored twice -> what gains differ by through rounding alone
metrics.py           values and gains -> what is logged of them
gain_pass.py         wires these into a trainer
"""

from .rows import Rollouts
from .values import TurnScores, answer_values, fused_scorer, information_gain, logits_scorer, score_turns


__all__ = [
    "Rollouts",
    "TurnScores",
    "answer_values",
    "fused_scorer",
    "information_gain",
    "logits_scorer",
    "score_turns",
]
