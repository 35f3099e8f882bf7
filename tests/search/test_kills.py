"""A writer that is killed loses nothing that it had written, and writes nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.search_kills import kill_often


@pytest.mark.slow
def test_twelve_kills_at_random_moments_leave_what_an_undisturbed_writer_leaves(
    tmp_path: Path,
) -> None:
    found = kill_often(tmp_path, kills=12, pictures=200, seed=3)
    assert found["kills"] == 12
    assert found["same"]
    assert found["pictures"] == found["captions"] > 0
