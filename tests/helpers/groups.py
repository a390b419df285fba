"""Which groups of a batch, given as numbers, are uninformative."""

from dataclasses import replace

import torch
from near import NAN
from torch import tensor
from torch.nn.functional import pad

from a2tgpo_trl.credit import GAIN_FLOOR, Evidence, find_method, preset_of
from a2tgpo_trl.credit.uninformative import uninformative_groups


def uninformative(
    outcomes,
    gains,
    groups,
    in_loss=None,
    *,
    credit="a2tgpo",
    turn_rewards=None,
    rewards=None,
    gain_floor=GAIN_FLOOR,
    **changes,
):
    """The result of `uninformative_groups` for rollouts with a turn for each gain, followed by an answer turn."""
    outcomes, gains = tensor(outcomes), pad(tensor(gains), (0, 1), value=NAN)
    in_loss = ~outcomes.isnan() if in_loss is None else tensor(in_loss)
    evidence = Evidence(
        gains_NK=gains,
        turn_rewards_NK=torch.full_like(gains, NAN) if turn_rewards is None else tensor(turn_rewards),
        outcomes_N=outcomes if rewards is None else tensor(rewards),
        outcome_advantages_N=outcomes,
        num_turns_N=in_loss * gains.size(1),
        group_ids_N=tensor(groups),
        gain_floor=gain_floor,
    )
    switches = replace(preset_of(find_method(credit)).switches, **changes)
    return uninformative_groups(evidence, lambda it: find_method(credit)(it, switches)).tolist()
