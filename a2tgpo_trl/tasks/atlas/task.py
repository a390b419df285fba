"""seed -> a world -> the task of answering questions on it by searching."""

from datasets import Dataset

from ...rewards.text import answer_format, exact_match, f1
from ...tools.search import search_tool
from .. import Task
from ..rng import Rng
from .world import Part, Question, library, make_part


INSTRUCTION = "Look facts up with the search tool, one at a time, then reply with <answer>NAME</answer>."
TRAIN_HOPS = (1, 2, 3, 4)
TEST_HOPS = (2, 3, 4)


def atlas(seed: int = 0, train_questions: int = 2048, test_questions: int = 300, top_k: int = 2) -> Task:
    """Questions of one to four hops to train on, and of two to four hops, in equal parts, to test on.

    The entities of the two sets are disjoint, and so are their facts; one search index holds the documents of both.
    """
    parts = {name: make_part(name, seed) for name in ("train", "test")}
    return Task(
        train_dataset=_questions(parts["train"], TRAIN_HOPS, train_questions, Rng("questions", "train", seed)),
        test_dataset=_questions(parts["test"], TEST_HOPS, test_questions, Rng("questions", "test", seed)),
        tools=[search_tool(library(list(parts.values()), seed), top_k)],
        reward_funcs=[exact_match, answer_format, f1],
        reward_weights=[1.0, 0.1, 0.0],  # F1 is watched, not trained on
        group_by="hops",
    )


def prompt(question: Question) -> list[dict[str, str]]:
    """A question as the policy is asked it."""
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": question.text}]


def _questions(part: Part, hops: tuple[int, ...], number: int, rng: Rng) -> Dataset:
    asked = [part.question(hops[i % len(hops)], rng) for i in range(number)]
    return Dataset.from_list(
        [
            {
                "prompt": prompt(question),
                "answer": question.answer,
                "hops": len(question.chain),
            }
            for question in asked
        ]
    )
