"""The recipe of the harder world, and the policy that it trains."""

import json

import pytest
from atlas_hard import ALIKE, DISTRACTORS, MAX_HOPS, TOP_K, tokenizer_of_task
from closed_book import answers_at_once
from places import ROOT

from a2tgpo_trl.recipe.recipe import read_recipe
from a2tgpo_trl.rewards import exact_match
from a2tgpo_trl.tasks.atlas import HARD_POLICY
from a2tgpo_trl.tasks.atlas.task import atlas
from a2tgpo_trl.tasks.atlas.useful import useful_search


RECIPE = ROOT / "recipes" / "atlas_hard.yaml"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hard")
    more = '{"train_questions": 8, "test_questions": 6}'
    given = json.dumps({**read_recipe(["--config", str(RECIPE)]).run.task_kwargs, **json.loads(more)})
    return read_recipe(["--config", str(RECIPE), "--output_dir", str(folder), "--task_kwargs", given])


def test_the_records_of_the_recipe_tell_which_turns_were_of_use_and_as_a_turn_reward_it_stands_in_them(recipe):
    recipe.args.turn_rewards = {"a2tgpo_trl.tasks.atlas.useful:useful_search": 0.0}
    (made,) = recipe.build_trainer().roll_out(list(recipe.test_dataset.select([0])))
    (told,) = made["turn_rewards"].values()
    assert told == useful_search(made) and len(told) == len(made["turns"])


def test_the_recipe_and_the_policy_are_of_the_same_world(recipe):
    given = recipe.run.task_kwargs
    assert (given["alike"], given["distractors"], given["top_k"]) == (ALIKE, DISTRACTORS, TOP_K)
    assert max(*given["train_hops"], *given["test_hops"]) <= MAX_HOPS


def test_the_shipped_policy_fits_its_limit_and_its_tokenizer_is_the_one_of_the_source():
    from transformers import AutoTokenizer

    assert sum(file.stat().st_size for file in HARD_POLICY.iterdir()) < 3_000_000
    shipped, made = AutoTokenizer.from_pretrained(HARD_POLICY), tokenizer_of_task()
    assert shipped.get_vocab() == made.get_vocab()
    assert shipped.chat_template == made.chat_template
    for text in (
        "mayor: mayor of Tufa Penix? Ask Velo Kanar.",
        '<tool_call>\n{"name": "index", "arguments": {"name": "Tufa Penix"}}\n</tool_call><|im_end|>',
    ):
        assert made.decode(made(text)["input_ids"]) == text


def test_the_shipped_policy_cannot_guess_the_answers():
    # Closed book: it answers at once, with the most likely words, and must fail on at least 95 of 100.
    task = atlas(test_hops=[4, 5, 6], train_questions=1, alike=1, distractors=1, top_k=3, name_index=True)
    written = answers_at_once(HARD_POLICY, task.test_dataset["prompt"], task.tools, 4)
    right = exact_match(written, task.test_dataset["answer"])
    assert sum(right) / len(right) <= 0.05
