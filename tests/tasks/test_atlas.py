"""The embedded world: the same everywhere, not guessable, and useful only to a policy that searches well."""

import hashlib
import json

import pytest
from atlas_tokenizer import make_tokenizer
from closed_book import answers_at_once

from a2tgpo_trl.rewards import exact_match
from a2tgpo_trl.tasks.atlas import POLICY
from a2tgpo_trl.tasks.atlas.task import INSTRUCTION, atlas
from a2tgpo_trl.tasks.atlas.world import ENTITIES, PARTS, library, make_part, names
from a2tgpo_trl.tasks.rng import Rng
from a2tgpo_trl.tools.search import NOTHING_FOUND, BM25Index, search_tool


@pytest.fixture(scope="module")
def parts():
    return {name: make_part(name, 0) for name in ("train", "test")}


@pytest.fixture(scope="module")
def search(parts):
    return search_tool(library(list(parts.values()), 0), top_k=2)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(INSTRUCTION, [search_tool(["a document"])])


def test_a_seed_gives_the_same_world_on_every_machine(parts):
    # If you change the world, change the digest, and make a new policy if the words changed.
    task = atlas(seed=0)
    world = json.dumps([library(list(parts.values()), 0), task.train_dataset.to_list(), task.test_dataset.to_list()])
    assert hashlib.sha256(world.encode()).hexdigest()[:16] == "ed3caf0755ad381f"
    assert atlas(seed=1, test_questions=3).test_dataset.to_list() != task.test_dataset.to_list()[:3]


def test_names_of_parts_are_disjoint_and_sufficient():
    for kind, needed in ENTITIES.items():
        drawn = {part: set(names(kind, part)) for part in PARTS}
        assert all(len(of_part) >= needed for of_part in drawn.values())
        assert sum(map(len, drawn.values())) == len(set().union(*drawn.values()))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_facts_of_a_part_refer_only_to_its_entities(seed):
    train, test = make_part("train", seed), make_part("test", seed)
    assert not train.entities.keys() & test.entities.keys()
    for part in (train, test):
        assert all(fact.object in part.entities for facts in part.facts.values() for fact in facts)


def test_questions_have_the_promised_hops_and_do_not_name_their_answers():
    task = atlas()
    assert sorted(set(task.train_dataset["hops"])) == [1, 2, 3, 4]
    assert [task.test_dataset["hops"].count(hops) for hops in (2, 3, 4)] == [100, 100, 100]
    part = make_part("test", 0)
    for i in range(50):
        question = part.question(4, Rng(i))
        assert not any(fact.object in question.text for fact in question.chain)


def test_a_question_reads_its_chain_from_the_end(parts):
    question = parts["test"].question(2, Rng("reading"))
    first, second = question.chain
    assert question.text.endswith(f"is the {second.relation} of the {first.relation} of {first.subject}?")
    assert first.object == second.subject and question.answer == second.object


def test_relation_and_name_find_the_fact_but_a_bare_name_does_not(parts, search):
    facts = [fact for part in parts.values() for of_name in part.facts.values() for fact in of_name]
    found = [fact.document in search(f"{fact.relation} of {fact.subject}").split("\n") for fact in facts]
    assert sum(found) / len(found) > 0.97
    bare = [fact.document in search(fact.subject).split("\n") for fact in facts]
    assert sum(bare) / len(bare) < 0.02
    relation_only = [fact.document in search(fact.relation).split("\n") for fact in facts]
    assert sum(relation_only) / len(relation_only) < 0.02


def test_near_duplicate_names_come_up_for_half_a_name(parts, search):
    fact = parts["test"].facts[next(iter(parts["test"].entities))][0]
    half = fact.subject.split()[0]
    others = [
        text for text in search(f"{fact.relation} of {half}").split("\n") if half in text and fact.subject not in text
    ]
    assert others


def test_a_search_without_a_known_word_finds_nothing(search):
    assert search("zzz") == NOTHING_FOUND
    assert search("") == NOTHING_FOUND


def test_ranking_is_bm25_and_equal_scores_keep_the_order_of_the_documents():
    # "b" is in all documents and says nothing about rank here; "a" occurs twice in the third and once in the second.
    index = BM25Index(["b c", "a b", "a a b", "c b"])
    assert index.search("a", top_k=3) == ["a a b", "a b"]
    assert index.search("c", top_k=1) == ["b c"]


def test_an_index_without_documents_and_a_search_for_no_result_are_errors():
    with pytest.raises(ValueError, match="at least one document"):
        search_tool([])
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        search_tool(["a"], top_k=0)


def test_the_tokenizer_gives_back_any_text(tokenizer):
    for text in (
        "Who is the mother of the mayor of Tufa Penix?",
        '<tool_call>\n{"name": "search", "arguments": {"query": "mayor of Tufa Penix"}}\n</tool_call><|im_end|>',
        "<answer>Tufa Penix</answer>",
        "Wörter, 日本語 and 3.14: unknown ones too.",
        "two\n\nlines",
    ):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_word_is_one_token_wherever_it_stands(tokenizer, parts):
    name = next(iter(parts["test"].entities))
    alone, in_answer = (tokenizer(text)["input_ids"] for text in (name, f"<answer>{name}</answer>"))
    assert len(alone) == 2 and in_answer[1:3] == alone


def test_prompt_has_fewer_than_32_tokens(tokenizer, search):
    prompt = atlas().test_dataset[0]["prompt"]
    ids = tokenizer.apply_chat_template(
        prompt, tools=[search], add_generation_prompt=True, enable_thinking=False, return_dict=False
    )
    assert len(ids) < 32


def test_shipped_policy_is_small_and_its_tokenizer_matches_the_source(tokenizer):
    from transformers import AutoTokenizer

    assert sum(file.stat().st_size for file in POLICY.iterdir()) < 10_000_000
    shipped = AutoTokenizer.from_pretrained(POLICY)
    assert shipped.get_vocab() == tokenizer.get_vocab()
    assert shipped.chat_template == tokenizer.chat_template


def test_the_shipped_policy_cannot_guess_the_answers():
    # Closed book: it answers immediately, with the most likely words, and must fail on at least 95 of 100.
    task = atlas()
    written = answers_at_once(POLICY, task.test_dataset["prompt"], task.tools, 4)
    right = exact_match(written, task.test_dataset["answer"])
    assert all("</answer>" in text for text in written)
    assert sum(right) / len(right) <= 0.05
