"""Does this machine compute the very numbers that the machine of the writer computed?

A neural prior is only of use where every bit of its logits that the tables depend on is the same.
Library, version, instruction set, number of threads, weights: each may change last bits, or may
not. So the fingerprint is taken from what they do, not from what they are called: the logits of a
fixed input, in the very batch shape the file is coded with. 13 bits of their SHA-256, and 3 bits
that name the program, for the message when they differ.

It is a filter that gives a clear message early; that the codes are right is proved by the check
value of the container.
"""

from __future__ import annotations

import hashlib

import numpy as np

from mmprod.bitstream.picture import Codes
from mmprod.errors import EnvironmentMissing
from mmprod.graphs.runner import Runner

FINGERPRINT_BYTES = 2
_FAMILIES = ("another program", "PyTorch", "ONNX Runtime", "TensorRT")
_PREFIXES = ("", "torch", "onnxruntime", "tensorrt")
_PROBE_BITS = 13


def fingerprint(runner: Runner, batch: int) -> bytes:
    """Two bytes for this graph `code_prior` in calls of `batch` canvases.

    Raises EnvironmentMissing when the same input gives other bits the second time.
    """
    first, again = _digest(runner, batch), _digest(runner, batch)
    if first != again:
        raise EnvironmentMissing(
            f"the fusion prior on {runner.backend} gives other bits each time it is asked",
            hint="--prior static is the same everywhere",
        )
    value: int = _family(runner.backend) << _PROBE_BITS | first % 2**_PROBE_BITS
    return value.to_bytes(FINGERPRINT_BYTES, "big")


def family_name(print_: bytes) -> str:
    """The program that a fingerprint names."""
    family = int.from_bytes(print_, "big") >> _PROBE_BITS
    return _FAMILIES[family] if family < len(_FAMILIES) else _FAMILIES[0]


def check_runtime(wanted: bytes, found: bytes, runtime: str) -> None:
    """Raises EnvironmentMissing when a file was written with another fingerprint than this
    machine's.
    """
    if wanted == found:
        return
    raise EnvironmentMissing(
        f"the file was written by the fusion prior on {family_name(wanted)} "
        f"(fingerprint {wanted.hex()}); here {runtime} computes other bits (fingerprint "
        f"{found.hex()}): other weights, version, processor or number of threads",
        hint="read it where it was written; files with --prior static can be read everywhere",
    )


def probe(batch: int, positions: int, mask_id: int) -> Codes:
    """The input (batch, positions): every other place masked, the others filled with ids that are a
    fixed function of the place.
    """
    place = np.arange(batch * positions, dtype=np.int64).reshape(batch, positions)
    ids = ((place + 1) * 2654435761 % 2**32 >> 7) % mask_id
    return np.where(place % 2 == 0, ids, mask_id).astype(np.int32)


def _digest(runner: Runner, batch: int) -> int:
    spec = runner.spec.input("codes")
    codes = probe(batch, spec.sizes({"batch": batch})[1], spec.below - 1)
    logits = np.ascontiguousarray(runner({"codes": codes})["logits"], "<f4")
    return int.from_bytes(hashlib.sha256(logits.tobytes()).digest(), "big")


def _family(backend: str) -> int:
    names = [index for index, prefix in enumerate(_PREFIXES) if backend.startswith(prefix)]
    return max(names)
