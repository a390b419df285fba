"""a recipe -> tokenizer, config, tools, data and model, as `GRPOTrainer` would load them."""

import inspect
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import (
    AutoConfig,
    AutoProcessor,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from ..information_gain.answers import named_datasets
from ..recipe.recipe import Recipe
from ..rollout.checks import check_names, check_tools
from ..tasks import Task
from .chat import Chat, Datasets


def load_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """Load the tokenizer as `GRPOTrainer` does."""
    tokenizer = AutoProcessor.from_pretrained(
        recipe.model.model_name_or_path,
        revision=recipe.model_init_kwargs["revision"],
        truncation_side="left",
        padding_side="left",
        trust_remote_code=recipe.args.trust_remote_code,
    )
    if isinstance(tokenizer, ProcessorMixin):
        raise ValueError("Vision-language models are not supported. Name a text-only model.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_data(recipe: Recipe) -> Datasets:
    """Return the data sets by their names in messages; none if an environment brings the prompts."""
    return dict(named_datasets(recipe.task.train_dataset, recipe.test_dataset))


def load_config(recipe: Recipe) -> PreTrainedConfig:
    """Load the model's config, without its weights."""
    return AutoConfig.from_pretrained(
        recipe.base_name,
        revision=recipe.model_init_kwargs["revision"],
        trust_remote_code=recipe.args.trust_remote_code,
    )


def factories(task: Task) -> list[Callable[[], Any]]:
    """Return the factories of the task's environments: none, one, or one for each name."""
    factory = task.environment_factory
    return list(factory.values()) if isinstance(factory, dict) else [factory] if factory is not None else []


def environment_kinds(task: Task) -> set[type]:
    """Return the classes of the task's environments; one is made only if the factory does not tell its class."""
    plain = [one.func if isinstance(one, partial) else one for one in factories(task)]
    return {one if isinstance(one, type) else type(one()) for one in plain}


def all_tools(task: Task) -> list[Callable]:
    """Return the tools, and the public methods of an instance of each environment, as `GRPOTrainer` does."""
    check_tools(task.tools)
    methods = [public_methods(make()) for make in factories(task)]
    for of_environment in methods:
        check_names([*task.tools, *of_environment])
    return [*task.tools, *itertools.chain(*methods)]


def public_methods(environment: Any) -> list[Callable]:
    """Return the methods of an environment that a policy may call: not what else its class has, as `turn_reward`."""
    methods = [name for name, _ in inspect.getmembers(type(environment), inspect.isfunction)]
    names = [name for name in methods if not name.startswith("_") and name not in ("reset", "get_reward")]
    return [getattr(environment, name) for name in names]


def end_tokens(name: str, revision: str, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> list[int]:
    """Return the tokens that end a completion: the tokenizer's, and all in the model's generation config."""
    try:
        generation = GenerationConfig.from_pretrained(name, revision=revision)
    except OSError:  # a model without such a file
        generation = GenerationConfig.from_model_config(config)
    named = generation.eos_token_id
    ids = [named] if isinstance(named, int) else list(named or [])
    return list(dict.fromkeys([tokenizer.eos_token_id, *ids]))


def make_chat(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, tools: list[Callable]
) -> "Chat":
    """Return the chat that writes this recipe's rollouts as tokens."""
    name = recipe.base_name
    ends = end_tokens(name, recipe.model_init_kwargs["revision"], tokenizer, config)
    return Chat(tokenizer, tools, ends, recipe.args.chat_template_kwargs)
