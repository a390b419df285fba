"""rollouts and their answers -> values at every turn boundary -> information gain of each turn.

The value of a context is the mean log-probability of the tokens of the right answer, written there as the policy would
write it at once (`probe_template`, by default "<answer>{answer}</answer>"); or the exponential of that (`gain_measure:
probability`). The gain of a turn is the value after it minus the value before. A turn has one if a tool answered it;
the answer turn has none. Of several accepted answers the first is scored, the best, or their average
(`answer_aliases`). Prompt, probe and reward must agree on the form of an answer: the rewards of this package read
`<answer>` tags. `gain_token_budget` bounds the tokens of one forward.

A policy that thinks before it answers would not write the answer at once. Most recipes here turn thinking off
(`chat_template_kwargs: {enable_thinking: false}`). Else the probe begins with the empty thought that the template
writes when it is off, such as `<think>\\n\\n</think>\\n\\n`, or with its end alone where the template has opened it. A
warning, or an error, says what is missing.

Any decoder of transformers that reads text will do. Rollout and probes share one row where that is exact: full and
sliding-window attention under sdpa, eager, flex_attention and FlashAttention (whose gain pass runs by sdpa). In
float32 the old log-probabilities come from the same forward. For recurrent, convolutional and hybrid models, ALiBi,
and rotary frequencies that depend on the length, each turn boundary gets a pass of its own, and the log says so once.
Before its first use the packed row is tried against single passes on the real weights, and given up if they differ by
more than rounding explains.

In float32, where this package's engine samples by a model of transformers, the pass is not needed: a probe is read
behind the context that its turn has just read, whose keys and values are there (`stream_turns`).

In 16 bits and TF32 a value is off by some hundredths. So 8 to 16 rollouts of each batch are scored twice, with all
rounding drawn anew, and a gain that lies within four standard deviations of that (`gain/floor`) of the mean of its
cell (the turns at the same depth of the same prompt) counts as the mean: no credit, no change of its clip range. In
float32 the floor is 0.0001 and nothing is scored twice. It is in nats; a gain of probability has a floor of its own,
in proportion to the probabilities that it lies between.

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
