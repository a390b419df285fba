"""an address and limits -> a server that runs the code of policies that train elsewhere (`remote`)."""

import argparse
import math

from ..addresses import why_not
from .option_types import at_least, port_number


# option -> default and help, for the options of `PythonSession` that belong to the server
NUMBERS = {
    "timeout": (5.0, "seconds per call"),
    "memory_mb": (512, "MiB per interpreter"),
    "disk_mb": (16, "MiB of its files"),
    "max_output": (8192, "bytes per result"),
    "threads": (32, "threads per interpreter"),
    "warm": (4, "interpreters kept ready"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 in a container")
    parser.add_argument(
        "--port", type=port_number, default=8400, help="port to listen on (default 8400; 0: a free one)"
    )
    parser.add_argument("--isolation", default="auto", help="auto, bubblewrap or process")
    for name, (default, text) in NUMBERS.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(default), default=default, help=f"{text} (default {default:g})")
    parser.add_argument("--preload", nargs="*", default=[], help="modules to load before the first call")
    parser.add_argument("--python", help="the interpreter whose libraries code may use (default: this one)")
    parser.add_argument(
        "--most-sessions",
        type=at_least(1),
        default=256,
        help="concurrent sessions: one per rollout that has called (default 256)",
    )
    parser.add_argument("--idle", type=float, default=600.0, help="seconds until an idle session ends (default 600)")
    parser.epilog = "If A2TGPO_PYTHON_TOKEN is set, only trainers with the same value are served."
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..tools.python import settings_from, try_out
    from ..tools.python.pool import pool_of
    from ..tools.python.server import PythonServer

    if not 0 < args.idle < math.inf:
        raise ValueError("--idle must be a number of seconds above 0.")
    settings = settings_from(
        isolation=args.isolation,
        python=args.python,
        preload=args.preload,
        **{name: getattr(args, name) for name in NUMBERS},
    )
    pool = pool_of(settings)
    try_out(pool)
    try:
        serving = PythonServer((args.host, args.port), pool, most_sessions=args.most_sessions, idle=args.idle)
    except OSError as error:
        pool.close()
        raise ValueError(why_not(args.host, args.port, error)) from error
    with serving as server:
        host, port = server.server_address[:2]
        limits = f"{args.timeout:g} s a call, {args.memory_mb} MiB, {args.disk_mb} MiB of files"
        print(f"http://{host!s}:{port} runs Python: level {settings.isolation}, {limits}", flush=True)
        if not server.token and not server.is_loopback:
            print("Anyone who can reach this address can run code here: set A2TGPO_PYTHON_TOKEN.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 130
    return 0
