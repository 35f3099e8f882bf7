"""1,000 harmed bundles, 1,000 refusals with exit 4, no crash; and the attacker who hashes anew."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mmprod.bundle import Bundle, open_bundle
from mmprod.bundle.figures import figures
from mmprod.bundle.sbom import sbom
from mmprod.cli.bundle_views import inspect_views
from mmprod.cli.main import main
from mmprod.errors import IntegrityError
from mmprod.manifest import sha256_file

Fresh = Callable[[], Path]
Graph = Callable[..., bytes]


def _corruption() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "bundle_corruption", Path(__file__).with_name("corruption.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


corruption = _corruption()


def harmed(fresh: Fresh, graph: Graph, first: int, count: int) -> list[tuple[str, Path]]:
    """That many bundles, each harmed in its own way."""
    made: list[tuple[str, Path]] = []
    seed = first
    while len(made) < count:
        root, rng = fresh(), random.Random(seed)
        seed += 1
        what = corruption.strike(root, rng, graph)
        if what is not None:
            made.append((f"seed {seed - 1}: {what}", root))
    return made


def survivors(
    cases: list[tuple[str, Path]], capsys: pytest.CaptureFixture[str]
) -> tuple[list[str], Counter[str]]:
    """What `mmprod bundle verify` did not refuse with exit 4 and its error document, and how often
    it gave each error.
    """
    accepted: list[str] = []
    said: Counter[str] = Counter()
    for what, root in cases:
        with pytest.raises(SystemExit) as caught:
            main(["bundle", "verify", str(root), "--json"])
        written = capsys.readouterr().out
        try:
            error = json.loads(written)["error"]
            assert (caught.value.code, error["exit_code"]) == (4, 4)
            said[error["message"].replace(str(root), "")[:30]] += 1
        except (ValueError, KeyError, AssertionError):
            accepted.append(f"{what}: exit {caught.value.code}, {written!r}")
        shutil.rmtree(root)
    return accepted, said


def test_an_unharmed_copy_opens(fresh: Fresh) -> None:
    assert open_bundle(fresh()).signed
    root = fresh()
    corruption.rehash(root)
    open_bundle(root)


def test_harmed_bundles_are_refused(
    fresh: Fresh, make_external: Graph, capsys: pytest.CaptureFixture[str]
) -> None:
    accepted, said = survivors(harmed(fresh, make_external, 0, 75), capsys)
    assert accepted == []
    assert len(said) > 10


@pytest.mark.slow
def test_a_thousand_harmed_bundles_are_refused(
    fresh: Fresh, make_external: Graph, capsys: pytest.CaptureFixture[str]
) -> None:
    accepted, _ = survivors(harmed(fresh, make_external, 10_000, 1000), capsys)
    assert accepted == []


@pytest.mark.parametrize("path", corruption.PATHS)
def test_every_path_trick(fresh: Fresh, path: str) -> None:
    root = fresh()
    content = json.loads((root / "bundle.json").read_text())
    content["artefacts"].append({**content["artefacts"][0], "path": path})
    corruption.write_index(root, json.dumps(content).encode())
    with pytest.raises(IntegrityError):
        open_bundle(root, verify=False)


def test_every_bad_form_of_json(fresh: Fresh) -> None:
    root = fresh()
    data = (root / "bundle.json").read_bytes()
    for name, form in corruption.bad_forms(data).items():
        corruption.write_index(root, form)
        with pytest.raises(IntegrityError):
            open_bundle(root)
            pytest.fail(name)
    corruption.write_index(root, data)
    open_bundle(root)


@pytest.mark.parametrize("place", ["onnx/weights.data", "bundle.json", "bundle.sha256"])
def test_a_file_with_a_second_name_is_refused(fresh: Fresh, place: str) -> None:
    root = fresh()
    (root.parent / "second").hardlink_to(root / place)
    with pytest.raises(IntegrityError, match="hard link"):
        open_bundle(root)


@pytest.mark.parametrize("location", corruption.LOCATIONS)
def test_every_location_trick(fresh: Fresh, make_external: Graph, location: str) -> None:
    root = fresh()
    (root / "onnx" / "codec_decode.fp32.onnx").write_bytes(make_external(location))
    corruption.rehash(root)
    with pytest.raises(IntegrityError, match="does not list"):
        open_bundle(root)


def test_an_attacker_who_hashes_anew_is_refused_or_tells_the_truth(fresh: Fresh) -> None:
    """Random changes of bundle.json's values: what still opens lists exactly the files there are,
    and every command's view of it can be drawn.
    """
    opened = 0
    for seed in range(150):
        root, rng = fresh(), random.Random(seed)
        content = json.loads((root / "bundle.json").read_text())
        for _ in range(rng.randint(1, 3)):
            _mutate(content, rng)
        corruption.write_index(root, json.dumps(content).encode())
        try:
            bundle = open_bundle(root)
        except IntegrityError:
            continue
        is_true(bundle)
        opened += 1
    assert 0 < opened < 150


def is_true(bundle: Bundle) -> None:
    listed = {a.path: a.sha256 for a in bundle.artefacts()}
    own = {"bundle.json", "bundle.sha256"}
    there = {p.relative_to(bundle.root).as_posix() for p in bundle.root.rglob("*") if p.is_file()}
    assert there - own == set(listed)
    assert all(sha256_file(bundle.root / path) == digest for path, digest in listed.items())
    assert inspect_views(bundle, {"signed": False, "confirmed": False}, figures(bundle))
    try:
        sbom(bundle)
    except IntegrityError as error:
        assert "software" in error.message


def _mutate(value: Any, rng: random.Random) -> None:
    """Change one value somewhere inside."""
    junk = (None, True, -1, 0, 10**25, 0.5, "", "x", "../x", "\u202e", [], {}, [1], {"a": None})
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(value[key], dict | list) and rng.random() < 0.8:
            value = value[key]
            continue
        value[key] = rng.choice(junk)
        return
