"""Where a new bundle goes. It is made in a folder beside that place and moved there once it is
whole, so that an interrupted export leaves no bundle and harms none.

The folder beside it is called .NAME.HOST-PID.RANDOM and holds `new` and, for a moment, `old`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmprod.bundle.bundle import Bundle
from mmprod.bundle.files import DIGEST, INDEX, check_no_strangers, read_index
from mmprod.bundle.lock import lock_folder
from mmprod.errors import ConfigError, IntegrityError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """A folder that does not exist or is empty; with `replace` also one that is a bundle."""

    root: Path
    replace: bool = False

    def check(self) -> None:
        """Raise ConfigError when no bundle can be put here, or files would be lost that no bundle
        lists.
        """
        root = self.root
        if not root.exists() and not root.is_symlink():
            return
        if root.is_symlink() or not root.is_dir():
            raise ConfigError(f"{root} exists and is no folder", hint="give another folder")
        if any(root.iterdir()):
            self._check_content()

    @contextlib.contextmanager
    def staged(self) -> Iterator[Path]:
        """Yield a new, empty folder; afterwards it lies at `root`, in place of what was there.

        If the block raises, the folder is removed and `root` stays as it was. Folders that killed
        processes of this machine left beside `root` are cleared away. Raises ConfigError, and
        EnvironmentMissing when another process keeps writing to what was there.
        """
        root = self.root.absolute()
        root.parent.mkdir(parents=True, exist_ok=True)
        _clear(root)
        self._check_movable()
        beside = Path(tempfile.mkdtemp(dir=root.parent, prefix=f"{_prefix(root)}{os.getpid()}."))
        try:
            (beside / "new").mkdir()
            yield beside / "new"
            with lock_folder(root) if root.is_dir() else contextlib.nullcontext():
                self.check()  # it may have been filled meanwhile
                _swap(beside, root)
        finally:
            if root.exists() or not (beside / "old").exists():
                shutil.rmtree(beside)
            else:
                logger.warning("%s lies in %s: move it back", root, beside / "old")

    def _check_movable(self) -> None:
        self.check()
        if not self.root.exists():
            return
        is_mount = self.root.absolute().is_mount()
        if is_mount or self.root.samefile(Path.cwd()):
            what = "a mount point" if is_mount else "the current folder"
            raise ConfigError(
                f"{self.root} is {what} and cannot be replaced as a whole",
                hint=f"give a new folder inside it: {self.root / 'bundle'}",
            )

    def _check_content(self) -> None:
        root = self.root
        is_bundle = (root / INDEX).is_file() and (root / DIGEST).is_file()
        if not self.replace or not is_bundle:
            hint = "give another folder, or --replace" if is_bundle else "give another folder"
            what = "" if is_bundle else " and not a bundle"
            raise ConfigError(f"{root} exists and is not empty{what}", hint=hint)
        try:
            artefacts = Bundle.parse(root, read_index(root)).artefacts()
            check_no_strangers(root, {artefact.path for artefact in artefacts})
        except IntegrityError as error:
            raise ConfigError(
                f"{root} will not be replaced: {error.message}",
                hint="keep what you need of it and delete the folder yourself",
            ) from error


def _swap(beside: Path, root: Path) -> None:
    """Move `new` to the place; what was there goes to `old`, and back if the move fails."""
    try:
        if root.exists():
            root.rename(beside / "old")
        (beside / "new").rename(root)
    except BaseException:
        if (beside / "old").exists() and not root.exists():
            (beside / "old").rename(root)
        raise


def _clear(root: Path) -> None:
    """Remove what dead processes left; a bundle that one had just moved aside is put back."""
    for folder in root.parent.iterdir():
        pid = folder.name.removeprefix(_prefix(root)).partition(".")[0]
        if not folder.name.startswith(_prefix(root)) or not pid.isdigit() or _is_alive(int(pid)):
            continue
        if (folder / "old").is_dir() and not root.exists():
            (folder / "old").rename(root)
            logger.warning("%s was put back: replacing it was interrupted", root)
        shutil.rmtree(folder)
        logger.warning("removed %s, left by an interrupted export", folder)


def _prefix(root: Path) -> str:
    host = re.sub(r"[^A-Za-z0-9]", "_", platform.node())
    return f".{root.name}.{host}-"


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
