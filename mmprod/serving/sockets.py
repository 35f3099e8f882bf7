"""The listening socket: bound before anything is loaded, and closed so that nobody is cut off."""

from __future__ import annotations

import ctypes
import resource
import socket
import struct
import sys
from contextlib import suppress

from mmprod.errors import EnvironmentMissing

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; the socket module has no name for it
_DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF: return 0 bytes of the packet


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is told at once. Raises EnvironmentMissing."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise EnvironmentMissing(
            f"cannot listen on {host} port {port}: {error.strerror}",
            hint="give another --port (0: any that is free) or --host",
        ) from error


def allow_files(count: int) -> None:
    """Let the process open so many files, connections among them, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def refuse_newcomers(listener: socket.socket) -> None:
    """From now on the kernel drops whoever wants to connect; those it has let in can be accepted.

    A socket that is simply closed resets connections that the kernel has completed and the process
    has not yet accepted, with the requests already in them. Who is dropped here tries again after a
    second and is refused then. Linux; elsewhere, and in sandboxes without filters, nothing happens.
    """
    if sys.platform != "linux":
        return
    instruction = ctypes.create_string_buffer(_DROP_ALL)
    program = struct.pack("HL", 1, ctypes.addressof(instruction))
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
