r"""completions -> format kept or broken, answer right or wrong -> 1, 0 or -1, as the A2TGPO paper rewards them.

    <think>The capital of France is asked for.</think> <answer>\boxed{Paris}</answer>

The required format differs between families of models, and is an `AnswerFormat`. A reward for another format is one
line in your own file, named in a recipe as `my_reward.py:plain`:

    plain = reward_in(AnswerFormat(thought=None, boxed=False))
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .text import Answer, Completion, best_of, equal_words, final_text, last_boxed, submitted_answer


Tags = tuple[str, str]  # the opening and the closing tag


@dataclass(frozen=True)
class AnswerFormat:
    r"""How the message that ends a rollout must be written.

    thought   tags around the thought that comes first, or None if no thought is required. The opening tag may be
              missing, because some models' templates write it; both may be missing if the message holds its thought
              separately (`reasoning_content`).
    answer    tags around the answer, after the thought
    boxed     whether the answer must be in \boxed{} within its tags
    """

    thought: Tags | None = ("<think>", "</think>")
    answer: Tags = ("<answer>", "</answer>")
    boxed: bool = True

    def __post_init__(self):
        if self.thought is not None:
            _check_tags("thought", self.thought)
        _check_tags("answer", self.answer)

    def read(self, completion: Completion) -> str | None:
        r"""The answer of a completion that keeps the format, else None.

        Example: "<think>France?</think> <answer>\boxed{Paris}</answer>" -> "Paris"; without \boxed{} -> None
        """
        text: str | None = final_text(completion)
        if self.thought is not None:
            text = _behind_thought(text or "", self.thought, _has_thought_apart(completion))
        found = None if text is None else _between(text, self.answer)
        if found is not None and self.boxed:
            found = last_boxed(found)
        return found.strip() or None if found is not None else None


def _check_tags(name: str, tags: Any) -> None:
    is_pair = isinstance(tags, (tuple, list)) and len(tags) == 2 and tags[0] != tags[1]
    if not is_pair or not all(isinstance(tag, str) and tag for tag in tags):
        raise ValueError(
            f"{name} must be two different strings, one that opens it and one that closes it; got {tags!r}."
        )


def _has_thought_apart(completion: Completion) -> bool:
    if isinstance(completion, str):
        return False
    written = [message for message in completion if message["role"] == "assistant"]
    return bool(written and written[-1].get("reasoning_content"))


def _behind_thought(text: str, tags: Tags, is_apart: bool) -> str | None:
    """The text after the one thought that it begins with, or None."""
    opens, closes = tags
    if is_apart:
        return None if opens in text or closes in text else text
    thought, closed, rest = text.strip().removeprefix(opens).partition(closes)
    return rest if closed and not any(tag in part for tag in tags for part in (thought, rest)) else None


def _between(text: str, tags: Tags) -> str | None:
    """The content of the one pair of tags in a text, or None."""
    opens, closes = tags
    if text.count(opens) != 1 or text.count(closes) != 1:
        return None
    inside, closed, _ = text.partition(opens)[2].partition(closes)
    return inside if closed else None


def reward_in(form: AnswerFormat) -> Callable[..., list[float]]:
    """The paper's reward for answers in another format. It has the same name in logs."""

    def paper_reward(completions: Sequence[Completion], answer: Sequence[Answer], **kwargs: Any) -> list[float]:
        return [_score(form, *pair) for pair in zip(completions, answer, strict=True)]

    return paper_reward


def _score(form: AnswerFormat, completion: Completion, answer: Answer) -> float:
    submitted = submitted_answer(completion)
    given = form.read(completion) if submitted is None else submitted
    score = best_of(equal_words, given, answer)
    return -1.0 if given is None else score


_PAPERS = reward_in(AnswerFormat())


def paper_reward(completions: Sequence[Completion], answer: Sequence[Answer], **kwargs: Any) -> list[float]:
    r"""1 if the answer is right by `exact_match`, 0 if it is wrong, -1 if the format is broken.

    The last message must have a thought in <think> tags, and after it one answer in tags and in \boxed{}. An `answer`
    submitted with a final tool also counts.

    Example: "<think>...</think> <answer>\boxed{Paris}</answer>" for "paris" -> 1, for "Rome" -> 0;
    "<answer>\boxed{Paris}</answer>", "<think>...</think> <answer>Paris</answer>" -> -1
    """
    return _PAPERS(completions, answer)
