"""The page of a parity report, as `parity.run.Comparison` asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmprod.parity.arrays import Maps


def parity_page(data: Mapping[str, Any], maps: Maps) -> str:
    """reports/parity.html: verdicts, figures beside their limits, and maps of the differences."""
    from mmprod.parity.heat import UNITS
    from mmprod.report.parity import render_parity_page

    return render_parity_page(data, maps, UNITS)
