"""Whether an index is whole: every item as it was written, none twice, each picture with all its
captions and no others.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from mmprod.errors import IntegrityError
from mmprod.search.embed import LENGTH_OFF
from mmprod.search.items import Item
from mmprod.search.table import Table

_HINT = "mmprod search delete INDEX NAME, then index the picture again; or make the index anew"


def verify(table: Table) -> dict[str, int]:
    """Read everything; counts of what was read. Raises IntegrityError for the first fault."""
    numbers: dict[str, list[int]] = {}
    wholes: dict[str, set[tuple[str, str, int]]] = {}
    kinds: Counter[str] = Counter()
    for item, check in table.items():
        fault = _fault(table, item, check)
        if fault:
            raise IntegrityError(f"{table.place}: {item.name} {fault}", hint=_HINT)
        kinds[item.kind] += 1
        numbers.setdefault(item.name, []).append(item.number)
        wholes.setdefault(item.name, set()).add((item.digest, item.content, item.captions))
    for name, found in numbers.items():
        (_, _, captions), *others = wholes[name]
        what = ""
        if len({*found}) < len(found):
            what = "is there twice"
        elif others:
            what = "has parts of two states"
        elif sorted(found) != list(range(captions + 1)):
            what = "lacks a part"
        if what:
            raise IntegrityError(f"{table.place}: {name} {what}", hint=_HINT)
    return {"pictures": kinds["image"], "captions": kinds["text"]}


def _fault(table: Table, item: Item, check: int) -> str:
    """What is wrong with an item; "" for nothing."""
    if item.check != check:
        return "was changed: its check sum differs"
    if (item.kind == "image") != (item.number == 0) or (item.codes is None) == (item.number == 0):
        return "is of no kind that an index has"
    if item.codes is not None and len(item.codes) != table.about.positions:
        return f"has {len(item.codes)} codes, the model has {table.about.positions}"
    if not abs(float(np.linalg.norm(item.vector)) - 1) <= LENGTH_OFF:
        return "has a vector that is not of length 1"
    return ""
