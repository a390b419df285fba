"""a process -> its memory, as the system reports it."""

from pathlib import Path


MIB = 2**20


def most_resident(process: int | str = "self") -> float:
    """Peak resident MiB so far, including pages of mapped files; 0 for a process that has ended.

    What getrusage reports is inherited from the process that started this one.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = status.partition("VmHWM:")[2].split()
    return int(found[0]) * 1024 / MIB if found else 0
