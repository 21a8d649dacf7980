"""A port of this machine at which nobody listens."""

from __future__ import annotations

import socket


def hold_port(port: int = 0) -> socket.socket:
    """Take a port: who asks there is refused, and no process gets it by chance.

    A server that asks for this very port can have it, where it sets SO_REUSEADDR as most do.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", port))
    return held
