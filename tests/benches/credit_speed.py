"""random turns, gains and outcomes -> seconds of the package's way and of loops over tokens, and how they differ.

Both ways compute four things for every token from the mask of sampled tokens and the gains: its turn, its advantage,
and the lower and upper end of its clip range. The loops run twice: over the trainer's tensors, as one would write them
down, and over lists, the fastest thing that Python can loop over, made before the clock starts.

Shapes: N rollouts, K turns, T completion tokens.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from a2tgpo_trl.cli.bench import add_numbers, show, table
from a2tgpo_trl.cli.machine import device_name
from a2tgpo_trl.credit import SCALE_FLOOR, VARIANCE_FLOOR, a2tgpo_credit
from a2tgpo_trl.turns import to_tokens, turn_index


# The paper's values; timings do not depend on them.
ALPHA, GAMMA, BETA = 0.3, 1.0, 0.3
EPSILON_LOW, EPSILON_HIGH = 3e-3, 4e-3
TOLERANCE = 1e-5
LOST_GAINS = 0.05  # share of turns whose probe failed

DTYPES = {int: torch.long, float: torch.float32}

Rows = list[list[float]]
Grid = Any  # N rows of T numbers, as a tensor or as lists: both are read and written as grid[n][t]


@dataclass(frozen=True)
class Case:
    mask_NT: Tensor  # 1 for sampled tokens, as TRL's masks are: int64
    gains_NK: Tensor
    group_ids_N: Tensor
    outcomes_N: Tensor

    def first(self, rollouts: int) -> "Case":
        return Case(*(x[:rollouts] for x in (self.mask_NT, self.gains_NK, self.group_ids_N, self.outcomes_N)))


def make_case(rollouts: int, tokens: int, *, turns: int, group_size: int, seed: int) -> Case:
    """Rollouts of `turns` turns each, of random lengths, with tool results between them and padding after them."""
    spans = 2 * turns
    if tokens < spans:
        raise ValueError(f"--tokens {tokens} are too few for --turns {turns}: {spans} at least, two a turn.")
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(rollouts, spans, generator=generator, dtype=torch.float64) + 0.1
    lengths = 1 + (share / share.sum(dim=1, keepdim=True) * (tokens - spans)).long()
    ends = lengths.cumsum(dim=1)[:, :-1]
    span_NT = torch.zeros(rollouts, tokens, dtype=torch.int64).scatter_(1, ends, 1).cumsum_(dim=1)
    gains_NK = torch.randn(rollouts, turns, generator=generator)
    gains_NK[torch.rand(rollouts, turns, generator=generator) < LOST_GAINS] = torch.nan
    gains_NK[:, -1] = torch.nan  # the answer turn
    outcomes_N = torch.randn(rollouts, generator=generator)
    return Case(span_NT.remainder_(2).eq_(0), gains_NK, torch.arange(rollouts) // group_size, outcomes_N)


# ---- the package's way


def vectorised(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Turn, advantage, and lower and upper end of the clip range of every token (N,T)."""
    turn_NT = turn_index(case.mask_NT)
    advantages_NK, scale_NK = a2tgpo_credit(
        case.gains_NK, case.group_ids_N, case.outcomes_N, alpha=ALPHA, gamma=GAMMA, beta=BETA
    )
    advantages_NT = to_tokens(advantages_NK, turn_NT)
    scale_NT = to_tokens(scale_NK, turn_NT, fill=1.0)
    # In place after the product: newly allocated memory costs more than the arithmetic on it.
    low_NT, high_NT = (scale_NT * -EPSILON_LOW).add_(1.0), (scale_NT * EPSILON_HIGH).add_(1.0)
    return turn_NT, advantages_NT, low_NT, high_NT


# ---- the plain way


def plain(case: Case, mask: Grid, blank: Callable[[type], Grid]) -> tuple[Grid, Grid, Grid, Grid]:
    """The same rules as `vectorised`, one number at a time, to read beside the tensor code."""
    scores = plain_scores(case.gains_NK.tolist(), case.group_ids_N.tolist())
    turns = plain_turns(mask, blank(int))
    advantages, lows, highs = (blank(float) for _ in range(3))
    for n, (outcome, row) in enumerate(zip(case.outcomes_N.tolist(), scores, strict=True)):
        advantage_of_turn = [outcome + ALPHA * d for d in plain_sums(row)]
        scale_of_turn = [1.0 if math.isnan(z) else 1.0 + BETA * (2.0 / (1.0 + math.exp(-z)) - 1.0) for z in row]
        for t, turn in enumerate(turns[n]):
            advantage, scale = (advantage_of_turn[turn], scale_of_turn[turn]) if turn >= 0 else (0.0, 1.0)
            advantages[n][t] = advantage
            lows[n][t] = 1.0 - scale * EPSILON_LOW
            highs[n][t] = 1.0 + scale * EPSILON_HIGH
    return turns, advantages, lows, highs


def plain_turns(mask: Grid, turns: Grid) -> Grid:
    """A turn begins where a sampled token follows one that was not."""
    for n, tokens in enumerate(mask):
        turn, inside = -1, False
        for t, sampled in enumerate(tokens):
            if sampled and not inside:
                turn += 1
            inside = bool(sampled)
            turns[n][t] = turn if inside else -1
    return turns


def over_tensors(case: Case) -> tuple[Callable[[], tuple], str]:
    return lambda: plain(
        case, case.mask_NT, lambda kind: torch.zeros(case.mask_NT.shape, dtype=DTYPES[kind])
    ), "tensors"


def over_lists(case: Case) -> tuple[Callable[[], tuple], str]:
    mask = case.mask_NT.tolist()
    return lambda: plain(case, mask, lambda kind: [[kind()] * len(row) for row in mask]), "lists"


def plain_scores(gains: Rows, groups: list[int]) -> Rows:
    """Scores of gains among those at the same depth of the same prompt; NaN for a missing gain."""
    cells: dict[tuple[int, int], list[float]] = {}
    for row, group in zip(gains, groups, strict=True):
        for turn, gain in enumerate(row):
            if not math.isnan(gain):
                cells.setdefault((group, turn), []).append(gain)

    def score(gain: float, cell: list[float]) -> float:
        mean = sum(cell) / len(cell)
        variance = sum((other - mean) ** 2 for other in cell) / len(cell)
        return (gain - mean) / (math.sqrt(variance + VARIANCE_FLOOR) + SCALE_FLOOR) if len(cell) > 1 else 0.0

    return [
        [gain if math.isnan(gain) else score(gain, cells[group, turn]) for turn, gain in enumerate(row)]
        for row, group in zip(gains, groups, strict=True)
    ]


def plain_sums(scores: list[float]) -> list[float]:
    """Each turn's score and those after it, over the root of their number; 0 for a turn without a score."""
    sums, total, terms = [], 0.0, 0
    for score in reversed(scores):
        if math.isnan(score):
            total *= GAMMA
            sums.append(0.0)
        else:
            total, terms = score + GAMMA * total, terms + 1
            sums.append(total / math.sqrt(terms))
    return sums[::-1]


# ---- timing


@dataclass(frozen=True)
class Comparison:
    """Both ways over the same rollouts."""

    loops_over: str
    rollouts: int
    tokens: int
    plain_seconds: float
    vectorised_seconds: float
    ratio: float
    same_turns: bool
    advantage_difference: float
    range_difference: float

    @property
    def agrees(self) -> bool:
        return self.same_turns and max(self.advantage_difference, self.range_difference) <= TOLERANCE


@dataclass(frozen=True)
class Speed:
    """The vectorised way alone."""

    rollouts: int
    tokens: int
    seconds: float

    @property
    def per_token(self) -> float:
        return self.seconds / (self.rollouts * self.tokens)


def compare(case: Case, run_plain: Callable[[], tuple], loops_over: str, repeats: int) -> Comparison:
    """Check that both ways agree, then time them alternately: medians, and the median ratio of neighbours."""
    same_turns, differences = _differences(vectorised(case), run_plain())
    plain_timings, vectorised_timings = [], []
    for _ in range(repeats):
        plain_timings.append(_seconds(run_plain))
        vectorised_timings.append(_seconds(lambda: vectorised(case)))
    return Comparison(
        loops_over=loops_over,
        rollouts=case.mask_NT.size(0),
        tokens=case.mask_NT.size(1),
        plain_seconds=statistics.median(plain_timings),
        vectorised_seconds=statistics.median(vectorised_timings),
        ratio=statistics.median(p / v for p, v in zip(plain_timings, vectorised_timings, strict=True)),
        same_turns=same_turns,
        advantage_difference=differences[0],
        range_difference=max(differences[1:]),
    )


def speed(case: Case, repeats: int) -> Speed:
    vectorised(case)
    seconds = statistics.median(_seconds(lambda: vectorised(case)) for _ in range(repeats))
    return Speed(case.mask_NT.size(0), case.mask_NT.size(1), seconds)


def _differences(vectorised: tuple[Tensor, ...], plain: tuple[Grid, ...]) -> tuple[bool, list[float]]:
    """Whether the turns are equal, and the largest difference in each of the other results."""
    (turns, plain_turns), *numbers = zip(vectorised, map(torch.as_tensor, plain), strict=True)
    return bool((turns == plain_turns).all()), [(one - other).abs().max().item() for one, other in numbers]


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    del result  # only now, so that neither way is charged for freeing its memory
    return seconds


def describe() -> str:
    return f"{device_name(torch.device('cpu'))}; torch {torch.__version__}"


# ---- the program


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Times credit against the same rules as loops over tokens.")
    numbers = (
        ("--rollouts", 2, 1024, "rollouts in a batch"),
        ("--compared", 2, 64, "of these, compared with loops, which take minutes for many"),
        ("--tokens", 2, 8192, "completion tokens of a rollout, padding included"),
        ("--turns", 1, 7, "turns of a rollout, the answer turn included"),
        ("--group-size", 2, 16, "rollouts of one prompt"),
        ("--repeats", 1, 5, "timings of each way, in turns, after a warm-up"),
        ("--seed", 0, 0, "of masks, gains and outcomes"),
    )
    add_numbers(parser, numbers)
    args = parser.parse_args(words)
    sizes = {"turns": args.turns, "group_size": args.group_size, "seed": args.seed}
    part = make_case(args.rollouts, args.tokens, **sizes).first(args.compared)
    comparisons = [
        compare(part, *over_tensors(part), repeats=1),  # long, so once is enough
        compare(part, *over_lists(part), repeats=args.repeats),
    ]
    speeds = [speed(make_case(args.rollouts, times * args.tokens, **sizes), args.repeats) for times in (1, 2, 4)]
    show(describe())
    show(_comparison_table(comparisons, args.turns))
    show("The vectorised way alone, as rollouts get longer:")
    show(_speed_table(speeds))
    agree = all(comparison.agrees for comparison in comparisons)
    if not agree:
        print("The ways disagree.", file=sys.stderr)
    return 0 if agree else 1


def _comparison_table(comparisons: list[Comparison], turns: int):
    heads = ["loops\nover", "rollouts", "tokens", "turns", "loops\ns", "vectorised\ns", "loops /\nvectorised"]
    heads += ["turn index", "advantages\ndiffer by", "clip ranges\ndiffer by"]
    lines = [
        [
            *map(str, (found.loops_over, found.rollouts, found.tokens, turns)),
            f"{found.plain_seconds:.4g}",
            f"{found.vectorised_seconds:.4g}",
            f"{found.ratio:.1f}",
            "equal" if found.same_turns else "differs",
            f"{found.advantage_difference:.1e}",
            f"{found.range_difference:.1e}",
        ]
        for found in comparisons
    ]
    return table(heads, lines)


def _speed_table(speeds: list[Speed]):
    first = speeds[0]
    lines = [
        [
            *map(str, (speed.rollouts, speed.tokens)),
            f"{speed.seconds:.4g}",
            f"{speed.per_token * 1e9:.2f}",
            f"{speed.per_token / first.per_token:.2f}",
        ]
        for speed in speeds
    ]
    return table(["rollouts", "tokens", "vectorised\ns", "ns\na token", "a token,\nto the first"], lines)


if __name__ == "__main__":
    sys.exit(main())
