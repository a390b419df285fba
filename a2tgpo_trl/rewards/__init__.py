"""completions and accepted answers -> rewards: of words, numbers and formats, and of mathematics."""

from .text import answer_format, exact_match, exact_number, extract_answer, f1, final_text, normalize_answer


__all__ = [
    "REWARDS",
    "RIGHT_OR_WRONG",
    "answer_format",
    "exact_match",
    "exact_number",
    "extract_answer",
    "f1",
    "final_text",
    "normalize_answer",
]

RIGHT_OR_WRONG = ("exact_match", "exact_number", "math_equal")  # rewards that are 1 or 0 by their meaning
# By the names that recipes have for them. Imported when used: what `math_equal` stands on is not installed everywhere.
REWARDS = {
    "exact_match": "a2tgpo_trl.rewards:exact_match",
    "exact_number": "a2tgpo_trl.rewards:exact_number",
    "f1": "a2tgpo_trl.rewards:f1",
    "answer_format": "a2tgpo_trl.rewards:answer_format",
    "math_equal": "a2tgpo_trl.rewards.math_answers:math_equal",
}
