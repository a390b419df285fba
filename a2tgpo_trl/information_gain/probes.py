"""answer text -> probe: the token ids of a finished answer, and which of them are the ground truth.

A probe is what the policy would write if it answered immediately. It is tokenised by itself, once, and appended as
token ids, so it is the same at every turn boundary. `check_seam` checks that this holds after the template's
generation prompt: if the text before the probe merges with it into other tokens, no policy would ever write it so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from transformers import PreTrainedTokenizerBase


ANSWER_SLOT = "{answer}"


@dataclass(frozen=True)
class Probe:
    """Token ids up to the last one of the answer; `gold[i]` says whether token i belongs to the answer.

    Text after the answer in the template is cut, because a causal model scores the answer without seeing it. It is
    kept for tokenising, because it can change how the end of the answer is split.
    """

    ids: tuple[int, ...]
    gold: tuple[bool, ...]


class ProbeMaker:
    """Turns answers into probes and caches them, because the rollouts of a group share one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str):
        self._tokenizer = tokenizer
        self._before, self._after = template.split(ANSWER_SLOT)
        self.make = lru_cache(maxsize=65536)(self._make)

    def make_all(self, answer: str | Sequence[str], aliases: str) -> list[Probe]:
        """Return probes of a row's accepted answers: only the first, or all of them for "max" and "mean"."""
        accepted = [answer] if isinstance(answer, str) else list(answer)
        return [self.make(text) for text in (accepted[:1] if aliases == "first" else accepted)]

    def _make(self, answer: str) -> Probe:
        ids, gold = self._split_by_offsets(answer) if self._tokenizer.is_fast else self._split_by_parts(answer)
        if not any(gold):
            raise ValueError(
                f"The answer {answer!r} tokenises to nothing in the probe {self._before + answer + self._after!r}: "
                "there is no token to score. Remove the row, or use a tokenizer that knows these characters."
            )
        end = max(i for i, is_gold in enumerate(gold) if is_gold) + 1
        return Probe(tuple(ids[:end]), tuple(gold[:end]))

    def _split_by_offsets(self, answer: str) -> tuple[list[int], list[bool]]:
        text = self._before + answer + self._after
        start, stop = len(self._before), len(self._before) + len(answer)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        # A token that straddles the border holds part of the answer, so it counts.
        gold = [first < stop and last > start for first, last in encoded["offset_mapping"]]
        return encoded["input_ids"], gold

    def _split_by_parts(self, answer: str) -> tuple[list[int], list[bool]]:
        # Without offsets the parts are tokenised one by one. The policy might split the text around the answer
        # differently, but it is split alike at every boundary, which is all that a difference of values needs.
        parts = [
            self._tokenizer(part, add_special_tokens=False)["input_ids"] if part else []
            for part in (self._before, answer, self._after)
        ]
        gold = [is_gold for part, is_gold in zip(parts, (False, True, False), strict=True) for _ in part]
        return [token for part in parts for token in part], gold


def check_seam(tokenizer: PreTrainedTokenizerBase, template: str, context: str) -> None:
    """Raise an error if a probe's tokens would change after this rendered conversation with its generation prompt."""
    start = template.split(ANSWER_SLOT)[0]
    last_line = context[-40:]
    if context.rfind("<think>") > context.rfind("</think>") and "</think>" not in start:
        raise ValueError(
            f"The chat template's generation prompt opens a thinking block ({last_line!r}), so the probe "
            f"{template!r} would be scored inside a thought. Close the block in the probe "
            f"(probe_template={'</think>' + template!r}), or turn thinking off "
            "(chat_template_kwargs={'enable_thinking': False}, if the template supports it)."
        )
    text = template.replace(ANSWER_SLOT, "answer")
    apart = [
        *tokenizer(context, add_special_tokens=False)["input_ids"],
        *tokenizer(text, add_special_tokens=False)["input_ids"],
    ]
    if tokenizer(context + text, add_special_tokens=False)["input_ids"] != apart:
        raise ValueError(
            f"The probe {template!r} tokenises differently after the chat template's generation prompt "
            f"({last_line!r}): characters on the two sides of the border merge, so the policy would never write this "
            "probe. Begin probe_template with other characters (without a leading space or line break, for example)."
        )


def thought_before_answer(template: str, prompt: str, prompt_without_thinking: str) -> str | None:
    """Say why no policy would write this probe after this prompt, if its chat template lets it think first; else None.

    Such a template adds an empty thought after the generation prompt when thinking is off. Without it, the policy
    begins with a thought, and the value of a context would be that of an answer that skips the thought.

    Example: "... assistant\n" and "... assistant\n<think>\n\n</think>\n\n" -> begin the probe with the difference
    """
    thought = prompt_without_thinking.removeprefix(prompt)
    if thought == prompt_without_thinking or "</think>" not in thought or "</think>" in template:
        return None
    return (
        f"The policy thinks before it answers, and the probe {template!r} is scored without a thought before it: an "
        "answer that the policy would not write. Turn thinking off (chat_template_kwargs: {enable_thinking: false}), "
        f"or begin the probe with the empty thought of this template (probe_template={thought + template!r})."
    )
