"""Whole files, every prior: what was written comes back, and nothing else does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mmprod.bitstream import CodecId, FusionPrior, Picture, describe, read_file, write_file
from mmprod.bitstream import file as file_module
from mmprod.bitstream.container import parse
from mmprod.bitstream.crc import crc32c
from mmprod.errors import ConfigError, EnvironmentMissing, IntegrityError, NumericsError
from mmprod.graphs.runner import Array, Arrays
from tests.bitstream import reader
from tests.bitstream.fakes import (
    FACTOR,
    PRIORS,
    FakePrior,
    codec_id,
    picture,
    prior_of,
    same,
    table_of,
)

SIZES = [(16, 16), (1, 1), (1, 90), (33, 7), (16, 15), (50, 41)]


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize(("book", "planes"), [(12, 1), (2, 1), (16, 3), (1000, 2)])
def test_round_trip(name: str, book: int, planes: int) -> None:
    codec = codec_id(book, planes)
    prior = prior_of(name, codec)
    alone = [picture(codec, *size, seed=i) for i, size in enumerate(SIZES)]
    for one in alone:
        (back,) = read_file(write_file([one], codec, prior).data, codec, prior)
        assert same(back, one)
    named = [dataclasses.replace(p, name=f"{i}.png") for i, p in enumerate(alone)]
    for many in (alone, named, named[:1], [alone[0]] * 7):
        written = write_file(many, codec, prior)
        back = read_file(written.data, codec, prior)
        assert len(back) == len(many) and all(map(same, back, many))
        header, payload = parse(written.data)
        assert header.sizes == tuple((p.height, p.width) for p in many)
        assert abs(8 * len(payload) - written.code_bits) <= 0.01 * written.code_bits + 64


@pytest.mark.parametrize("name", ["raw", "static"])
@pytest.mark.parametrize(("book", "planes"), [(12, 1), (37, 3)])
def test_the_document_is_enough_to_read_a_file(name: str, book: int, planes: int) -> None:
    codec = codec_id(book, planes)
    pictures = [picture(codec, *s, seed=i, name=f"ü{i}") for i, s in enumerate(SIZES)]
    tables = table_of(codec).tolist()
    for many in (pictures, [dataclasses.replace(p, name="") for p in pictures[:1]], pictures[:1]):
        data = write_file(many, codec, prior_of(name, codec)).data
        found = reader.read(data, book=book, planes=planes, factor=FACTOR, tables=tables)
        assert found == [(p.height, p.width, p.name, p.codes.tolist()) for p in many]


def test_portable_files_do_not_move() -> None:
    """The bytes of format 1, for ever: whoever changes them must raise the format."""
    codec = codec_id(12)
    codes = (np.arange(16, dtype=np.int32) * 5 + 3) % 12
    one = Picture(codes, 16, 13)
    found = {name: write_file([one], codec, prior_of(name, codec)).data.hex() for name in PRIORS}
    assert found["raw"] == RAW
    assert found["static"] == STATIC
    assert found["fusion"] == FUSION


RAW = "9d5110aaaaaa100d3816b492705a381657188662"
STATIC = "9d5114aaaaaa100da9497651809f656be802535a"
FUSION = "9d5118aaaaaa048fce2120100d09ef401d02220ac11c9b8c8804"


def test_a_prior_that_knows_more_writes_less() -> None:
    codec = codec_id(64)
    rng = np.random.default_rng(0)
    codes = (20 + rng.integers(0, 4, 64)).astype(np.int32)
    one = Picture(codes, 32, 32)
    sizes = [len(write_file([one], codec, prior_of(name, codec)).data) for name in PRIORS]
    assert sizes[2] < sizes[0]
    low = Picture(rng.integers(0, 3, 64).astype(np.int32), 32, 32)
    sizes = [len(write_file([low], codec, prior_of(name, codec)).data) for name in PRIORS]
    assert sizes[1] < sizes[0]


def test_cells_outside_the_picture_cost_nothing() -> None:
    codec = codec_id(64)
    seen = []

    class Watched(FakePrior):
        def __call__(self, inputs: Arrays) -> dict[str, Array]:
            seen.append(inputs["codes"].reshape(-1, 4, 4).copy())
            return super().__call__(inputs)

    one = picture(codec, 4, 13)
    written = write_file([one], codec, FusionPrior(codec, Watched(codec)))
    blocks = np.concatenate(seen[2:])
    assert len(blocks) == 4, "four places are four groups"
    assert (blocks[:, 1:] == 64).all(), "what is outside stays masked"
    assert (blocks[3, 0] != 64).sum() == 3
    assert written.code_bits < 4 * np.log2(2**24)


def test_the_codec_must_be_the_same() -> None:
    codec, other = codec_id(fill="a"), codec_id(fill="b")
    data = write_file([picture(codec, 16, 16)], codec, prior_of("raw", codec)).data
    with pytest.raises(IntegrityError, match=r"codec aaaaaa, this one is bbbbbb"):
        read_file(data, other, prior_of("raw", other))


def test_the_prior_must_be_the_same_kind() -> None:
    codec = codec_id()
    data = write_file([picture(codec, 16, 16)], codec, prior_of("raw", codec)).data
    with pytest.raises(ConfigError, match="prior raw, not static"):
        read_file(data, codec, prior_of("static", codec))


@pytest.mark.parametrize("pictures", [1, 3])
def test_another_runtime_is_refused_by_name(pictures: int) -> None:
    codec = codec_id()
    many = [picture(codec, 16, 16, seed=i) for i in range(pictures)]
    here = FusionPrior(codec, FakePrior(codec, "torch 9.9 cpu"))
    data = write_file(many, codec, here).data
    assert describe(data).runtime == "PyTorch"
    there = FusionPrior(codec, FakePrior(codec, "onnxruntime 1.2 CPU", noise=1e-7))
    with pytest.raises(EnvironmentMissing, match=r"on PyTorch.* here onnxruntime 1\.2") as caught:
        read_file(data, codec, there)
    assert "static" in caught.value.hint and caught.value.exit_code == 3
    assert all(map(same, read_file(data, codec, here), many))


class Drifting(FakePrior):
    """Repeats itself in the probes and computes something else afterwards."""

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        out = super().__call__(inputs)
        if self.calls > 2:
            out["logits"] = out["logits"] + np.linspace(0, 1, self._k, dtype=np.float32)
        return out


def test_a_prior_that_decodes_wrongly_is_caught_by_the_check_value() -> None:
    codec = codec_id(200)
    caught = 0
    for seed in range(20):
        one = picture(codec, 16, 16, seed=seed)
        data = write_file([one], codec, prior_of("fusion", codec)).data
        with pytest.raises(IntegrityError) as error:
            read_file(data, codec, FusionPrior(codec, Drifting(codec)))
        caught += "not those that were written" in error.value.message
    assert caught, "some decode to the end and only the check value tells"


def test_a_prior_that_does_not_repeat_itself_is_refused() -> None:
    class Restless(FakePrior):
        def __call__(self, inputs: Arrays) -> dict[str, Array]:
            out = super().__call__(inputs)
            return {"logits": out["logits"] + np.float32(self.calls * 1e-6)}

    codec = codec_id()
    with pytest.raises(EnvironmentMissing, match="other bits each time"):
        write_file([picture(codec, 16, 16)], codec, FusionPrior(codec, Restless(codec)))


def test_nan_from_the_prior_is_refused() -> None:
    codec = codec_id()
    with pytest.raises(NumericsError, match="NaN"):
        prior = FusionPrior(codec, FakePrior(codec, noise=float("nan")))
        write_file([picture(codec, 16, 16)], codec, prior)


def test_a_prior_of_another_codec_is_refused() -> None:
    for other in (codec_id(13), codec_id(6, 2)):
        with pytest.raises(ConfigError, match=r"no prior of a codec|places"):
            FusionPrior(codec_id(12), FakePrior(other))


def test_the_prior_is_called_once_per_group() -> None:
    codec = codec_id()
    for many, calls in ((1, 12), (4, 12), (5, 24)):
        runner = FakePrior(codec)
        prior = FusionPrior(codec, runner)
        write_file([picture(codec, 16, 16, seed=i) for i in range(many)], codec, prior)
        assert runner.calls == 2 + calls, "the probe, twice, and the groups"


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros(15, np.int32), "has 16 codes"),
        (np.zeros((4, 4), np.int32), "has 16 codes"),
        (np.zeros(16, np.float32), "float32"),
        (np.full(16, 12, np.int32), "outside their planes"),
        (np.full(16, -1, np.int64), "outside their planes"),
    ],
)
def test_wrong_codes_are_refused(codes: np.ndarray, message: str) -> None:
    codec = codec_id()
    with pytest.raises(ConfigError, match=message):
        write_file([Picture(codes, 16, 16)], codec, prior_of("raw", codec))


def test_planes_must_not_be_mixed_up() -> None:
    codec = codec_id(12, 2)
    one = picture(codec, 16, 16)
    with pytest.raises(ConfigError, match="outside their planes"):
        write_file([Picture(one.codes[::-1].copy(), 16, 16)], codec, prior_of("raw", codec))


def test_names_for_all_or_none() -> None:
    codec = codec_id()
    some = [picture(codec, 8, 8, name="a"), picture(codec, 8, 8)]
    with pytest.raises(ConfigError, match="1 of 2"):
        write_file(some, codec, prior_of("raw", codec))
    with pytest.raises(ConfigError, match="0 pictures"):
        write_file([], codec, prior_of("raw", codec))


def resealed(data: bytes, change: slice, by: bytes) -> bytes:
    body = bytearray(data[:-4])
    body[change] = by
    return bytes(body) + crc32c(bytes(body)).to_bytes(4, "big")


@pytest.mark.parametrize("name", PRIORS)
def test_lies_about_the_size_are_refused_cheaply(name: str) -> None:
    codec = codec_id()
    prior = prior_of(name, codec)
    data = write_file([picture(codec, 16, 16)], codec, prior).data
    at = len(data) - 4 - len(parse(data)[1]) - 1
    lie = resealed(data, slice(at, at + 1), b"\x80\x40")  # 8192 x 8192 pixels
    with pytest.raises(IntegrityError, match=r"cannot hold|codes take"):
        read_file(lie, codec, prior)


def test_more_codes_than_memory_is_meant_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = codec_id()
    data = write_file([picture(codec, 16, 16)], codec, prior_of("raw", codec)).data
    monkeypatch.setattr(file_module, "MAX_FILE_CODES", 15)
    with pytest.raises(IntegrityError, match="16 codes in a file, 15"):
        read_file(data, codec, prior_of("raw", codec))
    with pytest.raises(ConfigError, match="16 codes in a file, 15"):
        write_file([picture(codec, 16, 16)], codec, prior_of("raw", codec))


@pytest.mark.parametrize("name", PRIORS)
def test_bytes_after_the_payload_are_refused(name: str) -> None:
    codec = codec_id()
    prior = prior_of(name, codec)
    data = write_file([picture(codec, 16, 16)], codec, prior).data
    end = len(data) - 4
    for extra in (b"\0", b"\x80", bytes(9)):
        with pytest.raises(IntegrityError, match="payload"):
            read_file(resealed(data, slice(end, end), extra), codec, prior)


def test_raw_ids_and_padding_are_checked() -> None:
    codec = codec_id(12)
    data = write_file([picture(codec, 4, 12)], codec, prior_of("raw", codec)).data
    for by, message in ((b"\xf0\x00", "id 15"), (b"\x00\x01", "end in zeros")):
        with pytest.raises(IntegrityError, match=message):
            place = slice(len(data) - 6, len(data) - 4)
            read_file(resealed(data, place, by), codec, prior_of("raw", codec))


@pytest.mark.parametrize(
    ("digest", "k", "planes", "factor"),
    [
        ("x" * 64, 8, 1, 4),
        ("a" * 64, 9, 2, 4),
        ("a" * 64, 8, 8, 4),
        ("a" * 64, 8, 1, 0),
        ("a" * 64, 2**17, 1, 4),
        ("a" * 8, 8, 1, 4),
    ],
)
def test_impossible_codecs_are_refused(digest: str, k: int, planes: int, factor: int) -> None:
    with pytest.raises(ConfigError) as caught:
        CodecId(digest, k, planes, factor)
    assert caught.value.hint


def test_large_books_and_many_codes() -> None:
    codec = CodecId("c" * 64, 2**16, 1, 1)
    codes = np.random.default_rng(0).integers(0, 2**16, 300 * 300).astype(np.int32)
    for name in ("raw", "static"):
        prior = prior_of(name, codec)
        written = write_file([Picture(codes, 300, 300)], codec, prior)
        (back,) = read_file(written.data, codec, prior)
        assert np.array_equal(back.codes, codes)
