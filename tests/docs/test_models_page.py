"""docs/models.md names what the code has: quantizers, parts, tasks, loss terms with weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from mmprod.config.parts import PARTS
from mmprod.config.schema import CodecConfig, Config, FusionConfig, TrainConfig
from mmprod.models import losses
from mmprod.models.fusion_loss import TASKS
from mmprod.training.adversary import LECAM_WEIGHT

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")


def rows(page: str) -> dict[str, list[str]]:
    """The cells of every table row by the first name in its first cell."""
    found = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        name = re.match(r"`([a-z0-9_]+)`", cells[0]) if cells else None
        if name:
            found[name[1]] = cells
    return found


def test_every_quantizer_has_a_row() -> None:
    kinds = get_args(CodecConfig.model_fields["quantizer"].annotation)
    assert "spherical" in kinds
    assert set(kinds) <= rows(PAGE).keys()


@pytest.mark.parametrize(
    ("column", "weights"),
    [(2, losses.ARCHIVE), (3, losses.NATURAL), (4, losses.NATURAL_PERCEPTUAL)],
)
def test_loss_terms_have_the_weights_of_the_code(column: int, weights: dict[str, float]) -> None:
    for term in losses.TERMS:
        cell = rows(PAGE)[term][column]
        assert (0.0 if cell == "–" else float(cell)) == weights.get(term, 0.0), (term, cell)


def test_the_other_weights_are_those_of_the_code() -> None:
    assert float(rows(PAGE)["perceptual"][4]) == losses.PERCEPTUAL_WEIGHT
    assert LECAM_WEIGHT == 1e-3
    assert "10⁻³ [(D(x)" in PAGE


def test_tasks_have_their_shares() -> None:
    for name, share in TASKS.items():
        assert f"`{name}` ({share:.0%})".replace("%", " %") in PAGE


def test_every_part_is_named() -> None:
    for parts in PARTS.values():
        assert ", ".join(f"`{part}`" for part in parts) in PAGE


def test_every_setting_it_speaks_of_exists() -> None:
    sections = {"codec": CodecConfig, "fusion": FusionConfig, "codec_train": TrainConfig}
    sections["data"] = Config.model_fields["data"].annotation
    named = set(re.findall(r"\b(codec|fusion|codec_train|data)\.([a-z_]+)\b", PAGE))
    named -= {("codec", "py"), ("fusion", "py")}
    assert len(named) > 10
    for section, key in named:
        assert key in sections[section].model_fields, (section, key)
