"""policy, with or without adapters -> the transformers model in it, and modes that are left as they were."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from accelerate.utils import is_peft_model
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel


def base_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT model, or the model itself."""
    return cast(PeftModel, model).get_base_model() if is_peft_model(model) else cast(PreTrainedModel, model)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """No dropout, adapters' included; every module returns to the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
