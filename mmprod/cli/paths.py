"""Paths that commands write to: looked at before the work, and what the system says about them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from mmprod.errors import ConfigError, EnvironmentMissing, MmprodError

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


def check_file_target(path: Path) -> None:
    """A file can be written here; its folder is made. Raises ConfigError, EnvironmentMissing, and
    OSError when the folder cannot be made.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder", hint=f"name a file: {path / 'NAME'}")
    check_folder_target(path.parent)


def check_folder_target(path: Path) -> None:
    """Files can be written into this folder, which is made. Raises as `check_file_target` does."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file, not a folder", hint="give another folder")
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        raise EnvironmentMissing(f"{path} is not writable", hint=HINTS[errno.EACCES])
