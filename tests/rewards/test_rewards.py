import random
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from a2tgpo_trl.rewards import answer_format, exact_match, exact_number, extract_answer, f1, normalize_answer


def tagged(answer: str) -> str:
    return f"<answer>{answer}</answer>"


def assistant(content) -> dict:
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        (" The  U.S.A., a country", "usa country"),
        ("An apple\na\tday", "apple day"),
        ("theatre and anthem", "theatre and anthem"),  # articles are whole words
        ("well-known", "wellknown"),
        ("$1,000.50", "100050"),
        ("ÉCOLE Normale", "école normale"),
        ("東京", "東京"),
        ("the", ""),
        ("", ""),
    ],
)
def test_normalisation_is_that_of_squad(text, normalized):
    assert normalize_answer(text) == normalized


def test_composed_and_decomposed_characters_are_the_same():
    assert normalize_answer("Cafe\u0301") == normalize_answer("Caf\u00e9") == "caf\u00e9"
    assert normalize_answer("the\u0301 vert") == "th\u00e9 vert"  # not the article and a stray accent


@given(st.text())
def test_any_text_can_be_normalised_and_surrounding_noise_changes_nothing(text):
    assert normalize_answer(f"  The, {text} . ") == normalize_answer(f" {text} ")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<answer>Rome</answer> No, <answer> Paris </answer>.", "Paris"),
        ("<answer>two\nlines</answer>", "two\nlines"),
        ("<answer></answer>", ""),
        ("<answer>Rome <answer>Paris</answer>", "Paris"),
        ("<answer>Paris</answer></answer>", "Paris"),
        ("<answer>Paris</answer> <answer>cut o", "Paris"),
        ("</answer>Paris<answer>", None),
        ("Paris", None),
        ("", None),
        ([assistant(tagged("Paris"))], "Paris"),
        ([assistant([{"type": "text", "text": "<answer>Pa"}, {"type": "text", "text": "ris</answer>"}])], "Paris"),
        ([assistant([{"type": "image"}, {"type": "text", "text": tagged("Paris")}])], "Paris"),
        ([assistant(None)], None),
        ([{"role": "assistant", "tool_calls": []}], None),
        ([], None),
    ],
)
def test_the_last_answer_of_a_completion_is_found(completion, answer):
    assert extract_answer(completion) == answer


def test_only_the_last_assistant_message_answers():
    tool = {"role": "tool", "name": "search", "content": tagged("from the tool")}
    assert extract_answer([assistant(tagged("early")), tool, assistant(tagged("late"))]) == "late"
    assert extract_answer([assistant(tagged("early")), tool, assistant("I do not know")]) is None
    assert extract_answer([assistant("let me look"), tool]) is None


def submitted(arguments: dict) -> list[dict]:
    return [{**assistant("<answer>no</answer>"), "final": {"name": "submit", "arguments": arguments}}]


@pytest.mark.parametrize(
    ("answer", "text"),
    [(" 72 ", "72"), (72, "72"), (-72.0, "-72"), (0.5, "0.5"), (1e-07, "0.0000001"), (3e15, "3" + "0" * 15)],
)
def test_a_number_that_is_handed_to_a_final_tool_is_an_answer(answer, text):
    assert extract_answer(submitted({"answer": answer})) == text
    assert exact_match([submitted({"answer": answer})], [text]) == exact_number(
        [submitted({"answer": answer})], [text]
    )
    assert answer_format([submitted({"answer": answer})]) == [0.0]


def test_a_final_tool_that_was_handed_no_answer_leaves_it_to_the_tags():
    assert extract_answer(submitted({"answer": None})) == extract_answer(submitted({"text": "72"})) == "no"


@pytest.mark.parametrize(("answer", "kind"), [([72], "list"), ({"value": 72}, "dict"), (True, "bool")])
def test_answer_of_an_unsupported_type_is_an_error_naming_tool_and_type(answer, kind):
    with pytest.raises(ValueError, match=f"final tool submit .* answer of type {kind}.*answer: str"):
        exact_match([submitted({"answer": answer})], ["72"])


def test_exact_match_ignores_case_articles_and_punctuation_and_takes_the_best_alias():
    completions = [tagged("the Eiffel Tower!"), "the Eiffel Tower", tagged("Eiffel")]
    aliases = ["Tour Eiffel", "Eiffel Tower"]
    assert exact_match(completions, [aliases] * 3) == [1.0, 0.0, 0.0]
    assert exact_match(completions=completions[:1], answer=["Eiffel Tower"], prompts=["?"], trainer_state=None) == [
        1.0
    ]


def test_f1_counts_common_words():
    # 2 of 3 words are right, and both words are found: 2 * 2/3 * 1 / (2/3 + 1) = 0.8
    assert f1([tagged("Barack Hussein Obama")], ["Barack Obama"]) == [pytest.approx(0.8)]
    # repeated words count as often as both texts have them: 1 of 3, 1 of 1, so 2 * 1/3 / (4/3) = 0.5
    assert f1([tagged("no no no")], ["no"]) == [pytest.approx(0.5)]
    assert f1([tagged("Rome"), "Paris"], ["Paris", "Paris"]) == [0.0, 0.0]


def test_f1_takes_the_best_alias_not_the_first():
    # 1 common word: 2 / (1 + 2) with the first alias, all with the second
    assert f1([tagged("Obama")], [["Barack Obama"]]) == [pytest.approx(2 / 3)]
    assert f1([tagged("Obama")], [["Barack Obama", "Obama"]]) == [1.0]


@pytest.mark.parametrize("reward", [exact_match, f1])
@pytest.mark.parametrize("gold", ["A", "The The", "?"])
def test_an_empty_answer_does_not_match_what_normalises_to_nothing(reward, gold):
    assert reward([tagged(""), tagged("an"), tagged(gold)], [gold] * 3) == [0.0, 0.0, 1.0]


@given(st.text(alphabet=st.characters(exclude_characters="<>"), min_size=1))
def test_an_answer_matches_itself_in_any_script(text):
    assert exact_match([tagged(text)], [text]) == f1([tagged(text)], [text]) == [1.0]


@given(st.text(alphabet="ab ,"), st.text(alphabet="ab ,"))
def test_f1_lies_between_exact_match_and_one(given_answer, gold):
    score, hit = f1([tagged(given_answer)], [gold])[0], exact_match([tagged(given_answer)], [gold])[0]
    assert hit <= score <= 1.0


@pytest.mark.parametrize("reward", [exact_match, exact_number, f1])
def test_a_row_without_accepted_answers_is_an_error(reward):
    with pytest.raises(ValueError, match="empty list"):
        reward([tagged("Paris")], [[]])


@pytest.mark.parametrize(
    ("completion", "penalty"),
    [
        (tagged("Paris"), 0.0),
        ("I think <answer>Paris</answer>.", 0.0),
        ([assistant(tagged("Paris"))], 0.0),
        ("Paris", -1.0),
        ("<answer>Paris", -1.0),
        ("</answer>Paris<answer>", -1.0),
        ("<answer> </answer>", -1.0),
        ("<answer>Paris</answer> <answer>Rome</answer>", -1.0),
        ("<answer><answer>Paris</answer></answer>", -1.0),
        ([assistant(tagged("Paris")), {"role": "tool", "content": "x"}, assistant(None)], -1.0),
    ],
)
def test_anything_but_one_filled_pair_of_tags_is_penalised(completion, penalty):
    assert answer_format([completion]) == [penalty]


def test_a_long_completion_of_tags_is_read_in_linear_time():
    tags = random.Random(0).choices(["<answer>", "x", "</answe"], k=100_000)
    start = time.perf_counter()
    assert extract_answer("".join(tags)) is None
    assert time.perf_counter() - start < 2.0


def test_exact_number_accepts_equal_notations_only():
    # exact_match would take the first three for 1234 and 12, because it treats signs and points as punctuation.
    wrong = ["-1234", "12.34", "1/2", "%12", "1234 or 5", "", "٣"]
    assert exact_number([tagged(text) for text in wrong], ["1234", "1234", "12", "12", "1234", "0", "3"]) == [0] * 7
    right = ["1234", "1,234", "1234.0", "+1234"]
    assert exact_number([tagged(text) for text in right], ["1234"] * 4) == [1] * 4
    assert exact_number(["<answer>7</answer>", "7"], [["8", "7"], "7"]) == [1, 0]
    assert exact_number([tagged("72")] * 2, [" 72\n", ["seventy-two", "72"]]) == [1, 1]
    assert exact_number([tagged("9" * 5000)] * 2, ["9" * 5000, "72"]) == [1, 0]  # int() refuses this many digits


@pytest.mark.parametrize("answer", ["$5", "72 apples", "", ["five", "%5"]])
def test_exact_number_with_a_non_numeric_gold_answer_is_an_error(answer):
    with pytest.raises(
        ValueError, match=f"column 'answer' holds {re.escape(repr(answer))}, which is not a number.*alone"
    ):
        exact_number(["no answer"], [answer])
