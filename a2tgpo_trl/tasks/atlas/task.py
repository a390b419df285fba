"""seed -> a world -> the task of answering questions on it by searching."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

from datasets import Dataset

from ...errors import shown
from ...rewards.text import answer_format, exact_match, f1
from ...tools import tool
from ...tools.search import NOTHING_FOUND, digest, search_tool
from .. import Task, check_number
from ..rng import Rng
from .useful import COLUMN
from .warm_up import warming_search
from .world import QUALIFIERS, Fact, Part, Question, library, make_part


INSTRUCTION = "Look facts up with the search tool, one at a time, then reply with <answer>NAME</answer>."
TRAIN_HOPS = (1, 2, 3, 4)
TEST_HOPS = (2, 3, 4)
MAX_HOPS = 8


def atlas(
    seed: int = 0,
    train_questions: int = 2048,
    test_questions: int = 300,
    top_k: int = 2,
    *,
    train_hops: Sequence[int] = TRAIN_HOPS,
    test_hops: Sequence[int] = TEST_HOPS,
    alike: int = 0,
    distractors: int = 0,
    name_index: bool = False,
    hidden_answers: bool = False,
    answerable: bool = False,
    supporting_documents: bool = False,
    wrong_answers: float = 0.0,
    guessable: float = 0.0,
    warm_up: int = 0,
) -> Task:
    """Training questions of one to four hops, and test questions of two to four hops, in equal parts.

    The entities of the two sets are disjoint, and so are their facts; one search index holds the documents of both.
    Longer chains are harder, and so are the settings after `test_hops`, except for `answerable`,
    `supporting_documents` and `guessable`.

    Args:
        train_hops: Lengths of the fact chains in the training questions, in equal parts; each from 1 to 8.
        test_hops: The same for the test questions.
        alike: Relations that look alike, for each relation: 0, 1 (alleged) or 2 (alleged, former).
        distractors: Useless documents that rank before each fact. `top_k` must be large enough to include the fact.
        name_index: Whether there is a second tool, an index of names, which knows each name and answers nothing.
        hidden_answers: Whether no document names both the answer and an entity from before the question's last hop,
            so that no search before the last finds the answer.
        answerable: Whether a search for each fact of a question, by relation and name, finds it. Otherwise 3 in 100
            such searches do not, because near-duplicates rank before it.
        supporting_documents: Whether rows have a column of this name, with the documents that their question needs,
            which `useful.useful_search` reads.
        wrong_answers: Share of the training questions whose answer is another name of the same kind, as in data with
            human errors. Test questions are always right.
        guessable: Share of the training and test questions whose chain ends where it begins, so that the answer is
            the name in the question and no search is needed. Such chains have two facts or more.
        warm_up: How many of a rollout's first searches find nothing useful, whatever they look for. The search is
            then a tool of an environment, which counts the calls, and comes after the index of names in prompts; the
            shipped policy that knows an index has not learnt from such prompts.
    """
    check_number("train_questions", train_questions)
    check_number("test_questions", test_questions)
    _check(top_k, train_hops, test_hops, alike, distractors, hidden_answers, wrong_answers, guessable, warm_up)
    parts = {name: make_part(name, seed, alike, distractors) for name in ("train", "test")}
    documents = library(list(parts.values()), seed)
    search = search_tool(documents, top_k)
    found = cache(lambda fact: fact.document in search(f"{fact.relation} of {fact.subject}").split("\n"))

    def rows(name: str, hops: Sequence[int], number: int) -> Dataset:
        def fits(chain: list[Fact]) -> bool:
            return (not hidden_answers or parts[name].hides(chain)) and (not answerable or all(map(found, chain)))

        asked = _questions(parts[name], name, seed, hops, number, fits, guessable)
        return Dataset.from_list([_row(question, supporting_documents) for question in asked])

    def empty() -> Callable[[str], str]:
        telling = set.union(*(part.telling for part in parts.values()))
        return search_tool([text for text in documents if text not in telling], top_k)

    train_rows = rows("train", train_hops, train_questions)
    if wrong_answers:
        mistaken = Rng("wrong answers", seed)
        train_rows = train_rows.map(lambda row: _mistaken(row, parts["train"], wrong_answers, mistaken))
    index = [index_tool(name for part in parts.values() for name in part.entities)] if name_index else []
    return Task(
        train_dataset=train_rows,
        test_dataset=rows("test", test_hops, test_questions),
        tools=[*([] if warm_up else [search]), *index],
        environment_factory=warming_search(search, empty(), warm_up) if warm_up else None,
        reward_funcs=[exact_match, answer_format, f1],
        reward_weights=[1.0, 0.1, 0.0],  # F1 is watched, not trained on
        group_by="hops",
    )


def _questions(
    part: Part,
    name: str,
    seed: int,
    hops: Sequence[int],
    number: int,
    fits: Callable[[list[Fact]], bool],
    guessable: float,
) -> list[Question]:
    """Draw `number` questions over chains that fit, of these lengths in turn; a share of the chains are circles."""
    rng, circle = Rng("questions", name, seed), Rng("guessable", name, seed)
    circles = [circle.chance(guessable) for _ in range(number)]
    return [part.question(hops[i % len(hops)], rng, fits, circle=circles[i]) for i in range(number)]


def prompt(question: Question) -> list[dict[str, str]]:
    """The prompt for a question."""
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": question.text}]


def index_tool(names: Iterable[str]) -> Callable[[str], str]:
    """A tool named `index` that only says whether a name is one of these."""
    known = {name.lower(): name for name in names}

    @tool(version=digest(known.values()))
    def index(name: str) -> str:
        """Look a name up in the index of names.

        Args:
            name: The name to look for.

        Returns:
            Its entry.
        """
        entry = known.get(name.strip().lower())
        return NOTHING_FOUND if entry is None else f"{entry}: see there."

    return index


def _row(question: Question, supported: bool) -> dict[str, Any]:
    row = {"prompt": prompt(question), "answer": question.answer, "hops": len(question.chain)}
    return row | ({COLUMN: [fact.document for fact in question.chain]} if supported else {})


def _mistaken(row: dict[str, Any], part: Part, share: float, rng: Rng) -> dict[str, Any]:
    """With probability `share`, replace the answer by another name of the same kind."""
    if not rng.chance(share):
        return row
    kind = part.entities[row["answer"]]
    others = [name for name, its in part.entities.items() if its == kind and name != row["answer"]]
    return {**row, "answer": rng.choice(others)}


def _check(
    top_k: int,
    train_hops: Sequence[int],
    test_hops: Sequence[int],
    alike: int,
    distractors: int,
    hidden_answers: bool,
    wrong_answers: float,
    guessable: float,
    warm_up: int,
) -> None:
    """Raise an error unless the settings are valid and a world can have all of them."""
    _check_hops("train_hops", train_hops)
    _check_hops("test_hops", test_hops)
    check_number("top_k", top_k, 1)
    check_number("alike", alike, 0, len(QUALIFIERS))
    check_number("distractors", distractors)
    check_number("warm_up", warm_up)
    _check_share("wrong_answers", wrong_answers)
    _check_share("guessable", guessable)
    if guessable and (hidden_answers or min(*train_hops, *test_hops) < 2):
        raise ValueError(
            f"guessable={guessable} asks for chains that end where they begin. No chain of a single fact does, so "
            "lengths in train_hops and test_hops must be at least 2. Their answers are not hidden: set "
            "hidden_answers: false."
        )
    # After them come the fact and one that fits a search equally well (see `world._targets`).
    if distractors and top_k < distractors + 2:
        raise ValueError(
            f"top_k must be at least {distractors + 2} with {distractors} distractors, which rank before each fact: "
            f"otherwise no search returns the fact; got {top_k}."
        )


def _check_hops(name: str, hops: Any) -> None:
    """Raise an error unless `hops` lists lengths for which the world has questions."""
    listed = isinstance(hops, (list, tuple)) and len(hops) > 0
    if not listed or not all(type(number) is int and 1 <= number <= MAX_HOPS for number in hops):
        raise ValueError(f"{name} must list lengths from 1 to {MAX_HOPS}, such as [4, 5, 6]; got {shown(hops)}.")


def _check_share(name: str, share: Any) -> None:
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise ValueError(f"{name} must be a share from 0 to 1; got {shown(share)}.")
