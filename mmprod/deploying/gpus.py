"""Devices by the names that people use, and their compute capability.

Source: NVIDIA's table "CUDA GPU Compute Capability". Names are folded: `NVIDIA L40S` is `l40s`.
"""

from __future__ import annotations

import difflib
import re

NONE = "none"
GPUS: dict[str, str] = {
    "t4": "sm75",
    "a100": "sm80",
    "a30": "sm80",
    "a10": "sm86",
    "a10g": "sm86",
    "a40": "sm86",
    "rtx-3090": "sm86",
    "l4": "sm89",
    "l40s": "sm89",
    "rtx-4090": "sm89",
    "h100": "sm90",
    "h200": "sm90",
    "b200": "sm100",
    "b300": "sm103",
    "rtx-5090": "sm120",
    "rtx-pro-6000": "sm120",
    "gb10": "sm121",
    "jetson-orin": "sm87",
    "jetson-thor": "sm110",
}
JETSON = frozenset({"jetson-orin", "jetson-thor"})


def folded(name: str) -> str:
    """A device's name as this table has it: `NVIDIA GeForce RTX 4090` -> `rtx-4090`."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return re.sub(r"^(nvidia-|geforce-|tesla-)+", "", words)


def nearest(name: str) -> list[str]:
    """Names of the table that look like this one."""
    return difflib.get_close_matches(folded(name), [*GPUS, NONE], n=2, cutoff=0.5)
