"""The speed of a device at its best, which MFU is measured against.

Of a GPU: what its maker states for dense matrix products (NVIDIA's data sheets; tensor cores for
bf16 and fp16, none for fp32, whose TF32 is off here). Of a CPU: measured, since no maker states it:
the best of a few matrix products with the threads that training has. Of an unknown GPU: nothing.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import lru_cache

import torch

logger = logging.getLogger(__name__)

GPUS = (
    ("B200", 2250.0, 75.0),
    ("H200", 989.0, 67.0),
    ("H100 PCIe", 756.0, 51.0),
    ("H100", 989.0, 67.0),
    ("A100", 312.0, 19.5),
    ("A10", 125.0, 31.2),
    ("L40S", 362.0, 91.6),
    ("L4", 121.0, 30.3),
    ("RTX 4090", 165.2, 82.6),
)
"""words in the device's name, TFLOP/s in bf16 and fp16, in fp32; the first that fits counts"""
BESIDE = frozenset(
    ["nvidia", "tesla", "geforce", "pcie", "sxm", "sxm4", "sxm5", "40gb", "80gb", "hbm3"]
)
"""what a name may say besides: anything else (MIG, Laptop, D, Ti, NVL, ...) is another device, of
another speed
"""
SIDE = 768
"""of the square matrices that are multiplied on a CPU"""
TRIALS = 8
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Peak:
    """TFLOP/s of one device, and where the figure is from."""

    tflops: float
    source: str


def peak_of(device: torch.device, precision: str, stated: float = 0.0) -> Peak | None:
    """The peak in `precision` (fp32, bf16, fp16); None where nobody knows.

    stated: TFLOP/s that the user gave, which counts before everything else; 0: none.
    """
    if stated:
        return Peak(stated, "log.peak_tflops")
    if device.type == "cpu":
        return measured_cpu(precision, torch.get_num_threads())
    name = torch.cuda.get_device_name(device)
    found = of_gpu(name, precision)
    if found is None:
        logger.info("no MFU: the peak of %s is not known here; set log.peak_tflops", name)
    return found


def of_gpu(name: str, precision: str) -> Peak | None:
    """What the maker states for the GPU that calls itself `name`, e.g. NVIDIA H100 80GB HBM3."""
    words = set(name.replace("-", " ").casefold().split())
    for key, half, full in GPUS:
        wanted = set(key.casefold().split())
        if wanted <= words and words - wanted <= BESIDE:
            return Peak(full if precision == "fp32" else half, f"data sheet of {key}, {precision}")
    return None


@lru_cache(maxsize=4)
def measured_cpu(precision: str, threads: int) -> Peak:
    """The fastest matrix product of this process in fp32, and in bf16 where that is used: not every
    processor is faster in it, and hardly one in fp16. About 0.1 s, once per process.

    threads: of PyTorch now.
    """
    kinds = ("fp32", "bf16") if precision == "bf16" else ("fp32",)
    speeds = {kind: _speed(DTYPES[kind]) for kind in kinds}
    kind = max(speeds, key=lambda k: speeds[k])
    words = "1 thread" if threads == 1 else f"{threads} threads"
    return Peak(speeds[kind], f"matrix product of {SIDE} x {SIDE} in {kind}, measured, {words}")


@torch.no_grad()
def _speed(dtype: torch.dtype) -> float:
    """TFLOP/s of the best of a few products."""
    a = torch.ones(SIDE, SIDE, dtype=dtype)
    best = float("inf")
    for _ in range(TRIALS):
        started = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started)
    return 2 * SIDE**3 / best / 1e12
