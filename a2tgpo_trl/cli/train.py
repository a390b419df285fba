"""recipe -> a trained policy, its scores before and after, and a learning curve."""

from . import CommandParser
from .launching import add_launch_arguments, launch


def add_arguments(parser: CommandParser) -> None:
    add_launch_arguments(parser)
    parser.more_help = _keys
    parser.set_defaults(run=lambda args: launch("a2tgpo_trl.train", args))


def _keys() -> str:
    from trl import GRPOConfig

    from ..config import A2TGPOConfig
    from ..fields import parameters
    from ..recipe.recipe import RecipeArguments

    return (
        "\nKeys of a recipe, beside those of GRPOConfig, TrainingArguments and ModelConfig, which work as well:\n\n"
        f"{parameters(RecipeArguments, base=object)}\n{parameters(A2TGPOConfig, base=GRPOConfig)}"
    )
