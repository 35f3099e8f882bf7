"""Labels of our codecs beside each other, and what a decoder takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmprod.bundle import create_bundle, open_bundle
from mmprod.checkpoint import open_run
from mmprod.cli.rate_codecs import About, labels, open_ours

ABOUT = About("runs/a", "run", "fp32", "spherical", 4, 1, 1024, 8)


def test_labels_are_short_where_codecs_differ() -> None:
    residual = replace(ABOUT, quantizer="residual", factor=8, books=2, codes=96)
    assert labels([ABOUT, residual]) == ["f4 1024 spherical", "f8 2x96 residual"]


def test_labels_get_longer_only_where_they_must() -> None:
    wide, other = replace(ABOUT, path="runs/b", dim=16), replace(ABOUT, quantizer="euclid")
    assert labels([ABOUT, wide, other]) == [
        "f4 1024 spherical D8", "f4 1024 spherical D16", "f4 1024 euclid",
    ]  # fmt: skip
    again = replace(ABOUT, path="runs/b")
    assert labels([ABOUT, again]) == ["f4 1024 spherical a", "f4 1024 spherical b"]
    bundle = replace(ABOUT, path="bundles/a", kind="bundle")
    assert labels([ABOUT, bundle]) == ["f4 1024 spherical run a", "f4 1024 spherical bundle a"]
    far = replace(ABOUT, path="other/a")
    assert labels([ABOUT, far]) == ["f4 1024 spherical runs/a", "f4 1024 spherical other/a"]


def test_a_decoder_of_a_bundle_counts_weights_beside_the_graph(run: Path, tmp_path: Path) -> None:
    opened = open_run(run)
    made = create_bundle(
        tmp_path / "b",
        name="b",
        dims=opened.dims,
        sampler=opened.config.sampler,
        provenance=opened.provenance(),
    )
    sizes = {"fp32": (100, 3000), "fp16": (90, 1500)}
    for graph in ("codec_encode", "codec_decode", "code_prior"):
        for precision, (small, large) in sizes.items():
            for role, size in (("onnx", small), ("onnx-data", large)):
                path = made.root / "onnx" / f"{graph}.{precision}.{role}"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(bytes(size))
                made.add(path, role=role, graph=graph, precision=precision)
    made.save()
    assert open_bundle(made.root).name == "b"
    for precision, (small, large) in sizes.items():
        for priors, graphs in ((("static",), 1), ((), 2)):
            (codec,) = open_ours([made.root], precision, priors)
            assert codec.decoder.bytes == graphs * (small + large)
            assert precision in codec.decoder.what
            assert codec.about.precision == precision
