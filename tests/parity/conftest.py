"""The bundle of small graphs that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmprod.bundle import Bundle, create_bundle
from tests.parity.toy import DIMS, ONNX, SAMPLER, add_onnx, stored


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """codec_decode and embed_text in fp32 with stored cases b1 and b3."""
    made = create_bundle(
        tmp_path / "bundle", name="toy", dims=DIMS, sampler=SAMPLER, provenance={"made": "by hand"}
    )
    for name in ONNX:
        add_onnx(made, name, "fp32")
        path = made.root / "reference" / f"{name}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(path, **stored(name))  # type: ignore[arg-type]
        made.add(path, role="reference", graph=name)
    made.save()
    return made
