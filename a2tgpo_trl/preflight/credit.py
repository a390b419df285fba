"""rewards and credit of a recipe -> whether the trainer would take them."""

from collections.abc import Collection

from accelerate import Accelerator

from ..config import A2TGPOConfig
from ..credit.credit_pass import CreditPass
from ..recipe.recipe import Recipe
from ..tasks import Task
from .chat import Verdict


def check_rewards(args: A2TGPOConfig, task: Task) -> Verdict:
    """Check that there are rewards, each with a weight."""
    names, weights = task.reward_names, args.reward_weights
    if weights is not None and len(weights) != len(names):
        return "fail", (
            f"reward_weights has {len(weights)} weights, and there are {len(names)} rewards ({', '.join(names)}). "
            "Give one for each, in this order."
        )
    if not names:
        return "pass", "the environments' own"
    each = weights or [1.0] * len(names)
    return "pass", ", ".join(f"{name} x {weight:g}" for name, weight in zip(names, each, strict=True))


def check_credit(recipe: Recipe, environments: Collection[type]) -> Verdict:
    """Check, by making what credits turns, that the method has what it reads."""
    task, settings = recipe.task, recipe.args.credit_settings
    CreditPass(
        settings,
        Accelerator(),
        recipe.own_turn_rewards,
        environments,
        has_tools=bool(task.tools) or task.environment_factory is not None,
        has_rollout_func=False,
        splits_models=False,
    )
    rewards = f"; turn rewards: {', '.join(settings.turn_rewards)}" if settings.turn_rewards else ""
    return "pass", f"{settings.name}{rewards}"
