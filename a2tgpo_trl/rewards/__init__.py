"""completions and accepted answers -> rewards: of words, numbers and formats, and of mathematics."""

from .text import answer_format, exact_match, exact_number, extract_answer, f1, final_text, normalize_answer


__all__ = [
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
