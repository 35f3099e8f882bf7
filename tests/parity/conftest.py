"""The bundle of small graphs that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmprod.bundle import Bundle
from tests.parity.toy import make_toy


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """codec_decode and embed_text in fp32 with stored cases b1 and b3."""
    return make_toy(tmp_path / "bundle")
