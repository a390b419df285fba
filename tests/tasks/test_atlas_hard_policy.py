"""The recipe of the harder world and the policy that it trains."""

import json

import pytest
from atlas_hard import ALIKE, DISTRACTORS, MAX_HOPS, TOP_K, tokenizer_of_task
from closed_book import answers_at_once
from places import ROOT

from a2tgpo_trl.recipe.recipe import read_recipe
from a2tgpo_trl.rewards import exact_match
from a2tgpo_trl.tasks.atlas import EAGER_POLICY, HARD_POLICY
from a2tgpo_trl.tasks.atlas.task import atlas
from a2tgpo_trl.tasks.atlas.useful import useful_search


RECIPE = ROOT / "recipes" / "atlas_hard.yaml"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hard")
    more = '{"train_questions": 8, "test_questions": 6}'
    given = json.dumps({**read_recipe(["--config", str(RECIPE)]).run.task_kwargs, **json.loads(more)})
    return read_recipe(["--config", str(RECIPE), "--output_dir", str(folder), "--task_kwargs", given])


def test_useful_searches_are_recorded_and_usable_as_a_turn_reward(recipe):
    recipe.args.turn_rewards = {"a2tgpo_trl.tasks.atlas.useful:useful_search": 0.0}
    (made,) = recipe.build_trainer().roll_out(list(recipe.test_dataset.select([0])))
    (told,) = made["turn_rewards"].values()
    assert told == useful_search(made) and len(told) == len(made["turns"])


def test_recipe_and_policy_use_the_same_world_settings(recipe):
    given = recipe.run.task_kwargs
    assert (given["alike"], given["distractors"], given["top_k"]) == (ALIKE, DISTRACTORS, TOP_K)
    assert max(*given["train_hops"], *given["test_hops"]) <= MAX_HOPS


@pytest.mark.parametrize("policy", [HARD_POLICY, EAGER_POLICY], ids=lambda folder: folder.name)
def test_shipped_policies_are_small_and_their_tokenizer_matches_the_source(policy):
    from transformers import AutoTokenizer

    assert sum(file.stat().st_size for file in policy.iterdir()) < 3_000_000
    shipped, made = AutoTokenizer.from_pretrained(policy), tokenizer_of_task()
    assert shipped.get_vocab() == made.get_vocab()
    assert shipped.chat_template == made.chat_template
    for text in (
        "mayor: mayor of Tufa Penix? Ask Velo Kanar.",
        '<tool_call>\n{"name": "index", "arguments": {"name": "Tufa Penix"}}\n</tool_call><|im_end|>',
    ):
        assert made.decode(made(text)["input_ids"]) == text


@pytest.mark.parametrize("policy", [HARD_POLICY, EAGER_POLICY], ids=lambda folder: folder.name)
def test_the_shipped_policies_cannot_guess_the_answers(policy):
    # Closed book: it answers immediately, with the most likely words, and must fail on at least 95 of 100.
    written, answers = closed_book(policy, test_hops=[4, 5, 6])
    right = exact_match(written, answers)
    assert sum(right) / len(right) <= 0.05


def closed_book(policy, **settings):
    task = atlas(train_questions=1, alike=1, distractors=1, top_k=3, name_index=True, **settings)
    return answers_at_once(policy, task.test_dataset["prompt"], task.tools, 4), task.test_dataset["answer"]


def test_eager_policy_answers_guessable_questions_and_some_without_searching(recipe):
    guessable = {"train_hops": [2, 3], "test_hops": [2, 3], "guessable": 1.0, "test_questions": 60}
    right = exact_match(*closed_book(EAGER_POLICY, **guessable))
    assert sum(right) / len(right) >= 0.9
    # If it may search as well, it answers some of its questions immediately: groups have both.
    numbers = {"train_questions": 8, "test_questions": 64}
    short = {"hidden_answers": False, "train_hops": [2, 3], "test_hops": [2, 3], **numbers}
    given = json.dumps({**recipe.run.task_kwargs, **short})
    words = ["--config", str(RECIPE), "--output_dir", recipe.args.output_dir, "--task_kwargs", given]
    asked = read_recipe([*words, "--model_name_or_path", "atlas-eager-tiny"])
    records = asked.build_trainer().roll_out(list(asked.test_dataset))
    at_once = sum(len(record["turns"]) == 1 for record in records) / len(records)
    assert 0.2 < at_once < 0.7
