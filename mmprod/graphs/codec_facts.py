"""What must be known of a codec beside its graphs: which one it is, and how often each id occurs.

A bundle carries it as codec.npz; from a run it is computed (`checkpoint.identity`). Both give the
same, so a file that was compressed with one can be read with the other.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmprod.errors import IntegrityError

FORMAT = 1
FILE = "codec.npz"


@dataclass(frozen=True)
class CodecFacts:
    """digest: SHA-256 in hex over all that decoding depends on (see `checkpoint.identity`).

    rate: (K,) float32, how often each id occurred lately in training; the bitstream's static table
    is made of it.
    """

    digest: str
    rate: npt.NDArray[np.float32]

    def to_bytes(self) -> bytes:
        """An npz without pickle: the same bytes for the same facts."""
        stream = io.BytesIO()
        digest = np.frombuffer(bytes.fromhex(self.digest), np.uint8)
        rate = self.rate.astype(np.float32)
        np.savez_compressed(
            stream, allow_pickle=False, format=np.array(FORMAT), digest=digest, rate=rate
        )
        return stream.getvalue()

    @classmethod
    def load(cls, path: Path, codebook_size: int) -> CodecFacts:
        """Read such a file. Raises IntegrityError when it is none, or of another codebook.

        A damaged archive raises whatever its parts stumble over (OSError, BadZipFile, zlib.error,
        struct.error, NotImplementedError, ...); here all of it means the same.
        """
        hint = "export the run again with this version of mmprod"
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as content:
                version, digest, rate = (content[name] for name in ("format", "digest", "rate"))
        except Exception as error:
            raise IntegrityError(f"{path} cannot be read: {error}", hint=hint) from error
        if version.shape or version.dtype.kind not in "iu" or int(version) != FORMAT:
            raise IntegrityError(f"{path} has another format than {FORMAT}", hint=hint)
        text = digest.tobytes().hex()
        fits = rate.shape == (codebook_size,) and rate.dtype == np.float32
        if not fits or not re.fullmatch("[0-9a-f]{64}", text):
            raise IntegrityError(
                f"{path} tells the rates {rate.dtype} {rate.shape}, the codec has {codebook_size} "
                "ids",
                hint=hint,
            )
        if not np.isfinite(rate).all() or rate.min() < 0:
            raise IntegrityError(f"{path}: a rate is negative, NaN or infinite", hint=hint)
        return cls(text, rate)
