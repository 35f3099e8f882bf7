"""What the system refuses, in the words of the error tree."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mmprod.errors import ConfigError, EnvironmentMissing, as_os_error, explained
from mmprod.manifest import atomic_path


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_refuses_is_exit_3_with_its_name(number: int) -> None:
    found = explained(OSError(number, os.strerror(number), "/data/run"))
    assert isinstance(found, EnvironmentMissing) and found.exit_code == 3
    assert found.message == f"/data/run: {os.strerror(number)}" and found.hint


def test_a_wrong_path_is_exit_2_and_a_bug_stays_a_bug() -> None:
    assert isinstance(explained(FileNotFoundError(2, "No such file", "/x")), ConfigError)
    assert explained(ConnectionResetError(errno.ECONNRESET, "reset")) is None
    assert explained(OSError("cannot identify image file")) is None


def test_a_library_that_leaves_only_the_number() -> None:
    error = RuntimeError("Error while serializing: I/O error: no space (os error 28)")
    found = as_os_error(error, Path("/data/x"))
    assert found is not None and (found.errno, found.filename) == (errno.ENOSPC, "/data/x")
    assert as_os_error(RuntimeError("something else"), Path("/data/x")) is None


def test_an_atomic_write_that_fails_names_its_file_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "x.bin"
    for error in (OSError(errno.ENOSPC, "full"), RuntimeError("(os error 28)")):
        with pytest.raises(OSError) as caught, atomic_path(target):
            raise error
        assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(target)
    assert not list(tmp_path.iterdir())
