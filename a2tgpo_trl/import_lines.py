"""what other libraries log while TRL imports them -> nothing, where a user can do nothing about it.

Only the lines below are dropped, by their logger and their first words: any other warning, and every error, is shown.
"""

import logging
from collections.abc import Callable


# logger -> how its line begins
DROPPED = {
    # PEFT imports bitsandbytes wherever it is installed. On processors that multiply bfloat16 it then looks on the hub
    # for a kernel for quantised bases, which this run need not have; without the kernel they work as they did before.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community",
    # Accelerate imports DeepSpeed wherever it is installed. DeepSpeed logs to standard output, where `--json` is read.
    "DeepSpeed": "Setting accelerator to CPU.",
}


def drop_import_lines() -> None:
    """Drop these lines from now on. Call this before anything that imports TRL."""
    for name, beginning in DROPPED.items():
        logging.getLogger(name).addFilter(_unless_it_begins(beginning))


def _unless_it_begins(beginning: str) -> Callable[[logging.LogRecord], bool]:
    return lambda record: not record.getMessage().startswith(beginning)
