"""What is kept under deploy/ is what is rendered, and all of it passes its validators."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmprod.deploying.files import write_files
from mmprod.deploying.render import render
from mmprod.deploying.validate import validate
from tools import deploy_golden

VARIANTS = tuple(deploy_golden.variants())


def test_the_tree_holds_what_is_rendered() -> None:
    root = deploy_golden.GOLDEN
    kept = {
        path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
        for variant in VARIANTS
        for path in (root / variant).rglob("*")
        if path.is_file()
    }
    wanted = deploy_golden.golden()
    assert kept.keys() == wanted.keys(), "run: python tools/deploy_golden.py"
    changed = [name for name, text in wanted.items() if kept[name] != text]
    assert not changed, "run: python tools/deploy_golden.py"
    listed = (root / "README.md").read_text(encoding="utf-8")
    assert all(f"`{variant}/`" in listed for variant in VARIANTS)


def test_the_same_input_gives_the_same_bytes() -> None:
    for given in deploy_golden.variants().values():
        assert render(*given) == render(*given)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_file_passes_its_validator(variant: str, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    deploy_golden.write_bundle(bundle)
    write_files(deploy_golden.rendered()[variant], tmp_path / "out", bundle)
    verdicts = validate(tmp_path / "out")
    failed = [verdict for verdict in verdicts if verdict.status == "fail"]
    assert not failed, failed
    linted = {
        verdict.file.partition(" ")[0] for v in verdicts if (verdict := v).status == "only linted"
    }
    assert linted <= {"kubernetes/kserve.yaml"}
    missing = sorted({v.detail for v in verdicts if v.status == "not validated" and v.validator})
    if missing:
        pytest.skip("; ".join(missing))
    unchecked = {Path(v.file).name for v in verdicts if v.status == "not validated"}
    assert {Path(name).suffix for name in unchecked} <= {".dockerignore"}
