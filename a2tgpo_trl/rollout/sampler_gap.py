"""settings, metrics of each batch -> warnings: where vLLM and the trainer do not mean the same probabilities.

TRL weighs what vLLM sampled by exp(trainer's log-probability - vLLM's), so that training stays right although the two
round differently (`vllm_importance_sampling_correction`, on by default). That holds only while both speak of one
distribution. vLLM gives the probability with which it really sampled: among the tokens that `top_p` leaves over, after
penalties, with masks. The trainer divides logits by the temperature and knows nothing else.

What TRL does with the weights, by `vllm_importance_sampling_mode`:

    sequence_mask       one weight a rollout, the product over its sampled tokens; 0 where it is above `..._clip_max`
                        (3) or below `..._clip_min` (none)
    sequence_truncate   the same, cut to those bounds
    token_mask          one weight a token; 0 outside of the bounds
    token_truncate      one weight a token, cut to the bounds

So with a sampler that gives its tokens a share S of all probability, a token weighs S instead of 1, and with weights
per sequence a rollout of T tokens S to the power of T: almost nothing, and no error says so.
"""

from typing import Any

from accelerate.logging import get_logger

from ..config import A2TGPOConfig


logger = get_logger(__name__)

ALARMING_BATCHES = 3  # in a row

# What changes vLLM's probabilities and not the trainer's, with the values that change nothing. The first four are
# fields of the config; all may stand in `generation_kwargs`, which wins.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (None, 1.0),
    "top_k": (None, 0, -1),
    "min_p": (None, 0.0),
    "repetition_penalty": (None, 1.0),
    "presence_penalty": (None, 0.0),
    "frequency_penalty": (None, 0.0),
    "min_tokens": (None, 0),  # masks the tokens that end a turn
    "logit_bias": (None, {}),
    "bad_words": (None, []),
    "allowed_token_ids": (None,),
    "structured_outputs": (None,),
    "response_format": (None,),  # a server's way to ask for structured outputs
    "thinking_token_budget": (None,),
    "extra_args": (None, {}),  # what logits processors of one's own read
    "vllm_xargs": (None, {}),  # the same for a server
}


def incomparable_settings(args: A2TGPOConfig) -> dict[str, Any]:
    """The settings by which vLLM samples from another distribution than the trainer scores.

    Example: top_p=0.9, generation_kwargs={"seed": 1, "min_tokens": 5} -> {"top_p": 0.9, "min_tokens": 5}
    """
    given = {name: getattr(args, name) for name in ("top_p", "top_k", "min_p", "repetition_penalty")}
    given |= args.generation_kwargs or {}
    found = {name: given[name] for name, neutral in NEUTRAL.items() if name in given and given[name] not in neutral}
    if given.get("temperature", args.temperature) != args.temperature:
        found["generation_kwargs['temperature']"] = given["temperature"]
    if args.vllm_structured_outputs_regex is not None:
        found["vllm_structured_outputs_regex"] = args.vllm_structured_outputs_regex
    return found


def warn_of_incomparable(args: A2TGPOConfig) -> None:
    """Once, when a trainer is made: what biases the correction, and what to do about it."""
    found = incomparable_settings(args)
    if not (args.use_vllm and args.vllm_importance_sampling_correction and found):
        return
    named = ", ".join(f"{name}={value!r}" for name, value in found.items())
    mode = args.vllm_importance_sampling_mode
    of_what = "rollout, over all of its tokens, so that long rollouts may" if mode.startswith("seq") else "token may"
    logger.warning(
        f"vLLM samples with {named}, so its log-probabilities are of another distribution than the trainer's, and the "
        f"importance weights that compare them are biased. With vllm_importance_sampling_mode={mode!r} there is one "
        f"weight for each {of_what} count for next to nothing. Sample without these settings (top_p=1, top_k=0, "
        "min_p=None, repetition_penalty=1, no such generation_kwargs; temperature is known to both), or set "
        "vllm_importance_sampling_correction=False and accept that vLLM's rounding is not corrected."
    )


class GapWatch:
    """Speaks up, once, when batch after batch the gap grows with depth."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._said = False

    def see(self, metrics: dict[str, float]) -> None:
        """The metrics of a batch of rollouts; one that has no second turn neither alarms nor clears."""
        if "sampler_gap/alarm" not in metrics:
            return
        self._in_a_row = self._in_a_row + 1 if metrics["sampler_gap/alarm"] else 0
        if self._in_a_row < ALARMING_BATCHES or self._said:
            return
        self._said = True
        logger.warning(
            f"In {ALARMING_BATCHES} batches in a row, what sampler and trainer say of a token differed "
            f"{metrics['sampler_gap/growth']:.3g} times as much after the first turn as in it (a log-probability of a "
            f"token by {metrics['sampler_gap/absolute']:.2g} on average, see sampler_gap/turn_1 and on). They read "
            "long contexts differently. Give both the same precision, rotary scaling and attention window "
            "(vllm_max_model_length at least as long as the longest rollout; vllm_model_impl='transformers' runs the "
            "trainer's own code in vLLM); weights per token (vllm_importance_sampling_mode='token_truncate') bear a "
            "gap better than weights per rollout."
        )
