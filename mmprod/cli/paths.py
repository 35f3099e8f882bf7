"""Paths that commands write to: looked at before the work, and what the system says about them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from mmprod.errors import HINTS, ConfigError, EnvironmentMissing, explained

__all__ = ["check_file_target", "check_folder_target", "explained"]


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
