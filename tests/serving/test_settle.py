"""What a server made when it opened its bundle is left out of later collections of garbage."""

from __future__ import annotations

import gc

from mmprod.serving import server


def test_what_is_there_is_frozen_and_what_came_later_is_not() -> None:
    kept = [{"number": number} for number in range(10)]
    try:
        server.settle()
        assert gc.get_freeze_count() > len(kept)
        later = [[1]]
        tracked = gc.get_objects()
        assert any(found is later for found in tracked)
        assert not any(found is kept for found in tracked)
        del tracked
    finally:
        gc.unfreeze()
