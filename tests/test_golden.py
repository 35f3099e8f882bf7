"""The loss curves of a short run equal the golden file (see tools/golden.py)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "golden.py"


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_losses_equal_the_golden_curves(tmp_path: Path) -> None:
    """Within 1e-3: other processors add in another order, and a nearest code may tip over."""
    golden = json.loads(tool().GOLDEN.read_text())
    found = tool().losses(tmp_path / "run")
    assert {stage: len(curve) for stage, curve in found.items()} == {"codec": 12, "fusion": 12}
    for stage, curve in found.items():
        assert curve == pytest.approx(golden[stage], rel=1e-3), stage
