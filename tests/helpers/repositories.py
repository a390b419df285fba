"""A git repository made for a test."""

import subprocess
from pathlib import Path


def git(folder: Path, *words: str) -> str:
    own = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *own, "-C", str(folder), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def make_repository(folder: Path) -> Path:
    """Make a folder with a commit and a file that has changed since."""
    folder.mkdir(exist_ok=True)
    git(folder, "init", "-q")
    (folder / "mine.py").write_text("x = 1\n")
    git(folder, "add", "mine.py")
    git(folder, "commit", "-q", "-m", "first")
    (folder / "mine.py").write_text("x = 2\n")
    return folder
