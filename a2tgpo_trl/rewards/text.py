"""completions -> last assistant text -> final answer -> compared with the accepted answers -> one float per rollout.

Each public function with `completions` is a reward function of TRL.

A completion is a list of message dicts (conversational data) or a string. `answer` is the data set's column of that
name: a string, or a list of accepted strings, of which the best match counts.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from types import NoneType
from typing import Any


Completion = str | Sequence[dict[str, Any]]
Answer = str | Sequence[str]

# An opening tag inside an answer restarts it: text that was cut off or repeated before is not part of the answer.
_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_WHOLE_BOX = re.compile(r"\\boxed\{((?:(?!\\boxed).)*)\}", re.DOTALL)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_ARTICLE = re.compile(r"\b(a|an|the)\b")
VERDICTS = ("yes", "no", "noanswer")
_NUMBER = re.compile(r"[-+]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?", re.ASCII)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and superfluous white space, as SQuAD evaluates.

    Text that looks the same is first made the same (NFC): an article followed by a combining accent ("the" + U+0301)
    is a different word.

    Example: " The  U.S.A., a country" -> "usa country"
    """
    text = unicodedata.normalize("NFC", text.lower()).translate(_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", text).split())


def whole_words(text: str) -> re.Pattern[str]:
    """A pattern that finds a text with its punctuation, in any case, but not within longer words.

    Example: "Oslo" is in "... is oslo.", and not in "Oslofjord"; ".at" is in "... is .at."
    """
    return re.compile(rf"(?<!\w){re.escape(text)}(?!\w)", re.IGNORECASE)


def extract_answer(completion: Completion) -> str | None:
    r"""The text between the last pair of answer tags in the last assistant message, without a box around it, or None.

    If a final tool with an argument `answer`, such as `submit(answer)`, ended the rollout, that is the answer: text or
    a number.

    Example: "<answer>Rome</answer> No, <answer> Paris </answer>." -> "Paris"; "<answer>\boxed{Paris}</answer>" as well
    """
    submitted = submitted_answer(completion)
    if submitted is not None:
        return submitted
    found = _ANSWER.findall(final_text(completion))
    return _unboxed(found[-1].strip()) if found else None


def _unboxed(answer: str) -> str:
    boxed = _WHOLE_BOX.fullmatch(answer)
    return boxed[1].strip() if boxed else answer


def exact_match(completions: Sequence[Completion], answer: Sequence[Answer], **kwargs) -> list[float]:
    """1 if the final answer equals an accepted one after normalisation, else 0.

    Example: "<answer>the Eiffel Tower!</answer>" for ["Tour Eiffel", "Eiffel Tower"] -> 1; no answer tag -> 0
    """
    return [best_of(equal_words, extract_answer(c), a) for c, a in zip(completions, answer, strict=True)]


def exact_number(completions: Sequence[Completion], answer: Sequence[Answer], **kwargs) -> list[float]:
    """1 if the final answer is the accepted number, however it is written, and nothing else; otherwise 0.

    `exact_match` compares words and treats a sign and a point as punctuation. A row that accepts no number is an
    error.

    Example: "<answer>1,234.0</answer>" for "1234" -> 1; "<answer>-1234</answer>", "<answer>12.34</answer>" -> 0;
    for "$1,234" -> ValueError
    """
    return [_is_number(extract_answer(c), _numbers(a)) for c, a in zip(completions, answer, strict=True)]


def _is_number(given: str | None, accepted: Sequence[Decimal]) -> float:
    return float(given is not None and _number(given) in accepted)


def _numbers(answer: Answer) -> list[Decimal]:
    """The numbers among the accepted answers."""
    found = [number for number in map(_number, _accepted(answer)) if number is not None]
    if not found:
        raise ValueError(
            f"The column 'answer' holds {answer!r}, which is not a number to compare with, such as 72, -1,234 or 0.5. "
            "Write the number alone, without a unit or currency sign (dataset.map), or compare words with exact_match."
        )
    return found


def _number(text: str) -> Decimal | None:
    text = text.strip()
    return Decimal(text.replace(",", "")) if _NUMBER.fullmatch(text) else None


def f1(completions: Sequence[Completion], answer: Sequence[Answer], **kwargs) -> list[float]:
    """Harmonic mean of precision and recall of the final answer's words, best over the accepted answers.

        F1 = 2 P R / (P + R)      P, R = common words / words of the answer, of the accepted answer

    Example: "<answer>Barack Hussein Obama</answer>" for "Barack Obama" -> P = 2/3, R = 1, F1 = 0.8
    """
    return [best_of(_overlap, extract_answer(c), a) for c, a in zip(completions, answer, strict=True)]


def f1_hotpot(completions: Sequence[Completion], answer: Sequence[Answer], **kwargs) -> list[float]:
    """`f1` as HotpotQA evaluates: if either answer is "yes", "no" or "noanswer", 1 for the same words, else 0.

    Example: "<answer>no idea</answer>" for "no" -> 0, by `f1` 2/3; "<answer>No.</answer>" -> 1
    """
    return [best_of(_overlap_or_verdict, extract_answer(c), a) for c, a in zip(completions, answer, strict=True)]


def answer_format(completions: Sequence[Completion], **kwargs) -> list[float]:
    """0 if the last assistant message has one pair of answer tags with text in it or submits an answer, else -1.

    Example: "<answer>Paris</answer>" -> 0; "Paris" -> -1; "<answer>Paris</answer> <answer>Rome</answer>" -> -1
    """
    return [0.0 if submitted_answer(c) or _is_well_formed(final_text(c)) else -1.0 for c in completions]


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{} whose braces are closed.

    Example: r"\boxed{\{1, 2\}} and \boxed{\frac{1}{2}}" -> r"\frac{1}{2}"; r"\boxed{1" -> None
    """
    boxes = {found.end() - 1 for found in _BOXED.finditer(text)}
    closed = [(start, end) for start, end in braces(text) if start in boxes]
    if not closed:
        return None
    start, end = max(closed)
    return text[start + 1 : end].strip()


def braces(text: str) -> Iterator[tuple[int, int]]:
    """The positions of each pair of braces, found in one pass: a policy may open thousands and close none."""
    opened: list[int] = []
    i = 0
    while i < len(text):
        if text[i] == "\\":
            i += 1  # \{ and \} are not braces, and \\ does not escape the next character
        elif text[i] == "{":
            opened.append(i)
        elif text[i] == "}" and opened:
            yield opened.pop(), i
        i += 1


def submitted_answer(completion: Completion) -> str | None:
    """The `answer` of the call to a final tool that ended the rollout, as the tool loop has marked its message.

    None if there was no such call, or it had no answer (null). A number becomes its usual text.

    Example: submit(answer=" 72 "), submit(answer=72), submit(answer=72.0) -> "72"; submit(answer=[72]) -> ValueError
    """
    if isinstance(completion, str) or not completion or not completion[-1].get("final"):
        return None
    call = completion[-1]["final"]
    answer = call["arguments"].get("answer")
    if isinstance(answer, float):
        return f"{Decimal(str(answer)).normalize():f}"  # JSON has one kind of number: 72.0 is 72, and 1e-07 0.0000001
    if isinstance(answer, bool) or not isinstance(answer, (str, int, NoneType)):
        raise ValueError(
            f"The final tool {call['name']} received an answer of type {type(answer).__name__}, {answer!r:.80}: "
            "rewards compare text or a number. Declare the argument as one of these (answer: str), so that the policy "
            "is told if it sends anything else; or score the rollout with your own reward."
        )
    return None if answer is None else str(answer).strip()


def final_text(completion: Completion) -> str:
    """The text of the last assistant message."""
    if isinstance(completion, str):
        return completion
    written = [message for message in completion if message["role"] == "assistant"]
    content = written[-1].get("content") if written else None
    if content is None or isinstance(content, str):  # a message of tool calls only has no content
        return content or ""
    return "".join(part["text"] for part in content if part["type"] == "text")


def _is_well_formed(text: str) -> bool:
    one_pair = text.count("<answer>") == text.count("</answer>") == 1
    return one_pair and bool(extract_answer(text))


def best_of(score: Callable[[list[str], list[str]], float], given: str | None, answer: Answer) -> float:
    """The best score of a final answer over the accepted answers; 0 without a final answer."""
    accepted = _accepted(answer)
    return 0.0 if given is None else max(score(_words(given), _words(text)) for text in accepted)


def _accepted(answer: Answer) -> Sequence[str]:
    accepted = [answer] if isinstance(answer, str) else answer
    if not accepted:
        raise ValueError("The column 'answer' holds an empty list: there is nothing to compare with. Drop the row.")
    return accepted


def _words(text: str) -> list[str]:
    # Text that normalises to nothing ("A", "The The", "?") is kept, because an empty answer would match it otherwise.
    return normalize_answer(text).split() or text.lower().split()


def equal_words(given: list[str], accepted: list[str]) -> float:
    return float(given == accepted)


def _overlap(given: list[str], accepted: list[str]) -> float:
    if not given or not accepted:
        return equal_words(given, accepted)
    common = (Counter(given) & Counter(accepted)).total()
    return 2 * common / (len(given) + len(accepted))  # 2 P R / (P + R), without a division by 0


def _overlap_or_verdict(given: list[str], accepted: list[str]) -> float:
    is_verdict = any(len(words) == 1 and words[0] in VERDICTS for words in (given, accepted))
    return equal_words(given, accepted) if is_verdict else _overlap(given, accepted)
