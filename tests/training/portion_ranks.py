"""As `ranks.py`, with a head that works in portions as those of large vocabularies do."""

from __future__ import annotations

import sys
from pathlib import Path

from mmprod.models import head
from tests.training.ranks import main

PORTION = 32 * 40
"""40 of the 128 places of a rank's pictures at a time"""

if __name__ == "__main__":
    head.PORTION = PORTION
    main(Path(sys.argv[1]))
