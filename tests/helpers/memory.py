"""A process -> what the system says of its memory."""

from pathlib import Path


MIB = 2**20


def most_resident(process: int | str = "self") -> float:
    """MiB resident at most so far, pages of mapped files included; 0 of a process that has ended.

    What getrusage says is inherited from the process that started this one.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = status.partition("VmHWM:")[2].split()
    return int(found[0]) * 1024 / MIB if found else 0
