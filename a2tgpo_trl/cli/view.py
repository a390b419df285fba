"""folders of runs -> one page for a browser: curves, turns, rollouts side by side; as a file, or live."""

import argparse
import sys
from pathlib import Path

from .option_types import port_number


HOST, PORT, OUTPUT = "127.0.0.1", 8500, Path("view.html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folder of a run with record_every")
    parser.add_argument("-o", "--output", type=Path, help=f"default: {OUTPUT}")
    parser.add_argument(
        "--overwrite", action="store_true", default=None, help="overwrite the file even if it is not such a page"
    )
    parser.add_argument("--serve", action="store_true", help="show the page live as the runs go on, until Ctrl-C")
    parser.add_argument(
        "--host", help=f"address to listen on; any but a loopback address needs a token (default {HOST})"
    )
    parser.add_argument("--port", type=port_number, help=f"port to listen on (default {PORT}; 0: a free one)")
    parser.epilog = "What the page shows, and how to see it from another machine: a2tgpo help view"
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    others = ("output", "overwrite") if args.serve else ("host", "port")
    unread = [f"--{name}" for name in others if getattr(args, name) is not None]
    if unread:
        raise ValueError(f"{', '.join(unread)} cannot be used {'with' if args.serve else 'without'} --serve.")
    return serve(args) if args.serve else write(args)


def write(args: argparse.Namespace) -> int:
    from ..view.html import is_ours, make_page
    from ..view.run import read_runs

    file: Path = args.output or OUTPUT
    if file.is_dir():
        raise ValueError(f"{file} is a folder. Name a file: -o {file / 'view.html'}.")
    if file.exists() and not args.overwrite and not is_ours(file):
        raise ValueError(f"{file} was not written by a2tgpo view. Name another file, or overwrite it (--overwrite).")
    runs = read_runs(args.runs)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.part")
    draft.write_text(make_page(runs), encoding="utf-8")
    draft.replace(file)  # an existing page stays whole until the new one is
    for one in runs:
        for note in one.notes:
            print(f"{one.name}: {note}")
    print(f"{file}: {sum(len(one.records) for one in runs):,} rollouts, {file.stat().st_size / 2**20:.1f} MB")
    return 0


def serve(args: argparse.Namespace) -> int:
    try:
        _serve(args)
    except KeyboardInterrupt:
        print()  # after the ^C
    return 0


def _serve(args: argparse.Namespace) -> None:
    from ..view.server import ViewServer

    port = PORT if args.port is None else args.port
    with ViewServer(HOST if args.host is None else args.host, port, args.runs) as server:
        print(f"{server.address} shows {', '.join(server.runs.names)}. Ctrl-C ends it.", flush=True)
        if not server.is_loopback:
            print(
                "Anyone who has this address can read everything, and the traffic is not encrypted: "
                "use ssh -L instead (a2tgpo help view).",
                file=sys.stderr,
                flush=True,
            )
        server.serve_forever()
