r"""Rewards: those that come along, one of your own, and how a run is scored by them.

A reward function of TRL gets completions and the columns of their rows, and returns a number for each rollout, or None
where it has nothing to say. Several are summed by `reward_weights`; with weight 0 one is only logged.

    def short_answer(completions, **columns) -> list[float]:
        return [float(len(final_text(completion)) <= 40) for completion in completions]

    trainer = A2TGPOTrainer(..., reward_funcs=[exact_match, short_answer])     # from a2tgpo_trl.rewards
    reward_funcs: [exact_match, my_rewards.py:short_answer]                    # in a recipe

Those that come along compare the final answer with the column `answer`, a text or a list of accepted texts. The final
answer stands in the last pair of `<answer>` tags of the last message, or was handed to a tool with `final=True` as its
argument `answer`, which is text or a number.

    exact_match     1 or 0: the same words, without case, punctuation and English articles
    exact_number    1 or 0: the same number, however it is written; an answer that is no number is an error
    f1              harmonic mean of precision and recall of the words
    f1_hotpot       the same, but all or nothing where an answer is yes or no, as HotpotQA evaluates
    paper_reward    1 or 0 as exact_match, -1 where the format is broken: a thought in <think> tags, then the answer
                    in tags and in \boxed{}; `rewards/paper.py` makes it for other formats
    answer_format   0 where the last message holds one answer in tags, else -1
    math_equal      1 or 0: the same mathematics, also in \boxed{}; needs the extra `math`

Each is also a metric, logged as `rewards/NAME/mean`; in an evaluation, `eval_rewards/NAME/mean` can be the
`metric_for_best_model` (with `greater_is_better: true`). A rollout that is left out of its group
(`a2tgpo help failures`) gets no reward, whatever a function returns. Rewards of single turns are another matter:
`a2tgpo help credit`.
"""

from .paper import AnswerFormat, paper_reward, reward_in
from .text import (
    answer_format,
    exact_match,
    exact_number,
    extract_answer,
    f1,
    f1_hotpot,
    final_text,
    normalize_answer,
)


__all__ = [
    "REWARDS",
    "RIGHT_OR_WRONG",
    "AnswerFormat",
    "answer_format",
    "exact_match",
    "exact_number",
    "extract_answer",
    "f1",
    "f1_hotpot",
    "final_text",
    "normalize_answer",
    "paper_reward",
    "reward_in",
]

RIGHT_OR_WRONG = ("exact_match", "exact_number", "math_equal")  # rewards that are 1 or 0 by their meaning
# By the names that recipes have for them. Imported when used: what `math_equal` stands on is not installed everywhere.
REWARDS = {
    "exact_match": "a2tgpo_trl.rewards:exact_match",
    "exact_number": "a2tgpo_trl.rewards:exact_number",
    "f1": "a2tgpo_trl.rewards:f1",
    "f1_hotpot": "a2tgpo_trl.rewards:f1_hotpot",
    "paper_reward": "a2tgpo_trl.rewards:paper_reward",
    "answer_format": "a2tgpo_trl.rewards:answer_format",
    "math_equal": "a2tgpo_trl.rewards.math_answers:math_equal",
}
