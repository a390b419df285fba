"""recorded rollouts -> weights of turn rewards, as a YAML file that a recipe names (`turn_rewards: FILE`)."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ..credit.calibration import Kind


FEW = 300  # the standard error of a correlation near 0 is 1 / sqrt(number)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rollouts", nargs="+", type=Path, help="what a2tgpo eval and a2tgpo train wrote (.jsonl)")
    parser.add_argument("-o", "--output", type=Path, default=Path("turn_rewards.yaml"), help="default: %(default)s")
    parser.add_argument("--success", metavar="REWARD", help="reward that tells who passed; default: the first")
    parser.add_argument("--passing", type=float, default=1.0, help="its least value; default: %(default)s")
    parser.add_argument("--scale", type=float, default=0.2, help="weight of correlation 1; default: %(default)s")
    parser.add_argument("--threshold", type=float, default=0.1, help="least correlation; default: %(default)s")
    parser.add_argument("--kinds", nargs="+", default=[], metavar="PATH", help="functions of yours (file.py:function)")
    parser.add_argument("--credit", default="hybrid", help="method to check signs with; default: %(default)s")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from ..credit import find_method, preset_of
    from ..credit.calibration import calibrate
    from ..credit.shaping import has_passed
    from ..credit.turn_rewards import KINDS, find

    if args.scale <= 0 or not 0 <= args.threshold <= 1:
        raise ValueError("--scale must be above 0, and --threshold between 0 and 1.")
    records = _read(args.rollouts)
    success = args.success or next(iter(records[0]["rewards"]))
    if success not in records[0]["rewards"]:
        raise ValueError(f"--success {success}: the rollouts have {', '.join(records[0]['rewards'])}.")
    scored = [record for record in records if record["rewards"].get(success) is not None]
    if not scored:
        raise ValueError(f"None of the rollouts was scored by {success}.")
    kinds = {name: kind for name, kind in KINDS.items() if name != "environment"}  # which has numbers of its own
    kinds |= {name: find(name, [Path.cwd()]) for name in args.kinds}
    method = find_method(args.credit)

    def passed(record: dict[str, Any]) -> bool:
        return has_passed(record["rewards"][success], args.passing)

    found = calibrate(
        scored,
        kinds,
        method,
        preset_of(method).switches,
        passed=passed,
        scale=args.scale,
        threshold=args.threshold,
    )
    share = sum(map(passed, scored)) / len(scored)
    if len(scored) < FEW:
        print(
            f"{len(scored)} rollouts tell little: of {FEW} and more, correlations are known to about 0.1 either way."
        )
    Console().print(_table(found, f"{len(scored)} rollouts, {share:.0%} with {success} of {args.passing:g}"))
    if all(kind.mean_advantage is None for kind in found):
        print("Each prompt was rolled out once, so signs could not be checked: record several (num_generations_eval).")
    args.output.write_text(_as_yaml(found, args.rollouts, len(scored), share))
    print(args.output)
    return 0


def _read(files: Sequence[Path]) -> list[dict[str, Any]]:
    from ..rollout.records import read_jsonl

    for file in files:
        if not file.is_file():
            raise ValueError(f"There is no file {file}. a2tgpo eval writes rollouts.jsonl, a2tgpo train before.jsonl.")
    # Files may be of different policies, whose rollouts are no group.
    records = [{**record, "file": str(file)} for file in files for record in read_jsonl(file)]
    if not any(record.get("turns") for record in records):
        raise ValueError("These rollouts have no turns on record: they are of no policy with tools.")
    if any("made" not in call for r in records for turn in r.get("turns", ()) for call in turn["calls"] or ()):
        raise ValueError("These rollouts are of an earlier version, which recorded less of their calls.")
    return records


def _table(kinds: "Sequence[Kind]", title: str) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("kind of turn")
    for column in ("rollouts", "correlation", "weight", "mean advantage", "remark"):
        table.add_column(column, justify="right")
    for kind in kinds:
        cells = [_number(kind.correlation), _number(kind.weight), _number(kind.mean_advantage)]
        table.add_row(kind.name, str(kind.rollouts), *cells, "left out: credited against it" if kind.left_out else "")
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def _as_yaml(kinds: "Sequence[Kind]", files: Sequence[Path], number: int, share: float) -> str:
    lines = [
        f"# Weights of turn rewards, from {number} rollouts of which {share:.0%} passed: {', '.join(map(str, files))}",
        "# In a recipe: turn_rewards: this file. Behind each: correlation with success, mean advantage of such turns.",
        "turn_rewards:" if any(kind.weight for kind in kinds) else "turn_rewards: {}",
    ]
    for kind in kinds:
        known = f"{_number(kind.correlation) or 'none'}, {_number(kind.mean_advantage) or 'not compared'}"
        if kind.weight:
            lines.append(f"  {kind.name!r}: {kind.weight:.4f} # {known}")
        elif kind.left_out:
            lines.append(f"  # {kind.name!r}: left out, for its turns would be credited against its weight. {known}")
    return "\n".join(lines) + "\n"
