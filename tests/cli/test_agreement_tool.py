"""`tools/agreement.py`: what differs is counted, and the samplers of a small bundle agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mmprod.config.schema import Dims, SamplerConfig
from mmprod.graphs.catalog import build_catalog
from mmprod.graphs.runner import Array
from mmprod.graphs.spec import GraphSpec
from tools import agreement

from .conftest import export_graphs

SPEC = build_catalog(Dims(16, 4, 11, 6, 9, 8), SamplerConfig(image_steps=2, text_steps=2))["joint"]


@dataclass
class Fake:
    """Ids that follow from the noise; call number `wrong` has one other code."""

    spec: GraphSpec = SPEC
    wrong: int = -1
    backend: str = "fake"
    calls: int = 0

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        noise = inputs["noise"][:, 0]
        codes, tokens = (noise[:, :16] * 11).astype(np.int32), (noise[:, 16:] * 9).astype(np.int32)
        if self.calls == self.wrong:
            codes[0, 3] += 1
        self.calls += 1
        pixels = np.full((len(noise), 16, 16, 3), self.calls + self.wrong, np.uint8)
        return {"pixels": pixels, "codes": codes, "tokens": tokens}

    def close(self) -> None:
        pass


def test_ids_are_compared_one_by_one_and_pixels_not_at_all() -> None:
    assert agreement.agreement(SPEC, Fake(), Fake(), 5, 2) == agreement.Agreement(5, 5, 220, 220)
    found = agreement.agreement(SPEC, Fake(wrong=3), Fake(), 5, 2)
    assert found == agreement.Agreement(5, 4, 220, 219)


@pytest.mark.slow
def test_the_samplers_of_a_bundle_agree_and_operators_are_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _, _ = export_graphs(run, tmp_path / "bundle", ["image_to_text"])
    made.save()
    given = [str(made.root), "--run", str(run), "--seeds", "3", "--batch", "2"]
    assert agreement.main(given) == agreement.DIFFERS  # three are missing
    words = capsys.readouterr().out
    assert words.count("not in this bundle in fp32") == 3
    given += ["--only", "image_to_text"]
    assert agreement.main(given) == 0
    words = capsys.readouterr().out
    assert "seeds that agree: 3 of 3" in words and "100.0000%" in words
    assert " Loop," in words and "engines: none" in words
    assert "not in this bundle" not in words
    real = agreement.agreement
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            agreement,
            "agreement",
            lambda *given: real(SPEC, Fake(), Fake(wrong=0), 1, 1),
        )
        assert agreement.main(given) == agreement.DIFFERS


def test_a_command_line_that_asks_for_nothing_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(tmp_path), "--run", str(run)]
    for option in ("--seeds", "--batch"):
        with pytest.raises(SystemExit) as caught:
            agreement.main([*given, option, "0"])
        assert caught.value.code == 2
    capsys.readouterr()
    assert agreement.main(given) == 4  # an empty folder is no bundle
    assert "hint: " in capsys.readouterr().err


def test_a_bundle_without_samplers_agrees_with_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _, _ = export_graphs(run, tmp_path / "bundle", ["embed_text"])
    made.save()
    given = [str(made.root), "--run", str(run)]
    assert agreement.main(given) == agreement.DIFFERS
    assert agreement.main([*given, "--only", "search"]) == 2
    assert "no sampler graph search" in capsys.readouterr().err
