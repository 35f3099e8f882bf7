"""Logging set-up for the command line. The library itself only calls `logging.getLogger(__name__)`.

Records go to stderr, so that stdout carries results alone. Rank 0 logs at INFO, other ranks at
WARNING.
"""

from __future__ import annotations

import logging
import os
import socket
import sys


def configure_logging(verbosity: int = 0) -> None:
    """Attach one stderr handler to the `mmprod` logger. `verbosity`: -1 quiet, 0, 1 debug."""
    rank = own_rank()
    level = {-1: logging.ERROR, 0: logging.INFO}.get(verbosity, logging.DEBUG)
    if rank != 0:
        level = max(level, logging.WARNING)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(rank_prefix() + "%(message)s"))
    logger = logging.getLogger("mmprod")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


def own_rank() -> int:
    """This process's rank as RANK says, 0 where it says nothing sensible."""
    text = os.environ.get("RANK", "")
    return int(text) if text.isascii() and text.isdigit() else 0


def rank_prefix() -> str:
    """`[rank 3 node1] ` before what another rank than 0 writes."""
    rank = own_rank()
    return f"[rank {rank} {socket.gethostname()}] " if rank else ""
