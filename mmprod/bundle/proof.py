"""Whether the bundle's parity report vouches for a file: asked before it is measured or served."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Verdict = Mapping[str, Any]
"""A row of a parity report in short: leg, graph, precision, status, reason, hashes by path."""

NO_PASS = "no parity pass on this file hash"


def why_unproven(
    verdicts: Iterable[Verdict], leg: str, graph: str, precision: str, files: Mapping[str, str]
) -> str:
    """Why these rows do not vouch for the files (SHA-256 by path); "" when they do."""
    wanted = (leg, graph, precision)
    for row in verdicts:
        same = (row["leg"], row["graph"], row["precision"]) == wanted
        if same and all(row["sha256"].get(path) == sha for path, sha in files.items()):
            passed = row["status"] == "pass"
            return "" if passed else f"{NO_PASS}: {row['status']}, {row['reason']}"
    return NO_PASS
