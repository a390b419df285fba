"""words of `accelerate launch` -> its processes; what it is sent they are sent, and how they leave it leaves.

    python -m a2tgpo_trl.launch.launcher [options of accelerate launch] -m MODULE [words]

Accelerate's own command, left to itself, turns every exit code into 1. And at SIGTERM it leaves a single process alone
behind, or gives several of them 30 seconds to finish a step that may take longer.
"""

import signal
import subprocess
import sys
from collections.abc import Sequence

import psutil
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main(words: Sequence[str] | None = None) -> int:
    """The exit code of the first process that failed; 0 if none did."""
    args = launch_command_parser().parse_args(words)
    args.quiet = False  # or a single process's exit code is kept from us
    args.signals_to_handle = "SIGINT,SIGHUP,SIGQUIT"  # an option of torchrun: SIGTERM is left to the next line
    signal.signal(signal.SIGTERM, lambda *_: pass_on_sigterm())
    try:
        launch_command(args)
    except SignalException as sent:  # by the keyboard, or a terminal that is gone
        return 128 + sent.sigval
    except subprocess.CalledProcessError as error:  # it has said why
        return _as_exit_code(error.returncode)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        if code <= 1:  # else it was meant, and the processes have said why
            print(error, file=sys.stderr)
        return _as_exit_code(code)
    return 0


def pass_on_sigterm() -> None:
    """Ask the processes to leave. They finish a step and save a checkpoint, in whatever time that takes."""
    children = psutil.Process().children()
    if not children:
        sys.exit(128 + signal.SIGTERM)  # nothing has begun
    for child in children:
        child.terminate()


def _as_exit_code(code: int) -> int:
    """As a shell says it.

    Example: 75 -> 75; killed by signal 9, which is -9 -> 137
    """
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
