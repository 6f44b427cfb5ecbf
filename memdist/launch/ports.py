"""A free port that stays free until it is used."""

from __future__ import annotations

import socket
import sys
from types import TracebackType


class Port:
    """Holds a free port of this machine, so that no other job is given it before rank 0 listens there.

    A socket that is bound but does not listen keeps others away, from the kernel's own choices of ports as well; and yet,
    as both allow addresses to be used again (torch's store does), rank 0 may bind and listen beside it.
    """

    def __init__(self) -> None:
        """Take one that the kernel gives."""
        self._socket = _bound()
        self.number: int = self._socket.getsockname()[1]
        if sys.platform != "linux":
            # Elsewhere the second to bind would be refused.
            self._socket.close()

    def __enter__(self) -> Port:
        """Hold it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of it."""
        self._socket.close()


def _bound() -> socket.socket:
    # Of both families at once where the machine has both, as rank 0 may listen on either.
    if socket.has_ipv6:
        try:
            return _of(socket.AF_INET6)
        except OSError:
            pass  # built in, but switched off
    return _of(socket.AF_INET)


def _of(family: socket.AddressFamily) -> socket.socket:
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        held.bind(("", 0))
    except OSError:
        held.close()
        raise
    return held
