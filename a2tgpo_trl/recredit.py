"""records of batches that were trained on -> the same rollouts, as another method would have credited them.

    records = read_places([Path("outputs/quickstart")])          # of a run with record_every
    by_igpo = recredited(records, "igpo")

What a method compares and sums up is in the records: values, outcomes, how each turn went. So methods can be seen side
by side on one batch, without a run of each. That is what they would do in the first step after these rollouts; what
the policy would have become under another method, only a run tells.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import groupby
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from .credit import DEFAULTS, GAIN_FLOOR, Switches, find_method, preset_of
from .credit.credit_pass import CreditPass, CreditSettings
from .information_gain import information_gain
from .lookup import nearest
from .recording import credited
from .rollout.records import Record


OF_SHAPING = {"shaping_embedding": "auto", "success_reward": 1.0}  # as `A2TGPOConfig` has them
NEEDED = ("step", "group", "turns", "outcome", "outcome_advantage", "advantages")


def recredited(
    records: Sequence[Mapping[str, Any]],
    credit: str,
    *,
    outcome_weight: float = 1.0,
    gain_measure: str = "logprob",
    gain_floor: float = GAIN_FLOOR,
    **settings: Any,
) -> list[Record]:
    """The records, with `advantages`, `scores` and `clip_scale` of this method; by step and group, in their order.

    Args:
        records: whole batches of a run without `failure_shaping`, as `record_every` writes them.
        credit: the method, as in `A2TGPOConfig.credit`.
        outcome_weight, gain_measure: of the run that wrote the records.
        gain_floor: what its gains differ by through rounding (`gain/floor` in its log).
        settings: the method's own, over its paper's values: gain_weight=1.0, turn_rewards={"failed_call": -0.1}.

    Example: two rollouts of a prompt with values [0, 1] and [0, 3], outcome advantages 0 and 1, credit "a2tgpo":
        advantages [-0.3, 0] and [1.3, 1], clip scales [0.861, 1] and [1.139, 1]
    """
    values = _values(credit, settings)
    if outcome_weight <= 0:
        raise ValueError(
            "outcome_weight: what outcomes were worth to a run that gave them no weight is not on record."
        )
    return [
        record
        for batch in _batches(records)
        for record in _recredit(batch, credit, values, outcome_weight, gain_measure, gain_floor)
    ]


def _values(credit: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the method's settings are: its paper's, but for those that are given."""
    preset = preset_of(find_method(credit))
    known = {**preset.values, **OF_SHAPING}
    for name in settings:
        if name not in known:
            raise ValueError(f"There is no setting {name!r} of credit.{nearest(name, known)}")
        if name in preset.without_effect:
            raise ValueError(f"{name} has no effect with credit={credit!r}.")
    return {**known, **settings}


def _batches(records: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """The records of each step, those of a prompt together."""
    for record in records:
        missing = [key for key in NEEDED if key not in record]
        if missing:
            raise ValueError(
                f"A record has no {missing[0]}: it takes those of training, which a run with record_every writes."
            )
    in_order = sorted(records, key=lambda record: (record["step"], record["group"]))
    for step, batch in groupby(in_order, key=lambda record: record["step"]):
        found = list(batch)
        sizes = {len(list(group)) for _, group in groupby(found, key=lambda record: record["group"])}
        if len(sizes) > 1:
            raise ValueError(
                f"Groups of step {step} have {' and '.join(map(str, sorted(sizes)))} rollouts: methods compare those "
                "of whole groups. Give all records of a step, of all ranks, and of a step's batches one at a time."
            )
        yield found


def _recredit(
    batch: Sequence[Mapping[str, Any]],
    credit: str,
    values: Mapping[str, Any],
    outcome_weight: float,
    gain_measure: str,
    gain_floor: float,
) -> list[Record]:
    copies = [cast(Record, dict(record)) for record in batch]
    group_size = sum(record["group"] == batch[0]["group"] for record in batch)
    credit_pass = _credit_pass(credit, values, copies)
    if credit_pass.reads_records:
        credit_pass.read(copies, group_size)
    num_turns = [len(record["advantages"]) for record in copies]  # 0 of a rollout that was left out of the loss
    numbers = [_number(record["outcome"]) for record in copies]
    advantages = [_number(record["outcome_advantage"]) / outcome_weight for record in copies]
    evidence, _ = credit_pass.evidence(
        _gains(copies, values, gain_measure),
        torch.tensor(numbers),
        torch.tensor(advantages),
        torch.tensor(num_turns),
        torch.arange(len(copies)) // group_size,
        gain_floor,
    )
    of_turns = {
        "advantages": credit_pass.advantages(evidence),
        "scores": credit_pass.scores(evidence),
        "clip_scale": credit_pass.clip_scale(evidence),
    }
    outcomes = evidence.outcomes_N.tolist()
    return [
        credited(
            record,
            outcomes[i],
            values["outcome_weight"] * advantages[i],
            {name: values_NK[i] for name, values_NK in of_turns.items()},
            num_turns[i],
        )
        for i, record in enumerate(copies)
    ]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _credit_pass(credit: str, values: Mapping[str, Any], records: Sequence[Record]) -> CreditPass:
    """What a trainer with these settings would credit by."""
    method = find_method(credit)
    switches = Switches(**{one.name: values[one.name] for one in fields(Switches) if one.name in DEFAULTS})
    reads_states = preset_of(method).needs_states or values["gain_groups"] == "state"
    calls_are_known = all(turn["calls"] is not None for record in records for turn in record["turns"])
    settings = CreditSettings(
        name=credit,
        method=method,
        switches=switches,
        turn_rewards=values["turn_rewards"],
        failure_shaping=values["failure_shaping"],
        shaping_embedding=values["shaping_embedding"],
        success_reward=values["success_reward"],
        state_likeness=values["state_likeness"] if reads_states else None,
    )
    return CreditPass(
        settings,
        Accelerator(),
        (),
        (),
        has_tools=calls_are_known,
        has_rollout_func=not calls_are_known,
        splits_models=False,
    )


def _gains(records: Sequence[Record], values: Mapping[str, Any], gain_measure: str) -> Tensor:
    """Of each turn (N,K), of the rollouts in the loss, as the method measures them."""
    most = max([len(record["advantages"]) for record in records] + [1])
    wants = values["gain_weight"] > 0 or values["clip_adaptation"] > 0
    rows = [_values_of(record, wants) for record in records]
    values_NV = torch.tensor([[*row, *[math.nan] * (most + 1 - len(row))] for row in rows])
    if gain_measure != values["gain_measure"]:
        values_NV = values_NV.exp() if gain_measure == "logprob" else values_NV.log()
    return information_gain(values_NV, most, first=values["first_gain"], last=values["last_gain"])


def _values_of(record: Record, wanted: bool) -> list[float]:
    if not wanted or not record["advantages"]:
        return []
    if "values" not in record:
        raise ValueError(
            "A record has no values, and the method reads gains: have them recorded by a run whose method does, or "
            "with clip_adaptation above 0."
        )
    return [_number(value) for value in record["values"]]
