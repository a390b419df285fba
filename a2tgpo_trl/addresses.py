"""an address -> whether it is this machine's own, what may be shown, why it cannot be listened on."""

import errno
import ipaddress
from urllib.parse import urlsplit


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach this IP address."""
    return ipaddress.ip_address(address).is_loopback


def is_of_this_machine(host: str) -> bool:
    """Whether this host name, with or without a port, always means the machine that it is used on.

    Example: "localhost:8500", "127.0.0.1" and "[::1]:8500" do; "runs.example.org" may lead anywhere, here as well
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or is_loopback(name)
    except ValueError:
        return False


def public_address(url: str) -> str:
    """What of a URL may be shown: a query or a user's name may hold a key.

    Example: "http://search:8000/retrieve?api_key=sk-1" -> "http://search:8000/retrieve"
    """
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def why_not(host: str, port: int, error: OSError) -> str:
    """Say why a server cannot listen on an address, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} of {host} is in use. Name another one (--port {port + 1}), or take a free one (--port 0)."
    if error.errno == errno.EACCES:
        return f"This user may not listen on port {port}. Name one above 1023 (--port 8500)."
    return f"Cannot listen on {host}, port {port}: {error.strerror}. Name an address of this machine (--host)."
