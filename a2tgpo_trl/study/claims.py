"""results of a study -> what the paper of A2TGPO claims, and whether it held here, for cells of these names.

Whether a cell is better is judged together with all differences of the report (`comparison.py`). Any other claim has
held, or not, only if the 95 % interval over five seeds or more leaves no doubt.
"""

from collections.abc import Collection, Iterator, Mapping

from ..report.scores import Estimate
from ..report.seeds import over_seeds
from ..turns import LOGGED_TURNS
from .averages import AUC, TURN, auc_over_runs, by_depth, of_all
from .comparison import FEWEST, NOT_DECIDED, Difference, Pair, Runs, paired
from .figures import A2TGPO, OTHERS, drift
from .results import Results


NO_GAIN, UNSCALED = "_no_gain", "_unscaled"  # suffixes of the names of cells without that part
LEVEL = 0.1  # drifts of z-scores up to this, in deviations, count as none
TINY = 1e-3  # deviations of credit below this count as this
HELD, NOT_HELD = "held", "not held"

Claim = tuple[str, str, str]  # what is claimed, what was found, whether it held


def claims(results: Results, runs: Runs, found: Mapping[Pair, Difference]) -> Iterator[Claim]:
    """Yield the claims; `found` has the differences of `claimed_better`."""
    for pair, claim in claimed_better(runs).items():
        if pair in found:
            held = {"better": HELD, "worse": NOT_HELD}.get(found[pair].verdict, NOT_DECIDED)
            yield claim, f"area, less that of {pair[1]}: {found[pair].area}", held
    for cell in A2TGPO:
        if cell in runs:
            yield from _drift(results, runs, cell)
            yield from _level(results, runs, cell)
            yield from _follows(results, runs, cell)


def claimed_better(cells: Collection[str]) -> dict[Pair, str]:
    """Return the pairs of these cells whose first is claimed to be better, each with the claim."""
    better = {(cell, other): f"{cell} is better than {other}" for cell in A2TGPO for other in OTHERS}
    gains = {(cell, cell + NO_GAIN): f"gains help: {cell} is better than the same without them" for cell in cells}
    return {pair: claim for pair, claim in {**better, **gains}.items() if {*cells} >= {*pair}}


def _drift(results: Results, runs: Runs, cell: str) -> Iterator[Claim]:
    """Differences between mean z-scores by turn; none if turns are compared with those at the same depth."""
    drifts = {name: drift(results, runs[name], "scores") for name in (cell, "igpo") if name in runs}
    found = {name: one for name, one in drifts.items() if one is not None}
    if cell in found:
        text = ", ".join(f"{name} {one}" for name, one in found.items())
        yield (
            "turn groups make turns comparable: the mean z-score is the same at all depths (by construction, up to "
            "rounding)",
            f"largest difference between depths: {text}",
            _at_most(found[cell], LEVEL),
        )


def _level(results: Results, runs: Runs, cell: str) -> Iterator[Claim]:
    """Deviations of credit by turn; more alike if sums are divided by the root of their number of terms."""
    unscaled = cell + UNSCALED
    ratios = _levels(results, {name: runs[name] for name in (cell, unscaled) if name in runs}, "credit")
    if not ratios[cell]:
        return
    text = ", ".join(f"{name} {over_seeds(list(found.values()))}" for name, found in ratios.items() if found)
    of_scores = list(_levels(results, {cell: runs[cell]}, "scores")[cell].values())
    before = f" (for z-scores before they are summed: {over_seeds(of_scores)})" if of_scores else ""
    less = [ratio - other for ratio, other in paired(ratios[cell], ratios.get(unscaled, {}))]
    held = _side_of(over_seeds(less), 0.0, below=HELD, above=NOT_HELD) if less else NOT_DECIDED
    claim = f"the square root keeps credit more level over depth (decided against {unscaled})"
    yield claim, f"largest standard deviation of a depth, divided by the smallest: {text}{before}", held


def _levels(results: Results, runs: Runs, name: str) -> dict[str, dict[int, float]]:
    """For each cell and seed, the largest deviation divided by the smallest, of the depths that all runs have."""
    found = {
        cell: {run.seed: heights for run in of_cell if (heights := by_depth(results, run, name, "std"))}
        for cell, of_cell in runs.items()
    }
    of_runs = [{*heights} for by_seed in found.values() for heights in by_seed.values()]
    shared = set.intersection(*of_runs) if of_runs else set()
    if len(shared) < 2:
        return {cell: {} for cell in runs}
    return {
        cell: {seed: _widest_by_smallest([heights[place] for place in shared]) for seed, heights in by_seed.items()}
        for cell, by_seed in found.items()
    }


def _follows(results: Results, runs: Runs, cell: str) -> Iterator[Claim]:
    """By turn, since late turns alone can carry the chance over all of them."""
    of_cell, name, found = runs[cell], "clip_scale", {}
    for turn in range(1, LOGGED_TURNS + 1):
        chance = auc_over_runs(results, of_cell, name, part := f"{TURN}{turn}")
        if chance is not None and of_all(results, of_cell, f"{AUC}{name}{part}"):
            found[turn] = chance
    sides = {turn: _side_of(chance, 0.5, below=NOT_HELD, above=HELD) for turn, chance in found.items()}
    if found:
        text = ", ".join(f"{chance} at turn {turn}" for turn, chance in found.items())
        yield (
            "adaptive clipping follows informative turns",
            f"{cell}: a useful search has a wider clip range than a useless one with a chance of {text}",
            _together(sides),
        )


def _together(sides: Mapping[int, str]) -> str:
    """One verdict for all turns. Example: held at turns 1 and 2, not decided at 3 -> "held at turns 1, 2 only" """
    if len({*sides.values()}) == 1:
        return next(iter(sides.values()))
    held = [turn for turn, side in sides.items() if side == HELD]
    if not held:
        return NOT_HELD
    return f"{HELD} at turn{'s' * (len(held) > 1)} {', '.join(map(str, held))} only"


def _side_of(found: Estimate, point: float, below: str, above: str) -> str:
    """`below` or `above`, if the interval lies clearly on one side of the point."""
    if found.number < FEWEST or found.low <= point <= found.high:
        return NOT_DECIDED
    return above if found.low > point else below


def _widest_by_smallest(deviations: Collection[float]) -> float:
    return max(deviations) / max(min(deviations), TINY)


def _at_most(found: Estimate, most: float) -> str:
    if found.number < FEWEST or found.low <= most < found.high:
        return NOT_DECIDED
    return HELD if found.high <= most else NOT_HELD
