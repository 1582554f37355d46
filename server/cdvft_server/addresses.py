"""Which hosts are this machine. Pure."""

import ipaddress
import re
from typing import Any

__all__ = ["address", "hostname", "is_loopback"]


def is_loopback(host: str) -> bool:
    found = address(host)
    return host.lower() == "localhost" if found is None else found.is_loopback


def address(host: str) -> Any:
    """The literal IP address, else None."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def hostname(host: str) -> str:
    """A `Host` header without its port, in lower case; "" where it is malformed."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?", host)
    return match[1].lower() if match else ""
