"""gains, turn rewards, outcomes (N,K), groups (N,) -> advantages (N,K) and clip scale (N,K).

scores.py   z-scores, discounted sums, clip scale: what methods are made of
method.py   the signature that methods share, and the settings that a paper gives to one
a2tgpo.py   A2TGPO, and GRPO, GSPO, ATPO and MT-GRPO, which are the same function with other switches
igpo.py     IGPO and its first variant, igpo_joint
gtpo.py     GTPO and the hybrid
methods.py  how one is found by its name
shaping.py  what failed, compared with what passed
uninformative.py  groups of rollouts that leave no turn with an advantage

N rollouts of all ranks, K turns. The docstring of each method works this group of three rollouts out by hand:

    rollout  turns                      gains     turn rewards    outcome   TRL's advantage of it
    a        search, search, answer     1, 2, -   0, 0, 0         1         1.1545
    b        search, answer             3, -      -0.1, 0         0         -0.5773
    c        answer                     -         -0.1            0         -0.5773

TRL's advantage is (outcome - mean) / (sample standard deviation + 1e-4): mean 1/3, deviation 0.57735.
"""

from ..information_gain.rounding import GAIN_FLOOR
from .a2tgpo import a2tgpo_credit
from .method import DEFAULTS, Evidence, Method, Preset, Switches, gain_clip_scale, method, preset_of
from .methods import METHODS, find_method
from .scores import (
    NORMALIZATIONS,
    SCALE_FLOOR,
    VARIANCE_FLOOR,
    clip_scale,
    discounted_sum,
    pooled_zscore,
    turn_group_zscore,
)


__all__ = [
    "DEFAULTS",
    "GAIN_FLOOR",
    "METHODS",
    "NORMALIZATIONS",
    "SCALE_FLOOR",
    "VARIANCE_FLOOR",
    "Evidence",
    "Method",
    "Preset",
    "Switches",
    "a2tgpo_credit",
    "clip_scale",
    "discounted_sum",
    "find_method",
    "gain_clip_scale",
    "method",
    "pooled_zscore",
    "preset_of",
    "turn_group_zscore",
]
