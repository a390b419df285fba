"""a generation config -> how it draws tokens, one at a time, without looking back."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationConfig,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from .engines import listed


# Processors that look only at the scores of the next token, and not at earlier tokens.
OF_ONE_TOKEN = (
    *(TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper, TypicalLogitsWarper),
    *(EpsilonLogitsWarper, EtaLogitsWarper, SuppressTokensLogitsProcessor, InfNanRemoveLogitsProcessor),
    LogitNormalization,
)
# Other options of `generate`, with the values that change nothing.
PLAIN = {
    **{"num_beams": 1, "num_return_sequences": 1, "use_cache": True, "guidance_scale": 1.0},
    **{"cache_implementation": None, "stop_strings": None, "max_time": None},
    **{"penalty_alpha": None, "dola_layers": None, "prompt_lookup_num_tokens": None},
}


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. `end_ids`: those that end a turn; `draws`: at random if true, else the likeliest."""

    processors: LogitsProcessorList
    end_ids: frozenset[int]
    max_tokens: int | None
    draws: bool


def sampling_of(model: PreTrainedModel, given: GenerationConfig, end_ids: Sequence[int]) -> Sampling | str:
    """How `model.generate` would sample with this config; or, in words, what it would do that is not done here."""
    config, _ = model._prepare_generation_config(given)
    ends = listed(config.eos_token_id)
    model._prepare_special_tokens(config, True, device=model.device)  # some processors are left out without them
    for name, plain in PLAIN.items():
        if getattr(config, name, None) not in (plain, None):
            return f"{name}={getattr(config, name)!r} is set"
    processors = model._get_logits_processor(
        config, input_ids_seq_length=0, logits_processor=LogitsProcessorList(), device=model.device, model_kwargs={}
    )
    for processor in processors:
        if not isinstance(processor, OF_ONE_TOKEN):
            return f"{type(processor).__name__} looks at more than the next token"
    return Sampling(
        processors,
        frozenset([*ends, *end_ids]),
        config.max_new_tokens,
        bool(config.do_sample),
    )
