"""working directory, packages, machine -> what a run was made with: the commit of the code, versions, processor."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


PACKAGES = ("a2tgpo_trl", "trl", "transformers", "torch", "accelerate", "datasets", "peft", "deepspeed", "vllm")
PATIENCE = 10.0  # seconds that git may take, as on a slow file system


def provenance(folder: Path) -> dict[str, Any]:
    """Return what to keep with the settings of a run that is started in this folder.

    Example: {"git_commit": "1577bec...", "git_changed": False, "versions": {"python": "3.11.7", "trl": "1.16.0", ...}}
    """
    return {**commit(folder), "versions": versions()}


def commit(folder: Path) -> dict[str, Any]:
    """Return the commit checked out there, and whether files tracked by git differ from it; None without git."""
    found = _git(folder, "rev-parse", "HEAD")
    changed = None if found is None else _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"git_commit": found, "git_changed": None if changed is None else bool(changed)}


def versions() -> dict[str, str]:
    """The versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The processor's name, as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(folder: Path, *words: str) -> str | None:
    """Return git's output; None if there is no git, no repository or no commit, or if it takes too long."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *words],  # others may use it at the same time
            capture_output=True,
            encoding="utf-8",
            errors="replace",  # a file name may be any bytes
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
