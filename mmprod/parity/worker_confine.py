"""A process that is about to load a foreign engine gives away what it does not need (Linux).

Each step is tried and the ones that held are named in the report; none is required, because what
the system permits differs (containers, users). `confine` comes before anything is loaded and before
threads exist; `drop_rights` just before the file is opened, once the libraries are imported.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

FILE_BYTES = 1 << 20
"""The largest file that may be written (the process's own stderr is one)."""
NOBODY = 65534
_SET_PDEATHSIG, _SET_NO_NEW_PRIVS = 1, 38
_NEWUSER, _NEWNET = 0x10000000, 0x40000000
_CAPABILITY_VERSION_3 = 0x20080522
_ALL = 0xFFFFFFFF


def confine() -> list[str]:
    """Limits, no new privileges, no network. Returns what holds from now on."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    held = ["no core files", f"files up to {FILE_BYTES >> 20} MiB"]
    if not sys.platform.startswith("linux"):
        return held
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        held.append("no new privileges")
    # Without root, a network of its own needs a user namespace of its own.
    if libc.unshare(_NEWNET) == 0 or libc.unshare(_NEWUSER | _NEWNET) == 0:
        held.append("no network")
    return held


def drop_rights(needed: Iterable[Path]) -> list[str]:
    """When root: become nobody if these files stay readable, else at least give up the
    capabilities of root. Returns what holds from now on.
    """
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return []
    files = list(_files(needed))
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    fine = _readable(files)
    os.seteuid(0)
    os.setegid(0)
    if fine:
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        return ["user nobody"]
    if not _capabilities(0, _ALL):
        return []
    if not _readable(files):
        _capabilities(_ALL, _ALL)
        return []
    return ["no capabilities"] if _capabilities(0, 0) else []


def end_with_parent(parent: int) -> None:
    """The system ends this process when its parent ends, however that ends. To be called
    again after a change of user, which takes it back.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it ended before


def _files(needed: Iterable[Path]) -> Iterator[Path]:
    """The files, and for a file what lies beside it: a graph's weights, an engine's JSON."""
    for path in needed:
        yield path
        if path.is_file():
            yield from (near for near in path.parent.iterdir() if near.is_file())


def _readable(files: Iterable[Path]) -> bool:
    try:
        for path in files:
            os.close(os.open(path, os.O_RDONLY))
    except OSError:
        return False
    return True


def _capabilities(effective: int, permitted: int) -> bool:
    """Set those of this thread, within those it has. True when it worked."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    has = (ctypes.c_uint32 * 6)()
    if libc.capget(header, has) != 0:
        return False
    wanted = [
        has[at] & permitted if at % 3 == 1 else has[at - at % 3 + 1] & effective & permitted
        for at in range(6)
    ]
    for at in (2, 5):  # nothing is inherited
        wanted[at] = 0
    return bool(libc.capset(header, (ctypes.c_uint32 * 6)(*wanted)) == 0)
