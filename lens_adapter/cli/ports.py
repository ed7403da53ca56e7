"""Where a server listens."""

from __future__ import annotations

import os
import socket

from lens_adapter.errors import InputError

ANOTHER_PORT = "Choose another --port; --port 0 takes any that is free."


def free_port(host: str, number: int | None, what: str) -> int | None:
    """The port to serve at, which is free now; None: not chosen.

    Args:
        what: is served, for messages.

    Raises:
        InputError: it cannot be served there.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, number or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            if os.name == "posix":  # as servers do: a port that was left a moment ago is free
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return None if number is None else int(probe.getsockname()[1])
    except (OSError, UnicodeError) as error:  # a name of a host that is too long
        at = f"--host {host}" if number is None else f"--port {number} of --host {host}"
        why = getattr(error, "strerror", None) or str(error)
        advice = "Choose another." if number is None else ANOTHER_PORT
        raise InputError(f"{what} cannot be served at {at}: {why}. {advice}") from error
