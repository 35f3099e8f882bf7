"""What a check says about one rendered file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["pass", "fail", "only linted", "not validated"]
"""only linted: by rules of ours that were written from the project's documentation, because its
schema cannot be had offline. not validated: a tool is missing, or there is none."""


@dataclass(frozen=True)
class Verdict:
    """file: below the folder; validator: a program or library with its part, or our own rules."""

    file: str
    validator: str
    status: Status
    detail: str = ""


@dataclass(frozen=True)
class Missing(Exception):
    """A validator that is not on this machine: its name, and how to get it."""

    tool: str
    how: str

    @property
    def detail(self) -> str:
        return f"{self.tool} is not installed ({self.how})"
