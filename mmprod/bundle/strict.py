"""JSON from strangers: exactly one reading, or an IntegrityError.

The standard parser takes the last of two equal names, accepts NaN, gives up with a RecursionError
on deep nesting and a ValueError on a number of 5,000 digits, and lets half a surrogate pair through
that no terminal or file can hold. None of that may reach the code that trusts the content. What is
nested deeper than any manifest is refused too, so that no reader runs out of stack.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmprod.errors import IntegrityError

DEEPEST = 32
"""Lists and objects inside one another."""


def strict_json(data: bytes, place: Path, *, hint: str = "") -> Any:
    """The value in `data`, UTF-8. Raises IntegrityError naming `place`."""
    try:
        value = json.loads(
            data.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_twins
        )
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{place} is not JSON: {error}", hint=hint) from error
    if _depth(value) > DEEPEST:
        raise IntegrityError(f"{place} is nested deeper than {DEEPEST} levels", hint=hint)
    return value


def _depth(value: Any) -> int:
    """How deep lists and objects lie inside one another; stops once it is too deep."""
    level, depth = [value], 0
    while level and depth <= DEEPEST:
        level = [
            part
            for outer in level
            if isinstance(outer, dict | list)
            for part in (outer.values() if isinstance(outer, dict) else outer)
        ]
        depth += 1
    return depth


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return content
