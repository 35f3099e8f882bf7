"""What every test shares: one thread, one folder of compiled operators, honest GPU skips."""

from __future__ import annotations

import ctypes
import logging
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Before any test imports torch: small models are faster on one thread, and tests must not compete.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# DeepSpeed's compiled operators are kept with the checkout, or they are built anew in every home.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(ROOT / ".cache" / "torch_extensions"))
# The suite is offline; a library that wants to look something up must fail at once.
os.environ["HF_HUB_OFFLINE"] = "1"


def why_no_gpu() -> str:
    """Empty when the CUDA driver sees a device, else the reason it does not."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no CUDA driver (libcuda.so.1) on this machine"
    status = driver.cuInit(0)
    return f"no usable CUDA device (cuInit returned {status})" if status else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu`, with the reason, where there is no device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    reason = why_no_gpu() if marked else ""
    if reason:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def fresh_logging() -> None:
    """The command line sets up the `mmprod` logger for its process; no test may inherit that."""
    logger = logging.getLogger("mmprod")
    logger.handlers[:], logger.propagate = [], True
    logger.setLevel(logging.NOTSET)
