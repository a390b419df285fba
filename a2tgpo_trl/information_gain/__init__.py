"""rollouts and their answers -> values at every turn boundary -> information gain of each turn.

The value of a context is the mean log-probability of the tokens of the right answer, appended to it in the form in
which the policy would write it immediately (`probe_template`, by default "<answer>{answer}</answer>"), or the
exponential of that (`gain_measure: probability`). The gain of a turn is the value after it minus the value before it.
A turn has a gain if a tool answered it; the answer turn has none. If several answers are accepted, the first, the
best or their average is scored (`answer_aliases`). Prompt, probe and reward must agree on the form of an answer: the
rewards of this package read `<answer>` tags. `gain_token_budget` limits the tokens of one forward pass.

A policy that thinks before it answers would not write the answer immediately. Most recipes here turn thinking off
(`chat_template_kwargs: {enable_thinking: false}`). Otherwise, let the probe begin with the empty thought that the
template writes when thinking is off, such as `<think>\\n\\n</think>\\n\\n`, or only with its end if the template has
opened it. A warning or an error says what is missing.

Any transformers decoder that reads text works. Rollout and probes share one row when that is exact: with full and
sliding-window attention under sdpa, eager, flex_attention and FlashAttention (whose gain pass uses sdpa). In float32
the old log-probabilities come from the same forward pass. Recurrent, convolutional and hybrid models, ALiBi, and
rotary frequencies that depend on the length need a separate pass for each turn boundary; the log says so once. Before
its first use the packed row is checked against single passes on the real weights, and it is not used if they differ
by more than rounding explains.

In float32, when this package's engine samples with a transformers model, the pass is not needed: each probe is read
right after the context that its turn has just read, whose keys and values are still held (`stream_turns`).

In 16 bits and TF32 a value is off by some hundredths. So 8 to 16 rollouts of each batch are scored twice, with
different rounding in all layers. The floor (`gain/floor`) is four standard deviations of that: a gain no further than
this from the mean of its cell (the turns at the same depth of the same prompt) counts as the mean, with no credit and
no change to its clip range. In float32 the floor is 0.0001 and nothing is scored twice. It is in nats; a gain of
probability has its own floor, in proportion to the probabilities that it lies between.

    answers.py           rows -> the answers that are scored
    probes.py            answer text -> token ids to score
    rows.py              rollouts and probes -> padded rows of a forward, and where each score belongs
    packed_attention.py  which token of a packed row sees which, for each attention implementation
    values.py            rollouts and probes -> values -> gains
    rounding.py          precision, values scored twice -> how far gains differ through rounding alone
    metrics.py           values and gains -> what is logged about them
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
