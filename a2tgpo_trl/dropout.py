"""policy -> the same policy without dropout, so that two forwards over the same tokens agree while it trains.

The ratio of a turn is a mean over its tokens, in a clip range of a few thousandths. With dropout, old and new
log-probabilities come from two random subnetworks, and that alone puts most turns outside the range.
"""

from collections.abc import Iterator
from typing import Any

from accelerate.logging import get_logger
from torch import nn

from .models import base_model


logger = get_logger(__name__)

# The noise that some mixtures of experts add to what they route; the other attributes in question contain "drop".
NOISE = ("jitter_noise", "input_jitter_noise")
# Models that draw experts at random while they train, at any rate.
RANDOM_ROUTERS = ("phimoe",)
# Rates of heads that a policy does not have, although its config gives them.
OTHER_HEADS = ("summary_first_dropout", "classifier_dropout", "classifier_dropout_prob")


def settle_dropout(
    model: nn.Module, level: str, *, disabled: bool, several_updates: bool, sampler_is_corrected: bool
) -> None:
    """Switch dropout off if it would drown the ratio, and say so unless that was requested.

    Args:
        model: the policy.
        level: span whose tokens share a ratio (`importance_sampling_level`).
        disabled: whether dropout is off in any case (`disable_dropout`).
        several_updates: whether a batch is trained on in more than one, so that ratios are not all 1.
        sampler_is_corrected: whether vLLM samples, and the loss weights its tokens by its probabilities.
    """
    rates = dropout_rates(model)
    named = ", ".join(f"{name}={rate:g}" for name, rate in rates.items())
    if goes_without(level, disabled):
        switch_off_dropout(model)
        kind = base_model(model).config.get_text_config().model_type
        if kind in RANDOM_ROUTERS and level != "token":
            logger.warning(
                f"A model of the type {kind} draws its experts at random while it trains, so old and new "
                f"log-probabilities of a {level} differ before anything is learnt, which cannot be switched off. "
                "Set importance_sampling_level='token', or take another model."
            )
        if rates and not disabled:
            logger.warning(
                f"Dropout is off (0 instead of {named}): old and new log-probabilities would differ by what each has "
                f"dropped, and most ratios of a {level} would be clipped before anything is learnt. Set these rates "
                "to 0, or disable_dropout=True, to avoid this warning."
            )
        return
    if rates and several_updates:
        logger.warning(
            f"The policy has dropout ({named}), and each batch is trained on in several updates: old and new "
            "log-probabilities of a token differ by what was dropped, so a part of the tokens is clipped before "
            "anything is learnt (clip_fraction/mean of the first step). Set disable_dropout=True, or these rates to 0."
        )
    if rates and sampler_is_corrected:
        logger.warning(
            f"The policy has dropout ({named}), but vLLM samples without it: the weights that correct for vLLM "
            "depend on what was dropped, above all where a rollout has one weight "
            "(vllm_importance_sampling_mode='sequence_...'). Set these rates to 0."
        )


def goes_without(level: str, disabled: bool) -> bool:
    """Whether a policy trains without dropout: if that is requested, or if more than one token shares a ratio."""
    return disabled or level != "token"


def dropout_rates(model: nn.Module) -> dict[str, float]:
    """The names of all rates of dropout and noise at work while this model trains, and the highest value of each.

    Example: a GPT-2 with LoRA -> {"attn_dropout": 0.1, "attn_pdrop": 0.1, ..., "lora_dropout": 0.05}
    """
    rates: dict[str, float] = {}
    for name, holder, key in _places(model):
        rates[name] = max(holder[key], rates.get(name, 0.0))
    return dict(sorted(rates.items()))


def switch_off_dropout(model: nn.Module) -> None:
    """Set each rate to 0: those of modules, of attributes that are passed to functions, and of the config.

    TRL's `disable_dropout` reaches only modules. Most models pass a number to their attention instead, and some read
    it from the config at each forward.
    """
    for _, holder, key in _places(model):
        holder[key] = 0.0


def _places(model: nn.Module) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Each rate above 0: its name, and the dictionary and the key that hold it."""
    candidates = [place for path, module in model.named_modules() for place in _candidates(path, module)]
    config = vars(base_model(model).config.get_text_config())
    candidates += [(name, config, name) for name in config if _is_rate(name) and name not in OTHER_HEADS]
    for name, holder, key in candidates:
        if isinstance(holder.get(key), float) and holder[key] > 0:
            yield name, holder, key


def _candidates(path: str, module: nn.Module) -> Iterator[tuple[str, dict[str, Any], str]]:
    own = vars(module)
    if "Dropout" in type(module).__name__:
        parts = [part for part in path.split(".") if _is_rate(part)]
        yield (parts or [type(module).__name__])[-1], own, "p"
    for name, value in own.items():
        if _is_rate(name):
            yield name, own, name
            if isinstance(value, dict):  # one rate per adapter
                yield from ((name, value, adapter) for adapter in value)


def _is_rate(name: str) -> bool:
    return "drop" in name or name in NOISE
