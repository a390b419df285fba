"""words of `accelerate launch` -> its processes; it passes signals on to them, and exits as they exit.

    python -m a2tgpo_trl.launch.launcher [options of accelerate launch] -m MODULE [words]

Accelerate's own command turns every exit code into 1. At SIGTERM it leaves a single process running, or gives several
of them 30 seconds to finish a step that may take longer.
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
    """Start the processes. Return the exit code of the first that failed; 0 if none did."""
    args = launch_command_parser().parse_args(words)
    args.quiet = False  # otherwise a single process's exit code is hidden
    args.signals_to_handle = "SIGINT,SIGHUP,SIGQUIT"  # an option of torchrun: SIGTERM is left to the next line
    signal.signal(signal.SIGTERM, lambda *_: pass_on_sigterm())
    try:
        launch_command(args)
    except KeyboardInterrupt:  # with a single process, which has been interrupted too and may still be saving
        psutil.wait_procs(psutil.Process().children())
        return 128 + signal.SIGINT
    except SignalException as sent:  # from the keyboard, or by a terminal that was closed
        return 128 + sent.sigval
    except subprocess.CalledProcessError as error:  # the process has said why
        return _as_exit_code(error.returncode)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        if code <= 1:  # otherwise it was intended, and the processes have said why
            print(error, file=sys.stderr)
        return _as_exit_code(code)
    return 0


def pass_on_sigterm() -> None:
    """Ask the processes to exit. They finish a step and save a checkpoint, however long that takes."""
    children = psutil.Process().children()
    if not children:
        sys.exit(128 + signal.SIGTERM)  # nothing has started
    for child in children:
        child.terminate()


def _as_exit_code(code: int) -> int:
    """Return the exit code as a shell reports it.

    Example: 75 -> 75; killed by signal 9, which is -9 -> 137
    """
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
