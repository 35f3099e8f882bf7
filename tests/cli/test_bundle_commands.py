"""`mmprod bundle`, and the gate before engines, on bundles made by hand."""

from __future__ import annotations

import io
import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from mmprod.bundle import Bundle, create_bundle
from mmprod.cli import gate
from mmprod.cli.output import Output
from mmprod.config.schema import Dims, SamplerConfig
from mmprod.errors import ConfigError, EnvironmentMissing, ParityFailed
from mmprod.manifest import sha256_file
from mmprod.parity.report import limits_sha256

from .conftest import Mmprod, in_process_of_its_own

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
    counts = {"ok": status == "pass", "pass": 1, "fail": 0, "not run": 0}
    return {**counts, "limits_sha256": limits_sha256(), "rows": [row]}


def bench_summary(bundle: Bundle) -> dict[str, Any]:
    (graph,) = bundle.artefacts(role="onnx")
    row = {"subject": "onnxruntime", "graph": graph.graph, "precision": "fp32", "target": ""}
    figures = {"batch": 1, "p50_ms": 1.5, "samples_per_s": 9.0, "peak_bytes": 10}
    rows = [{**row, **figures, "sha256": {graph.path: graph.sha256}}]
    return {"machine": {"processor": "a processor"}, "settings": {"runs": 3}, "rows": rows}


def test_inspect_tells_what_is_inside(bundle: Bundle, mmprod: Mmprod) -> None:
    text = mmprod("bundle", "inspect", bundle.root).out
    for words in ("hand", "16 px", "onnx/codec_encode.fp32.onnx", "never checked"):
        assert words in text
    data = mmprod("bundle", "inspect", bundle.root, "--json").json()
    assert data["artefacts"][0]["sha256"] == bundle.artefacts()[0].sha256
    assert data["provenance"] == {"run": "x"}


def test_keygen_sign_verify(
    bundle: Bundle, mmprod: Mmprod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, public = tmp_path / "maker", tmp_path / "maker.pub"
    made = mmprod("bundle", "keygen", key, "--json").json()
    assert made["public"] == str(public)
    refused = mmprod("bundle", "verify", bundle.root, "--trusted", public)
    assert refused.code == 4
    assert "bundle sign" in refused.err
    assert mmprod("bundle", "sign", bundle.root, "--key", key).code == 0
    known = mmprod("bundle", "verify", bundle.root, "--trusted", public, "--json").json()
    assert known["signature"]["confirmed"] is True
    assert known["signature"]["key"] == made["key"]
    unknown = mmprod("bundle", "verify", bundle.root)
    assert "not checked" in unknown.out
    other = mmprod("bundle", "keygen", tmp_path / "other", "--json").json()
    monkeypatch.setenv("MMPROD_TRUSTED_KEYS", other["public"])
    for command in (["bundle", "inspect"], ["parity", "run"], ["build", "--trt"]):
        result = mmprod(*command[:2], bundle.root, *command[2:])
        assert result.code == 4
        assert "not among the trusted" in result.err
    assert mmprod("bundle", "verify", bundle.root, "--trusted", public).code == 0
    key.chmod(0o644)
    assert "chmod 600" in mmprod("bundle", "sign", bundle.root, "--key", key).err
    assert mmprod("bundle", "keygen", key).code == 2


def test_a_key_with_a_passphrase(
    bundle: Bundle, mmprod: Mmprod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "k"
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert "nobody to ask" in mmprod("bundle", "keygen", key, "--passphrase").err
    assert not key.exists()
    monkeypatch.setenv("MMPROD_KEY_PASSPHRASE", "sesame")
    assert mmprod("bundle", "keygen", key, "--passphrase").code == 0
    assert mmprod("bundle", "sign", bundle.root, "--key", key).code == 0
    monkeypatch.setenv("MMPROD_KEY_PASSPHRASE", "wrong")
    result = mmprod("bundle", "sign", bundle.root, "--key", key)
    assert result.code == 2
    assert "passphrase is wrong" in result.err


def test_without_the_extra_signing_says_what_to_install(
    bundle: Bundle, mmprod: Mmprod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    monkeypatch.delitem(sys.modules, "mmprod.bundle.keys", raising=False)
    result = mmprod("bundle", "keygen", tmp_path / "k")
    assert result.code == 3
    assert "mmprod[sign]" in result.err
    assert mmprod("bundle", "verify", bundle.root).code == 0


def test_inspect_says_where_each_figure_came_from(bundle: Bundle, mmprod: Mmprod) -> None:
    bundle.provenance |= {
        "data": "f00d",
        "stages": {"codec": {"steps": 3, "metrics": {"psnr": 20.5}}},
        "versions": {"torch": "2.13"},
        "files": [{"path": "config.toml", "sha256": "c0ffee", "bytes": 1}],
        "software": [{"name": "x", "version": "1", "licence": "MIT"}],
    }
    bundle.put_summary("parity", summary(bundle, "pass"))
    bundle.put_summary("bench", bench_summary(bundle))
    bundle.save()
    text = mmprod("bundle", "inspect", bundle.root).out
    for words in ("f00d", "psnr 20.5", "torch 2.13", "c0ffee", "1 packages", "torch-ort: pass",
                  "p50 1.5 ms", "current", "a processor", "signature", "none"):  # fmt: skip
        assert words in text
    data = mmprod("bundle", "inspect", bundle.root, "--json").json()
    assert data["artefacts"][0]["parity"] == "torch-ort: pass"
    assert data["signature"] == {"signed": False, "confirmed": False}
    (psnr,) = (f for f in data["figures"] if f["name"] == "codec psnr")
    assert psnr["files"] == {"config.toml": "c0ffee"}
    bundle.put_summary("parity", summary(bundle, "pass", digest="0" * 64))
    bundle.save()
    text = mmprod("bundle", "inspect", bundle.root).out
    assert "of another file" in text
    assert "outdated" in text


def test_no_text_of_a_bundle_reaches_the_terminal_as_an_order(
    bundle: Bundle, mmprod: Mmprod
) -> None:
    order = "\x1b[2Jorder\u202e"
    bundle.name = order
    bundle.provenance |= {order: order, "stages": {order: {"metrics": {order: 1.0}}}}
    bundle.save()
    result = mmprod("bundle", "inspect", bundle.root)
    assert result.code == 0
    assert "order" in result.out
    (bundle.root / f"{order}\udcff").write_text("")
    refused = mmprod("bundle", "verify", bundle.root)
    assert refused.code == 4
    assert "order" in refused.err
    for text in (result.out, refused.err):
        assert not {"\x1b", "\u202e"} & set(text)
    assert mmprod("bundle", "verify", bundle.root, "--json").json()["error"]["exit_code"] == 4


def test_sbom_pack_and_unpack(bundle: Bundle, mmprod: Mmprod, tmp_path: Path) -> None:
    document = mmprod("bundle", "sbom", bundle.root, "--json").json()
    assert document["specVersion"] == "1.6"
    target = tmp_path / "sbom.json"
    assert mmprod("bundle", "sbom", bundle.root, "--out", target).code == 0
    assert json.loads(target.read_text()) == document
    archive = tmp_path / "b.tar"
    assert mmprod("bundle", "pack", bundle.root, archive).code == 0
    assert mmprod("bundle", "unpack", archive, tmp_path / "out").code == 0
    assert mmprod("bundle", "verify", tmp_path / "out").code == 0
    assert mmprod("bundle", "pack", bundle.root, archive).code == 2
    archive.write_bytes(archive.read_bytes()[:700])
    assert mmprod("bundle", "unpack", archive, tmp_path / "out2").code == 4


def test_harmed_bundles_end_with_exit_4_in_a_process_of_their_own(
    bundle: Bundle, tmp_path: Path
) -> None:
    """tests/bundle/test_corruption.py has a thousand in one process; the slow test here twenty."""
    _refused_by_the_real_program(bundle.root, tmp_path, range(2))


@pytest.mark.slow
def test_twenty_harmed_bundles_end_with_exit_4(bundle: Bundle, tmp_path: Path) -> None:
    _refused_by_the_real_program(bundle.root, tmp_path, range(100, 120))


def _refused_by_the_real_program(root: Path, tmp_path: Path, seeds: range) -> None:
    for seed in seeds:
        rng, copy = random.Random(seed), tmp_path / f"copy{seed}"
        shutil.copytree(root, copy)
        path = rng.choice(sorted(p for p in copy.rglob("*") if p.is_file()))
        kind = rng.choice(("flip", "cut", "link", "stranger", "path"))
        data = bytearray(path.read_bytes())
        if kind == "flip":
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
        elif kind == "cut":
            path.write_bytes(data[: rng.randrange(len(data))])
        elif kind == "link":
            path.rename(tmp_path / f"aside{seed}")
            path.symlink_to(tmp_path / f"aside{seed}")
        elif kind == "stranger":
            (copy / "onnx" / "extra").symlink_to("/dev/zero")
        else:
            index = (copy / "bundle.json").read_text().replace("onnx/codec", "../onnx/codec")
            (copy / "bundle.json").write_text(index)
            digest = sha256_file(copy / "bundle.json")
            (copy / "bundle.sha256").write_text(f"{digest}  bundle.json\n")
        done = in_process_of_its_own("bundle", "verify", str(copy), "--json")
        assert done.code == 4, (seed, kind, done.err)
        assert done.json()["error"]["exit_code"] == 4
        assert "Traceback" not in done.err


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
    monkeypatch.setattr(
        gate, "check", lambda out, bundle, run, foreign: checked.append(bundle.name)
    )
    with pytest.raises(EnvironmentMissing, match="codec_encode fp32: 3 of 64 codes differ"):
        gate.gate(Output(verbosity=-1), bundle, ("fp32",))
    assert checked == ["hand"]


def test_a_pass_under_other_limits_does_not_open_the_gate(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle.put_summary("parity", summary(bundle, "pass") | {"limits_sha256": "0" * 64})
    checked: list[str] = []
    monkeypatch.setattr(
        gate, "check", lambda out, bundle, run, foreign: checked.append(bundle.name)
    )
    with pytest.raises(EnvironmentMissing, match="could not be compared"):
        gate.gate(Output(verbosity=-1), bundle, ("fp32",))
    assert checked == ["hand"]


def test_gate_wants_a_verdict_on_the_weights_beside_the_graph_too(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle.put_summary("parity", summary(bundle, "pass"))
    path = bundle.root / "onnx" / "codec_encode.fp32.onnx.data"
    path.write_bytes(b"weights")
    bundle.add(path, role="onnx-data", graph="codec_encode", precision="fp32")
    monkeypatch.setattr(gate, "check", lambda out, bundle, run, foreign: None)
    with pytest.raises(EnvironmentMissing, match="could not be compared"):
        gate.gate(Output(verbosity=-1), bundle, ("fp32",))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precision", ""], "--precision"),
        (["--target", ","], "--target"),
        (["--target", "sm42"], "sm42"),
        (["--precision", "fp61"], "unknown precision"),
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


@pytest.mark.parametrize("failed", ["", "ort-cuda"])
def test_a_pass_of_another_provider_does_not_open_the_gate(bundle: Bundle, failed: str) -> None:
    found = summary(bundle, "pass")
    (row,) = found["rows"]
    found["rows"] = [
        {**row, "target": target, "status": "fail" if target == failed else "pass"}
        for target in ("", "ort-cuda")
    ]
    bundle.put_summary("parity", found)
    with pytest.raises(ParityFailed, match="codec_encode fp32: 3 of 64 codes differ"):
        gate.gate(Output(), bundle, ("fp32",))


def test_gate_does_not_believe_a_verdict_about_another_file(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle.put_summary("parity", summary(bundle, "pass", digest="0" * 64))

    def fresh(out: Output, bundle: Bundle, run: None, foreign: bool) -> None:
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
