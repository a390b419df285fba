"""A recipe: a YAML file, and what the command line says otherwise -> settings, task, trainer.

    recipe = read_recipe(["--config", "quickstart", "--learning_rate", "1e-4"])
    recipe.build_trainer().train()

Each key is a field of `A2TGPOConfig`, of TRL's `ModelConfig` or of `RecipeArguments`. A mistake is an error that names
the file, the key and the nearest valid name. Names of tools, rewards, tasks and environments are those of this
package, or `file.py:name` beside the recipe, or `package.module:name`.
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
