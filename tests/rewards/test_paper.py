"""The paper's reward in its format and in others; exact match and F1 compared with SQuAD's and HotpotQA's rules."""

import re
import string
import unicodedata
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from a2tgpo_trl.rewards import AnswerFormat, exact_match, f1, f1_hotpot, paper_reward, reward_in


THOUGHT, ANSWER = "<think>Of France?</think>", r"<answer>\boxed{Paris}</answer>"


def assistant(content, **more) -> dict:
    return {"role": "assistant", "content": content, **more}


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        (f"{THOUGHT} {ANSWER}", 1.0),
        (f"{THOUGHT}\n\nSo it is {ANSWER}.", 1.0),
        (rf"{THOUGHT} <answer>It is $\boxed{{the PARIS}}$.</answer>", 1.0),
        (rf"{THOUGHT} <answer>\boxed{{Rome}}</answer>", 0.0),
        (f"Of France?</think> {ANSWER}", 1.0),  # the template has opened the thought
        (f"<think>\n\n</think>\n\n{ANSWER}", 1.0),
        ([assistant(f"{THOUGHT} {ANSWER}")], 1.0),
        ([assistant(ANSWER, reasoning_content="Of France?")], 1.0),
        ([assistant("<think>a</think>", tool_calls=[]), {"role": "tool", "content": "x"}, assistant(ANSWER)], -1.0),
        (ANSWER, -1.0),
        (f"<think>Of France? {ANSWER}", -1.0),
        (f"{ANSWER} {THOUGHT}", -1.0),
        (rf"<think>{ANSWER}</think>", -1.0),
        (f"{THOUGHT} {THOUGHT} {ANSWER}", -1.0),
        (f"So: {THOUGHT} {ANSWER}", -1.0),
        (f"{THOUGHT} <answer>Paris</answer>", -1.0),
        (rf"{THOUGHT} <answer>\boxed{{Paris</answer>", -1.0),
        (rf"{THOUGHT} <answer>\boxed{{ }}</answer>", -1.0),
        (rf"{THOUGHT} \boxed{{Paris}}", -1.0),
        (f"{THOUGHT} {ANSWER} {ANSWER}", -1.0),
        (rf"{THOUGHT} <answer>\boxed{{Paris}}", -1.0),
        (rf"{THOUGHT} </answer>\boxed{{Paris}}<answer>", -1.0),
        ("", -1.0),
        ([], -1.0),
        ([assistant(None)], -1.0),
    ],
    ids=str,
)
def test_right_answer_scores_1_wrong_0_and_broken_format_minus_1(completion, reward):
    assert paper_reward([completion], ["Paris"]) == [reward]


def test_the_best_alias_counts_and_what_a_final_tool_was_handed_is_an_answer():
    assert paper_reward([f"{THOUGHT} {ANSWER}"] * 2, [["Rome", "paris"], ["Rome"]], prompts=[]) == [1.0, 0.0]
    submitted = [assistant(None, final={"name": "submit", "arguments": {"answer": "Paris"}})]
    assert paper_reward([submitted] * 2, ["Paris", "Rome"]) == [1.0, 0.0]
    with pytest.raises(ValueError, match="empty list"):
        paper_reward([""], [[]])


def test_other_answer_formats_can_be_configured():
    plain = reward_in(AnswerFormat(thought=None, boxed=False))
    assert plain(["<answer>Paris</answer>", r"\boxed{Paris}", ANSWER], ["Paris"] * 3) == [1.0, -1.0, 0.0]
    other = reward_in(AnswerFormat(thought=("[T]", "[/T]"), answer=("[A]", "[/A]")))
    assert other([r"[T]x[/T][A]\boxed{Paris}[/A]", f"{THOUGHT} {ANSWER}"], ["Paris"] * 2) == [1.0, -1.0]
    assert plain.__name__ == paper_reward.__name__ == "paper_reward"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"answer": None}, "answer"),
        ({"answer": "<answer>"}, "answer"),
        ({"answer": ("<a>", "<a>")}, "answer"),
        ({"thought": ("<think>",)}, "thought"),
        ({"thought": ("<think>", "")}, "thought"),
    ],
)
def test_ambiguous_answer_format_tags_are_refused(changes, name):
    with pytest.raises(ValueError, match=f"{name} must be two different strings"):
        AnswerFormat(**changes)


# ---- the rules of SQuAD and HotpotQA, as published


def reference_words(text: str) -> list[str]:
    """Words in lower case, without punctuation and without the words a, an and the."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def reference_exact_match(prediction: str, truth: str) -> float:
    return float(" ".join(reference_words(prediction)) == " ".join(reference_words(truth)))


def reference_f1(prediction: str, truth: str, hotpot: bool = False) -> float:
    found, right = reference_words(prediction), reference_words(truth)
    verdicts = {"yes", "no", "noanswer"}
    if hotpot and found != right and not verdicts.isdisjoint({" ".join(found), " ".join(right)}):
        return 0.0
    same = sum((Counter(found) & Counter(right)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(found), same / len(right)
    return 2 * precision * recall / (precision + recall)


WORDS = [
    "a",
    "The",
    "an",
    "yes",
    "No",
    "noanswer",
    "Paris",
    "paris,",
    "U.S.A.",
    "é",
    "1,234",
    "-",
    "'s",
    "don't",
    "東京",
]
TEXTS = st.one_of(
    st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join),
    st.text(alphabet=st.characters(exclude_characters="<>"), max_size=15),
    st.text(alphabet="aAntheT .,-\t\n\u00a0é_", max_size=15),
)


@settings(max_examples=500, deadline=None)
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_exact_match_and_f1_are_those_of_squad_and_hotpotqa(prediction, truths):
    # Two differences are intended, and tested elsewhere: text that looks the same is the same (NFC), and texts that
    # normalise to nothing do not all match each other.
    assume(all(unicodedata.is_normalized("NFC", text.lower()) for text in (prediction, *truths)))
    assume(all(map(reference_words, truths)))
    given_answer = [f"<answer>{prediction}</answer>"]
    assert exact_match(given_answer, [truths]) == [max(reference_exact_match(prediction, one) for one in truths)]
    best = max(reference_f1(prediction, one) for one in truths)
    assert f1(given_answer, [truths]) == [pytest.approx(best)]
    best = max(reference_f1(prediction, one, hotpot=True) for one in truths)
    assert f1_hotpot(given_answer, [truths]) == [pytest.approx(best)]
