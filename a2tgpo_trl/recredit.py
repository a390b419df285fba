"""records of batches that were trained on -> the same rollouts, as another method would have credited them.

    records = read_places([Path("outputs/quickstart")])          # of a run with record_every
    by_igpo = recredited(records, "igpo")

The records hold everything that a method compares and sums: values, outcomes, how each turn went. So you can compare
methods on one batch without a run of each. The result is what they would do in the first step after these rollouts;
only a run tells what the policy would have become under another method.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from .credit import GAIN_FLOOR, find_method, preset_of
from .credit.credit_pass import CreditPass, CreditSettings, ReadTurns
from .credit.scores import Floor
from .information_gain import information_gain
from .information_gain.rounding import floors_of_gains
from .lookup import nearest
from .recording import credited
from .rollout.records import Record


MEASURES = ("logprob", "probability")
OF_SHAPING = {"shaping_embedding": "auto", "success_reward": 1.0}  # as `A2TGPOConfig` has them
NEEDED = ("step", "group", "turns", "outcome", "outcome_advantage", "advantages")


@dataclass(frozen=True)
class Recorded:
    """What records do not hold of the run that wrote them: three settings, and its metric `gain/floor`."""

    outcome_weight: float = 1.0
    gain_measure: str = "logprob"
    scale_rewards: str = "group"
    gain_floor: float = GAIN_FLOOR

    def __post_init__(self) -> None:
        if self.outcome_weight <= 0:
            raise ValueError(
                "The advantages of outcomes cannot be recovered from records of a run with outcome_weight 0."
            )
        if self.gain_measure not in MEASURES:
            raise ValueError(f"gain_measure must be one of {', '.join(MEASURES)}; got {self.gain_measure!r}.")


class _Rewarding:
    """Stands in for environments whose turn rewards are in the records."""

    turn_reward: float | None = None


def recredited(
    records: Sequence[Mapping[str, Any]],
    credit: str,
    recorded: Recorded | None = None,
    **settings: Any,
) -> list[Record]:
    """Return the records with this method's `advantages`, `scores` and `clip_scale`, sorted by step and group.

    Args:
        records: whole batches of a run without `failure_shaping`, as `record_every` writes them.
        credit: the method, as in `A2TGPOConfig.credit`.
        recorded: settings of the run that wrote them, if they are not the defaults.
        settings: of the method, in place of its paper's values: gain_weight=1.0, turn_rewards={"failed_call": -0.1}.

    Example: two rollouts of a prompt with values [0, 1] and [0, 3], outcome advantages 0 and 1, credit "a2tgpo":
        advantages [-0.3, 0] and [1.3, 1], clip scales [0.861, 1] and [1.139, 1]
    """
    values, recorded = _values(credit, settings), recorded or Recorded()
    values["scale_rewards"] = recorded.scale_rewards
    settings_of_credit = CreditSettings.of(credit, find_method(credit), values)
    return [record for batch in _batches(records) for record in _recredit(batch, settings_of_credit, values, recorded)]


def _values(credit: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The method's settings: its paper's values, except for those that are given."""
    preset = preset_of(find_method(credit))
    known = {**preset.values, **OF_SHAPING}
    unread = preset.unread({**known, **settings})
    for name in settings:
        if name not in known:
            raise ValueError(f"There is no credit setting {name!r}.{nearest(name, known)}")
        if name in unread:
            raise ValueError(f"{name} has no effect with credit={credit!r}.")
    if not isinstance(settings.get("turn_rewards", {}), Mapping):
        raise ValueError("turn_rewards must be a mapping here, such as {'failed_call': -0.1}.")
    return {**known, **settings}


def _batches(records: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Yield the records of each batch of each step, those of a prompt together."""
    for record in records:
        missing = [key for key in NEEDED if key not in record]
        if missing:
            raise ValueError(
                f"A record has no {missing[0]}: this needs records of training, which a run with record_every writes."
            )
    order = sorted(range(len(records)), key=lambda i: _place(records[i]))
    for (_, step, _), batch in groupby(order, key=lambda i: _place(records[i])[:-1]):
        groups = [[records[i] for i in group] for _, group in groupby(batch, key=lambda i: records[i]["group"])]
        sizes = sorted({len(group) for group in groups})
        if len(sizes) > 1:
            raise ValueError(
                f"Groups of step {step} have {' and '.join(map(str, sizes))} rollouts, but methods compare the "
                "rollouts of whole groups. Give all records of a step, from all ranks."
            )
        if any(map(_is_shaped, groups)):
            raise ValueError(
                f"Outcomes of step {step} are shaped (failure_shaping), and the records do not hold the original "
                "ones. Record with another method, or with failure_shaping 0."
            )
        yield [record for group in groups for record in group]


def _place(record: Mapping[str, Any]) -> tuple[str, int, int, int]:
    """Run, step, batch and group; records name the run and the batch if there are several."""
    return str(record.get("read_from", "")), record["step"], record.get("batch", 1), record["group"]


def _is_shaped(group: Sequence[Mapping[str, Any]]) -> bool:
    """Whether rollouts with the same outcome advantage have different outcomes; unrewarded ones do not count."""
    by_advantage: dict[float, set[float]] = {}
    for record in group:
        if record["outcome"] is not None and record["outcome_advantage"] is not None:
            by_advantage.setdefault(record["outcome_advantage"], set()).add(record["outcome"])
    return any(len(outcomes) > 1 for outcomes in by_advantage.values())


def _recredit(
    batch: Sequence[Mapping[str, Any]], settings: CreditSettings, values: Mapping[str, Any], recorded: Recorded
) -> list[Record]:
    copies = [cast(Record, dict(record)) for record in batch]
    group_size = sum(record["group"] == batch[0]["group"] for record in batch)
    credit_pass = _credit_pass(settings, copies)
    read = credit_pass.read(copies, group_size) if credit_pass.reads_records else ReadTurns()
    num_turns = [len(record["advantages"]) for record in copies]  # 0 for a rollout that was left out of the loss
    numbers = [_number(record["outcome"]) for record in copies]
    advantages = [_number(record["outcome_advantage"]) / recorded.outcome_weight for record in copies]
    gains_NK, floors = _gains(copies, values, settings.switches.uses_gain, recorded)
    evidence, _ = credit_pass.evidence(
        read,
        gains_NK,
        torch.tensor(numbers),
        torch.tensor(advantages),
        torch.tensor(num_turns),
        torch.arange(len(copies)) // group_size,
        floors,
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


def _credit_pass(settings: CreditSettings, records: Sequence[Record]) -> CreditPass:
    """The credit pass that a trainer with these settings would use."""
    calls_are_known = all(turn["calls"] is not None for record in records for turn in record["turns"])
    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise ValueError("Records must be credited in a single process, which has all of them.")
    rewarding = any(turn.get("reward") is not None for record in records for turn in record["turns"])
    return CreditPass(
        settings,
        accelerator,
        (),
        [_Rewarding] * rewarding,
        has_tools=calls_are_known,
        has_rollout_func=not calls_are_known,
        splits_models=False,
    )


def _gains(
    records: Sequence[Record], values: Mapping[str, Any], wanted: bool, recorded: Recorded
) -> tuple[Tensor, Floor]:
    """Gains of each turn (N,K) of the rollouts in the loss, in the method's measure, and their floors."""
    most = max([len(record["advantages"]) for record in records] + [1])
    rows = [_values_of(record, wanted) for record in records]
    values_NV = torch.tensor([[*row, *[math.nan] * (most + 1 - len(row))] for row in rows])
    measure = values["gain_measure"]
    if measure != recorded.gain_measure:
        values_NV = values_NV.exp() if measure == "probability" else values_NV.log()
    gains_NK = information_gain(values_NV, most, first=values["first_gain"], last=values["last_gain"])
    return gains_NK, floors_of_gains(values_NV, recorded.gain_floor, measure)


def _values_of(record: Record, wanted: bool) -> list[float]:
    if not wanted or not record["advantages"]:
        return []
    if "values" not in record:
        raise ValueError(
            "A record has no values, but the method reads gains: record a run whose method does too, or with "
            "clip_adaptation above 0."
        )
    return [_number(value) for value in record["values"]]
