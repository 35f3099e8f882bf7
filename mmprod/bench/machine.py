"""What figures were measured on. Torch-free: versions are read from the installed packages."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
PACKAGES = ("mmprod", "onnxruntime", "torch", "numpy", "tokenizers", "pillow", "tensorrt_rtx")
SAME = ("system", "processor", "cores", "flags")
"""What makes two descriptions one machine; versions may differ, and often are what is compared."""


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, clock policy, versions, and the load when asked."""
    text = _read(Path("/proc/cpuinfo"))
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    flags = re.search(r"^flags\s*:\s*(.+)$", text, re.M)
    memory = re.search(r"^MemTotal:\s*(\d+) kB", _read(Path("/proc/meminfo")), re.M)
    governor = _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")).strip()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": model.group(1).strip() if model else platform.processor() or "unknown",
        "cores": usable_cores(),
        "flags": sorted(set(FLAGS) & set(flags.group(1).split() if flags else ())),
        "memory_bytes": int(memory.group(1)) * 1024 if memory else 0,
        "governor": governor or "unknown",
        "python": platform.python_version(),
        "versions": {name: v for name in PACKAGES if (v := _version(name))},
        "load": round(os.getloadavg()[0], 2),
    }


def usable_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
