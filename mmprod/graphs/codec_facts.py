"""What must be known of a codec beside its graphs: which one it is, and how often each id occurs.

A bundle carries it as codec.npz; from a run it is computed (`checkpoint.identity`). Both give the
same, so a file that was compressed with one can be read with the other.
"""

from __future__ import annotations

import io
import re
import zipfile
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
        """Read such a file. Raises IntegrityError when it is none, or of another codebook."""
        hint = "export the run again with this version of mmprod"
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as content:
                version, digest, rate = (content[name] for name in ("format", "digest", "rate"))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise IntegrityError(f"{path} cannot be read: {error}", hint=hint) from error
        if version.shape or int(version) != FORMAT:
            raise IntegrityError(f"{path} has another format than {FORMAT}", hint=hint)
        text = digest.tobytes().hex()
        fits = rate.shape == (codebook_size,) and rate.dtype == np.float32
        if not fits or not re.fullmatch("[0-9a-f]{64}", text):
            raise IntegrityError(
                f"{path} tells the rates {rate.dtype} {rate.shape}, the codec has {codebook_size} "
                "ids",
                hint=hint,
            )
        return cls(text, rate)
