"""`mmprod deploy` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmprod.deploying import programs
from mmprod.deploying.verdicts import Missing
from tests.cli.conftest import Mmprod
from tests.deploying.bundles import small_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return small_bundle(tmp_path / "bundle").root


def test_list_names_what_can_be_rendered(mmprod: Mmprod) -> None:
    kinds = [entry["name"] for entry in mmprod("deploy", "list", "--json").json()["kinds"]]
    assert kinds == [
        "triton", "docker", "compose", "kubernetes", "slurm", "systemd", "monitoring",
    ]  # fmt: skip
    assert "all of these" in mmprod("deploy", "list").out


def test_render_then_validate(mmprod: Mmprod, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = mmprod("deploy", "render", "triton", bundle, "--out", out, "--json")
    assert done.code == 0, done.err
    assert "triton/graph.codec_decode/config.pbtxt" in done.json()["files"]
    again = mmprod("deploy", "render", "triton", bundle, "--out", out)
    assert again.code == 0 and "mmprod deploy validate" in again.out
    checked = mmprod("deploy", "validate", out, "--strict", "--json")
    assert checked.code == 0, checked.err
    assert checked.json()["counts"]["fail"] == 0
    (out / "triton" / "graph.codec_decode" / "config.pbtxt").write_text("name: 3\n")
    harmed = mmprod("deploy", "validate", out)
    assert harmed.code == 4 and "graph.codec_decode/config.pbtxt" in harmed.err


def test_refusals_leave_nothing(mmprod: Mmprod, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = mmprod("deploy", "render", "all", bundle, "--out", out, "--grpc-port", "8080", "--json")
    assert done.code == 2 and done.err.startswith("error: port-clash: --port and --grpc-port")
    assert done.json()["error"]["exit_code"] == 2 and "hint: " in done.err
    assert not out.exists()


def test_an_unknown_kind_gets_the_nearest(mmprod: Mmprod, bundle: Path) -> None:
    done = mmprod("deploy", "render", "kubernets", bundle)
    assert done.code == 2 and "did you mean kubernetes?" in done.err


def test_a_missing_configuration_is_said(mmprod: Mmprod, bundle: Path, tmp_path: Path) -> None:
    done = mmprod(
        "deploy", "render", "slurm", bundle, "--config", "gigantic", "--out", tmp_path / "o"
    )
    assert done.code == 2 and "gigantic" in done.err


def test_strict_wants_every_tool(
    mmprod: Mmprod, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(program: str) -> str:
        raise Missing(program, programs.SOURCES[program])

    out = tmp_path / "out"
    assert mmprod("deploy", "render", "systemd", bundle, "--out", out).code == 0
    monkeypatch.setattr(programs, "_found", missing)
    lax, strict = (mmprod("deploy", "validate", out, *more) for more in ((), ("--strict",)))
    assert lax.code == 0 and "not validated" in lax.out
    assert strict.code == 3 and "apt install systemd" in strict.err


def test_validate_wants_a_folder(mmprod: Mmprod, tmp_path: Path) -> None:
    done = mmprod("deploy", "validate", tmp_path / "none")
    assert done.code == 2 and "no folder" in done.err
