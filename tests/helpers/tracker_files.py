"""What W&B, Trackio and TensorBoard have kept of a run, read by their own readers."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@dataclass
class Kept:
    """Lines of the log in order (names as in the tracker), the config, and what belongs to the whole run."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)

    def series(self, name: str) -> list[Any]:
        return [line[name] for line in self.lines if name in line]

    @property
    def names(self) -> set[str]:
        return {name for line in [*self.lines, self.summary] for name in line}


def environment(folder: Path) -> dict[str, str]:
    """Variables for a process that tracks offline in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {"WANDB_MODE": "offline", "WANDB_DIR": str(folder), "WANDB_CACHE_DIR": str(folder / "cache")}
    own |= {"WANDB_DATA_DIR": str(folder / "data"), "WANDB_CONFIG_DIR": str(folder / "config")}
    return {**own, "TRACKIO_DIR": str(folder / "trackio"), "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}


# ---- W&B


def from_wandb(folder: Path) -> Kept:
    """Read the file of an offline run with `wandb leet inspect`."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment(folder)})
    assert done.returncode == 0, done.stderr
    kept = Kept()
    for record in map(json.loads, done.stdout.splitlines()):
        if record["type"] == "history":
            kept.lines.append(nested(record["history"]["item"]))
        elif record["type"] in ("run", "config"):
            kept.config |= (record["run"]["config"] if "run" in record else record["config"])["update"]
        elif record["type"] == "summary":
            kept.summary |= nested(record["summary"]["update"])
    return kept


def nested(item: dict[str, Any]) -> dict[str, Any]:
    """Rebuild tables and histograms, whose parts the reader lists one by one, without what W&B adds itself.

    Example: {"h._type": "histogram", "h.bins": [0, 1], "x.y": 2, "_step": 0} -> {"h": {"_type": ..., "bins": ...},
    "x.y": 2}
    """
    media = {name.removesuffix("._type") for name in item if name.endswith("._type")}
    found: dict[str, Any] = {}
    for name, value in item.items():
        of = next((one for one in media if name.startswith(f"{one}.")), None)
        if of is not None:
            found.setdefault(of, {})[name.removeprefix(f"{of}.")] = value
        elif not name.startswith("_"):
            found[name] = value
    return found


def table_of_wandb(folder: Path, logged: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a table that was logged."""
    (file,) = folder.glob(f"wandb/offline-run-*/files/{logged['path']}")
    content = json.loads(file.read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


# ---- Trackio

# In a separate process, because Trackio looks for its folder when it is imported.
READ = """
import json
import trackio
from trackio.sqlite_storage import SQLiteStorage
(run,) = trackio.Api().runs("huggingface")
print(json.dumps([SQLiteStorage.get_logs("huggingface", run.name, run_id=run.id), run.config]))
"""


def from_trackio(folder: Path) -> Kept:
    done = subprocess.run(
        [sys.executable, "-c", READ], capture_output=True, text=True, env={**os.environ, **environment(folder)}
    )
    assert done.returncode == 0, done.stderr
    lines, config = json.loads(done.stdout.splitlines()[-1])
    own = ("step", "timestamp", "log_id")
    return Kept([{name: value for name, value in line.items() if name not in own} for line in lines], config)


# ---- TensorBoard


def from_tensorboard(folder: Path) -> tuple[Kept, "EventAccumulator"]:
    """Scalars as lines, one per step; texts as the config."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = folder.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file), size_guidance={"scalars": 0, "tensors": 0, "histograms": 0})
    events.Reload()
    steps: dict[int, dict[str, Any]] = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            steps.setdefault(event.step, {})[name] = event.value
    texts = {
        name.removesuffix("/text_summary"): [
            event.tensor_proto.string_val[0].decode() for event in events.Tensors(name)
        ]
        for name in events.Tags()["tensors"]
    }
    return Kept([steps[step] for step in sorted(steps)], texts), events
