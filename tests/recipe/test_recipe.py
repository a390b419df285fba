"""Recipes: each shipped recipe parses; a mistake is named with its file, its key and the nearest valid name."""

import json
from pathlib import Path

import pytest
import yaml
from places import ROOT
from qa_files import write_sets
from recipe_files import SHIPPED, marks, write

from a2tgpo_trl.config import A2TGPOConfig
from a2tgpo_trl.errors import RecipeError
from a2tgpo_trl.recipe.recipe import RecipeParser, read_recipe, whole_recipe
from a2tgpo_trl.recipe.recipe_file import check_keys, find_recipe, recipe_folder, shipped_recipes
from a2tgpo_trl.rewards import exact_match


# A row of the data that a recipe takes from the hub.
DATA = {"gtpo_math.yaml": {"question": "What is 3 times 24?", "answer": "3 * 24 = 72\n#### 72"}}


def test_shipped_recipes_are_found_by_the_package():
    assert len(SHIPPED) >= 2
    assert {file.name for file in recipe_folder().glob("*.yaml")} == {file.name for file in SHIPPED}
    assert shipped_recipes()["qa/dapo"] == recipe_folder() / "qa" / "dapo.yaml"


@pytest.mark.parametrize(
    "file", [pytest.param(file, id=str(file.relative_to(ROOT)), marks=marks(file.stem)) for file in SHIPPED]
)
def test_shipped_recipe_parses_and_its_header_has_needs_run_and_override(file, tmp_path):
    # A recipe for GPUs asks for bfloat16, which this machine's settings object refuses.
    words = ["--config", str(file), "--bf16", "false", "--output_dir", str(tmp_path)]
    if file.name in DATA:
        for split in ("train", "test"):
            (tmp_path / f"{split}.jsonl").write_text(json.dumps(DATA[file.name]))
        words += ["--task_kwargs", json.dumps({"path": str(tmp_path)})]
    given = yaml.safe_load(file.read_text())
    if given.get("task") == "qa":  # its questions are on the hub
        words += ["--task_kwargs", json.dumps({**given["task_kwargs"], "folder": str(write_sets(tmp_path))})]
    recipe = read_recipe(words)
    # A recipe for evaluations has nothing to train on.
    assert recipe.task.train_dataset.num_rows > 0 or recipe.test_dataset.num_rows > 0
    header = file.read_text()
    for word in ("# Needs", "# Run", "# Override"):
        assert word in header.split("\nmodel_name_or_path")[0]


def shipped(name: str, folder: Path) -> A2TGPOConfig:
    return read_recipe(["--config", name, "--bf16", "false", "--output_dir", str(folder)]).args


@pytest.mark.parametrize(
    "name", ["colocate_80gb", "lora_24gb", "multi_node", "paper_8gpu_colocate", "paper_8gpu_server"]
)
def test_long_rollout_recipes_correct_vllm_per_token(name, tmp_path):
    # Tokens off by a log-probability of 0.001 each, all in one direction: 1.001 per token, exp(6.192) = 489 per
    # rollout, which is left out of the loss above 3.
    args = shipped(name, tmp_path)
    assert args.vllm_importance_sampling_correction and args.vllm_importance_sampling_mode == "token_truncate"


def test_the_quickstart_ends_a_rollout_whose_call_cannot_be_read(tmp_path):
    # Its policy has never read an error, and one rollout that babbles to its limit delays the other 63.
    assert shipped("quickstart", tmp_path).failure_policies["unparsed_call"] == "end"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1.0e-4", "there is no key 'learning_rat'. Did you mean 'learning_rate'?"),
        ("learning_rate: fast", "learning_rate cannot be 'fast'"),
        ("learning_rate: [1.0]", "learning_rate must be a single value; got the list [1.0]"),
        ("learning_rate: {a: 1}", "learning_rate must be a single value; got the mapping {'a': 1}"),
        ("learning_rate: true", "learning_rate must not be true or false"),
        ("max_steps: 3.5", "max_steps cannot be 3.5"),
        ("max_steps:", "max_steps must not be empty"),
        ("bf16: 7", "bf16 cannot be 7"),
        ("run_name: 5", "run_name must be text; got 5"),
        ("credit: grop", "got 'grop'. Did you mean 'grpo'?"),
        (
            "loss_type: dapoo",
            "Did you mean 'dapo'? It must be one of dapo, grpo, bnpo, dr_grpo, luspo, cispo, sapo, vespo.",
        ),
        ("lr_scheduler_type: cosin", "lr_scheduler_type cannot be 'cosin'. Did you mean 'cosine'?"),
        ("dtype: float23", "dtype cannot be 'float23'. Did you mean 'float32'?"),
        ("epsilon: 3", "epsilon must be in (0.0, 1.0); got 3"),
        ("use_peft: true\nlora_r: many", "lora_r cannot be 'many'"),
        ("reward_funcs: exact_match", "reward_funcs must be a list; got 'exact_match'. Write [exact_match]"),
        ("reward_funcs: [exact_mach]", "There is no reward 'exact_mach'. Did you mean 'exact_match'?"),
        ("task: atals", "There is no task 'atals'. Did you mean 'atlas'?"),
        ("lora_r: 8", "lora_r would have no effect without use_peft"),
        ("dataset_test_split: test", "dataset_test_split would have no effect without dataset_name"),
        ("eval_rows: -1", "eval_rows must be at least 0"),
        ("group_by: hop", "the test set has no column 'hop'. Did you mean 'hops'?"),
        ("group_by: prompt", "group_by: row 0 of the test set holds [{"),
        (
            "task_kwargs: {sed: 1}",
            "an unexpected keyword argument 'sed'. Did you mean 'seed'?",
        ),
        ("tools: [nowhere.py:search]", "There is no file 'nowhere.py'"),
        ("tools: [no_such_module_here:search]", "No module named 'no_such_module_here'"),
        ("tools: [json:dump5]", "json has no 'dump5'. Did you mean 'dump'?"),
        ("task: json:dumps\ntask_kwargs: {obj: 1}", "must return an a2tgpo_trl.tasks.Task; got str"),
        ("dataset_name: rows.jsonl", "name either a task or a dataset_name"),
        ("task:\ndataset_name: own_tol.jsonl", "There is no file 'own_tol.jsonl' in"),
        ("model_name_or_path: tests/nope", "there is no folder tests/nope"),
        ("model_name_or_path: tests", "there is no model in tests"),
        ("task:", "name either a task or a dataset_name"),
        ("model_name_or_path:", "model_name_or_path is missing"),
        ("max_steps: 1\nmax_steps: 2", "the key 'max_steps' is given 2 times"),
        ("task: [", "is not valid YAML"),
    ],
    ids=lambda text: text.splitlines()[0][:30] if ":" in text else "",
)
def test_a_mistake_is_named_with_its_file_and_what_to_do(text, message, tmp_path):
    if "[" == text[-1]:
        file = tmp_path / "recipe.yaml"
        file.write_text(text)
    elif text.count("max_steps") == 2:
        file = write(tmp_path, "max_steps: 1")
        file.write_text(file.read_text() + "max_steps: 2\n")
    else:
        file = write(tmp_path, text)
    with pytest.raises(ValueError) as error:
        read_recipe(["--config", str(file)])
    assert str(file) in str(error.value)
    assert message in str(error.value)


def test_a_file_that_is_no_mapping_is_an_error(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("- learning_rate\n")
    with pytest.raises(ValueError, match="must hold keys with values"):
        read_recipe(["--config", str(file)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rat", "1"], "there is no option '--learning_rat'. Did you mean 'learning_rate'?"),
        (["--learning_rate", "x"], "invalid float value: 'x'"),
        (["--credit", "grop"], "got 'grop'. Did you mean 'grpo'?"),
        (["--task_kwargs", "{seed"], "task_kwargs must be a mapping written as JSON"),
    ],
)
def test_command_line_mistakes_give_short_messages(words, message, tmp_path):
    with pytest.raises(ValueError) as error:
        read_recipe(["--config", str(write(tmp_path, "")), *words])
    assert message in str(error.value) and len(str(error.value)) < 400


def test_an_unknown_recipe_gets_the_nearest_name():
    with pytest.raises(ValueError, match="no recipe 'quickstat'. Did you mean 'quickstart'"):
        find_recipe("quickstat")


def test_yaml_that_reads_as_text_is_converted_as_the_command_line_is(tmp_path):
    # YAML reads 2e-6, without a point, as text.
    recipe = read_recipe(["--config", str(write(tmp_path, "learning_rate: 2e-6\nreport_to: [none]"))])
    assert recipe.args.learning_rate == 2e-6


def test_recipe_sets_all_groups_of_fields_and_the_command_line_overrides_them(tmp_path):
    lora = "use_peft: true\nlora_r: 4\nlora_target_modules: [q_proj, v_proj]"
    text = f"gain_weight: 0.5\n{lora}\neval_rows: 7\ntask_kwargs: {{seed: 3}}"
    recipe = read_recipe(["--config", str(write(tmp_path, text)), "--lora_r", "8", "--task_kwargs", '{"seed": 4}'])
    assert (recipe.args.gain_weight, recipe.model.lora_r, recipe.model.lora_target_modules) == (
        0.5,
        8,
        ["q_proj", "v_proj"],
    )
    assert len(recipe.test_dataset) == 7 and recipe.run.task_kwargs == {"seed": 4}


def test_lora_of_a_recipe_is_switched_off_with_use_peft_but_not_what_the_command_line_says_itself(tmp_path):
    # As for an adapter that the recipe has trained, which is used with its own settings.
    recipe = write(tmp_path, "use_peft: true\nlora_r: 8\nlora_target_modules: [all-linear]\nuse_dora: true")
    words = ["--config", str(recipe), "--use_peft", "false"]
    found = read_recipe(words).model
    assert (found.lora_r, found.lora_target_modules, found.use_dora) == (16, None, False)
    with pytest.raises(RecipeError, match="lora_alpha would have no effect without use_peft"):
        read_recipe([*words, "--lora_alpha", "8"])
    (tmp_path / "whole.yaml").write_text(whole_recipe(words))
    assert read_recipe(["--config", str(tmp_path / "whole.yaml")]).model == found


def test_task_reward_weights_are_kept_unless_overridden(tmp_path):
    def weights(text):
        return read_recipe(["--config", str(write(tmp_path, text))]).args.reward_weights

    assert weights("") == [1.0, 0.1, 0.0]
    assert weights("reward_weights: [1.0, 1.0, 1.0]") == [1.0, 1.0, 1.0]
    assert weights("reward_funcs: [exact_match]") is None


def test_file_names_resolve_beside_the_recipe_and_share_one_module(tmp_path):
    (tmp_path / "mine.py").write_text(
        "CALLS = []\n"
        "def look(title: str) -> str:\n    '''Look.\n\n    Args:\n        title: What.\n    '''\n    return title\n"
        "def good(completions, **kwargs):\n    CALLS.append(1)\n    return [1.0] * len(completions)\n"
    )
    (tmp_path / "rows.jsonl").write_text('{"prompt": [{"role": "user", "content": "q"}], "answer": "a"}\n')
    text = "task:\ndataset_name: rows.jsonl\ntools: [mine.py:look]\nreward_funcs: [mine.py:good, exact_match]"
    task = read_recipe(["--config", str(write(tmp_path, text))]).task
    assert task.tools[0]("x") == "x" and task.reward_funcs[1] is exact_match
    assert task.reward_funcs[0].__globals__ is task.tools[0].__globals__
    assert task.train_dataset["answer"] == ["a"] and task.test_dataset is None


def test_missing_split_is_an_error_naming_the_existing_ones(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "q", "answer": "a"}\n')
    file = write(tmp_path, "task:\ndataset_name: rows.jsonl\ndataset_test_split: test")
    with pytest.raises(ValueError, match="has no split 'test'; it has train"):
        read_recipe(["--config", str(file)])


def test_task_averages_of_an_unknown_column_are_an_error(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from a2tgpo_trl.tasks.atlas.task import atlas\n"
        "def make():\n"
        "    task = atlas(train_questions=8, test_questions=12)\n"
        "    task.averages = {'hard': {'hop': [3, 4]}}\n"
        "    return task\n"
    )
    with pytest.raises(
        ValueError,
        match="'hard' selects rows by a column 'hop', which the test set does not have. Did you mean 'hops'",
    ):
        read_recipe(["--config", str(write(tmp_path, "task: mine.py:make"))])


def test_default_values_of_all_fields_pass_the_key_check():
    # The defaults of all fields are valid values of their keys, so nothing is refused that the parser would take.
    parser = RecipeParser()
    defaults = {action.dest: action.default for action in reversed(parser._actions) if action.dest != "help"}
    written = {key: value for key, value in defaults.items() if value is not None and not callable(value)}
    check_keys(Path("defaults.yaml"), yaml.safe_load(yaml.safe_dump(written)), parser)
    assert len(written) > 100


def test_second_config_is_an_error():
    with pytest.raises(RecipeError, match="--config names a second recipe"):
        read_recipe(["--config", "quickstart", "--config", "atlas_hard"])


@pytest.mark.parametrize(("text", "why"), [("", "it has no rows"), ('{"prompt": "a"}\n{"prompt"\n', "JSON")])
def test_unreadable_data_file_is_named(text, why, tmp_path):
    (tmp_path / "data.jsonl").write_text(text)
    recipe = write(tmp_path, "task: null\ndataset_name: data.jsonl")
    with pytest.raises(RecipeError, match=rf"(?s)data.jsonl could not be read: .*{why}"):
        read_recipe(["--config", str(recipe)])


@pytest.mark.parametrize(("kind", "spread"), [("NO", True), ("MULTI_GPU", False), ("DEEPSPEED", False)])
def test_base_of_an_adapter_is_not_spread_over_gpus_if_processes_share_them(kind, spread, tmp_path, monkeypatch):
    recipe = read_recipe(["--config", "quickstart", "--output_dir", str(tmp_path)])
    given = []
    monkeypatch.setattr("a2tgpo_trl.recipe.recipe.create_model_from_path", lambda _, **kwargs: given.append(kwargs))
    monkeypatch.setattr(recipe.args.distributed_state, "distributed_type", kind)
    recipe.load_base()
    assert ("device_map" not in given[0]) if spread else (given[0]["device_map"] is None)


def test_whole_recipe_leaves_out_what_trackers_would_mask(tmp_path):
    kwargs = "{url: 'http://me:SECRET@host/db', api: {auth: {user: SECRET}}, size: 3}"
    file = write(tmp_path, f"environment_factory: my.py:World\nenvironment_kwargs: {kwargs}")
    text = whole_recipe(["--config", str(file)])
    assert "SECRET" not in text and "environment_kwargs.url, environment_kwargs.api.auth" in text
    assert yaml.safe_load(text)["environment_kwargs"] == {"api": {}, "size": 3}
