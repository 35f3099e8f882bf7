"""The error tree. Every expected failure is one of these; anything else is a bug and keeps its
traceback.

    MmprodError                      exit
    |- ConfigError                   2    usage or configuration: the user can mend the input
    |- EnvironmentMissing            3    a missing extra, device, tool or version
    |- IntegrityError                4    an artefact differs from its manifest or is unreadable
    |- ParityFailed                  5    a compiled graph disagrees with its reference
    |- PrecisionMismatch             5    the precision built is not the one asked for
    |- BudgetMissed                  6    a performance budget was not met
    |- NumericsError                 7    NaN or Inf where a finite number is needed
    `- Preempted                     75   asked to stop; state is saved: start it again
       `- Interrupted                130  the same, asked from the keyboard (Ctrl-C)

An interrupt from the keyboard elsewhere exits with 130 too. Each error carries a `hint`: what to do
next, as a command where possible. What the system refuses (a full disk, a read-only folder) becomes
one of these in `explained`, and nowhere else.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import ClassVar


class MmprodError(Exception):
    """An expected failure: what went wrong and where (`message`), what to do (`hint`)."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(MmprodError):
    """The command line or a configuration file asks for something that does not exist or cannot
    work.
    """

    exit_code = 2


class EnvironmentMissing(MmprodError):
    """This machine lacks something the command needs: a package, a device, a program, a version."""

    exit_code = 3


class IntegrityError(MmprodError):
    """A file is missing, unreadable or differs from what its manifest says."""

    exit_code = 4


class ParityFailed(MmprodError):
    """A graph or engine left its limits against the reference."""

    exit_code = 5


class PrecisionMismatch(MmprodError):
    """The precision that was asked for is not the precision that was built."""

    exit_code = 5


class BudgetMissed(MmprodError):
    """A latency, throughput or memory budget given by the user was missed."""

    exit_code = 6


class NumericsError(MmprodError):
    """A loss, gradient or output is NaN or infinite."""

    exit_code = 7


class Preempted(MmprodError):
    """The job was asked to stop, saved its state and can be started again."""

    exit_code = 75


class Interrupted(Preempted):
    """As Preempted, by Ctrl-C: nobody wants it started again by itself."""

    exit_code = 130


PATH_ERRORS = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EEXIST,
        errno.ENOTEMPTY,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.EINVAL,
    }
)
"""What is wrong with a path itself: another one helps."""

HINTS = {
    errno.EACCES: "choose a folder that you may write to, or ask for the right to this one",
    errno.EPERM: "choose a folder that you may write to, or ask for the right to this one",
    errno.EROFS: "this file system is read-only: copy the folder, or write elsewhere",
    errno.ENOSPC: "make room on the disk, or write elsewhere",
    errno.EDQUOT: "your quota on this file system is used up: make room, or write elsewhere",
    errno.EFBIG: "the file system or a limit allows no larger file: write elsewhere",
    errno.EIO: "the disk reports an error: see the system's log, and write elsewhere",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
}
"""What is wrong with the machine, and what helps."""


def explained(error: OSError) -> MmprodError | None:
    """A refusal by the system in words; None for one that says nothing about files (a bug)."""
    what = error.strerror or str(error)
    where = str(error.filename2 or error.filename or "")
    if error.errno in HINTS:
        place = where or "a file could not be written"
        return EnvironmentMissing(f"{place}: {what}", hint=HINTS[error.errno])
    if error.errno in PATH_ERRORS and where:
        return ConfigError(f"{where}: {what}", hint="check the path; `-v` shows where it was used")
    return None


_NUMBER = re.compile(r"\(os error (\d+)\)")


def as_os_error(error: Exception, path: Path) -> OSError | None:
    """The refusal by the system behind an error of a library written in Rust (safetensors), which
    leaves only its number in the message; None where there is none.
    """
    found = _NUMBER.search(str(error))
    if isinstance(error, OSError) or found is None:
        return None
    number = int(found.group(1))
    return OSError(number, os.strerror(number), str(path))
