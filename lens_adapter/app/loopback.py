"""Who can reach the page: what uses the host's own token, or writes to its disk unasked, is for nobody else."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether a name or an address is that of this machine alone."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def is_asked_here(headers: Mapping[str, str]) -> bool:
    """Whether an HTTP request, by its headers (lower case), was made on this machine.

    A page on loopback may still be reached through a proxy on the same machine, or by a foreign name that resolves to
    it.
    """
    if any(name == "forwarded" or name.startswith("x-forwarded-") for name in headers):
        return False
    return is_loopback(urlsplit(f"//{headers.get('host', '')}").hostname or "")
