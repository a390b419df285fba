"""what a user asks for, a run's folder -> the checkpoint to resume from, or an error that says which one works."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger

from ..errors import ResumeError
from ..ranks import Ranks
from .folders import LEFT, STATE, TORN, checkpoint, checkpoints_of, set_aside, step_of
from .manifest import NO_MANIFEST, fault, read_manifest
from .same_run import differences, with_defaults
from .state import REFERENCE


logger = get_logger(__name__)


@dataclass(frozen=True)
class Run:
    """A run that is about to begin: what a checkpoint is compared with."""

    folder: Path
    settings: dict[str, Any]
    defaults: dict[str, Any]  # default values of settings
    layout: dict[str, Any]
    allows_changes: bool  # whether it resumes if settings differ
    seeds_rollouts: bool  # whether a rollout depends on its own seed, not on the number of processes
    moves_reference: bool  # whether it has a reference model that follows the policy


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint to resume from. `facts` are those of its manifest: None if plain TRL saved it."""

    folder: Path
    facts: dict[str, Any] | None


class Choice:
    """The checkpoints of a run's folder. All ranks call these methods together."""

    def __init__(self, run: Run, ranks: Ranks):
        self._run, self._ranks = run, ranks
        self._faults = self._find_faults()

    def choose(self, asked: bool | str | None) -> Checkpoint | None:
        """Return the checkpoint to resume from: the latest whole one, or the one named. None: begin a new run."""
        if not asked:
            if self._whole:
                logger.warning(
                    f"{self._run.folder} holds checkpoints of an earlier run, and resume_from_checkpoint=True would "
                    "resume from the latest of all, old or new. Name another output_dir, or remove them."
                )
            return None
        chosen = self._latest() if asked is True else self._named(Path(asked))
        if self._run.moves_reference and not (chosen.folder / REFERENCE).is_file():
            raise ResumeError(
                f"{chosen.folder} holds no reference model for sync_ref_model to resume from: leave sync_ref_model "
                "out."
            )
        if chosen.facts is not None:
            self._check_settings(chosen.folder, chosen.facts)
            self._check_layout(chosen.folder, chosen.facts)
        return chosen

    def _find_faults(self) -> dict[int, str | None]:
        """Return by step, latest first, why a checkpoint is not whole on some rank, or None. Folders may be local."""
        mine = [(step_of(folder), fault(folder)) for folder in checkpoints_of(self._run.folder)]
        found: dict[int, list[str | None]] = {}
        for of_rank in self._ranks.gather_lists(mine):
            for step, why in of_rank:
                found.setdefault(step, []).append(why)
        faults = {}
        for step in sorted(found, reverse=True):
            whys = found[step]
            missing = None if len(whys) == self._ranks.number else "a process cannot find it"
            faults[step] = next((why for why in whys if why is not None), missing)
        return faults

    @property
    def _whole(self) -> list[Path]:
        """The checkpoints that are whole on all ranks, the latest first."""
        return [checkpoint(self._run.folder, step) for step, why in self._faults.items() if why is None]

    def _latest(self) -> Checkpoint:
        run = self._run.folder
        if not self._faults:
            raise ResumeError(
                f"{run} holds no checkpoint to resume from: save_strategy and save_steps say when one is saved."
            )
        if not self._whole:
            seen = "; ".join(f"{checkpoint(run, step).name}: {why}" for step, why in self._faults.items())
            raise ResumeError(
                f"{run} holds no complete checkpoint to resume from ({seen}). Start a new run (overwrite: true, or "
                "another output_dir). A checkpoint saved by plain TRL has no manifest: name it to resume from it "
                "(resume_from_checkpoint: FOLDER)."
            )
        return _read(self._whole[0])

    def _named(self, folder: Path) -> Checkpoint:
        missing = self._ranks.first_text(None if folder.is_dir() else f"there is no folder {folder}")
        if missing is not None:
            raise ResumeError(f"resume_from_checkpoint: {missing}.{self._instead}")
        why = self._ranks.first_text(fault(folder))
        if why is None:
            return _read(folder)
        if why != NO_MANIFEST:
            raise ResumeError(f"{folder} is incomplete: {why}.{self._instead}")
        if not (folder / STATE).is_file():
            raise ResumeError(
                f"{folder} is not a checkpoint, or was cut off while it was written: it has neither a manifest nor a "
                f"{STATE}.{self._instead}"
            )
        logger.warning(
            f"Resuming from {folder} as plain TRL would, because it has no manifest (plain TRL saved it, or it was "
            "cut off): a batch of rollouts that was in use is generated again, and changed files or settings are not "
            "detected."
        )
        return Checkpoint(folder, None)

    @property
    def _instead(self) -> str:
        if self._whole:
            return f" The latest complete checkpoint is {self._whole[0]}."
        return f" {self._run.folder} holds no complete checkpoint."

    # ---- whether it belongs to the same run

    def _check_settings(self, folder: Path, facts: dict[str, Any]) -> None:
        settings = self._run.settings
        changed = differences(with_defaults(facts["settings"], settings, self._run.defaults), settings)
        if not changed:
            return
        found = f"{folder} was saved by a run with different settings: {'; '.join(changed)}."
        if not self._run.allows_changes:
            raise ResumeError(
                f"{found} Restore the old settings, start a new run in another output_dir, or resume anyway "
                "(resume_changed: true)."
            )
        logger.warning(f"{found} Resuming anyway (resume_changed).")

    def _check_layout(self, folder: Path, facts: dict[str, Any]) -> None:
        """Accept another layout only where a new batch of rollouts begins, and if the optimizer can be read."""
        before, now = facts["layout"], self._run.layout
        changed = "; ".join(differences(before, now))
        if not changed:
            return
        unreadable = None
        if before["sharding"] != now["sharding"]:
            unreadable = "the checkpoint is stored in the old layout"
        elif "DeepSpeed" in now["sharding"] and before["processes"] != now["processes"]:
            unreadable = "DeepSpeed stores the optimizer in one part per process"
        if unreadable is not None:
            raise ResumeError(
                f"{folder} was saved by a run with a different layout: {changed}. It cannot be loaded with the new "
                f"one: {unreadable}. Start the run with the old layout."
            )
        if facts["inside_window"]:
            usable = [one for one in self._whole if not (read_manifest(one) or {}).get("inside_window", True)]
            instead = f"or resume from {usable[0]}" if usable else "because no other checkpoint allows a new one"
            raise ResumeError(
                f"{folder} was saved in the middle of a batch of rollouts, which cannot be divided differently: "
                f"{changed}. Start the run with the old layout, {instead}."
            )
        if not self._run.seeds_rollouts:
            logger.warning(
                f"{folder}: {changed}. Rollouts sampled from here on differ from those of a run with the old layout."
            )

    # ---- later checkpoints

    def is_of_run(self, chosen: Checkpoint) -> bool:
        """Whether it is one of the run's own checkpoints, however it was named."""
        return any(chosen.folder.samefile(own) for own in checkpoints_of(self._run.folder))

    def set_later_aside(self, chosen: Checkpoint, moves: bool) -> None:
        """Set later checkpoints aside, so that none is taken for this run's. `moves`: whether this rank does it."""
        self._ranks.wait()  # a slower process may still look at what is moved here
        for step, why in self._faults.items():
            folder = checkpoint(self._run.folder, step)
            if moves and step > step_of(chosen.folder) and folder.is_dir():
                place = set_aside(folder, LEFT if why is None else TORN)
                reason = "is later" if why is None else f"is incomplete ({why})"
                logger.warning(f"{folder} {reason}: renamed to {place.name}. Resuming from {chosen.folder.name}.")
        self._ranks.wait()


def _read(folder: Path) -> Checkpoint:
    facts = read_manifest(folder)
    assert facts is not None
    if facts["weights_alone"]:
        raise ResumeError(
            f"{folder} holds only weights (save_only_model), and without the optimizer no run can resume from it. "
            "Start a new run from these weights (model_name_or_path)."
        )
    return Checkpoint(folder, facts)
