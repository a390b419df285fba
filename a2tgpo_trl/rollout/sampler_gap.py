"""settings, log-probabilities of a batch -> metrics; warnings if vLLM and the trainer mean different probabilities.

TRL weights what vLLM sampled by exp(trainer's log-probability - vLLM's), so that training stays right although the two
round differently (`vllm_importance_sampling_correction`, on by default). That holds only if both use the same
distribution. vLLM gives the probability with which it really sampled: among the tokens that `top_p` keeps, after
penalties, with masks. The trainer divides logits by the temperature and knows nothing else.

What TRL does with the weights, by `vllm_importance_sampling_mode`:

    sequence_mask       one weight a rollout, the product over its sampled tokens; 0 where it is above `..._clip_max`
                        (3) or below `..._clip_min` (none)
    sequence_truncate   the same, cut to those bounds
    token_mask          one weight a token; 0 outside of the bounds
    token_truncate      one weight a token, cut to the bounds

So if the tokens that the sampler keeps have a share S of all probability, a token weighs S instead of 1, and with
weights per sequence a rollout of T tokens weighs S to the power of T: almost nothing, and no error says so.

Shapes: B rollouts, K turns, T completion tokens.
"""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.logging import get_logger
from torch import Tensor
from trl import GRPOConfig

from ..turns import LOGGED_TURNS, turn_sums


logger = get_logger(__name__)

GAP_FLOOR = 0.01  # nats per token: probabilities of sampler and trainer within a percent, as in 16 bits
GAP_GROWTH = 2.0
ALARMING_BATCHES = 3  # in a row

# Settings that change vLLM's probabilities but not the trainer's, with the values that change nothing. The first four
# are fields of the config; all may be in `generation_kwargs`, which wins.
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
    "extra_args": (None, {}),  # for custom logits processors
    "vllm_xargs": (None, {}),  # the same for a server
}


def incomparable_settings(args: GRPOConfig) -> dict[str, Any]:
    """The settings that make tokens be drawn from a different distribution than the trainer scores.

    Example: top_p=0.9, generation_kwargs={"stop": "x", "min_tokens": 5} -> {"top_p": 0.9, "min_tokens": 5}
    """
    given = {name: getattr(args, name) for name in ("top_p", "top_k", "min_p", "repetition_penalty")}
    given |= args.generation_kwargs or {}
    found = {name: given[name] for name, neutral in NEUTRAL.items() if name in given and given[name] not in neutral}
    if given.get("temperature", args.temperature) != args.temperature:
        found["generation_kwargs['temperature']"] = given["temperature"]
    if args.vllm_structured_outputs_regex is not None:
        found["vllm_structured_outputs_regex"] = args.vllm_structured_outputs_regex
    return found


def named(settings: Mapping[str, Any]) -> str:
    """Example: {"top_p": 0.9, "top_k": 5} -> "top_p=0.9, top_k=5" """
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def warn_of_incomparable(args: GRPOConfig) -> None:
    """Warn, once when a trainer is made, of what biases the correction, and say what to do about it."""
    found = incomparable_settings(args)
    if not (args.use_vllm and args.vllm_importance_sampling_correction and found):
        return
    mode = args.vllm_importance_sampling_mode
    of_what = (
        "rollout, over all of its tokens, so long rollouts may"
        if mode.startswith("seq")
        else ("token, and a token may")
    )
    logger.warning(
        f"vLLM samples with {named(found)}, so its log-probabilities are of another distribution than the trainer's, "
        f"and the importance weights that compare them are biased. With vllm_importance_sampling_mode={mode!r} there "
        f"is one weight for each {of_what} count for almost nothing. Sample without these settings (top_p=1, "
        "top_k=0, min_p=None, repetition_penalty=1, no such generation_kwargs; the field temperature is known to "
        "both), or set vllm_importance_sampling_correction=False and accept that vLLM's rounding is not corrected."
    )


def sampler_gap_sums(sampler_BT: Tensor, trainer_BT: Tensor, turn_BT: Tensor, num_turns: int) -> Tensor:
    """Sums over the tokens of each turn, to add over ranks: gap, absolute gap, number of tokens: (3,K).

    The gap of a sampled token is its log-probability by the sampler minus that by the trainer. A token for which
    either has no number (NaN) is not counted.
    """
    gap_BT = (sampler_BT - trainer_BT).float()
    known_BT = ~gap_BT.isnan()
    gap_BT = gap_BT.masked_fill(~known_BT, 0.0)  # NaN times 0 is NaN
    columns = (gap_BT, gap_BT.abs(), known_BT.to(gap_BT.dtype))
    return torch.stack([turn_sums(column_BT, turn_BT, num_turns).sum(dim=0) for column_BT in columns])


def sampler_gap_metrics(sums_3K: Tensor) -> dict[str, float]:
    """Mean gap between sampler and trainer, over all tokens and by turn, and whether it grows, from all ranks' sums.

    If both have the same weights and the same mathematics, the gap is rounding: it scatters around 0 and does not
    depend on depth. A gap that grows from turn to turn means that the two read a long context differently.

        growth = mean |gap| of the tokens after the first turn / max(mean |gap| of the first turn, GAP_FLOOR)
        alarm  = 1 if growth > GAP_GROWTH, else 0

    Example: gaps of 0.02 and -0.04 in turn 1, of 0.08 and 0.10 in turn 2
        mean 0.04, turn_1 -0.01, turn_2 0.09; absolute 0.06, absolute_turn_1 0.03, absolute_turn_2 0.09
        growth 0.09 / 0.03 = 3, alarm 1
    Example: gaps of 0.001 in turn 1, of 0.005 in turn 2
        growth 0.005 / 0.01 = 0.5, alarm 0: both are rounding
    """
    gaps, absolutes, counts = sums_3K.tolist()
    metrics = {}
    if sum(counts):
        metrics = {
            "sampler_gap/mean": sum(gaps) / sum(counts),
            "sampler_gap/absolute": sum(absolutes) / sum(counts),
        }
    for k, count in enumerate(counts[:LOGGED_TURNS]):
        if count:
            metrics[f"sampler_gap/turn_{k + 1}"] = gaps[k] / count
            metrics[f"sampler_gap/absolute_turn_{k + 1}"] = absolutes[k] / count
    if counts[0] and sum(counts[1:]):
        growth = sum(absolutes[1:]) / sum(counts[1:]) / max(absolutes[0] / counts[0], GAP_FLOOR)
        metrics |= {"sampler_gap/growth": growth, "sampler_gap/alarm": float(growth > GAP_GROWTH)}
    return metrics


class GapWatch:
    """Warns once if the gap grows with depth in several batches in a row."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._said = False

    def see(self, metrics: dict[str, float]) -> None:
        """Take the metrics of a batch of rollouts; a batch without a second turn neither alarms nor clears."""
        if "sampler_gap/alarm" not in metrics:
            return
        self._in_a_row = self._in_a_row + 1 if metrics["sampler_gap/alarm"] else 0
        if self._in_a_row < ALARMING_BATCHES or self._said:
            return
        self._said = True
        logger.warning(
            f"In {ALARMING_BATCHES} batches in a row, the log-probabilities of sampler and trainer differed "
            f"{metrics['sampler_gap/growth']:.3g} times as much after the first turn as in it (by "
            f"{metrics['sampler_gap/absolute']:.2g} per token on average; see sampler_gap/turn_1 and the following "
            "turns). They read long contexts differently. Give both the same precision, rotary scaling and attention "
            "window (vllm_max_model_length at least as long as the longest rollout; vllm_model_impl='transformers' "
            "runs the trainer's own code in vLLM). Weights per token "
            "(vllm_importance_sampling_mode='token_truncate') tolerate a gap better than weights per rollout."
        )
