"""YAML files and words of the command line -> settings, task and policy -> a trainer.

`recipe_file.py` merges a recipe with what it is built on, and checks each file before TRL's `TrlParser`
(`arguments.py`) sees it; the command line wins. `task.py` finds what a recipe names.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from transformers import AutoTokenizer, PreTrainedModel
from trl import ModelConfig, get_peft_config, get_quantization_config
from trl.trainer.utils import create_model_from_path

from ..config import A2TGPOConfig
from ..credit.turn_rewards import find as find_turn_reward
from ..errors import RecipeError, shown
from ..information_gain.answers import is_empty
from ..lookup import find_file, nearest
from ..report.scores import has_lines
from ..rollout.checks import ADAPTER_CONFIG, check_output_apart
from ..secret_names import setting_is_secret
from ..tasks import Task, arithmetic, atlas, textworld
from ..tracking import without_secrets
from .arguments import RecipeArguments, RecipeParser, split_words
from .recipe_file import Layer, check_keys, find_recipe, merge, read_layers
from .task import make_task


# Policies that come with the package.
MODELS = {
    "atlas-tiny": str(atlas.POLICY),
    "atlas-hard-tiny": str(atlas.HARD_POLICY),
    "atlas-eager-tiny": str(atlas.EAGER_POLICY),
    "arithmetic-tiny": str(arithmetic.POLICY),
    "textworld-tiny": str(textworld.POLICY),
}
HELD_OUT = "held-out questions"
# use_dora and the like belong to LoRA too.
OF_LORA = [f.name for f in fields(ModelConfig) if "lora" in f.name or f.name.startswith("use_") and "ora" in f.name]


@dataclass
class Recipe:
    """A recipe that was read: settings in three groups, and the task they name."""

    folders: Sequence[Path]  # those of its files, where other files are looked up
    run: RecipeArguments
    args: A2TGPOConfig
    model: ModelConfig
    task: Task
    where: str = ""  # what messages about it begin with
    words: Sequence[str] = ()  # those that it was read from

    @property
    def test_dataset(self):
        """The rows that are evaluated, or None."""
        rows = self.task.test_dataset
        if rows is None or self.run.eval_rows == 0:
            return None
        return rows if self.run.eval_rows is None else rows.select(range(min(self.run.eval_rows, len(rows))))

    @cached_property
    def questions(self) -> str:
        """What to call the rows that are evaluated: held-out questions, or how many were trained on."""
        train, test = self.run.dataset_train_split, self.run.dataset_test_split
        if self.run.dataset_name is None or test is None or train.partition("[")[0] != test.partition("[")[0]:
            return HELD_OUT
        trained_on = {json.dumps(row, sort_keys=True, default=str) for row in self.task.train_dataset}
        known = sum(json.dumps(row, sort_keys=True, default=str) in trained_on for row in self.test_dataset or ())
        return f"questions, {known} of them trained on" if known else HELD_OUT

    @property
    def model_init_kwargs(self) -> dict[str, Any]:
        """How the policy is loaded: as in `ModelConfig`, with what `model_init_kwargs` adds."""
        return {
            "revision": self.model.model_revision,
            "attn_implementation": self.model.attn_implementation,
            "dtype": self.model.dtype,
            **(self.args.model_init_kwargs or {}),
        }

    def build_trainer(self, callbacks: Sequence[Any] = (), *, trains: bool = True):
        """Return the trainer, with the policy loaded. One that only evaluates needs nothing to train on."""
        from ..trainer import A2TGPOTrainer

        if trains and self.task.train_dataset is not None and is_empty(self.task.train_dataset):
            raise RecipeError(f"{self.where}there is nothing to train on: the training set is empty.")

        if self.args.n_gpu > 1:
            raise RecipeError(
                f"One process sees {self.args.n_gpu} GPUs. Start one process per GPU (--num_processes "
                f"{self.args.n_gpu}; with accelerate launch, before -m), or let it see only one "
                "(CUDA_VISIBLE_DEVICES=0)."
            )
        try:
            check_output_apart(self.args.output_dir, self.model.model_name_or_path)
            return A2TGPOTrainer(
                args=self.args,
                callbacks=list(callbacks),
                turn_reward_funcs=self.own_turn_rewards,
                **self.trainer_arguments(),
            )
        except (ValueError, OSError) as error:  # OSError: no such model
            raise RecipeError(f"{self.where}{error}") from error

    def trainer_arguments(self) -> dict[str, Any]:
        """Return the arguments that `GRPOTrainer` takes too, except settings: policy, rewards, data and tools."""
        task = self.task
        return {
            "reward_funcs": list(task.reward_funcs) or None,
            "train_dataset": task.train_dataset,
            "eval_dataset": self.test_dataset,
            "tools": list(task.tools) or None,
            "environment_factory": task.environment_factory,
            **(self._adapted_policy() if self.adapter else self._policy()),
        }

    @property
    def own_turn_rewards(self) -> dict[str, Any]:
        """The turn rewards that are named by import path, which may begin beside the recipe."""
        assert isinstance(self.args.turn_rewards, dict)  # `A2TGPOConfig` has read it
        folders = [*self.folders, Path.cwd()]
        return {name: find_turn_reward(name, folders) for name in self.args.turn_rewards if ":" in name}

    @property
    def adapter(self) -> Path | None:
        """The policy's folder, if it holds an adapter, as training with LoRA saves it."""
        folder = Path(self.model.model_name_or_path)
        return folder if (folder / ADAPTER_CONFIG).is_file() else None

    @property
    def base_name(self) -> str:
        """The model whose weights are loaded: an adapter's base, or the policy itself."""
        if self.adapter is None:
            return self.model.model_name_or_path
        return json.loads((self.adapter / ADAPTER_CONFIG).read_text())["base_model_name_or_path"]

    def load_base(self) -> PreTrainedModel:
        """Load the base model as `GRPOTrainer` loads a policy given by name."""
        kwargs = {"trust_remote_code": self.args.trust_remote_code, **self.model_init_kwargs}
        if self.args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
            kwargs["device_map"] = None  # "auto", the default, would spread each process's model over all GPUs
        quantization = get_quantization_config(self.model)
        if quantization is not None:
            kwargs["quantization_config"] = quantization
        return create_model_from_path(self.base_name, **kwargs)

    def _policy(self) -> dict[str, Any]:
        self.args.model_init_kwargs = self.model_init_kwargs
        return {
            "model": self.model.model_name_or_path,
            "quantization_config": get_quantization_config(self.model),
            "peft_config": get_peft_config(self.model),
        }

    def _adapted_policy(self) -> dict[str, Any]:
        """Return a saved adapter on its base, to be trained further or evaluated."""
        if self.model.use_peft:
            raise ValueError(
                f"{self.adapter} is already an adapter, and is used as it is, with its own settings. Leave use_peft "
                "out, or set it to false on the command line."
            )
        base = self.load_base()
        self.args.model_init_kwargs = None
        return {
            "model": PeftModel.from_pretrained(base, str(self.adapter), is_trainable=True),
            "processing_class": AutoTokenizer.from_pretrained(
                str(self.adapter), truncation_side="left", padding_side="left"
            ),
        }


# ---- reading


def read_recipe(words: Sequence[str]) -> Recipe:
    """Return the recipe that `--config FILE [--base FILE ...] --key value ...` describes, checked.

    Errors name the file, the key and the nearest valid name.
    """
    given, parser = list(words), RecipeParser()
    name, bases, words = split_words(given)
    layers = _checked_layers(name, bases, parser)
    content = merge(layers)
    where, folders = _where(layers, words), [layer.folder for layer in reversed(layers)]
    told = {word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")}
    said = {*content, *told}
    try:
        # The command line comes last, and wins.
        beside = _files_beside(folders, {key: value for key, value in content.items() if key not in told})
        words = [*_default_folder(name, bases, said), *beside, *words]
        run, args, model = parser.parse_over(content, words)
        for key in _switched_off(told, model.use_peft):
            setattr(model, key, getattr(ModelConfig(), key))
        if model.model_name_or_path is None:
            raise ValueError(
                f"model_name_or_path is missing: name a model on the hub, a folder, or one of {', '.join(MODELS)}."
            )
        model.model_name_or_path = MODELS.get(model.model_name_or_path, model.model_name_or_path)
        check_folder(Path(model.model_name_or_path))
        check_partners(run, model)
        recipe = Recipe(folders, run, args, model, make_task(run, [*folders, Path.cwd()]), where, given)
        check_test_set(recipe)
    except (ValueError, ImportError, OSError) as error:  # OSError: a data set that the hub does not have
        raise RecipeError(f"{where}{error}") from error
    if str(args.resume_from_checkpoint).lower() == "true":
        args.resume_from_checkpoint = True  # the last one in the output folder
    if args.reward_weights is None and recipe.task.reward_weights is not None:
        args.reward_weights = list(recipe.task.reward_weights)
    for key, value in recipe.task.settings.items():
        if key not in said:
            setattr(args, key, value)
    return recipe


def whole_recipe(words: Sequence[str], without: Collection[str] = ()) -> str:
    """Return the text of one recipe that equals `--config FILE [--base FILE ...] --key value ...`.

    Names of files stay as they are: they are looked up beside the file that this text is written to. `without`: keys
    to leave out. Secrets, such as `hub_token`, are left out too: runs are shared.
    """
    parser = RecipeParser()
    name, bases, words = split_words(words)
    layers = _checked_layers(name, bases, parser)
    told = parser.parse_alone(words)
    content = {**merge(layers), **told}
    without = {*without, *_switched_off(told, content.get("use_peft", False))}
    secrets: list[str] = []
    kept = _without_secrets({key: value for key, value in content.items() if key not in without}, secrets)
    heads = [f"# {layer.path}" for layer in layers]
    heads += [f"# left out, since these are secrets: {', '.join(secrets)}"] if secrets else []
    return "\n".join([*heads, yaml.safe_dump(kept, sort_keys=False, width=119)])


def _switched_off(told: Collection[str], use_peft: bool) -> set[str]:
    """With `--use_peft false` on the command line, a recipe's keys of LoRA, but not those on the line itself."""
    return {*OF_LORA} - {*told} if "use_peft" in told and not use_peft else set()


def _without_secrets(content: Mapping[str, Any], found: list[str], above: str = "") -> dict[str, Any]:
    """The settings without those that trackers would mask; their names are added to `found`.

    Example: {"hub_token": "abc", "env": {"API_KEY": "x", "HOME": "y"}} -> {"env": {"HOME": "y"}}
    """
    kept = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and not setting_is_secret(key):
            kept[key] = _without_secrets(value, found, f"{above}{key}.")
        elif without_secrets(value, key) != value:
            found.append(f"{above}{key}")
        else:
            kept[key] = value
    return kept


def _checked_layers(name: str | None, bases: Sequence[str] | None, parser: RecipeParser) -> list[Layer]:
    layers = [] if name is None else read_layers(find_recipe(name), bases)
    for layer in layers:
        check_keys(layer.path, layer.keys, parser)
    return layers


def _where(layers: Sequence[Layer], words: Sequence[str]) -> str:
    """Example: "dapo.yaml on qwen3_8b.yaml on qwen3_4b.yaml and the command line: " """
    files = " on ".join(str(layer.path) for layer in reversed(layers))
    return f"{files}{' and the command line' if words else ''}: " if files else ""


def _default_folder(name: str | None, bases: Sequence[str] | None, said: Collection[str]) -> list[str]:
    """Return the option for the output folder, if none is named: it is called what the command line calls its recipe.

    Example: qa/dapo with --base qa/qwen3_8b -> outputs/qwen3_8b-dapo
    """
    if name is None or "output_dir" in said:
        return []
    return ["--output_dir", str(Path("outputs", "-".join(Path(one).stem for one in [*(bases or ()), name])))]


def _files_beside(folders: Sequence[Path], content: Mapping[str, Any]) -> list[str]:
    """Return options for settings that name a file beside the recipe: the config does not know the recipe."""
    options = []
    for key in ("credit", "turn_rewards"):
        value = content.get(key)
        place, colon, attribute = value.partition(":") if isinstance(value, str) else ("", "", "")
        file = find_file(place, folders) if place.endswith((".py", ".yaml", ".yml")) else None
        if file is None and place.endswith(".py") and find_file(place, [Path.cwd()]) is None:
            raise ValueError(f"{key}: there is no file {place!r} in {' or '.join(map(str, [*folders, Path.cwd()]))}.")
        if file is not None:
            options += [f"--{key}", f"{file}{colon}{attribute}"]
    return options


def check_folder(policy: Path) -> None:
    """Raise an error if the policy can only be a folder, and this is missing or holds no model or adapter."""
    if policy.is_dir():
        if (policy / ADAPTER_CONFIG).is_file():
            check_adapter(policy)
        elif not (policy / "config.json").is_file():
            raise ValueError(f"model_name_or_path: there is no model in {policy}. Did its training finish?")
    elif policy.is_absolute() or (len(policy.parts) > 1 and policy.parent.is_dir()):
        raise ValueError(f"model_name_or_path: there is no folder {policy}.")


def check_adapter(folder: Path) -> None:
    """Raise an error if an adapter's folder lacks settings or weights; PEFT would look for weights on the hub."""
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(f"There is no adapter in {folder}: it has no {ADAPTER_CONFIG}.")
    if not any((folder / file).is_file() for file in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)):
        raise ValueError(
            f"{folder} has the settings of an adapter but not its weights ({SAFETENSORS_WEIGHTS_NAME}). Was it copied "
            "completely? A checkpoint of the same run may have them."
        )


def check_partners(run: RecipeArguments, model: ModelConfig) -> None:
    """Raise an error if a key is set that has no effect without another one."""
    for needed, given, of, keys in (
        ("use_peft: true", model.use_peft, model, OF_LORA),
        ("task", run.task, run, ["task_kwargs"]),
        ("environment_factory", run.environment_factory, run, ["environment_kwargs"]),
        ("dataset_name", run.dataset_name, run, ["dataset_config", "dataset_train_split", "dataset_test_split"]),
    ):
        defaults = type(of)()
        idle = [key for key in keys if getattr(of, key) != getattr(defaults, key)]
        if idle and not given:
            raise ValueError(f"{', '.join(idle)} would have no effect without {needed}.")


def check_test_set(recipe: Recipe) -> None:
    """Raise an error if the test set is empty, or cannot be grouped or averaged by the columns that are named."""
    if recipe.run.eval_rows is not None and recipe.run.eval_rows < 0:
        raise ValueError(f"eval_rows must be at least 0; got {recipe.run.eval_rows}.")
    rows, column = recipe.task.test_dataset, recipe.task.group_by
    if rows is None:
        return
    if len(rows) == 0:
        raise ValueError("the test set is empty. Name another dataset_test_split, or none.")
    if column is not None:
        check_groups(rows, column)
    for name, wanted in recipe.task.averages.items():
        for column in wanted.keys() - {*rows.column_names}:
            raise ValueError(
                f"averages: {name!r} selects rows by a column {column!r}, which the test set does not have."
                f"{nearest(column, rows.column_names)}"
            )


def check_groups(rows: Dataset, column: str) -> None:
    """Raise an error if the test set lacks a column, or if a table cannot have a line for a value in it."""
    if column not in rows.column_names:
        raise ValueError(f"group_by: the test set has no column {column!r}.{nearest(column, rows.column_names)}")
    for i, value in enumerate(rows[column]):
        if not has_lines(value):
            raise ValueError(
                f"group_by: row {i} of the test set holds {shown(value)} in column {column!r}, but a table has lines "
                "for text and numbers only. Name another column, or add one with text or numbers (dataset.map)."
            )
