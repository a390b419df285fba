"""A recipe: a YAML file, and what the command line says otherwise -> settings, task, trainer.

    a2tgpo train quickstart --learning_rate 1e-4
    read_recipe(["--config", "quickstart", "--learning_rate", "1e-4"]).build_trainer().train()

Each key is a field of `A2TGPOConfig`, of TRL's `ModelConfig` or of `RecipeArguments` (`a2tgpo train --help`). A
mistake is an error that names the file, the key and the nearest valid name. Name tools, rewards, tasks and
environments by their name in this package, as `file.py:name` beside the recipe, or as `package.module:name`. A run
whose recipe sets no `output_dir` goes to outputs/NAME.

A recipe can be built on another one, or on several: a file beside it, or one that comes with the package. It takes
their keys, and its own keys win; mappings such as `task_kwargs` are merged key by key. A later base in the list wins
over earlier ones. A base that several of them share is applied once, below all of them. Files that any of them names
are looked up beside the recipe first, then beside its bases. (`files_in` names a folder in place of the recipe's own:
studies write it into the recipes of their runs.)

    base: quickstart                        base: [../large.yaml, short.yaml]
    credit: grpo

The command line can name other bases, so that the few keys of a method work with every recipe; `a2tgpo recipe` prints
the whole recipe. Rewards and tools that it names as `file.py:name` stay files: copy them beside it.

    a2tgpo train qa/dapo --base qa/qwen3_8b qa/single_hop       # goes to outputs/qwen3_8b-single_hop-dapo
    a2tgpo recipe qa/gspo --base qa/qwen3_8b qa/single_hop > mine.yaml

Adapters. `use_peft: true` trains a LoRA adapter, with `lora_r`, `lora_alpha`, `lora_target_modules: [all-linear]` and
TRL's other keys for it; adding `load_in_4bit: true` quantises its base model (extra `qlora`). In a script, pass
`peft_config=LoraConfig(...)` to the trainer. The run's folder then holds only the adapter. Name that folder as
`model_name_or_path` to evaluate the adapter, or to train it further (without `use_peft`); it is merged with its base
into one policy by `a2tgpo merge ADAPTER FOLDER`.

A run leaves in its output folder:

    the policy, or its adapter, and the tokenizer
    whole_recipe.yaml            all keys, including those of bases and of the command line
    evaluation/before, after     held-out scores and rollouts; learning_curve.png beside
    trainer_state.json           the log, step by step
    checkpoint-N                 with `save_strategy: steps`: to resume from (`a2tgpo help resume`)
    rollouts/                    with `record_every`: the rollouts trained on (`a2tgpo help records`)
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
