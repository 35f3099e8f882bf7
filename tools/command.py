"""What the tools' command lines share: numbers that make sense, errors in words."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from mmprod.errors import MmprodError


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def explained(work: Callable[[], int]) -> int:
    """The exit code of `work`; an expected error becomes `error:` and `hint:`, as in `mmprod`."""
    try:
        return work()
    except MmprodError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
