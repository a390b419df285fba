"""an address, the name of a host -> whether it is this machine's own."""

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
