"""A2TGPO in which rounding earns credit like any other gain: for a study of gains in 16 bits."""

from dataclasses import replace

from torch import Tensor

from a2tgpo_trl.credit.a2tgpo import OF_A2TGPO, a2tgpo
from a2tgpo_trl.credit.method import Evidence, Switches, method
from a2tgpo_trl.information_gain.rounding import GAIN_FLOOR


@method(**OF_A2TGPO, gain_weight=0.3)
def a2tgpo_no_floor(evidence: Evidence, switches: Switches) -> Tensor:
    """As A2TGPO, with the floor of gains in float32. Clip ranges keep the floor that was measured."""
    return a2tgpo(replace(evidence, gain_floor=GAIN_FLOOR), switches)
