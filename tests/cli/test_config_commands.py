"""`mmprod config` in words and in JSON."""

from __future__ import annotations

import json
from pathlib import Path

from mmprod.config.load import load_config

from .conftest import Mmprod


def test_show_tells_value_and_origin(mmprod: Mmprod) -> None:
    result = mmprod("config", "show", "tiny", "-o", "codec_train.steps=9", "--json")
    data = result.json()
    assert data["config"]["codec_train"]["steps"] == 9
    assert data["origins"]["codec_train.steps"] == "override"
    assert data["origins"]["name"].startswith("configs/tiny.toml:")
    assert data["origins"]["data.flip"] == "default"
    assert "codec_train.steps" in mmprod("config", "show", "tiny").out


def test_show_toml_is_a_file_that_can_be_used(mmprod: Mmprod, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(mmprod("config", "show", "small", "--toml").out, encoding="utf-8")
    assert load_config(str(path)) == load_config("small")
    assert mmprod("config", "validate", path, "small").code == 0


def test_validate_stops_at_a_mistake_with_exit_2(mmprod: Mmprod, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("[fusion]\nwith = 3\n", encoding="utf-8")
    result = mmprod("config", "validate", "tiny", path)
    assert result.code == 2
    assert f"{path}:2: unknown key 'fusion.with'" in result.err
    assert "did you mean fusion.width?" in result.err


def test_schema_is_the_same_document_either_way(mmprod: Mmprod) -> None:
    plain = json.loads(mmprod("config", "schema").out)
    assert plain == mmprod("config", "schema", "--json").json()
    assert "codec_train" in plain["properties"]
