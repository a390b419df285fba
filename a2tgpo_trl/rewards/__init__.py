r"""Rewards: those of this package, your own, and how they score a run.

A TRL reward function gets completions and the columns of their rows, and returns one number per rollout, or None if it
does not apply. Several rewards are summed with `reward_weights`; one with weight 0 is only logged.

    def short_answer(completions, **columns) -> list[float]:
        return [float(len(final_text(completion)) <= 40) for completion in completions]

    trainer = A2TGPOTrainer(..., reward_funcs=[exact_match, short_answer])     # from a2tgpo_trl.rewards
    reward_funcs: [exact_match, my_rewards.py:short_answer]                    # in a recipe

The rewards of this package compare the final answer with the column `answer`, a text or a list of accepted texts. The
final answer is in the last pair of `<answer>` tags of the last message, or is the argument `answer`, text or a number,
of a call to a tool with `final=True`.

    exact_match     1 or 0: the same words, ignoring case, punctuation and English articles
    exact_number    1 or 0: the same number, however it is written; an `answer` without a number is an error
    f1              harmonic mean of precision and recall of the words
    f1_hotpot       the same, but all or nothing if an answer is yes or no, as HotpotQA evaluates
    paper_reward    1 or 0 as exact_match, -1 if not in the format: a thought in <think> tags, then the answer in
                    tags and in \boxed{}; `rewards/paper.py` makes it for other formats
    answer_format   0 if the last message has one answer in tags, else -1
    math_equal      1 or 0: mathematically equal, also in \boxed{}; needs the extra `math`

Each is also a metric, logged as `rewards/NAME/mean`; in an evaluation, `eval_rewards/NAME/mean` can be the
`metric_for_best_model`. A rollout that is left out of its group (`a2tgpo help failures`) gets no reward, whatever a
function returns. For rewards of single turns, see `a2tgpo help credit`.
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

RIGHT_OR_WRONG = ("exact_match", "exact_number", "math_equal")  # rewards that are always 1 or 0
# By their names in recipes. Imported when used: the library that `math_equal` needs is not installed everywhere.
REWARDS = {
    "exact_match": "a2tgpo_trl.rewards:exact_match",
    "exact_number": "a2tgpo_trl.rewards:exact_number",
    "f1": "a2tgpo_trl.rewards:f1",
    "f1_hotpot": "a2tgpo_trl.rewards:f1_hotpot",
    "paper_reward": "a2tgpo_trl.rewards:paper_reward",
    "answer_format": "a2tgpo_trl.rewards:answer_format",
    "math_equal": "a2tgpo_trl.rewards.math_answers:math_equal",
}
