"""sets by name, prompts of a family -> the task of answering their questions by searching."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from ...lookup import load
from ...rewards import REWARDS
from ...search import SearchTool
from .. import Task
from ..rng import Rng
from .answerable import Answerable, read_answerable, say
from .leakage import Leakage, without_leaks
from .prompts import Prompts, read_prompts
from .questions import Question, load_split
from .sets import MULTI_HOP, SETS, averages, named, trained_on


def qa(
    sets: str | Sequence[str] = MULTI_HOP,
    train: str | Sequence[str] | None = None,
    folder: str | Path | None = None,
    limit: int | Mapping[str, int] | None = None,
    prompts: str = "qwen3",
    search: str | Mapping[str, Any] | None = None,
    leakage: Leakage = "leave_out",
    whole: bool = False,
    seed: int = 0,
    answerable: str | Path | None = None,
    answerable_only: bool = False,
) -> Task:
    """Questions of HotpotQA, 2WikiMultihopQA, MuSiQue, Bamboogle, NQ, TriviaQA and PopQA.

    Args:
        sets: The test sets: names, or "multi-hop" or "single-hop" for all of a kind.
        train: The training sets. None: as in the paper, HotpotQA for multi-hop sets and NQ for single-hop sets. An
            empty list: nothing, for evaluations.
        folder: Folder with FlashRAG's files, SET/SPLIT.jsonl. None: its collection on the hub.
        limit: Most questions of each set, drawn by the seed: a number, or {train: 2000, test: 500}. None: all.
        prompts: Family of models (`families/`), or your own file.
        search: What to search: the address of a server, the folder of an index, or arguments of `SearchTool`
            ({url: ..., top_k: 5}). None: the recipe names its own tools.
        leakage: What to do with training questions that are also tested on: leave_out, refuse or keep.
        whole: Whether it is an error if a set does not have its known size.
        seed: Seed by which `limit` draws.
        answerable: File that says which questions the corpus can answer (`a2tgpo answerable`); those and the others
            are then scored separately.
        answerable_only: Whether questions that the corpus cannot answer are left out of training.
    """
    form, limits = read_prompts(prompts), _limits(limit)
    tested = named(sets)
    learnt = trained_on(tested) if train is None else named(train)
    test = {name: load_split(name, SETS[name].test, folder, whole) for name in tested}
    pool = [question for name in learnt for question in load_split(name, "train", folder, whole)]
    known = _known(answerable, answerable_only)
    if answerable_only:
        pool = [question for question in pool if say(known, question)]
        if not pool:
            raise ValueError(
                f"answerable_only: according to {answerable}, none of the training questions is answerable."
            )
    kept = without_leaks(pool, [question for questions in test.values() for question in questions], leakage)
    by_set = {name: [question for question in kept if question.set == name] for name in learnt}
    test_rows = _rows(test, limits.get("test"), form, Rng("test", seed))
    if answerable is not None:
        by_key = {(question.set, question.id): question for questions in test.values() for question in questions}
        keys = zip(test_rows["set"], test_rows["id"], strict=True)
        test_rows = test_rows.add_column("answerable", [say(known, by_key[key]) for key in keys])
    return Task(
        train_dataset=_rows(by_set, limits.get("train"), form, Rng("train", seed)),
        test_dataset=test_rows,
        tools=[] if search is None else [SearchTool(**_searched(search))],
        reward_funcs=[_reward(name) for name in form.rewards],
        reward_weights=list(form.rewards.values()),
        settings=form.settings,
        group_by="set",
        averages=averages(tested, answerable is not None),
    )


def _known(answerable: str | Path | None, only: bool) -> Answerable:
    if only and answerable is None:
        raise ValueError(
            "answerable_only needs the file that says which questions are answerable (answerable: FILE). To make it: "
            "a2tgpo answerable."
        )
    return {} if answerable is None else read_answerable(answerable)


def _searched(search: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """Arguments of `SearchTool`."""
    if isinstance(search, Mapping):
        return search
    return {"url" if "://" in search else "index": search}


def _limits(limit: int | Mapping[str, int] | None) -> Mapping[str, int]:
    limits = limit if isinstance(limit, Mapping) else {} if limit is None else {"train": limit, "test": limit}
    for part, number in limits.items():
        if part not in ("train", "test") or isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(
                "limit must be a whole number of at least 1, or {train: ..., test: ...} with such numbers; got "
                f"{limit!r}."
            )
    return limits


def _reward(name: str) -> Callable:
    return load(REWARDS[name], (), "reward", REWARDS)


def _rows(by_set: Mapping[str, list[Question]], limit: int | None, form: Prompts, rng: Rng) -> Dataset:
    """Questions in the trainer's form; at most `limit` of each set, in their own order."""
    rows = []
    for questions in by_set.values():
        chosen: Sequence[int] = range(len(questions))
        if limit is not None and limit < len(questions):
            chosen = sorted(rng.sample(chosen, limit))
        rows += [_row(questions[i], form) for i in chosen]
    return Dataset.from_list(rows)


def _row(question: Question, form: Prompts) -> dict:
    return {
        "prompt": form.ask(question.text),
        "answer": list(question.answers),
        "set": question.set,
        "id": question.id,
        "titles": list(question.titles),
    }
