"""policy, with or without adapters -> the transformers model in it, what its tokens depend on, and its logits."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel


FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers, as transformers calls them


def base_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT model, or the model itself."""
    # Accelerate's `is_peft_model` looks up the versions of what is installed, which takes as long as a small forward.
    found = uncompiled(model)
    return found.get_base_model() if isinstance(found, PeftModel) else cast(PreTrainedModel, found)


def uncompiled(model: nn.Module) -> nn.Module:
    """The model that `torch.compile` has wrapped, or the model itself."""
    return getattr(model, "_orig_mod", model)


def has_virtual_tokens(model: nn.Module) -> bool:
    """Whether the model has an adapter that puts its own tokens before the prompt."""
    found = uncompiled(model)
    return isinstance(found, PeftModel) and found.active_peft_config.is_prompt_learning


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch off dropout, including adapters'; afterwards every module returns to the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def attention_implementation(config: PreTrainedConfig, implementation: str) -> Iterator[None]:
    """Run the model with another attention function for a while."""
    before = config._attn_implementation
    config._attn_implementation = implementation
    try:
        yield
    finally:
        config._attn_implementation = before


def positions_are_relative(model: PreTrainedModel) -> bool:
    """Whether only distances between tokens matter, so that padding on the left changes nothing.

    TRL's forward counts positions from the padding, a packed row from the first token. For rotary embeddings that
    makes no difference; for learned ones the log-probabilities of the two must not be mixed.
    """
    return bool(_rope_types(model.config.get_text_config()))


def length_matters(model: PreTrainedModel) -> bool:
    """Whether a longer row changes what its earlier tokens compute: if so, even padding does, and rows go alone."""
    return bool({"dynamic", "longrope"} & _rope_types(model.config.get_text_config()))


def obstacle_to_layouts(model: PreTrainedModel) -> str | None:
    """What makes tokens depend on more than their positions and the tokens they see, in words; None if nothing."""
    config = model.config.get_text_config()
    kinds = layer_kinds(config) - {FULL, SLIDING}
    if kinds:
        return f"it has {' and '.join(sorted(kinds))} layers"
    if "local" in (getattr(config, "attention_layers", None) or []):
        return "it has local attention layers"
    if getattr(config, "use_bidirectional_attention", False):
        return "its attention is bidirectional"
    if getattr(config, "alibi", False):
        return "its attention biases depend on the position in the row (ALiBi)"
    if model._is_stateful:
        return "it carries a recurrent state from token to token"
    # `base_model` is the property of transformers; a PEFT model hides it behind an attribute of the same name.
    if "position_ids" not in inspect.signature(type(model.base_model).forward).parameters:
        return "its forward takes no position_ids"
    if length_matters(model):
        return "its rotary frequencies depend on the length of the row"
    if not model._supports_attention_backend:
        return "its code does not support choosing the attention"
    return None


def layer_kinds(config: PreTrainedConfig) -> set[str]:
    """Kinds of a model's attention layers, as transformers calls them."""
    if getattr(config, "layer_types", None):
        return set(config.layer_types)
    return {FULL if getattr(config, "sliding_window", None) is None else SLIDING}


def _rope_types(config: PreTrainedConfig) -> set[str]:
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return {entry["rope_type"] for entry in nested if "rope_type" in entry}


@contextmanager
def logits_of(model: nn.Module, wanted: Tensor) -> Iterator[None]:
    """Give the model's head only the hidden states of these tokens, as one row; what follows treats tokens alike.

    `logits_to_keep` would keep the same columns of all rows, and not every model has it.
    """

    def select(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return inputs[0][wanted.to(inputs[0].device)].unsqueeze(0)

    hook = base_model(model).get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()
