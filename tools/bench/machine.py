"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
IDLE_LOAD = 1.0


def machine() -> dict[str, object]:
    """Processor, what it can do, threads, versions, load when the bench began."""
    text = _cpuinfo()
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", text, re.MULTILINE)
    has = set(flags.group(1).split()) if flags else set()
    return {
        "processor": model.group(1).strip() if model else platform.machine(),
        "flags": [flag for flag in FLAGS if flag in has],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 2),
    }


def described(found: dict[str, object]) -> list[str]:
    """The same as lines, with a warning when other programs were running."""
    flags = ", ".join(str(flag) for flag in _listed(found["flags"])) or "no vector extensions named"
    lines = [
        f"{found['processor']} ({flags}), threads: {found['threads']}, torch {found['torch']}",
    ]
    if float(str(found["load"])) > IDLE_LOAD:
        lines.append(f"machine not idle (load {found['load']}): read the ratios only")
    return lines


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.is_file() else ""
