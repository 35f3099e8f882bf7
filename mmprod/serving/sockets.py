"""Sockets of the server: bound before anything is loaded, and closed so that nobody is cut off."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import resource
import socket
import stat
import struct
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mmprod.errors import EnvironmentMissing

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; the socket module has no name for it
_OPEN_FILES = Path("/proc/self/fd")
LINGER_S = 1.0
"""for the other side to close, too"""
LOOK_S = 0.01
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


def refuse_newcomers_at(port: int) -> None:
    """The same where a library listens that does not show its socket."""
    for opened in _sockets_at(port):
        if _listens(opened):
            refuse_newcomers(opened)


async def hang_up(port: int, seconds: float) -> None:
    """End this process's sending over every connection to a port that a library listens at.

    Who is connected gets all that was sent and then reads the end, as if the server were gone. To
    close instead would reset a connection over which more has come, and the kernel would forget
    what it has still to send. So each is let go when the other side has everything, for which there
    are so many seconds; then it has LINGER_S to close, too. Linux; elsewhere nothing happens.
    """
    now = time.monotonic()
    end, patience = now + seconds, now + LINGER_S
    while now < min(end, patience) and (connections := _hang_up_what_is_sent(port)):
        await asyncio.sleep(LOOK_S)
        now = time.monotonic()
        if any(connections):
            patience = now + LINGER_S


def _hang_up_what_is_sent(port: int) -> list[int]:
    """Of each connection: how many bytes the other side has not yet. Those with none are ended."""
    found = []
    for opened in _sockets_at(port):
        if _listens(opened):
            continue
        with suppress(OSError):  # the other side was faster
            told = fcntl.ioctl(opened, termios.TIOCOUTQ, bytes(4))
            found.append(int.from_bytes(told, sys.byteorder))
            if not found[-1]:
                opened.shutdown(socket.SHUT_WR)
    return found


def _listens(opened: socket.socket) -> bool:
    return bool(opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _sockets_at(port: int) -> Iterator[socket.socket]:
    """What this process has open at a TCP port of its own; each is a copy, closed at the next."""
    for file in _OPEN_FILES.iterdir() if _OPEN_FILES.is_dir() else ():
        with suppress(OSError):  # another thread closed it
            copy = os.dup(int(file.name))
            if not stat.S_ISSOCK(os.fstat(copy).st_mode):
                os.close(copy)
                continue
            with socket.socket(fileno=copy) as opened:
                internet = opened.family in (socket.AF_INET, socket.AF_INET6)
                if internet and opened.getsockname()[1] == port:
                    yield opened
