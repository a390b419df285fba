"""model-token mask (B,T) -> turn index (B,T); values per turn (B,K) <-> values per token (B,T).

A turn is one assistant generation together with the tool results that answer it. Turns are read from the mask of
sampled tokens, never from text: a run of model tokens is a turn, whatever it says and however many calls it makes.

Shapes: B rollouts, K turns, T completion tokens.
"""

import torch
from torch import Tensor


LOGGED_TURNS = 8  # this many of the first turns have their own metrics


def turn_index(model_token_mask_BT: Tensor) -> Tensor:
    """Number the turns of each rollout: 0, 1, ... on model tokens, -1 on tool tokens and padding.

    Multiply TRL's `completion_mask` with its `tool_mask` before calling: the latter is padded with ones.

    Example:
        mask  1 1 0 0 1 0      two turns, each answered by a tool
        turn  0 0 -1 -1 1 -1
    """
    model_BT = model_token_mask_BT.bool()
    starts_BT = model_BT.clone()
    starts_BT[:, 1:] &= ~model_BT[:, :-1]
    # A narrow count, widened at the end: for large batches memory traffic dominates this function.
    count = torch.int16 if model_BT.size(1) < 2**15 else torch.int32
    return starts_BT.cumsum(dim=1, dtype=count).mul_(model_BT).sub_(1).long()


def to_tokens(values_BK: Tensor, turn_BT: Tensor, fill: float = 0.0) -> Tensor:
    """Give each token the value of its turn, and `fill` to tokens that belong to none.

    Example: values [[5., 7.]], turn [[0, 0, -1, 1]] -> [[5., 5., 0., 7.]]
    """
    filled_BK = torch.cat([values_BK, values_BK.new_full((values_BK.size(0), 1), fill)], dim=1)
    rows_B1 = torch.arange(turn_BT.size(0), device=turn_BT.device).unsqueeze(1)
    return filled_BK[rows_B1, turn_BT]  # index -1 is the appended column


def turn_sums(values_BT: Tensor, turn_BT: Tensor, num_turns: int) -> Tensor:
    """Sum the tokens of each turn: (B,T) -> (B,K). Tokens outside a turn are not counted."""
    sums = values_BT.new_zeros(values_BT.size(0), num_turns + 1)
    return sums.scatter_add(1, turn_BT + 1, values_BT)[:, 1:]


def turn_means(values_BT: Tensor, turn_BT: Tensor, num_turns: int) -> Tensor:
    """Average the tokens of each turn: (B,T) -> (B,K), 0 for a turn a rollout does not have."""
    tokens_BK = turn_sums(torch.ones_like(values_BT), turn_BT, num_turns)
    return turn_sums(values_BT, turn_BT, num_turns) / tokens_BK.clamp(min=1.0)


def count_turns(turn_BT: Tensor) -> int:
    """The largest number of turns of any rollout, at least 1 so that every per-turn tensor has a column."""
    return max(int(turn_BT.max()) + 1, 1) if turn_BT.numel() else 1


def seen_before_turns(model_token_mask: list[int]) -> list[int]:
    """How many completion tokens the policy had seen before each turn, and after the last one if a tool answered it.

    These are the places at which the value of a rollout is taken. Consecutive differences are the gains: a turn that
    no tool answered (the answer turn, or a turn cut off) closes no interval and has no gain.

    Example:
        1 1 0 0 1     [0, 4]        a tool turn, then the answer turn
        1 1 0 0       [0, 4]        cut off right after the tool result
        1 1 0 0 1 0   [0, 4, 6]
        1 1           [0]           no tool call
        (empty)       [0]
    """
    mask = [bool(token) for token in model_token_mask]
    seen = [i for i, token in enumerate(mask) if token and (i == 0 or not mask[i - 1])]
    if seen and not mask[-1]:
        seen.append(len(mask))
    return seen or [0]


# ---- metrics of turns


def mean_metric(name: str, values: Tensor) -> dict[str, float]:
    """The mean of the values that are not NaN; no entry if there are none.

    Example: "gain/mean", [1, nan, 2] -> {"gain/mean": 1.5}; [nan] -> {}
    """
    values = values[~values.isnan()]
    return {name: values.mean().item()} if values.numel() else {}


def turn_metrics(num_turns_N: Tensor) -> dict[str, float]:
    """How many turns the policy takes, over the rollouts that are in the loss."""
    if not len(num_turns_N):
        return {}
    turns = num_turns_N.float()
    return {"turns/mean": turns.mean().item(), "turns/max": turns.max().item()}
