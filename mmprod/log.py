"""Logging set-up for the command line. The library itself only calls `logging.getLogger(__name__)`.

Records go to stderr, so that stdout carries results alone. Rank 0 logs at INFO, other ranks at
WARNING.
"""

from __future__ import annotations

import logging
import os
import sys


def configure_logging(verbosity: int = 0) -> None:
    """Attach one stderr handler to the `mmprod` logger. `verbosity`: -1 quiet, 0, 1 debug."""
    rank = int(os.environ.get("RANK", "0") or 0)
    level = {-1: logging.ERROR, 0: logging.INFO}.get(verbosity, logging.DEBUG)
    if rank != 0:
        level = max(level, logging.WARNING)
    handler = logging.StreamHandler(sys.stderr)
    prefix = f"[rank {rank}] " if rank else ""
    handler.setFormatter(logging.Formatter(prefix + "%(message)s"))
    logger = logging.getLogger("mmprod")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
