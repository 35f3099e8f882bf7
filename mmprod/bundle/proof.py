"""Whether the bundle's parity report vouches for a file: asked before it is measured or served."""

from __future__ import annotations

from collections.abc import Mapping

from mmprod.bundle.bundle import Bundle

NO_PASS = "no parity pass on this file hash"


def why_unproven(
    bundle: Bundle, leg: str, graph: str, precision: str, files: Mapping[str, str]
) -> str:
    """Why the report does not vouch for these files (SHA-256 by path); "" when it does."""
    wanted = (leg, graph, precision)
    for row in (bundle.summaries.get("parity") or {}).get("rows", []):
        same = (row["leg"], row["graph"], row["precision"]) == wanted
        if same and all(row["sha256"].get(path) == sha for path, sha in files.items()):
            passed = row["status"] == "pass"
            return "" if passed else f"{NO_PASS}: {row['status']}, {row['reason']}"
    return NO_PASS
