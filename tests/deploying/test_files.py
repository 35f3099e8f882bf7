"""Rendered files reach the disk whole or not at all, and never the wrong place."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmprod.deploying.files import Copy, check_target, write_files
from mmprod.deploying.options import Options
from mmprod.deploying.render import render_to
from mmprod.errors import ConfigError
from mmprod.parity.standing import standing_rows
from tests.deploying.bundles import small_bundle


def test_files_are_written_and_replaced_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "graph").write_bytes(b"g")
    out = tmp_path / "out"
    write_files({"a/b.txt": "b", "old": "o"}, out, tmp_path / "bundle")
    check_target(out, tmp_path / "bundle")
    write_files({"a/c": Copy("graph")}, out, tmp_path / "bundle")
    assert (out / "a" / "c").read_bytes() == b"g"
    assert sorted(p.name for p in out.rglob("*") if p.is_file()) == [".mmprod-deploy", "c"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "out"]


def test_what_others_put_there_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_files({"compose/a": "1", "old": "o"}, out, tmp_path / "bundle")
    (out / "compose" / "mmprod-key").write_text("key")
    (out / "compose" / "mmprod-key").chmod(0o600)
    write_files({"compose/a": "2"}, out, tmp_path / "bundle")
    key = out / "compose" / "mmprod-key"
    assert key.read_text() == "key" and key.stat().st_mode & 0o777 == 0o600
    assert (out / "compose" / "a").read_text() == "2" and not (out / "old").exists()
    with pytest.raises(ConfigError, match="mmprod-key was not written by render"):
        write_files({"compose/mmprod-key": "3"}, out, tmp_path / "bundle")
    assert key.read_text() == "key"


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_files({"a": "1"}, out, tmp_path)
    with pytest.raises(FileNotFoundError):
        write_files({"a": "2", "b": Copy("missing")}, out, tmp_path)
    assert (out / "a").read_text() == "1" and not (out / "b").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_wrong_targets_are_refused(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    (bundle / "sub").mkdir(parents=True)
    with pytest.raises(ConfigError, match="out-in-bundle"):
        check_target(bundle / "deploy", bundle)
    (tmp_path / "link").symlink_to(bundle)
    with pytest.raises(ConfigError, match="out-in-bundle"):
        check_target(tmp_path / "link" / "deploy", bundle)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="no folder"):
        check_target(tmp_path / "file", bundle)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("x")
    with pytest.raises(ConfigError, match="other things"):
        check_target(tmp_path / "mine", bundle)
    check_target(tmp_path / "new", bundle)


def test_a_bundle_renders_to_the_same_bytes_again(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    first = render_to(
        bundle, standing_rows(bundle), Options(), ["triton", "docker"], tmp_path / "out"
    )
    assert first == render_to(
        bundle, standing_rows(bundle), Options(), ["triton", "docker"], tmp_path / "out"
    )
    config = (tmp_path / "out" / "triton" / "graph.embed_text" / "config.pbtxt").read_text()
    assert 'name: "tokens"' in config and "max_batch_size: 16" in config and "dims: 12" in config
    copied = tmp_path / "out" / "triton" / "graph.embed_text" / "1" / "model.onnx"
    assert copied.read_bytes() == (bundle.root / "onnx" / "embed_text.fp32.onnx").read_bytes()
    with pytest.raises(ConfigError, match="no-parity-pass"):
        bundle.put_summary("parity", {"ok": True, "rows": []})
        render_to(bundle, standing_rows(bundle), Options(), ["triton"], tmp_path / "other")
    assert not (tmp_path / "other").exists()
