"""a corpus -> its index, built if there is none, and a server that searches it (protocol: `search.server`)."""

import argparse
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

from ..addresses import is_loopback, why_not
from .option_types import port_number


if TYPE_CHECKING:
    from ..search.retriever import Retriever

ENDING = 10  # seconds that requests have to end after SIGTERM
KINDS = ("bm25", "dense")
FAISS = ("flat", "ivf", "hnsw", "pq")
OF_DENSE = ("encoder", "query_prefix", "passage_prefix", "max_tokens", "batch_size", "device", "faiss")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--corpus", required=True, help="JSON lines, or a folder of text files")
    parser.add_argument("--index", choices=KINDS, default="bm25", help="how passages are found (default bm25)")
    parser.add_argument(
        "--index-folder", help="where the index is or will be written (default: CORPUS.bm25, CORPUS.dense-flat)"
    )
    parser.add_argument(
        "--encoder", help="with --index dense: a folder or a name on the hub, such as intfloat/e5-base-v2"
    )
    parser.add_argument(
        "--query-prefix", help="text before each query, 'query: ' for E5 (default: the encoder's prompt)"
    )
    parser.add_argument("--passage-prefix", help="text before each passage, 'passage: ' for E5 (default likewise)")
    parser.add_argument("--max-tokens", type=int, help="tokens of a text that are encoded (default: the encoder's)")
    parser.add_argument("--batch-size", type=int, help="texts encoded together (default 64)")
    parser.add_argument("--device", help="device of the encoder (default: an accelerator if there is one)")
    parser.add_argument("--faiss", choices=FAISS, help="how vectors are compared (default flat)")
    parser.add_argument("--build", action="store_true", help="build the index and do not serve")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for other machines")
    parser.add_argument(
        "--port", type=port_number, default=8000, help="port to listen on (default 8000; 0: a free one)"
    )
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="concurrent searches (default: one per core)"
    )
    parser.add_argument("--most-waiting", type=int, default=1024, help="requests at once (default 1024)")
    parser.epilog = "a2tgpo help search says more."
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.threads < 1 or args.most_waiting < 1:
        raise ValueError("--threads and --most-waiting must be at least 1.")
    build = dense if args.index == "dense" else bm25
    if args.build:
        build(args)
        return 0
    with bound(args.host, args.port) as listening:  # before an index is built, which may take hours
        return serve(args, build(args), listening)


def bound(host: str, port: int) -> socket.socket:
    """Take the address, without listening yet."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
        except OSError:
            taken.close()
            raise
    except OSError as error:
        raise ValueError(why_not(host, port, error)) from error
    return taken


def bm25(args: argparse.Namespace) -> "Retriever":
    from ..search.retriever import bm25_retriever

    unread = [f"--{name.replace('_', '-')}" for name in OF_DENSE if getattr(args, name) is not None]
    if unread:
        raise ValueError(f"{', '.join(unread)}: only for --index dense; BM25 has no such option.")
    return bm25_retriever(args.corpus, args.index_folder, tell)


def dense(args: argparse.Namespace) -> "Retriever":
    from ..search.encoder import SentenceEncoder
    from ..search.retriever import dense_retriever

    if args.encoder is None:
        raise ValueError("--index dense needs --encoder: a folder or a name on the hub, such as intfloat/e5-base-v2.")
    encoder = SentenceEncoder(
        args.encoder,
        query_prefix=args.query_prefix,
        passage_prefix=args.passage_prefix,
        max_tokens=args.max_tokens,
        batch_size=64 if args.batch_size is None else args.batch_size,
        device=args.device,
    )
    return dense_retriever(args.corpus, encoder, faiss=args.faiss or "flat", folder=args.index_folder, tell=tell)


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def serve(args: argparse.Namespace, retriever: "Retriever", listening: socket.socket) -> int:
    try:
        import uvicorn

        from ..search.server import SearchServer
    except ImportError as error:
        raise ValueError(f"A server needs {error.name}: pip install 'a2tgpo_trl[search]'") from error

    host, port = listening.getsockname()[:2]
    answering = SearchServer(
        retriever, threads=args.threads, most_waiting=args.most_waiting, is_loopback=is_loopback(host)
    )
    config = uvicorn.Config(answering.app(), log_level="warning", timeout_graceful_shutdown=ENDING, lifespan="off")
    listening.listen(config.backlog)  # before the address is printed, so that whoever reads it can connect
    # uvicorn sends itself the signal again when requests have ended; with this handler the process ends cleanly.
    signal.signal(signal.SIGTERM, lambda *_: None)
    print(f"http://{host}:{port}/retrieve searches {len(retriever.corpus):,} passages ({args.index})", flush=True)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        return 130
    finally:
        answering.close()
    return 0
