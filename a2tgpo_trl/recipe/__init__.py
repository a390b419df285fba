"""A recipe: a YAML file, and what the command line says otherwise -> settings, task, trainer.

    a2tgpo train quickstart --learning_rate 1e-4
    read_recipe(["--config", "quickstart", "--learning_rate", "1e-4"]).build_trainer().train()

Each key is a field of `A2TGPOConfig`, of TRL's `ModelConfig` or of `RecipeArguments` (`a2tgpo train --help`). A
mistake is an error that names the file, the key and the nearest valid name. Names of tools, rewards, tasks and
environments are those of this package, or `file.py:name` beside the recipe, or `package.module:name`. A run whose
recipe names no `output_dir` goes to outputs/NAME.

A recipe can be built on another one, or on several: a file beside it, or one that comes with the package. It has their
keys, and its own win; mappings such as `task_kwargs` are merged key by key. A later one in the list wins over those
before it, and what several are built on is laid once, below all. Files that one of them names are looked for beside
the recipe first, and then beside what it is built on.

    base: quickstart                        base: [../large.yaml, short.yaml]
    credit: grpo

The command line names another base, so that the few keys of a method serve with every recipe, and shows the whole:

    a2tgpo train qa/dapo --base qa/qwen3_8b qa/single_hop       # goes to outputs/qwen3_8b-single_hop-dapo
    a2tgpo recipe qa/dapo --base qa/qwen3_8b qa/single_hop > mine.yaml

Adapters. `use_peft: true` trains a LoRA adapter, with `lora_r`, `lora_alpha`, `lora_target_modules: [all-linear]` and
TRL's other keys for it; `load_in_4bit: true` beside it quantises the model below (extra `qlora`). In a script it is
`peft_config=LoraConfig(...)` of the trainer. The run's folder then holds the adapter alone. Named as
`model_name_or_path` it is evaluated, or trained on as it is (without `use_peft`); `a2tgpo merge ADAPTER FOLDER` makes
one policy of it and its base.

What a run leaves in its output folder:

    the policy, or its adapter, and the tokenizer
    whole_recipe.yaml            all keys, with those of bases and of the command line
    evaluation/before, after     held-out scores and rollouts; learning_curve.png beside
    trainer_state.json           what was logged, step by step
    checkpoint-N                 with `save_strategy: steps`: to go on from (`a2tgpo help resume`)
    rollouts/                    with `record_every`: what was trained on (`a2tgpo help records`)
"""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .recipe import Recipe, read_recipe

__all__ = ["Recipe", "read_recipe"]


def __getattr__(name: str):
    # The command line looks for a recipe's file before anything is imported that takes seconds.
    if name in __all__:
        from . import recipe

        return getattr(recipe, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
