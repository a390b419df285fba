"""The recipe of TextWorld's houses and the policy that it trains."""

import json

import pytest
from closed_book import answers_at_once
from houses import CALLS, MOST_MOVES
from houses_tokenizer import make_tokenizer
from places import ROOT

from a2tgpo_trl.recipe.recipe import read_recipe
from a2tgpo_trl.rewards import exact_match
from a2tgpo_trl.study.mechanism import mechanism
from a2tgpo_trl.tasks.atlas.useful import useful_search
from a2tgpo_trl.tasks.textworld import POLICY


pytestmark = pytest.mark.textworld
RECIPE = ROOT / "recipes" / "textworld.yaml"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    given = {**read_recipe(["--config", str(RECIPE)]).run.task_kwargs, "train_questions": 8, "test_questions": 24}
    words = [
        "--config",
        str(RECIPE),
        "--output_dir",
        str(tmp_path_factory.mktemp("textworld")),
        "--eval_gains",
        "true",
    ]
    return read_recipe([*words, "--task_kwargs", json.dumps(given)])


@pytest.fixture(scope="module")
def records(recipe):
    recipe.args.turn_rewards = {"a2tgpo_trl.tasks.atlas.useful:useful_search": 0.0}
    return recipe.build_trainer().roll_out(list(recipe.test_dataset))


def test_the_policy_begins_above_chance_and_below_what_it_can_learn(records):
    right = sum(record["rewards"]["exact_match"] for record in records) / len(records)
    assert 0.08 < right < 0.6  # 0.3 over many questions, give or take 0.1 over these 24


def test_useful_commands_are_recorded_and_read_by_the_study(records):
    for record in records:
        (told,) = record["turn_rewards"].values()
        assert told == useful_search(record) and len(told) == len(record["turns"])
    uses = [use for record in records for use in useful_search(record) if use is not None]
    assert 0.2 < sum(uses) / len(uses) < 0.8
    found = dict(mechanism(records))
    assert 0 < found["useful/share_turn_1"] < 1 and 0 <= found["useful/auc/gains"] <= 1


def test_right_answers_mostly_follow_seeing_the_object(records):
    # Naming the place by chance is rare.
    right = [record for record in records if record["rewards"]["exact_match"] == 1.0]
    seen = []
    for record in right:
        thing = record["prompt"][1]["content"].split("?")[0].removeprefix("Where is the ")
        told = [call["result"] for turn in record["turns"] for call in turn["calls"] or ()]
        seen.append(any(f"The {thing} is " in reply for reply in told))
    assert sum(seen) / len(seen) > 0.5


def test_recipe_stays_within_the_calls_and_moves_the_policy_learnt(recipe):
    assert recipe.args.max_tool_calling_iterations == CALLS
    assert set(recipe.test_dataset["hops"]) == {2, 3, MOST_MOVES}


def test_shipped_policy_is_small_and_its_tokenizer_matches_the_source():
    from transformers import AutoTokenizer

    assert sum(file.stat().st_size for file in POLICY.iterdir()) < 600_000
    shipped, made = AutoTokenizer.from_pretrained(POLICY), make_tokenizer()
    assert shipped.get_vocab() == made.get_vocab()
    assert shipped.chat_template == made.chat_template
    for text in (
        "You are in the dish-pit.\nThe Quote of the Day Calendar is on the shelf.\nYou can go north, west.",
        '<tool_call>\n{"name": "act", "arguments": {"command": "open gateway"}}\n</tool_call><|im_end|>',
    ):
        assert made.decode(made(text)["input_ids"]) == text


def test_the_shipped_policy_cannot_guess_the_answers(recipe):
    # Closed book: it answers immediately, with the most likely words, and must fail on at least 9 of 10.
    tools = [recipe.task.environment_factory().act]
    written = answers_at_once(POLICY, recipe.test_dataset["prompt"], tools, 6)
    right = exact_match(written, recipe.test_dataset["answer"])
    assert sum(right) / len(right) <= 0.1
