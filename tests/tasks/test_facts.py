"""Facts about countries: only undoubted ones, questions that a search can answer, held-out countries."""

import hashlib
import json
import re
import subprocess
import sys

import pytest

from a2tgpo_trl.rewards import exact_match
from a2tgpo_trl.tasks.facts.countries import RELATIONS, countries
from a2tgpo_trl.tasks.facts.questions import Telling, passages, questions
from a2tgpo_trl.tasks.facts.task import EXAMPLES, HELD_OUT, facts


READ = {relation.name: relation.read for relation in RELATIONS}


@pytest.fixture(scope="module")
def task():
    return facts()


@pytest.mark.parametrize(
    ("relation", "text", "answers"),
    [
        ("capital", "Vienna", ["Vienna"]),
        ("capital", "Suva (on Viti Levu)", ["Suva"]),
        ("capital", "Mbabane (administrative capital); Lobamba (royal and legislative capital)", []),
        ("highest point", "Grossglockner 3,798 m", ["Grossglockner"]),
        ("highest point", "Konigstein on Brandberg 2,573 m", []),
        ("highest point", "unnamed elevation 805 m", []),
        ("currency", "euros (EUR) per US dollar -", ["euros", "euro", "EUR"]),
        ("currency", "emalangeni per US dollar -", []),
        ("internet code", ".at", [".at"]),
        ("aircraft code", "OE", ["OE"]),
        ("aircraft code", "CR, CS", []),
    ],
)
def test_a_field_gives_one_value_or_none(relation, text, answers):
    assert READ[relation](text) == answers


def test_a_country_on_whose_capital_the_sources_differ_is_left_out():
    by_name = {country.name: country for country in countries()}
    assert by_name["Austria"].facts["capital"] == ("Vienna",) and len(by_name) == 201
    # The Factbook has Porto-Novo and Cotonou; countryinfo has only Porto-Novo.
    assert "Benin" not in by_name


def test_clues_of_a_country_are_facts_of_no_other():
    austria = next(country for country in countries() if country.name == "Austria")
    clues = [clue.name for clue in Telling(countries()).clues(austria)]
    assert clues == ["capital", "highest point", "internet code", "aircraft code"]  # other countries have the euro too


def test_each_question_has_one_answer_and_the_facts_that_lead_to_it_are_passages():
    everything, texts = countries(), set(passages(countries()))
    asked = [question for hops in (1, 2) for question in questions(everything, hops, Telling(everything))]
    assert len(asked) == 931 + 3284 and len({question.text for question in asked}) == len(asked)
    for question in asked:
        assert question.needed and texts.issuperset(question.needed)
        assert question.answers[0] in question.needed[-1]
        assert question.answers[0] not in re.findall(r"[\w.'-]+", question.text)


def test_the_search_finds_what_the_examples_ask_for(task):
    prompt = task.train_dataset[0]["prompt"]
    assert [message["role"] for message in prompt].count("user") == len(EXAMPLES) + 1
    found = [message["content"] for message in prompt if message["role"] == "tool"]
    answers = [message["content"] for message in prompt if str(message["content"]).startswith("<answer>")]
    assert (
        "The currency of Kenya is Kenyan shillings." in found[0] and answers[0] == "<answer>Kenyan shillings</answer>"
    )
    assert "The capital of Austria is Vienna." in found[1] and "The internet code of Austria is .at." in found[2]
    assert answers[1:] == ["<answer>.at</answer>", "<answer>Lima</answer>", "<answer>yen</answer>"]
    assert "The capital of Peru is Lima." in found[3] and "The currency of Japan is yen." in found[5]


def test_held_out_countries_are_not_in_training_or_examples(task):
    def about(rows) -> set[str]:
        facts_of = {fact: country.name for country in countries() for fact in passages([country])}
        return {facts_of[fact] for needed in rows["needed"] for fact in needed}

    train, test = about(task.train_dataset), about(task.test_dataset)
    assert not train & test and not {name for name, _, _ in EXAMPLES} & (train | test)
    assert len(test) <= HELD_OUT and task.test_dataset["hops"][:4] == [1, 2, 1, 2]


def test_a_seed_gives_the_same_questions_on_every_machine(task):
    rows = json.dumps([task.train_dataset.to_list(), task.test_dataset.to_list()])
    assert hashlib.sha256(rows.encode()).hexdigest()[:16] == "f4055a35cec07af9"
    assert facts(seed=1).test_dataset.to_list() != task.test_dataset.to_list()


def test_looking_up_the_needed_facts_gives_the_answer(task):
    (search,) = task.tools
    for row in task.test_dataset:
        *_, last = row["needed"]
        country = last.split(" of ", 1)[1].split(" is ")[0]
        result = search(f"{row['relation']} {country}")
        assert last in result
        value = last.rpartition(" is ")[2].removesuffix(".")
        completion = [{"role": "assistant", "content": f"<answer>{value}</answer>"}]
        assert exact_match(completions=[completion], answer=[row["answer"]]) == [1.0]


def test_training_on_one_hop_keeps_the_test_questions(task):
    short = facts(train_hops=[1])
    assert set(short.train_dataset["hops"]) == {1} and len(short.train_dataset) > 500
    assert short.test_dataset.to_list() == task.test_dataset.to_list()


@pytest.mark.parametrize("hops", [[], [0], [1, 3], [1, 1], 1])
def test_invalid_train_hops_are_an_error(hops):
    with pytest.raises(ValueError, match="train_hops"):
        facts(train_hops=hops)


@pytest.mark.parametrize("examples", [-1, 5])
def test_invalid_number_of_examples_is_an_error(examples):
    with pytest.raises(ValueError, match="examples must be a whole number from 0 to 4"):
        facts(examples=examples)


def test_without_its_packages_the_task_names_the_command_that_installs_them():
    code = "import sys; sys.modules['countryinfo'] = None; from a2tgpo_trl.tasks.facts.task import facts; facts()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ValueError" in run.stderr and "pip install 'a2tgpo_trl[smol]'" in run.stderr
