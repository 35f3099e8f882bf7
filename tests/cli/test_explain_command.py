"""`mmprod parity explain` and `sabotage` as they are typed."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from mmprod.bundle import open_bundle
from tests.parity.exported import overflowing_decoder

from .conftest import Mmprod

GRAPH, MODULE = "codec_decode", "codec.decoder.layers.1.conv1"
ASK = ("--graph", GRAPH, "--precision", "fp16")


@pytest.fixture
def bundle(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    return shutil.copytree(overflowing_decoder(tmp_path_factory), tmp_path / "bundle")


def hashes(root: Path) -> dict[Path, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_explain_names_block_cause_and_cure_and_repair_applies_it(
    bundle: Path, mmprod: Mmprod
) -> None:
    before = hashes(bundle)
    told = mmprod("parity", "explain", bundle, *ASK)
    assert told.code == 5
    assert f"first over its limit: {MODULE}" in told.out
    assert "overflow: " in told.out and f"keep in fp32: {MODULE}" in told.out
    assert "cost: " in told.out and "--repair" in told.err
    assert hashes(bundle) == before

    done = mmprod("parity", "explain", bundle, *ASK, "--repair", "--json")
    assert done.code == 0
    islands = done.json()["islands"]
    assert islands["modules"] == [MODULE] and islands["written"]
    assert islands["verdict"].startswith("pass")
    assert mmprod("bundle", "verify", bundle).code == 0
    assert mmprod("parity", "run", bundle).code == 0
    told = mmprod("parity", "explain", bundle, *ASK, "--repair")
    assert told.code == 0 and "blocks are within their limits" in told.out


def test_a_repair_that_fails_leaves_the_bundle_and_says_so(
    bundle: Path, mmprod: Mmprod, monkeypatch: pytest.MonkeyPatch
) -> None:
    def useless(*_: object) -> dict[str, object]:
        old = open_bundle(bundle).artefacts(role="onnx", precision="fp16")[0]
        shutil.copyfile(bundle / old.path, Path(str(_[-1])))
        return {}

    before = hashes(bundle)
    monkeypatch.setattr("mmprod.export.islands.cast_with_islands", useless)
    result = mmprod("parity", "explain", bundle, *ASK, "--repair")
    assert result.code == 5
    assert "no set of modules in fp32 cures it" in result.err
    assert hashes(bundle) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--graph", GRAPH), "--against RUN"),
        (("--graph", GRAPH, "--precision", "fp32", "--repair"), "no fp32 islands"),
        (("--graph", GRAPH, "--precision", "int8", "--repair"), "no fp32 islands"),
        (("--graph", "nothing"), "no graph is called nothing"),
    ],
)
def test_requests_that_cannot_be_met(
    bundle: Path, mmprod: Mmprod, arguments: tuple[str, ...], said: str
) -> None:
    result = mmprod("parity", "explain", bundle, *arguments)
    assert result.code == 2
    assert said in result.err


def test_sabotage_shows_what_noticed_each_fault_and_whether_explain_was_right(
    bundle: Path, mmprod: Mmprod
) -> None:
    faults = ("--fault", "put_nan,flipped_bit,swap_names")
    result = mmprod("parity", "sabotage", bundle, "--graph", GRAPH, *faults)
    assert result.code == 0
    assert "3 of 3 faults caught in 4 trials; 1 of 1 undamaged graphs pass" in result.out
    assert "explain names the right block in 1 of 1 noticed numeric faults" in result.out
    unknown = mmprod("parity", "sabotage", bundle, "--fault", "burn")
    assert unknown.code == 2 and "put_nan" in unknown.err
