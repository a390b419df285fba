"""countries, some of them held out -> questions, a search tool and rewards."""

from collections.abc import Callable, Sequence

from datasets import Dataset

from ...rewards.text import answer_format, exact_match, f1
from ...tools.search import search_tool
from .. import Task, check_number
from ..rng import Rng
from .countries import RELATIONS, Country, countries
from .questions import Question, Telling, passages, questions


INSTRUCTION = "Look facts up with the search tool, one at a time, then reply with <answer>ANSWER</answer>."
# The examples for the policy: a country, the relation that identifies it (None: its name), and what is asked. These
# countries are neither trained nor tested on.
EXAMPLES = (
    ("Kenya", None, "currency"),
    ("Austria", "capital", "internet code"),
    ("Peru", None, "capital"),
    ("Japan", "highest point", "currency"),
)
HELD_OUT = 50  # countries
HOPS = (1, 2)

Message = dict[str, object]


def facts(
    seed: int = 0,
    train_questions: int = 1024,
    test_questions: int = 120,
    top_k: int = 2,
    examples: int = 4,
    train_hops: Sequence[int] = HOPS,
) -> Task:
    """Questions of one and two hops, in equal parts, on facts of countries.

    Fifty countries are held out for the test questions. The search finds passages on all countries.

    Args:
        examples: How many solved questions (0 to 4) precede each: a small policy needs to see what a search is.
        train_hops: [1] trains on questions of one hop only: questions that a policy never solves teach it little.
    """
    listed = isinstance(train_hops, (list, tuple)) and len(train_hops) == len(set(train_hops)) > 0
    if not listed or not set(train_hops) <= set(HOPS):
        raise ValueError(f"train_hops must hold 1, 2 or both; got {train_hops!r}.")
    check_number("examples", examples, 0, len(EXAMPLES))
    check_number("top_k", top_k, 1)
    check_number("train_questions", train_questions)
    check_number("test_questions", test_questions)
    everything = countries()
    by_name = {country.name: country for country in everything}
    shown = [name for name, _, _ in EXAMPLES]
    drawn = Rng("countries", seed).sample(free := [one for one in everything if one.name not in shown], len(free))
    search, telling = search_tool(passages(everything), top_k), Telling(everything)
    before = [
        message
        for name, clue, relation in EXAMPLES[:examples]
        for message in solved(by_name[name], clue, relation, search)
    ]
    return Task(
        train_dataset=_rows(
            drawn[HELD_OUT:], telling, before, train_hops, train_questions, Rng("questions", "train", seed)
        ),
        test_dataset=_rows(drawn[:HELD_OUT], telling, before, HOPS, test_questions, Rng("questions", "test", seed)),
        tools=[search],
        reward_funcs=[exact_match, answer_format, f1],
        reward_weights=[1.0, 0.1, 0.0],  # F1 is watched, not trained on
        group_by="hops",
    )


def solved(country: Country, clue: str | None, relation: str, search: Callable[[str], str]) -> list[Message]:
    """A question of one hop, or of two with a clue; the searches that find the needed facts; and the answer."""
    by_name = {one.name: one for one in RELATIONS}
    named, queries = country.name, [f"{relation} {country.name}"]
    if clue is not None:
        value = country.value(by_name[clue])
        named, queries = by_name[clue].names.format(value=value), [f"{clue} {value}", *queries]
    messages: list[Message] = [{"role": "user", "content": by_name[relation].asks.format(country=named)}]
    for query in queries:
        call = {"type": "function", "function": {"name": "search", "arguments": {"query": query}}}
        messages += [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": "search", "content": search(query)},
        ]
    return [*messages, {"role": "assistant", "content": f"<answer>{country.value(by_name[relation])}</answer>"}]


def _rows(
    about: Sequence[Country], telling: Telling, before: list[Message], hops: Sequence[int], number: int, rng: Rng
) -> Dataset:
    pools = [questions(about, one, telling) for one in hops]
    drawn = [rng.sample(pool, min(len(pool), number // len(pools))) for pool in pools]
    asked = [question for pair in zip(*drawn, strict=False) for question in pair]
    return Dataset.from_list([_row(question, before) for question in asked])


def _row(question: Question, before: list[Message]) -> dict:
    system, user = {"role": "system", "content": INSTRUCTION}, {"role": "user", "content": question.text}
    return {
        "prompt": [system, *before, user],
        "answer": list(question.answers),
        "hops": question.hops,
        "relation": question.relation,
        "needed": list(question.needed),
    }
