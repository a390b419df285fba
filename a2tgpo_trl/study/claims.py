"""results of a study -> what the paper of A2TGPO claims, and whether it held here. For cells of these names.

A claim about means has held, or not, where the 95 % interval over five seeds or more leaves no doubt.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from ..report.scores import Estimate
from ..report.seeds import over_seeds
from .comparison import FEWEST, differences, paired, verdict
from .figures import by_depth, drift
from .results import Results
from .study import Run, Study


A2TGPO, UNSCALED = "a2tgpo", "a2tgpo_unscaled"
NO_GAIN = "_no_gain"  # at the end of the name of a cell that is another without gains
LEVEL = 0.1  # what a drift of z-scores, in deviations, is at most that is none
TINY = 1e-3  # a deviation of credit below it is none
HELD, NOT_HELD, NOT_DECIDED = "held", "not held", "not decided"

Runs = Mapping[str, Sequence[Run]]
Claim = tuple[str, str, str]  # what is claimed, what was found, whether it held


def claims(study: Study, results: Results, runs: Runs) -> Iterator[Claim]:
    if A2TGPO in runs:
        for other in ("grpo", "igpo"):
            yield from _better(study, results, runs, A2TGPO, other, f"A2TGPO is better than {other}")
    for cell in runs:
        claim = f"gains are what helps: {cell} is better than the same without them"
        yield from _better(study, results, runs, cell, cell + NO_GAIN, claim)
    if A2TGPO in runs:
        yield from _drift(results, runs)
        yield from _level(results, runs)
        yield from _follows(results, runs)


def _better(study: Study, results: Results, runs: Runs, cell: str, other: str, claim: str) -> Iterator[Claim]:
    """Where both have runs of the same seeds."""
    if pairs := differences(study, results, runs[cell], runs.get(other, ())):
        found = over_seeds(pairs)
        held = {"better": HELD, "worse": NOT_HELD}.get(verdict(found), NOT_DECIDED)
        yield claim, f"area, less that of {other}: {found}", held


def _drift(results: Results, runs: Runs) -> Iterator[Claim]:
    """Means of z-scores by turn: none where turns are compared at their depth."""
    drifts = {cell: drift(results, runs[cell], "scores") for cell in (A2TGPO, "igpo") if cell in runs}
    found = {cell: one for cell, one in drifts.items() if one is not None}
    if A2TGPO in found:
        text = ", ".join(f"{cell} {one}" for cell, one in found.items())
        yield (
            "turn groups make turns comparable: the mean z-score is the same at all depths (by construction, but for "
            "what rounding explains)",
            f"largest difference between depths: {text}",
            _at_most(found[A2TGPO], LEVEL),
        )


def _level(results: Results, runs: Runs) -> Iterator[Claim]:
    """Deviations of credit by turn: more alike where sums are divided by the root of their number of terms."""
    ratios = {cell: _levels(results, runs[cell], "credit") for cell in (A2TGPO, UNSCALED) if cell in runs}
    if not ratios[A2TGPO]:
        return
    text = ", ".join(f"{cell} {over_seeds(list(found.values()))}" for cell, found in ratios.items() if found)
    of_scores = list(_levels(results, runs[A2TGPO], "scores").values())
    before = f" (of z-scores, before they are summed, {over_seeds(of_scores)})" if of_scores else ""
    less = [ratio - other for ratio, other in paired(ratios[A2TGPO], ratios.get(UNSCALED, {}))]
    held = {"worse": HELD, "better": NOT_HELD}.get(verdict(over_seeds(less)), NOT_DECIDED) if less else NOT_DECIDED
    claim = f"the square root keeps credit more level over depth (decided against {UNSCALED})"
    yield claim, f"largest deviation by the smallest: {text}{before}", held


def _levels(results: Results, runs: Sequence[Run], name: str) -> dict[int, float]:
    """Of each seed, the largest deviation of a depth by the smallest."""
    depths = {run.seed: by_depth(results, run, name, "std") for run in runs}
    return {seed: _widest_by_smallest(heights.values()) for seed, heights in depths.items() if len(heights) > 1}


def _follows(results: Results, runs: Runs) -> Iterator[Claim]:
    curves = [results.curve(run, "useful/auc/clip_scale") for run in runs[A2TGPO]]
    values = [float(np.mean([value for _, value in curve])) for curve in curves if curve]
    if values:
        found = over_seeds(values)
        yield (
            "adaptive clipping follows informative turns",
            f"a search of use has the wider clip range with a chance of {found}",
            _above_a_coin(found),
        )


def _above_a_coin(found: Estimate) -> str:
    if found.number < FEWEST or found.low <= 0.5 <= found.high:
        return NOT_DECIDED
    return HELD if found.low > 0.5 else NOT_HELD


def _widest_by_smallest(deviations: Collection[float]) -> float:
    return max(deviations) / max(min(deviations), TINY)


def _at_most(found: Estimate, most: float) -> str:
    if found.number < FEWEST or found.low <= most < found.high:
        return NOT_DECIDED
    return HELD if found.high <= most else NOT_HELD
