"""The range coder. The only file that imports constriction; its errors end here.

`constriction.stream.queue` codes with 24-bit frequencies, a 64-bit state and 32-bit words
(docs/bitstream.md has the algorithm). It makes its tables from floats by adding 1 to each id and
dealing out the rest in proportion; so frequencies f enter as the float32 numbers f - 1, whole and
exact below 2^24, whose sum is that rest: the scale is exactly 1, and the integers are the tables.

Its words are then cut to the shortest byte string that says the same, which saves two to four
bytes: much for a picture of eighty. That string is unique, so a payload has one form only.
"""

from __future__ import annotations

import constriction
import numpy as np
import numpy.typing as npt

from mmprod.bitstream.tables import TOTAL, Frequencies
from mmprod.errors import IntegrityError

Symbols = npt.NDArray[np.int32]

_GOOD_COPY = "take the file from a good copy"
_STATE = 64
_WORD_BYTES = 4
CODES_PER_BYTE = 2837
SPARE_BYTES = 5


def most_codes(payload_bytes: int) -> int:
    """How many codes so many bytes can hold at most. No code costs less than -log2(1 - 2^-9) bits,
    and the cut of the last word may save 40 bits.
    """
    return CODES_PER_BYTE * (payload_bytes + SPARE_BYTES)


class RangeWriter:
    """Codes symbols one after the other; `bits` is their exact information content so far."""

    def __init__(self) -> None:
        self._encoder = constriction.stream.queue.RangeEncoder()
        self.bits = 0.0

    def put(self, symbols: Symbols, table: Frequencies) -> None:
        """symbols (n,) int32 in [0, S); table (n, S), one row each, or (S,) for all."""
        if not len(symbols):
            return
        if table.ndim == 1:
            chosen = table[symbols]
            self._encoder.encode(symbols, _model(table))
        else:
            chosen = np.take_along_axis(table, symbols[:, None], 1)
            self._encoder.encode(symbols, _FAMILY, _floats(table))
        self.bits += float(np.log2(TOTAL / chosen.astype(np.float64)).sum())

    def finish(self) -> bytes:
        """The shortest byte string in the final interval, and of those the smallest: a fraction of
        1 to the base 256, whose missing bytes are zeros.
        """
        words = self._encoder.get_compressed()
        place, (low, width) = self._encoder.pos()
        length: int = _WORD_BYTES * place + _STATE // 8
        point = int.from_bytes(words.astype(">u4").tobytes().ljust(length, b"\0")[:length], "big")
        start = point - (point - int(low)) % 2**_STATE
        for cut in range(_STATE, -1, -8):
            value = -(-start >> cut)
            if value << cut < start + int(width):
                return bytes(value.to_bytes(length - cut // 8, "big"))
        raise AssertionError("an interval of the range coder holds no number")


class RangeReader:
    """Gives the symbols back when asked with the same tables in the same order.

    It codes them again as they come. Their information may exceed the payload by 32 bits at most:
    the bytes end with the last word that was pushed out, or later, and the interval left is one of
    at least 2^32 in 2^64 (rounding inside the coder only narrows it). So a payload that ends too
    early is refused as soon as it has ended, whatever its header claims.
    """

    def __init__(self, payload: bytes) -> None:
        self._payload, self._again = payload, RangeWriter()
        padded = payload + bytes(_STATE // 8 + -len(payload) % _WORD_BYTES)
        self._decoder = constriction.stream.queue.RangeDecoder(
            np.frombuffer(padded, ">u4").astype(np.uint32)
        )

    def take(self, table: Frequencies, count: int) -> Symbols:
        """`count` symbols int32; table (count, S) or (S,). Raises IntegrityError when no symbols
        could have been coded like this, or the bytes are used up.
        """
        if not count:
            return np.empty(0, np.int32)
        found = self._decoded(table, count)
        self._again.put(found, table)
        if self._again.bits > 8 * (len(self._payload) + SPARE_BYTES):
            raise IntegrityError(
                f"the payload has {len(self._payload)} bytes, its codes take more", hint=_GOOD_COPY
            )
        return found

    def finish(self) -> None:
        """Coding what was read must give the payload back: a payload has one form only. Raises
        IntegrityError.
        """
        if self._payload != self._again.finish():
            raise IntegrityError(
                "the payload is not what its codes are coded to: it was changed, or coded with "
                "other tables",
                hint=_GOOD_COPY,
            )

    def _decoded(self, table: Frequencies, count: int) -> Symbols:
        try:
            if table.ndim == 1:
                found = self._decoder.decode(_model(table), count)
            else:
                found = self._decoder.decode(_FAMILY, _floats(table))
        except (AssertionError, ValueError) as error:
            raise IntegrityError(
                "the payload holds no codes of this codec: it was changed, or coded with other "
                "tables",
                hint=_GOOD_COPY,
            ) from error
        return np.asarray(found, np.int32)


_FAMILY = constriction.stream.model.Categorical(perfect=False)


def _floats(table: Frequencies) -> npt.NDArray[np.float32]:
    return (table - 1).astype(np.float32)


def _model(table: Frequencies) -> constriction.stream.model.Categorical:
    return constriction.stream.model.Categorical(_floats(table), perfect=False)
