"""`mmprod bundle`, and the gate before engines, on bundles made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmprod.bundle import Bundle, create_bundle
from mmprod.cli import gate
from mmprod.cli.output import Output
from mmprod.config.schema import Dims, SamplerConfig
from mmprod.errors import ConfigError, EnvironmentMissing, ParityFailed

from .conftest import Mmprod

DIMS = Dims(image_size=16, grid=4, codebook_size=8, text_length=6, vocabulary=20, embedding=4)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    made = create_bundle(
        tmp_path / "bundle",
        name="hand",
        dims=DIMS,
        sampler=SamplerConfig(),
        provenance={"run": "x"},
    )
    path = made.root / "onnx" / "codec_encode.fp32.onnx"
    path.parent.mkdir()
    path.write_bytes(b"not a real graph, but a file")
    made.add(path, role="onnx", graph="codec_encode", precision="fp32")
    made.save()
    return made


def summary(bundle: Bundle, status: str, digest: str = "") -> dict[str, Any]:
    (graph,) = bundle.artefacts(role="onnx")
    row = {
        "leg": "torch-ort",
        "graph": graph.graph,
        "precision": graph.precision,
        "target": "",
        "status": status,
        "reason": "3 of 64 codes differ",
        "sha256": {graph.path: digest or graph.sha256},
    }
    return {"ok": status == "pass", "pass": 1, "fail": 0, "not run": 0, "rows": [row]}


def test_inspect_tells_what_is_inside(bundle: Bundle, mmprod: Mmprod) -> None:
    text = mmprod("bundle", "inspect", bundle.root).out
    for words in ("hand", "16 px", "onnx/codec_encode.fp32.onnx", "never checked"):
        assert words in text
    data = mmprod("bundle", "inspect", bundle.root, "--json").json()
    assert data["artefacts"][0]["sha256"] == bundle.artefacts()[0].sha256
    assert data["provenance"] == {"run": "x"}


@pytest.mark.parametrize(
    "command", [["bundle", "verify"], ["bundle", "inspect"], ["parity", "run"], ["build", "--trt"]]
)
@pytest.mark.parametrize("name", ["bundle.json", "bundle.sha256", "onnx/codec_encode.fp32.onnx"])
def test_one_flipped_bit_is_exit_4(
    command: list[str], name: str, bundle: Bundle, mmprod: Mmprod
) -> None:
    assert mmprod("bundle", "verify", bundle.root).code == 0
    path = bundle.root / name
    content = bytearray(path.read_bytes())
    content[3] ^= 4
    path.write_bytes(content)
    result = mmprod(*command[:2], bundle.root, *command[2:])
    assert result.code == 4, result.err
    assert "error:" in result.err


def test_gate_opens_for_graphs_that_passed(bundle: Bundle) -> None:
    bundle.put_summary("parity", summary(bundle, "pass"))
    gate.gate(Output(), bundle, ("fp32",))
    with pytest.raises(ConfigError, match="no codec_encode in fp16"):
        gate.gate(Output(), bundle, ("fp32", "fp16"))


def test_gate_stays_shut_for_a_graph_that_was_not_compared(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle.put_summary("parity", summary(bundle, "not run"))
    checked: list[str] = []
    monkeypatch.setattr(gate, "check", lambda out, bundle, run: checked.append(bundle.name))
    with pytest.raises(EnvironmentMissing, match="codec_encode fp32: 3 of 64 codes differ"):
        gate.gate(Output(verbosity=-1), bundle, ("fp32",))
    assert checked == ["hand"]


def test_gate_wants_a_verdict_on_the_weights_beside_the_graph_too(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle.put_summary("parity", summary(bundle, "pass"))
    path = bundle.root / "onnx" / "codec_encode.fp32.onnx.data"
    path.write_bytes(b"weights")
    bundle.add(path, role="onnx-data", graph="codec_encode", precision="fp32")
    monkeypatch.setattr(gate, "check", lambda out, bundle, run: None)
    with pytest.raises(EnvironmentMissing, match="could not be compared"):
        gate.gate(Output(verbosity=-1), bundle, ("fp32",))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precision", ""], "--precision"),
        (["--target", ","], "--target"),
        (["--target", "sm42"], "sm42"),
        (["--precision", "bf16"], "no parity limits"),
        (["--precision", "fp32", "--target", "sm75"], "sm75"),
    ],
)
@pytest.mark.parametrize("command", ["build", "export"])
def test_engines_that_cannot_be_built_are_refused_before_anything_is_opened(
    command: str, options: list[str], words: str, mmprod: Mmprod, tmp_path: Path
) -> None:
    result = mmprod(command, tmp_path / "nowhere", "--trt", *options)
    assert result.code == 2
    assert words in result.err
    assert "nowhere" not in result.err


def test_demo_refuses_before_it_trains(mmprod: Mmprod, tmp_path: Path, bundle: Bundle) -> None:
    assert "sm42" in mmprod("demo", "--out", tmp_path / "d", "--target", "sm42").err
    assert not (tmp_path / "d").exists()
    (tmp_path / "file").write_text("x")
    (bundle.root / "mine.txt").write_text("x")
    for out, words in ((tmp_path / "file", "file"), (tmp_path, "mine.txt")):
        result = mmprod("demo", "--out", out)
        assert result.code == 2
        assert words in result.err
        assert not (tmp_path / "run").exists()


def test_gate_stays_shut_for_a_graph_that_failed(bundle: Bundle, mmprod: Mmprod) -> None:
    bundle.put_summary("parity", summary(bundle, "fail"))
    bundle.save()
    with pytest.raises(ParityFailed, match="codec_encode fp32: 3 of 64 codes differ"):
        gate.gate(Output(), bundle, ("fp32",))
    result = mmprod("build", bundle.root, "--trt", "--precision", "fp32", "--target", "sm86")
    assert result.code == 5
    assert "no engines were built" in result.err
    assert not (bundle.root / "engines").exists()


def test_gate_does_not_believe_a_verdict_about_another_file(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle.put_summary("parity", summary(bundle, "pass", digest="0" * 64))

    def fresh(out: Output, bundle: Bundle, run: None) -> None:
        bundle.put_summary("parity", summary(bundle, "fail"))

    monkeypatch.setattr(gate, "check", fresh)
    with pytest.raises(ParityFailed):
        gate.gate(Output(verbosity=-1), bundle, ("fp32",))


def test_build_without_trt_says_what_is_missing(bundle: Bundle, mmprod: Mmprod) -> None:
    result = mmprod("build", bundle.root)
    assert result.code == 2
    assert "--trt" in result.err


@pytest.mark.parametrize("batches", ["", "1,x", "0", "1,-3"])
def test_batches_must_be_sizes(batches: str, bundle: Bundle, mmprod: Mmprod) -> None:
    result = mmprod("parity", "run", bundle.root, f"--batches={batches}")
    assert result.code == 2
    assert "--batches" in result.err


def test_sabotage_of_an_unknown_graph(bundle: Bundle, mmprod: Mmprod) -> None:
    result = mmprod("parity", "sabotage", bundle.root, "--graph", "codec_encod")
    assert result.code == 2
    assert "codec_encode" in result.err
