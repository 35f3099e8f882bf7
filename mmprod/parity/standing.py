"""Which verdicts of a bundle still stand.

A verdict is about files, by their hashes, and about limits: a pass under older, wider limits is
none. Whoever lets a file through because of a verdict asks here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmprod.bundle import Bundle
from mmprod.parity.report import limits_sha256


def standing_rows(bundle: Bundle) -> list[Mapping[str, Any]]:
    """The verdicts in bundle.json (`ParityReport.summary`), if they were given under the limits of
    this version; none else, and none when nothing was compared. Their hashes are for the caller.
    """
    summary = bundle.summaries.get("parity")
    if summary is None or summary.get("limits_sha256") != limits_sha256():
        return []
    return list(summary["rows"])
