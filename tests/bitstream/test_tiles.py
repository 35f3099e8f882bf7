"""Windows over pictures of any size, with codecs made of NumPy whose every answer is known."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from mmprod.bitstream import tiles
from mmprod.bitstream.tiles import Geometry, decode, encode, window_starts
from mmprod.graphs.spec import Dim, GraphSpec, Tensor

S, G = 32, 8
F = S // G
BATCH = Dim("batch", 1, 4, 16)
ONE, TWO = Geometry(S, G, 1), Geometry(S, G, 2)
SIZES = [(1, 1), (3, 200), (200, 3), (32, 32), (33, 32), (31, 65), (95, 130)]


class Codec:
    """codes: (red, in plane 1 green) mean of each cell; pixels: the value of the code, with what
    `shade` (S, S) adds to every window.
    """

    backend = "fake"

    def __init__(
        self, name: str, geometry: Geometry = ONE, shade: np.ndarray | None = None
    ) -> None:
        self.geometry, self.shade, self.calls = geometry, shade, 0
        pixels = Tensor("pixels", "uint8", (BATCH, S, S, 3), "pixels", below=256)
        shape = (BATCH, geometry.planes * G * G)
        codes = Tensor("codes", "int32", shape, "codes", below=512)
        ends = ((pixels,), (codes,)) if name == "codec_encode" else ((codes,), (pixels,))
        self.spec = GraphSpec(name, *ends, "fake")

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        (tensor,) = self.spec.inputs
        value = inputs[tensor.name]
        self.calls += 1
        assert 1 <= len(value) <= BATCH.max
        assert value.dtype == tensor.dtype
        assert value.shape == tensor.sizes({"batch": len(value)})
        if tensor.name == "pixels":
            return {"codes": self.codes(value)}
        planes = value.reshape(-1, self.geometry.planes, G, G)
        pixels = np.repeat(planes[..., None], 3, -1) - 256 * np.arange(len(planes[0])).reshape(
            1, -1, 1, 1, 1
        )
        large = pixels.mean(1).repeat(F, 1).repeat(F, 2)
        if self.shade is not None:
            large = large + self.shade[..., None]
        return {"pixels": large.clip(0, 255).astype(np.uint8)}

    def codes(self, pixels: np.ndarray) -> np.ndarray:
        cells = pixels.reshape(-1, G, F, G, F, 3).mean((2, 4))
        planes = [cells[..., plane] + 256 * plane for plane in range(self.geometry.planes)]
        return np.stack(planes, 1).astype(np.int32).reshape(len(pixels), -1)

    def close(self) -> None:
        pass


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def cell_means(pixels: np.ndarray, geometry: Geometry) -> np.ndarray:
    """What the fake encoder would say of the whole picture at once."""
    rows, columns = geometry.cells(*pixels.shape[:2])
    pad = [(0, rows * F - pixels.shape[0]), (0, columns * F - pixels.shape[1]), (0, 0)]
    cells = np.pad(pixels, pad, "edge").reshape(rows, F, columns, F, 3).mean((1, 3))
    planes = [cells[..., plane] + 256 * plane for plane in range(geometry.planes)]
    return np.stack(planes).astype(np.int32).reshape(-1)


@pytest.mark.parametrize("geometry", [ONE, TWO])
def test_a_picture_of_the_graphs_size_is_exactly_the_graphs(geometry: Geometry) -> None:
    encoder, decoder = Codec("codec_encode", geometry), Codec("codec_decode", geometry)
    pixels = picture(S, S)
    codes = encode(encoder, pixels, geometry)
    np.testing.assert_array_equal(codes, encoder({"pixels": pixels[None]})["codes"][0])
    np.testing.assert_array_equal(
        decode(decoder, codes, (S, S), geometry), decoder({"codes": codes[None]})["pixels"][0]
    )


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("geometry", [ONE, TWO])
def test_every_cell_is_coded_once_and_drawn_where_it_belongs(
    geometry: Geometry, size: tuple[int, int], overlap: float
) -> None:
    pixels = picture(*size)
    codes = encode(Codec("codec_encode", geometry), pixels, geometry, overlap)
    np.testing.assert_array_equal(codes, cell_means(pixels, geometry))
    drawn = decode(Codec("codec_decode", geometry), codes, size, geometry, overlap)
    planes = codes.reshape(geometry.planes, *geometry.cells(*size))
    values = (planes - 256 * np.arange(geometry.planes).reshape(-1, 1, 1)).mean(0).astype(np.uint8)
    wanted = values.repeat(F, 0).repeat(F, 1)[: size[0], : size[1]]
    np.testing.assert_array_equal(drawn, np.repeat(wanted[..., None], 3, -1))


@pytest.mark.parametrize("grid", [1, 2, 4, 8])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_windows_cover_everything_and_their_weights_add_up_to_one(
    grid: int, overlap: float
) -> None:
    geometry = Geometry(grid * F, grid, 1)
    for cells in range(1, 60):
        starts = window_starts(cells, grid, overlap)
        assert starts[0] == 0
        assert len(starts) == 1 or starts[-1] == cells - grid
        steps = np.diff(starts)
        assert (steps > 0).all()
        assert (steps <= max(1, int(grid * (1 - overlap)))).all()
        total = np.zeros((starts[-1] + grid) * F)
        for start, weights in zip(starts, tiles._fades(starts, geometry), strict=True):
            assert (weights >= 0).all()
            total[start * F : start * F + len(weights)] += weights
        np.testing.assert_allclose(total, 1, atol=1e-6)


def test_a_cell_takes_its_code_from_the_window_where_it_lies_most_centrally() -> None:
    class Where(Codec):
        def codes(self, pixels: np.ndarray) -> np.ndarray:
            return np.tile(np.arange(G * G, dtype=np.int32), (len(pixels), 1))

    cells = 29
    starts = window_starts(cells, G, 0.25)
    codes = encode(Where("codec_encode"), picture(S, cells * F), ONE, 0.25).reshape(G, cells)
    for cell in range(cells):
        reach = [abs(cell + 0.5 - start - G / 2) for start in starts if 0 <= cell - start < G]
        assert abs(codes[0, cell] + 0.5 - G / 2) == min(reach)


def seam_ratio(drawn: np.ndarray, overlap: float) -> float:
    """Energy of the steps across the borders of windows, against the other borders of cells."""
    steps = np.square(np.diff(drawn.astype(float), axis=1)).mean((0, 2))
    starts = window_starts(drawn.shape[1] // F, G, overlap)
    borders = {s * F for s in starts[1:]} | {(s + G) * F for s in starts[:-1]}
    others = set(range(F, drawn.shape[1], F)) - borders
    return float(steps[[x - 1 for x in borders]].mean() / steps[[x - 1 for x in others]].mean())


def test_seams_of_a_decoder_that_is_wrong_at_its_borders_are_invisible() -> None:
    """Windows that end dark, and a light and a dark side: a hard cut shows both."""
    ramp = np.linspace(-20, 20, S)
    vignette = -30 * (np.minimum(np.arange(S), np.arange(S)[::-1]) < 3)
    decoder = Codec("codec_decode", shade=np.broadcast_to(ramp + vignette, (S, S)))
    rows, columns = 16, 61
    codes = (110 + 30 * np.random.default_rng(1).random(rows * columns)).astype(np.int32)
    size = (rows * F, columns * F)
    cut = seam_ratio(decode(decoder, codes, size, ONE, 0.0), 0.0)
    faded = seam_ratio(decode(decoder, codes, size, ONE), tiles.OVERLAP)
    assert cut > 4
    assert faded == pytest.approx(1, abs=0.15)


def test_memory_does_not_grow_with_the_number_of_windows() -> None:
    height, width = 4000, 64
    codes = np.zeros(ONE.cells(height, width)[0] * ONE.cells(height, width)[1], np.int32)
    decoder, encoder = Codec("codec_decode"), Codec("codec_encode")
    pixels = np.zeros((height, width, 3), np.uint8)
    tracemalloc.start()
    try:
        decode(decoder, codes, (height, width), ONE)
        encode(encoder, pixels, ONE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert decoder.calls > 100
    batch = BATCH.max * S * S * 3 * 8 * 4
    assert peak < height * width * 3 + batch + 2**20
