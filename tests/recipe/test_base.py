"""Recipes built on others: a recipe's keys override its bases' keys; mistakes are named with file and line."""

import json
from pathlib import Path

import pytest
import yaml
from recipe_files import write

from a2tgpo_trl.cli import main as cli
from a2tgpo_trl.recipe.recipe import read_recipe, whole_recipe
from a2tgpo_trl.recipe.recipe_file import merge, read_layers


def built(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.fixture
def root(tmp_path):
    """A recipe without a base, and three that are built on it."""
    write(tmp_path, "learning_rate: 1.0e-4\ntask_kwargs: {seed: 3, train_questions: 20}\neval_rows: 9")
    built(tmp_path, "large.yaml", "base: recipe.yaml\nlearning_rate: 2.0e-4\neval_rows: 8\n")
    built(tmp_path, "short.yaml", "base: recipe.yaml\ntask_kwargs: {test_questions: 7}\n")
    built(tmp_path, "grpo.yaml", "base: recipe.yaml\ncredit: grpo\neval_rows: 5\n")
    return tmp_path


def read(*words: object):
    return read_recipe(["--config", *map(str, words)])


def names(*given) -> list[str]:
    return [layer.path.name for layer in read_layers(*given)]


def test_recipe_overrides_its_base_and_the_command_line_overrides_both(root):
    recipe = read(root / "grpo.yaml", "--seed", "4")
    assert (recipe.args.credit, recipe.args.learning_rate, recipe.args.seed) == ("grpo", 1e-4, 4)
    assert recipe.run.eval_rows == 5


def test_mappings_are_merged_key_by_key_and_a_list_is_taken_whole(root):
    assert read(root / "short.yaml").run.task_kwargs == {"seed": 3, "train_questions": 20, "test_questions": 7}
    built(root, "low.yaml", "base: recipe.yaml\nreport_to: [wandb, tensorboard]\n")
    assert merge(read_layers(built(root, "top.yaml", "base: low.yaml\nreport_to: [none]\n")))["report_to"] == ["none"]


def test_shared_base_is_applied_once_below_all(root):
    # Applied again below short.yaml, recipe.yaml would undo the learning rate of large.yaml.
    built(root, "both.yaml", "base: [large.yaml, short.yaml]\n")
    assert names(root / "both.yaml") == ["recipe.yaml", "large.yaml", "short.yaml", "both.yaml"]
    recipe = read(root / "both.yaml")
    assert (recipe.args.learning_rate, recipe.run.eval_rows) == (2e-4, 8)
    assert recipe.run.task_kwargs == {"seed": 3, "train_questions": 20, "test_questions": 7}


def test_base_option_inserts_bases_below_the_recipe(root):
    bases = [str(root / "large.yaml"), str(root / "short.yaml")]
    assert names(root / "grpo.yaml", bases) == ["recipe.yaml", "large.yaml", "short.yaml", "grpo.yaml"]
    recipe = read(root / "grpo.yaml", "--base", *bases, "--seed", "4")
    assert (recipe.args.credit, recipe.args.learning_rate, recipe.run.eval_rows) == ("grpo", 2e-4, 5)
    assert recipe.args.seed == 4 and recipe.run.task_kwargs["test_questions"] == 7


def test_user_recipe_can_build_on_a_shipped_one(tmp_path):
    recipe = read(built(tmp_path, "mine.yaml", f"base: quickstart\nmax_steps: 3\noutput_dir: {tmp_path}\n"))
    assert (recipe.args.max_steps, recipe.args.num_generations, recipe.run.task) == (3, 8, "atlas")


def test_default_output_dir_is_named_after_recipe_and_base_option(tmp_path):
    mine = built(tmp_path, "mine.yaml", "model_name_or_path: atlas-tiny\ntask: atlas\nbf16: false\n")
    other = built(tmp_path, "other.yaml", "base: mine.yaml\ncredit: grpo\n")
    assert read(mine).args.output_dir == "outputs/mine"
    assert read(other).args.output_dir == "outputs/other"
    assert read(other, "--base", mine).args.output_dir == "outputs/mine-other"
    assert read(other, "--output_dir", tmp_path).args.output_dir == str(tmp_path)


def test_files_are_looked_for_beside_the_recipe_and_then_beside_its_base(root):
    below = root / "below"
    below.mkdir()
    rewards = "def good(completions, **kwargs):\n    return [{}] * len(completions)\n"
    for folder, value in ((root, 1.0), (below, 2.0)):
        built(folder, "value.py", rewards.format(value))
    credit = "from a2tgpo_trl.credit import method\n\n@method()\ndef mine(evidence, switches):\n    return 0\n"
    built(below, "credit.py", credit)
    write(below, "credit: credit.py:mine\nreward_funcs: [value.py:good]")
    recipe = read(built(root, "top.yaml", "base: below/recipe.yaml\n"))
    assert recipe.task.reward_funcs[0]([0]) == [1.0] and recipe.args.credit == f"{below / 'credit.py'}:mine"


def test_a_recipe_may_say_where_its_files_are_looked_for(root):
    rewards = "def good(completions, **kwargs):\n    return [{}] * len(completions)\n"
    for folder, value in ((root / "beside", 1.0), (root / "below", 2.0)):
        folder.mkdir()
        built(folder, "value.py", rewards.format(value))
    write(root / "below", "reward_funcs: [value.py:good]")
    text = "base: below/recipe.yaml\nfiles_in: {}\n"
    recipe = read(built(root, "top.yaml", text.format("beside")))
    assert recipe.task.reward_funcs[0]([0]) == [1.0] and "files_in" not in whole_recipe(recipe.words)
    with pytest.raises(ValueError, match="top.yaml: files_in must be a folder, where files are looked up; got 7"):
        read(built(root, "top.yaml", text.format(7)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "seed: 1\nbase: recip.yaml",
            "top.yaml, line 2: base: there is no file recip.yaml in {}, and no recipe of this",
        ),
        ("base: recip.yaml", "Did you mean 'recipe.yaml'?"),
        ("base: quickstrat", "Did you mean 'quickstart'?"),
        ("base: 5", "top.yaml, line 1: base must be a recipe or a list of them; got 5."),
        ("base: [recipe.yaml, {a: 1}]", "got ['recipe.yaml', {'a': 1}]."),
        ("base: top.yaml", "line 1: base: a recipe cannot be built on itself (top.yaml -> top.yaml)"),
        ("\nbase: around.yaml", "around.yaml, line 1: base: a recipe cannot be built on itself (top.yaml -> around"),
        ("base: wrong.yaml", "wrong.yaml: there is no key 'sed'. Did you mean 'seed'?"),
        ("base: recipe.yaml\nepsilon: 3", "top.yaml on {}/recipe.yaml: epsilon must be in (0.0, 1.0); got 3"),
        ("base: recipe.yaml\nenv: 3", "top.yaml: env must be a mapping of variables to their values; got 3."),
    ],
)
def test_a_mistake_is_named_with_the_file_that_it_stands_in(text, said, root):
    built(root, "around.yaml", "base: [top.yaml]\n")
    built(root, "wrong.yaml", "base: recipe.yaml\nsed: 1\n")
    with pytest.raises(ValueError) as error:
        read(built(root, "top.yaml", text + "\n"))
    assert said.replace("{}", str(root)) in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--base"], "--base: expected at least one argument"),
        (["--base", "quickstat"], "no recipe 'quickstat'. Did you mean 'quickstart'"),
        (["--base", "{}/grpo.yaml"], "--base: a recipe cannot be built on itself (grpo.yaml -> grpo.yaml)"),
    ],
)
def test_mistakes_in_the_base_option_are_reported(words, said, root):
    with pytest.raises(ValueError) as error:
        read(root / "grpo.yaml", *(word.format(root) for word in words))
    assert said in str(error.value)


def test_a_base_without_a_recipe_on_it_is_refused():
    with pytest.raises(ValueError, match="--base would have no effect without a recipe"):
        read_recipe(["--base", "quickstart", "--seed", "1"])


def test_recipe_command_prints_an_equivalent_single_recipe(root, capsys):
    words = ["--base", str(root / "large.yaml"), "--task_kwargs", '{"seed": 1}', "--report_to", "none", "--bf16", "0"]
    assert cli(["recipe", str(root / "grpo.yaml"), *words]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"# {root / 'recipe.yaml'}\n# {root / 'large.yaml'}\n# {root / 'grpo.yaml'}\n")
    keys = yaml.safe_load(shown)
    assert (keys["credit"], keys["learning_rate"], keys["report_to"], keys["bf16"]) == ("grpo", 2e-4, "none", False)
    mine = built(root, "mine.yaml", shown)
    alone, together = read(mine), read(root / "grpo.yaml", *words)
    assert alone.run == together.run and alone.model == together.model
    assert json.dumps(alone.args.to_dict()) == json.dumps(together.args.to_dict())


def test_recipe_command_rejects_unknown_options(root, capsys):
    assert cli(["recipe", str(root / "grpo.yaml"), "--sed", "1"]) == 2
    assert "there is no option '--sed'. Did you mean 'seed'?" in capsys.readouterr().err


def test_other_commands_accept_the_base_option(root, capsys):
    words = ["--base", str(root / "large.yaml"), "--prompt_tokens", "40", "--json"]
    assert cli(["plan", str(root / "grpo.yaml"), *words]) == 0
    assert cli(["plan", str(root / "grpo.yaml"), "--base", "nothing", "--json"]) == 2
    assert "There is no recipe 'nothing'" in capsys.readouterr().err
