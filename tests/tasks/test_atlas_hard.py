"""The embedded world, made harder: each setting does what it says, and the world knows which searches were useful."""

import hashlib
import json

import pytest
from transformers.utils import get_json_schema

from a2tgpo_trl.tasks.atlas.task import atlas, index_tool
from a2tgpo_trl.tasks.atlas.useful import useful_search
from a2tgpo_trl.tasks.atlas.world import Distractor, Fact, Part, Question, library, make_part, relations_of
from a2tgpo_trl.tasks.rng import Rng
from a2tgpo_trl.tools.search import NOTHING_FOUND, search_tool


@pytest.fixture(scope="module")
def part():
    return make_part("test", 0, alike=1, distractors=1)


@pytest.fixture(scope="module")
def search(part):
    return search_tool(library([part], 0), top_k=3)


def of_all(part):
    return [fact for facts in part.facts.values() for fact in facts]


def test_wrong_answers_changes_a_share_of_the_training_answers_only():
    settings = {"train_questions": 200, "test_questions": 20, "seed": 3}
    right, wrong, all_wrong = (atlas(**settings, wrong_answers=share) for share in (0.0, 0.3, 1.0))
    assert right.test_dataset.to_list() == wrong.test_dataset.to_list()
    assert [row["prompt"] for row in right.train_dataset] == [row["prompt"] for row in wrong.train_dataset]
    kinds = make_part("train", 3).entities
    pairs = list(zip(right.train_dataset["answer"], wrong.train_dataset["answer"], strict=True))
    assert 0.2 < sum(one != other for one, other in pairs) / len(pairs) < 0.4
    assert all(kinds[one] == kinds[other] for one, other in pairs)
    assert not any(map(str.__eq__, right.train_dataset["answer"], all_wrong.train_dataset["answer"]))
    for share in (1.5, True, "all"):
        with pytest.raises(ValueError, match="wrong_answers must be a share from 0 to 1"):
            atlas(**settings, wrong_answers=share)


def test_guessable_puts_the_answer_into_a_share_of_the_questions():
    settings = dict(train_questions=60, test_questions=40, train_hops=[2, 3], test_hops=[2, 3], alike=1, seed=3)
    none, some, every = (atlas(**settings, supporting_documents=True, guessable=share) for share in (0.0, 0.3, 1.0))

    def guessed(rows) -> float:
        return sum(row["prompt"][1]["content"].endswith(f" of {row['answer']}?") for row in rows) / len(rows)

    for of_none, of_some, of_all in zip(*map(of_both, (none, some, every)), strict=True):
        assert guessed(of_none) == 0 < guessed(of_some) < 0.6 and guessed(of_all) == 1
        assert of_all["hops"][:] == of_none["hops"][:]
        for documents, answer in zip(of_all["supporting_documents"], of_all["answer"], strict=True):
            assert f" of {answer} is " in documents[0] and documents[-1].endswith(f" is {answer}.")
    assert every.train_dataset["answer"][:10] != every.test_dataset["answer"][:10]


def test_warm_up_searches_find_nothing_useful_and_count_per_environment():
    settings = dict(train_questions=1, test_questions=20, test_hops=[2], alike=1, distractors=1, top_k=3)
    task = atlas(**settings, answerable=True, supporting_documents=True, name_index=True, warm_up=2)
    plain = atlas(**settings, answerable=True, supporting_documents=True, name_index=True)
    assert task.test_dataset.to_list() == plain.test_dataset.to_list() and plain.environment_factory is None
    assert [tool.__name__ for tool in task.tools] == ["index"]  # searches have a state and belong to an environment
    one, other = task.environment_factory(), task.environment_factory()
    part = make_part("test", 0, alike=1, distractors=1)
    for documents in task.test_dataset["supporting_documents"]:
        query = documents[0].split(" is ")[0].removeprefix("The ")
        for environment in (one, other):
            environment.reset(hops=2)
        for _ in range(2):
            found = set(one.search(query).split("\n"))
            assert len(found) == 3 and not found & part.telling
        assert one.search(query) == plain.tools[0](query) and documents[0] in one.search(query)
        assert documents[0] not in other.search(query)
    assert get_json_schema(other.search) == get_json_schema(plain.tools[0])  # the same prompt to a policy


def of_both(task):
    return [task.train_dataset, task.test_dataset]


# ---- the world


def test_a_seed_gives_the_same_harder_world_on_every_machine(part):
    task = atlas(
        train_questions=60,
        test_questions=60,
        top_k=3,
        train_hops=[4, 8],
        alike=1,
        distractors=1,
        hidden_answers=True,
        answerable=True,
        supporting_documents=True,
    )
    world = json.dumps([library([part], 0), task.train_dataset.to_list(), task.test_dataset.to_list()])
    assert hashlib.sha256(world.encode()).hexdigest()[:16] == "08c42b4561c07dc7"


def test_each_relation_has_an_alike_relation_with_its_own_facts(part):
    assert list(relations_of("city", 1)) == ["mayor", "country", "alleged mayor", "alleged country"]
    assert len(relations_of("person", 2)) == 15
    assert len(of_all(part)) == 2 * len(of_all(make_part("test", 0)))
    facts = {(fact.subject, fact.relation): fact.object for fact in of_all(part)}
    same = [facts[name, f"alleged {relation}"] == to for (name, relation), to in facts.items() if " " not in relation]
    # By chance: one of 24 countries, 40 cities or companies, 96 people.
    assert sum(same) / len(same) < 0.06


def test_question_names_the_alike_relation():
    chain = (Fact("Rome", "alleged mayor", "A B"), Fact("A B", "former employer", "C D"))
    assert Question(chain).text == "Which company is the former employer of the alleged mayor of Rome?"


def test_query_without_the_alike_word_finds_the_other_relation_first(part, search):
    alike, both = [fact for fact in of_all(part) if " " in fact.relation][::7], 0
    for fact in alike[:60]:
        plain = next(f for f in part.facts[fact.subject] if f"alleged {f.relation}" == fact.relation)
        found = search(f"{plain.relation} of {plain.subject}").split("\n")
        if fact.document in found and plain.document in found:
            both += 1
            assert found.index(plain.document) < found.index(fact.document)
    assert both > 10


def test_distractors_rank_above_facts_without_hiding_them(part, search):
    facts = of_all(part)[::5]
    found = [search(f"{fact.relation} of {fact.subject}").split("\n") for fact in facts]
    useless = {distractor.document for distractor in part.distractors}
    assert sum(of_fact[0] in useless for of_fact in found) / len(facts) > 0.9
    assert sum(fact.document in of_fact for fact, of_fact in zip(facts, found, strict=True)) / len(facts) > 0.95


def test_distractor_names_an_entity_of_another_kind(part):
    assert Distractor("Rome", "mayor", "A B").document == "mayor: mayor of Rome? Ask A B."
    assert all(part.entities[one.subject] != part.entities[one.named] for one in part.distractors)
    assert len(part.distractors) == len(of_all(part)) / 2


def test_answer_is_not_hidden_if_a_document_links_it_to_an_earlier_entity():
    # A -> B -> C. "The rival of C is A" would bring C up in a search for A; "The rival of B is C" may.
    chain = [Fact("A", "mother", "B"), Fact("B", "mother", "C")]
    named = dict.fromkeys("ABCD", "person")
    assert Part(named, {"A": [chain[0]], "B": [*chain[1:], Fact("B", "father", "C")]}).hides(chain)
    assert not Part(named, {"A": [chain[0]], "B": [chain[1]], "C": [Fact("C", "father", "A")]}).hides(chain)
    assert not Part(named, {"A": [chain[0]], "B": [chain[1]]}, [Distractor("A", "mother", "C")]).hides(chain)


def test_earlier_correct_searches_never_show_a_hidden_answer(part, search):
    def seen_early(fits) -> int:
        questions = [part.question(6, Rng("early", i), fits) for i in range(150)]
        return sum(
            any(question.answer in search(f"{fact.relation} of {fact.subject}") for fact in question.chain[:-1])
            for question in questions
        )

    assert seen_early(part.hides) == 0 < seen_early(lambda chain: True)


def test_all_facts_of_an_answerable_question_are_found():
    settings = dict(train_questions=1, test_questions=150, test_hops=[6], top_k=3, alike=1, distractors=1)

    def unanswerable(**more) -> int:
        task = atlas(**settings, supporting_documents=True, **more)
        (search,) = task.tools
        queries = [[text.split(" is ")[0].removeprefix("The ") for text in of] for of in documents(task)]
        return sum(
            any(text not in search(query).split("\n") for query, text in zip(*pair, strict=True))
            for pair in zip(queries, documents(task), strict=True)
        )

    def documents(task):
        return task.test_dataset["supporting_documents"][:]

    assert unanswerable(answerable=True) == 0 < unanswerable()


def test_index_tool_finds_every_name_but_no_facts(part):
    index = index_tool(part.entities)
    name = next(iter(part.entities))
    assert index(f" {name.lower()} ") == f"{name}: see there."
    assert index("Nobody") == NOTHING_FOUND
    task = atlas(train_questions=1, test_questions=1, name_index=True)
    assert [tool.__name__ for tool in task.tools] == ["search", "index"]
    assert task.tools[1](name) == f"{name}: see there."


def test_questions_have_the_requested_hops():
    task = atlas(train_questions=10, test_questions=6, train_hops=[8, 5], test_hops=[4])
    assert task.train_dataset["hops"][:] == [8, 5] * 5 and task.test_dataset["hops"][:] == [4] * 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_hops": [4, 9]}, r"train_hops must list lengths from 1 to 8, such as \[4, 5, 6\]; got \[4, 9\]"),
        ({"test_hops": []}, r"test_hops must list lengths from 1 to 8.*; got \[\]"),
        ({"test_hops": 4}, "test_hops must list lengths .*; got 4"),
        ({"alike": 3}, "alike must be a whole number from 0 to 2; got 3"),
        ({"alike": True}, "alike must be a whole number from 0 to 2; got True"),
        ({"train_questions": "1e3"}, "train_questions must be a whole number from 0 upwards; got '1e3'"),
        ({"test_questions": 3.0}, "test_questions must be a whole number from 0 upwards; got 3.0"),
        ({"top_k": "3"}, "top_k must be a whole number from 1 upwards; got '3'"),
        ({"distractors": -1}, "distractors must be a whole number from 0 upwards; got -1"),
        ({"warm_up": -1}, "warm_up must be a whole number from 0 upwards; got -1"),
        ({"guessable": 1.5}, "guessable must be a share from 0 to 1; got 1.5"),
        ({"guessable": 0.5, "train_hops": [1, 2]}, "No chain of a single fact does"),
        ({"guessable": 0.5, "train_hops": [2], "hidden_answers": True}, "Their answers are not hidden"),
        ({"distractors": 2, "top_k": 3}, "top_k must be at least 4 with 2 distractors.*; got 3"),
    ],
    ids=lambda value: "" if isinstance(value, str) else json.dumps(value),
)
def test_invalid_settings_are_an_error(settings, message):
    with pytest.raises(ValueError, match=message):
        atlas(**settings)


# ---- which searches were useful


def record(*results: list[str] | None):
    calls = [None if texts is None else [{"result": text} for text in texts] for texts in results]
    return {"supporting_documents": ["A.", "B."], "turns": [{"calls": of_turn or []} for of_turn in calls]}


def test_a_search_is_useful_once_for_each_document_that_the_question_needs():
    # Brings up A; C, which is useless; A again and B; B again; the answer.
    assert useful_search(record(["C.\nA."], ["C."], ["A.\nB."], ["B."], None)) == [1, 0, 1, 0, None]
    # Two calls in one turn, the second useful; a document that only begins like one that is needed.
    assert useful_search(record(["C.", "B."], ["A. And more."], None)) == [1, 0, None]
    # B is needed whether or not A was found before it.
    assert useful_search(record(["B."], ["A."])) == [1, 1]
    assert useful_search(record(None)) == [None]


def test_row_without_supporting_documents_is_an_error():
    with pytest.raises(ValueError, match=r"task_kwargs: \{supporting_documents: true\}"):
        useful_search({"turns": []})
