"""completions and accepted answers -> rewards: of words, numbers and formats, and of mathematics."""

from .text import answer_format, exact_match, exact_number, extract_answer, f1, final_text, normalize_answer


__all__ = [
    "answer_format",
    "exact_match",
    "exact_number",
    "extract_answer",
    "f1",
    "final_text",
    "normalize_answer",
]
