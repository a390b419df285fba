"""log-probs, advantages and clip scale per token (B,T) -> clipped surrogate per token (B,T), before aggregation.

The ratio of a turn is one number, the geometric mean of its tokens' ratios; each token carries it with its own
gradient. Aggregation, KL, entropy and the rest stay with TRL: the trainer gives its parent the old log-probabilities
that make the parent's token ratio this one (`ratio_reference`), and the clip range as a tensor.

Shapes: B rollouts, K turns, T completion tokens.
"""

import torch
from torch import Tensor

from .turns import LOGGED_TURNS, count_turns, to_tokens, turn_means, turn_sums


LOG_RATIO_CAP = 10.0  # as in AT2PO: a ratio never exceeds e^10, and passes no gradient beyond


def mean_log_ratio(logps_BT: Tensor, old_logps_BT: Tensor, turn_BT: Tensor, level: str) -> Tensor:
    """Log-ratio that each token shares with its turn or its sequence, detached and capped; 0 outside a turn.

    Example (level "turn"): log-ratios [0.1, 0.3, 9., 0.5], turns [0, 0, -1, 1] -> [0.2, 0.2, 0, 0.5]
    """
    if level == "turn":
        span_BT, num_spans = turn_BT, count_turns(turn_BT)
    elif level == "sequence":
        span_BT, num_spans = turn_BT.clamp(max=0), 1
    else:
        raise ValueError(f"level must be 'turn' or 'sequence', got {level!r}")
    log_ratio_BT = (logps_BT - old_logps_BT).detach()
    # Tool tokens and padding may hold anything, even inf; they are not part of any mean.
    log_ratio_BT = torch.where(span_BT >= 0, log_ratio_BT, 0.0)
    return to_tokens(turn_means(log_ratio_BT, span_BT, num_spans), span_BT).clamp(max=LOG_RATIO_CAP)


def ratio_reference(logps_BT: Tensor, old_logps_BT: Tensor, turn_BT: Tensor, level: str) -> tuple[Tensor, Tensor]:
    """Log-probs and old log-probs whose *token* ratio has the value and the gradient of the ratio at `level`.

    exp(logps - reference) = exp(mean log-ratio), and d/dlogps of it is itself, token by token. Tokens at the cap come
    back without gradient, which the parent's KL term then lacks as well. Outside a turn the ratio is 1, whatever the
    tokens there hold.
    """
    if level == "token":
        return logps_BT, torch.where(turn_BT >= 0, old_logps_BT, logps_BT.detach())
    mean_BT = mean_log_ratio(logps_BT, old_logps_BT, turn_BT, level)
    capped_BT = mean_BT >= LOG_RATIO_CAP
    return torch.where(capped_BT, logps_BT.detach(), logps_BT), logps_BT.detach() - mean_BT


def turn_policy_loss(
    logps_BT: Tensor,
    old_logps_BT: Tensor,
    advantages_BT: Tensor,
    turn_BT: Tensor,
    clip_scale_BT: Tensor,
    *,
    epsilon_low: float,
    epsilon_high: float,
    level: str = "turn",
) -> Tensor:
    """Clipped surrogate with a separate clip range for each token; 0 outside a turn.

        r = exp(mean over the turn of (logp - old_logp)), gradient per token
        L = -min(r A, clip(r, 1 - c eps_low, 1 + c eps_high) A)

    Args:
        logps_BT, old_logps_BT: log-probabilities of the sampled tokens, now and at sampling.
        advantages_BT, clip_scale_BT: per token, constant over a turn (`to_tokens`).
        turn_BT: turn of each token, -1 for tool tokens and padding (`turn_index`).
        epsilon_low, epsilon_high: width of the clip range at scale 1.
        level: "turn", "token" (GRPO) or "sequence" (GSPO, with gradient per token).

    Example: one turn of two tokens with log-ratios [0, 0.2]: r = exp(0.1) = 1.105 on both; with A = 1, c = 1 and
    eps_high = 0.05 the loss of each is -1.05, with A = -1 it is 1.105.
    """
    new_BT, reference_BT = ratio_reference(logps_BT, old_logps_BT, turn_BT, level)
    in_turn_BT = turn_BT >= 0
    ratio_BT = torch.where(in_turn_BT, new_BT - reference_BT, 0.0).exp()  # before exp: no inf * 0 in the backward
    clipped_BT = torch.clamp(ratio_BT, 1.0 - clip_scale_BT * epsilon_low, 1.0 + clip_scale_BT * epsilon_high)
    loss_BT = -torch.min(ratio_BT * advantages_BT, clipped_BT * advantages_BT)
    return torch.where(in_turn_BT, loss_BT, 0.0)


# ---- metrics of ratios


def clipped_tokens(ratio_BT: Tensor, advantages_BT: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Whether the clip range stops a token: its ratio is outside, on the side to which its advantage pushes it.

    Example: ratios [1.1, 1.1, 0.8, 0.8], advantages [1, -1, 1, -1], a range of 0.05 -> [True, False, False, True]
    """
    return ((ratio_BT < 1 - low) & (advantages_BT < 0)) | ((ratio_BT > 1 + high) & (advantages_BT > 0))


def ratio_sums(
    ratio_BT: Tensor,
    advantages_BT: Tensor,
    low: float | Tensor,
    high: float | Tensor,
    turn_BT: Tensor,
    num_turns: int,
) -> Tensor:
    """Sums over rollouts of each turn's mean ratio, clipped share of tokens and presence: (3,K), to add over ranks."""
    clipped_BT = clipped_tokens(ratio_BT, advantages_BT, low, high)
    present_BK = (turn_sums(torch.ones_like(ratio_BT), turn_BT, num_turns) > 0).to(ratio_BT.dtype)
    return torch.stack(
        [
            turn_means(ratio_BT, turn_BT, num_turns).sum(dim=0),
            turn_means(clipped_BT.to(ratio_BT.dtype), turn_BT, num_turns).sum(dim=0),
            present_BK.sum(dim=0),
        ]
    )


def ratio_metrics(sums_3K: Tensor, clips: bool = True) -> dict[str, float]:
    """Mean ratio and, if the loss clips any, clipped share, over all turns and by turn, from the sums of all ranks."""
    ratios, clipped, counts = sums_3K.tolist()
    metrics = {}
    if sum(counts):
        metrics = {"turn_ratio/mean": sum(ratios) / sum(counts), "clip_fraction/mean": sum(clipped) / sum(counts)}
    for k, count in enumerate(counts[:LOGGED_TURNS]):
        if count:
            metrics[f"turn_ratio/turn_{k + 1}"] = ratios[k] / count
            metrics[f"clip_fraction/turn_{k + 1}"] = clipped[k] / count
    return {name: value for name, value in metrics.items() if clips or not name.startswith("clip_fraction/")}
