"""a trainer between two steps -> what TRL's checkpoint leaves out -> the same trainer, in another process.

TRL saves weights, optimizer, scheduler, random states and the trainer's log. Beside them each rank saves here what the
next steps depend on as well: the batch of rollouts that several steps train on, how far it is used up, and the metrics
since the last line of the log; and the main process a reference model that follows the policy.
"""

import errno
import hashlib
import json
import math
import os
import random
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from accelerate.logging import get_logger
from accelerate.utils import send_to_device, set_seed
from safetensors import SafetensorError
from transformers import TrainerCallback

from ..errors import RunStopped
from ..ranks import Ranks
from .checkpoints import (
    LEFT,
    MANIFEST,
    STATE,
    TORN,
    ResumeError,
    checkpoint,
    checkpoints_of,
    fault,
    files_of,
    read_manifest,
    remove_checkpoint,
    set_aside,
    step_of,
    surplus,
    write_manifest,
)
from .own_files import OwnFiles
from .same_run import differences, layout_of, settings_of


if TYPE_CHECKING:
    from ..trainer import A2TGPOTrainer

logger = get_logger(__name__)

OF_A_RANK = "rank_{}.pt"
REFERENCE = "reference_model.pt"
# An error of writing: of the system, and of torch, which has no class of its own for it.
NO_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
WRITING_FAILED = ("PytorchStreamWriter", "inline_container", "unexpected pos")


class Draws:
    """The states of all random number generators of a process, at one moment."""

    def __init__(self, device: torch.device):
        self._device = device
        self._python, self._numpy, self._cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._accelerator = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)

    def again(self) -> None:
        """What is drawn from now on is what was drawn from that moment on."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._cpu)
        if self._accelerator is not None:
            torch.get_device_module(self._device).set_rng_state(self._accelerator, self._device)


class Border:
    """A trainer between two steps: what a checkpoint saved later has to say instead of what is then."""

    def __init__(self, trainer: "A2TGPOTrainer", draws: Draws):
        self.state = state_of(trainer)
        self.tokens_seen = trainer.state.num_input_tokens_seen
        self.draws = draws


def state_of(trainer: "A2TGPOTrainer") -> dict[str, Any]:
    """What the next steps of this rank depend on, and TRL does not save. Tensors, numbers and text alone."""
    every = trainer.args.steps_per_generation * trainer.num_iterations
    gain_pass = trainer._gain_pass
    return {
        "micro_step": trainer._step,
        # At the end of a window the batch is used up.
        "batch": trainer._buffered_inputs if trainer._step % every else None,
        "metrics": {name: [float(v) for v in values] for name, values in trainer._metrics["train"].items()},
        "loss": trainer._tr_loss.detach().clone(),
        "last_logged": trainer._globalstep_last_logged,
        "completions": _plain(trainer._logs) if trainer.accelerator.is_main_process else None,
        "packing": None if gain_pass is None else [gain_pass.packing, gain_pass.packing_tried],
    }


def _plain(logs: Any) -> Any:
    """Deques as lists, at any depth."""
    if isinstance(logs, dict):
        return {name: _plain(values) for name, values in logs.items()}
    return list(logs) if isinstance(logs, deque) else logs


class Checkpoints(TrainerCallback):
    """Saves what a run can go on from, and goes on from it. All methods are called by all ranks together."""

    def __init__(self, trainer: "A2TGPOTrainer"):
        self._trainer, self._ranks = trainer, Ranks(trainer.accelerator)
        self._settings: dict[str, Any] = {}
        self._layout: dict[str, Any] = {}
        self._border: Border | None = None  # where the step or the evaluation that is under way has begun
        self._from: Path | None = None
        self._facts: dict[str, Any] = {}
        self._saved: int | None = None
        self._draws: Draws | None = None  # as the last step has left them: a new epoch draws before a step begins
        sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
        if trainer.args.sync_ref_model and sharded and trainer.args.save_strategy != "no":
            raise ValueError(
                "sync_ref_model moves the reference model, and where that is sharded no checkpoint holds it: a "
                "resumed run would be another one. Leave it out, or do without checkpoints (save_strategy='no')."
            )

    # ---- which one to go on from

    def choose(self, asked: bool | str | None) -> str | None:
        """The checkpoint to go on from, in the form that the parent takes; None for a run from the beginning."""
        trainer = self._trainer
        run = Path(trainer.args.output_dir)
        self._settings, self._layout = settings_of(trainer), layout_of(trainer)
        self._from, self._facts, self._border, self._saved, self._draws = None, {}, None, None, None
        faults = self._faults(run)
        if not asked:
            if any(why is None for why in faults.values()):
                logger.warning(
                    f"{run} holds checkpoints of an earlier run, and resume_from_checkpoint=True would go on from the "
                    "latest of them all. Name another output_dir, or remove them."
                )
            return None
        chosen = self._last_whole(run, faults) if asked is True else self._named(Path(asked), run, faults)
        if trainer.args.sync_ref_model and not (chosen / REFERENCE).is_file():
            raise ResumeError(f"{chosen} holds no reference model, which sync_ref_model goes on from: leave it out.")
        if self._facts:
            self._check_settings(chosen)
            self._check_layout(chosen, [step for step, why in faults.items() if why is None])
        self._from = chosen
        if _is_of(run, chosen):
            self._clear_away(run, chosen, faults)
            # What is saved at the same step would be the same, and is whole already.
            self._saved = self._facts["step"] if self._facts else None
        return str(chosen)

    def _faults(self, run: Path) -> dict[int, str | None]:
        """By step of a checkpoint, the latest first, why it is not whole on some rank. Folders may be local."""
        mine = [(step_of(folder), fault(folder)) for folder in checkpoints_of(run)]
        found: dict[int, list[str | None]] = {}
        for of_rank in self._ranks.gather_lists(mine):
            for step, why in of_rank:
                found.setdefault(step, []).append(why)
        faults = {}
        for step in sorted(found, reverse=True):
            whys = found[step]
            missing = None if len(whys) == self._ranks.number else "a process does not find it"
            faults[step] = next((why for why in whys if why is not None), missing)
        return faults

    def _last_whole(self, run: Path, faults: dict[int, str | None]) -> Path:
        if not faults:
            raise ResumeError(f"{run} holds no checkpoint to go on from: save_strategy and save_steps make some.")
        whole = [step for step, why in faults.items() if why is None]
        if not whole:
            seen = "; ".join(f"{checkpoint(run, step).name}: {why}" for step, why in faults.items())
            raise ResumeError(
                f"{run} holds no whole checkpoint to go on from ({seen}). Begin anew (overwrite: true, or another "
                "output_dir). One that plain TRL has saved has no manifest: name it (resume_from_checkpoint: FOLDER)."
            )
        return self._read(checkpoint(run, whole[0]))

    def _named(self, folder: Path, run: Path, faults: dict[int, str | None]) -> Path:
        missing = self._ranks.first_text(None if folder.is_dir() else f"there is no folder {folder}")
        if missing is not None:
            raise ResumeError(f"resume_from_checkpoint: {missing}.{_instead(run, faults)}")
        why = self._ranks.first_text(fault(folder))
        if why is None:
            return self._read(folder)
        if why != "it has no manifest":
            raise ResumeError(f"{folder} is not whole: {why}.{_instead(run, faults)}")
        if not (folder / STATE).is_file():
            raise ResumeError(
                f"{folder} is no checkpoint, or was cut off while it was written: it has neither a manifest nor a "
                f"{STATE}.{_instead(run, faults)}"
            )
        logger.warning(
            f"{folder} has no manifest: plain TRL has saved it, or it was cut off. It is gone on from as TRL would. A "
            "batch of rollouts that was in use is made anew, and whether files or settings differ is not known."
        )
        return folder

    def _read(self, folder: Path) -> Path:
        facts = read_manifest(folder)
        assert facts is not None
        self._facts = facts
        if facts["weights_alone"]:
            raise ResumeError(
                f"{folder} holds the weights alone (save_only_model): without the optimizer no run can go on from it. "
                "Start a new one from them (model_name_or_path)."
            )
        return folder

    def _check_settings(self, folder: Path) -> None:
        changed = differences(self._facts["settings"], self._settings)
        if not changed:
            return
        found = f"{folder} was saved by a run with other settings: {'; '.join(changed)}."
        if not self._trainer.args.resume_changed:
            raise ResumeError(
                f"{found} Set them as they were, start anew in another output_dir, or go on all the same "
                "(resume_changed: true)."
            )
        logger.warning(f"{found} It is gone on from all the same (resume_changed).")

    def _check_layout(self, folder: Path, whole: list[int]) -> None:
        """Other processes may take over where a new batch of rollouts begins, if they can read the optimizer."""
        changed = differences(self._facts["layout"], self._layout)
        if not changed:
            return
        kinds = {self._facts["layout"]["sharding"], self._layout["sharding"]}
        if len(kinds) > 1 or (any("DeepSpeed" in kind for kind in kinds) and self._processes_differ):
            why = (
                "DeepSpeed gives each process its part of the optimizer"
                if len(kinds) == 1
                else "it is stored as it was"
            )
            raise ResumeError(
                f"{folder} was saved by a run of another layout: {'; '.join(changed)}. It cannot be read so: {why}. "
                "Start it as it was."
            )
        if self._facts["inside_window"]:
            run = self._trainer.args.output_dir
            usable = [s for s in whole if not (read_manifest(checkpoint(run, s)) or {}).get("inside_window", True)]
            instead = f"or go on from {checkpoint(run, usable[0])}" if usable else "no other checkpoint allows it"
            raise ResumeError(
                f"{folder} was saved in the middle of a batch of rollouts, which cannot be shared out anew: "
                f"{'; '.join(changed)}. Start it as it was, {instead}."
            )
        if not self._trainer.args.seeds_rollouts:
            logger.warning(
                f"{folder}: {'; '.join(changed)}. What is sampled from here on is not what it would have been."
            )

    @property
    def _processes_differ(self) -> bool:
        return self._facts["layout"]["processes"] != self._layout["processes"]

    def _clear_away(self, run: Path, chosen: Path, faults: dict[int, str | None]) -> None:
        """Nothing later than where a run goes on from may be taken for its own."""
        self._trainer.accelerator.wait_for_everyone()  # a slower process may be looking at what is moved here
        for step, why in faults.items():
            if step <= step_of(chosen):
                continue
            folder, word = checkpoint(run, step), LEFT if why is None else TORN
            if self._trainer.args.should_save and folder.is_dir():
                place = set_aside(folder, word)
                reason = "is later" if why is None else f"is not whole ({why})"
                logger.warning(f"{folder} {reason}: it is now {place.name}, and {chosen.name} is gone on from.")
        self._trainer.accelerator.wait_for_everyone()

    # ---- going on

    def on_train_begin(self, args, state, control, **kwargs):
        if self._from is None:
            return
        state.compute_steps(args, state.max_steps)  # the steps of saving, logging and evaluating may be others now
        if self._facts:
            self._restore(self._from)

    def _restore(self, folder: Path) -> None:
        trainer = self._trainer
        every = trainer.args.steps_per_generation * trainer.num_iterations
        device = trainer.accelerator.device
        if trainer.args.sync_ref_model:
            reference = torch.load(folder / REFERENCE, map_location="cpu", weights_only=True)
            trainer.accelerator.unwrap_model(trainer.ref_model).load_state_dict(reference)
        if differences(self._facts["layout"], self._layout):
            trainer._step, trainer._buffered_inputs = self._facts["windows"] * every, None
            return
        saved = torch.load(folder / self._rank_file, map_location="cpu", weights_only=True)
        trainer._step, trainer._buffered_inputs = saved["micro_step"], send_to_device(saved["batch"], device)
        trainer._metrics["train"].clear()
        trainer._metrics["train"].update({name: list(values) for name, values in saved["metrics"].items()})
        trainer._tr_loss += saved["loss"].to(device)
        trainer._total_loss_scalar -= saved["loss"].item()  # the parent's mean at the end is of this session's steps
        trainer._globalstep_last_logged = saved["last_logged"]
        _refill(trainer._logs, json.loads(saved["completions"]) or {})
        if saved["packing"] is not None and trainer._gain_pass is not None:
            trainer._gain_pass.packing, trainer._gain_pass.packing_tried = saved["packing"]

    @property
    def _rank_file(self) -> str:
        return OF_A_RANK.format(self._ranks.index)

    @property
    def evaluation_is_due(self) -> bool:
        """Whether the run was interrupted before the evaluation that belongs to its last step."""
        return bool(self._facts.get("evaluation_is_due"))

    def set_draws(self) -> bool:
        """Where there is no state of this rank to go on with, draw what no rank has drawn before."""
        if not self._facts or not self._processes_differ:
            return False
        seed = f"{self._trainer.args.seed}/{self._facts['step']}/{self._ranks.number}"
        set_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:3], "big"), device_specific=True)
        return True

    # ---- between the steps

    def on_step_begin(self, args, state, control, **kwargs):
        self._border = Border(self._trainer, self._draws or self._draws_now())

    def on_step_end(self, args, state, control, **kwargs):
        self._border = None
        self.mark_draws()

    def mark_draws(self) -> None:
        """This is the state that a step which is broken off has to be begun with again."""
        self._draws = self._draws_now()

    def _draws_now(self) -> Draws:
        return Draws(self._trainer.accelerator.device)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What happens inside is no part of training: it changes nothing of what is drawn or saved afterwards."""
        border = Border(self._trainer, self._draws_now())
        outer, self._border = self._border, self._border or border
        try:
            yield
        finally:
            self._border = outer
            border.draws.again()

    @contextmanager
    def draws_to_save(self) -> Iterator[None]:
        """The random states of the last border; afterwards those that were."""
        now = self._draws_now()
        if self._border is not None:
            self._border.draws.again()
        try:
            yield
        finally:
            now.again()

    # ---- saving

    def save(self, folder: Path, write: Callable[[], None], evaluation_is_due: bool) -> None:
        """Let the parent write its checkpoint, add what it leaves out, and declare it whole."""
        trainer, step = self._trainer, self._trainer.state.global_step
        if self._saved == step:
            return  # by an earlier request of this step; nothing was learnt since
        main = trainer.args.should_save
        self._together(lambda: self._make_place(folder) if main else None, folder)
        self._together(lambda: self._write(folder, write), folder)
        facts = self._facts_now(evaluation_is_due)
        self._together(lambda: self._declare_whole(folder, facts) if main else None, folder)
        self._saved = step
        self.remove_surplus(latest=folder)

    @contextmanager
    def alone_removes(self) -> Iterator[None]:
        """Inside, the parent removes no older checkpoints: it takes any folder of such a name, whoever has made it and
        whatever it holds, and takes it before the new one is whole."""
        args = self._trainer.args
        limit, args.save_total_limit = args.save_total_limit, None
        try:
            yield
        finally:
            args.save_total_limit = limit

    def remove_surplus(self, latest: Path | None = None) -> None:
        """Keep to `save_total_limit`. At the end of a run the latest may go as well, if one alone, the best, stays."""
        args, best = self._trainer.args, self._trainer.state.best_model_checkpoint
        if not args.should_save:
            return
        kept = {*([latest] if latest else []), *([Path(best)] if best else [])}
        for folder in surplus(args.output_dir, args.save_total_limit, kept):
            place = remove_checkpoint(folder)
            if place is not None:
                logger.warning(f"{folder} gave way to later ones. {place.name} keeps what else was in it.")

    def _make_place(self, folder: Path) -> None:
        """A new folder. One of this name that is there is not this run's to remove."""
        if folder.exists():
            place = set_aside(folder, TORN if fault(folder) else LEFT)
            logger.warning(f"{folder} was there already, and is now {place.name}.")
        folder.mkdir(parents=True)
        OwnFiles(folder.parent).add_folder(folder.name)

    def _write(self, folder: Path, write: Callable[[], None]) -> None:
        trainer, border = self._trainer, self._border
        tokens_seen = trainer.state.num_input_tokens_seen
        if border is not None:
            trainer.state.num_input_tokens_seen = border.tokens_seen
        try:
            write()
        except Exception as error:
            if self._others_wait_inside and _is_about_writing(error):
                _leave_at_once(_not_written(f"{folder.name} could not be written", folder.parent, str(error)))
            raise
        finally:
            trainer.state.num_input_tokens_seen = tokens_seen
        state = state_of(trainer) if border is None else border.state
        # Users log what they like beside completions; as text it can be read without trusting the file.
        torch.save({**state, "completions": json.dumps(state["completions"], default=str)}, folder / self._rank_file)
        if trainer.args.sync_ref_model and trainer.args.should_save:
            reference = trainer.accelerator.unwrap_model(trainer.ref_model)
            torch.save(reference.state_dict(), folder / REFERENCE)

    def _declare_whole(self, folder: Path, facts: dict[str, Any]) -> None:
        write_manifest(folder, facts)
        written = [*files_of(folder), folder / MANIFEST]
        OwnFiles(folder.parent).add(*(str(file.relative_to(folder.parent)) for file in written))

    @property
    def _others_wait_inside(self) -> bool:
        """Whether the parent's saving has collectives, in which a rank that fails leaves the others."""
        trainer = self._trainer
        shards = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
        return self._ranks.number > 1 and (shards or bool(trainer.state.best_global_step))

    def _facts_now(self, evaluation_is_due: bool) -> dict[str, Any]:
        trainer = self._trainer
        micro_step = trainer._step if self._border is None else self._border.state["micro_step"]
        every = trainer.args.steps_per_generation * trainer.num_iterations
        return {
            "step": trainer.state.global_step,
            "windows": micro_step // every,
            "inside_window": micro_step % every > 0,
            "evaluation_is_due": evaluation_is_due,
            "weights_alone": trainer.args.save_only_model,
            "layout": self._layout,
            "settings": self._settings,
        }

    def _together(self, act: Callable[[], None], folder: Path) -> None:
        """Do this on each rank. Where it fails on any, all raise: none is left waiting for the others."""
        mine: Exception | None = None
        try:
            act()
        except Exception as raised:  # told to all ranks, and raised below
            mine = raised
        why = self._ranks.first_text(None if mine is None else str(mine) or repr(mine))
        if why is None:
            return
        if mine is not None and not _is_about_writing(mine):
            raise mine
        raise RunStopped(_not_written(f"{folder.name} could not be written", folder.parent, why)) from mine


@contextmanager
def told_if_not_written(run: Path) -> Iterator[None]:
    """Inside, where results are written, a disk that is full or read-only ends the run with a line that says so."""
    try:
        yield
    except Exception as error:
        elsewhere = isinstance(error, OSError) and error.filename and not _is_below(run, error.filename)
        if elsewhere or not _is_about_writing(error):
            raise
        line = _not_written("Results could not be written", run, str(error))
        if os.environ.get("RANK", "0") != "0":  # the first rank, which speaks for all, may know nothing of it
            logger.error(line, main_process_only=False)
        raise RunStopped(line) from error


def _is_below(run: Path, file: str | bytes | int) -> bool:
    return not isinstance(file, int) and run.resolve() in Path(os.fsdecode(file)).resolve().parents


def _leave_at_once(line: str) -> NoReturn:
    """End this process and leave the others, who wait for what it will not do, to the launcher."""
    logger.error(line, main_process_only=False)
    os._exit(1)


def _not_written(what: str, run: Path, error: str) -> str:
    whole = [other for other in checkpoints_of(run) if fault(other) is None]
    go_on = (
        f"{whole[0].name} is whole: go on from it (resume_from_checkpoint: true)."
        if whole
        else "There is no whole checkpoint: begin anew."
    )
    free = math.floor(shutil.disk_usage(run).free / 2**20)
    return f"{what}: {error.splitlines()[0]}. {run} has {free} MiB free. Make room there, or make it writable. {go_on}"


def _instead(run: Path, faults: dict[int, str | None]) -> str:
    whole = [step for step, why in faults.items() if why is None]
    return f" The last whole one is {checkpoint(run, whole[0])}." if whole else f" {run} holds no whole one."


def _is_of(run: Path, folder: Path) -> bool:
    """Whether a folder is one of the run's checkpoints, however it was named."""
    return any(folder.samefile(own) for own in checkpoints_of(run))


def _is_about_writing(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in NO_WRITING
    return isinstance(error, SafetensorError) or any(name in str(error) for name in WRITING_FAILED)


def _refill(logs: Any, saved: Any) -> None:
    """Put saved lists into the deques of the same names; the parent makes those of a new name itself."""
    for name, values in saved.items():
        if isinstance(logs[name], deque):
            logs[name].extend(values)
        else:
            _refill(logs[name], values)
