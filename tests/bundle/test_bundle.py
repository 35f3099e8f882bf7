"""Bundles: what is written is read back, and nothing that was changed is ever accepted."""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path

import pytest

from mmprod.bundle import Bundle, Place, create_bundle, open_bundle
from mmprod.config.schema import Dims, SamplerConfig
from mmprod.errors import ConfigError, IntegrityError
from mmprod.manifest import sha256_bytes

DIMS = Dims(image_size=16, grid=4, codebook_size=32, text_length=6, vocabulary=50, embedding=8)
SAMPLER = SamplerConfig(image_steps=2, text_steps=2, guidance=1.5)
FILES = {
    "onnx/codec_encode.fp32.onnx": ("onnx", "codec_encode", "fp32"),
    "engines/rtx-sm86/codec_encode.fp16.plan": ("engine", "codec_encode", "fp16"),
    "engines/rtx-sm86/codec_encode.fp16.json": ("engine-info", "codec_encode", "fp16"),
    "reference/codec_encode.npz": ("reference", "codec_encode", ""),
    "reports/parity.json": ("report", "", ""),
    "tokenizer.json": ("tokenizer", "", ""),
    "config.toml": ("config", "", ""),
}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    made = create_bundle(
        tmp_path / "b", name="test", dims=DIMS, sampler=SAMPLER, provenance={"run": "r"}
    )
    for name, (role, graph, precision) in FILES.items():
        path = made.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 3)
        made.add(path, role=role, graph=graph, precision=precision, meta={"n": 1})
    made.put_summary("parity", {"ok": True, "rows": []})
    made.save()
    return made


def rewrite(root: Path, change: dict[str, object]) -> None:
    """Change bundle.json and hash it anew, as somebody who knows the format could."""
    content = {**json.loads((root / "bundle.json").read_text()), **change}
    data = json.dumps(content).encode()
    (root / "bundle.json").write_bytes(data)
    (root / "bundle.sha256").write_text(f"{sha256_bytes(data)}  bundle.json\n")


def test_round_trip(bundle: Bundle) -> None:
    opened = open_bundle(bundle.root)
    assert (opened.name, opened.dims, opened.sampler) == ("test", DIMS, SAMPLER)
    assert opened.provenance == {"run": "r"}
    assert opened.summaries == {"parity": {"ok": True, "rows": []}}
    assert opened.artefacts() == bundle.artefacts()
    assert {a.path for a in opened.artefacts()} == set(FILES)
    assert list(opened.specs) == list(bundle.specs)
    (found,) = opened.artefacts("engine", "codec_encode", "fp16")
    assert opened.path(found).read_bytes() == found.path.encode() * 3
    assert found.meta == {"n": 1}
    assert opened.artefacts("engine", "codec_encode", "fp32") == []


def test_a_bundle_without_graphs_is_refused(tmp_path: Path) -> None:
    create_bundle(tmp_path, name="e", dims=DIMS, sampler=SAMPLER, provenance={})
    with pytest.raises(IntegrityError, match="never finished"):
        open_bundle(tmp_path)


def test_create_refuses_a_folder_with_content(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        create_bundle(tmp_path, name="e", dims=DIMS, sampler=SAMPLER, provenance={})


@pytest.mark.parametrize("name", [*FILES, "bundle.json", "bundle.sha256"])
def test_any_flipped_bit_is_found(bundle: Bundle, name: str) -> None:
    path = bundle.root / name
    original = path.read_bytes()
    places = range(0, len(original), max(1, len(original) // 20))
    for place in [*places, len(original) - 1]:
        for bit in (0, 5):
            changed = bytearray(original)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(IntegrityError) as caught:
                open_bundle(bundle.root)
            assert caught.value.exit_code == 4
            assert caught.value.hint
    path.write_bytes(original)
    open_bundle(bundle.root)


@pytest.mark.parametrize("name", [*FILES, "bundle.json", "bundle.sha256"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "longer", "empty", "folder"])
def test_damaged_files_are_found(bundle: Bundle, name: str, damage: str) -> None:
    path = bundle.root / name
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"truncated": data[:-1], "longer": data + b"\n", "empty": b""}[damage])
    with pytest.raises(IntegrityError):
        open_bundle(bundle.root)


def test_unverified_opening_still_checks_the_index_and_verify_checks_the_rest(
    bundle: Bundle,
) -> None:
    (bundle.root / "tokenizer.json").write_bytes(b"changed")
    opened = open_bundle(bundle.root, verify=False)
    opened.verify(opened.artefacts("onnx"))
    with pytest.raises(IntegrityError, match=r"tokenizer\.json"):
        opened.verify(opened.artefacts("tokenizer"))
    with pytest.raises(IntegrityError, match=r"tokenizer\.json"):
        opened.verify()
    index = bundle.root / "bundle.json"
    index.write_bytes(index.read_bytes() + b" ")
    with pytest.raises(IntegrityError, match="does not match"):
        open_bundle(bundle.root, verify=False)


def test_an_unlisted_file_is_refused(bundle: Bundle) -> None:
    (bundle.root / "onnx" / "extra.onnx").write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"extra\.onnx is not listed"):
        open_bundle(bundle.root)


@pytest.mark.parametrize("target", ["inside", "outside"])
def test_links_are_refused_even_to_equal_content(
    bundle: Bundle, tmp_path: Path, target: str
) -> None:
    path = bundle.root / "tokenizer.json"
    other = (tmp_path if target == "outside" else bundle.root) / "copy.json"
    path.rename(other)
    path.symlink_to(other)
    with pytest.raises(IntegrityError, match="link"):
        open_bundle(bundle.root)


def test_a_linked_folder_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.root / "onnx").rename(tmp_path / "elsewhere")
    (bundle.root / "onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="link"):
        open_bundle(bundle.root)


def test_a_linked_index_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.root / "bundle.json").rename(tmp_path / "bundle.json")
    (bundle.root / "bundle.json").symlink_to(tmp_path / "bundle.json")
    with pytest.raises(IntegrityError, match="plain file"):
        open_bundle(bundle.root)


def test_special_files_are_refused(bundle: Bundle) -> None:
    os.mkfifo(bundle.root / "pipe")
    with pytest.raises(IntegrityError, match="not a plain file"):
        open_bundle(bundle.root)


@pytest.mark.parametrize(
    "path", ["../outside", "/etc/hostname", "onnx/../../x", "a\\b", "./x", "a//b", "", ".", "a\0b"]
)
def test_paths_out_of_the_folder_are_refused(bundle: Bundle, path: str) -> None:
    raw = bundle.artefacts("tokenizer")[0].as_dict()
    rewrite(bundle.root, {"artefacts": [{**raw, "path": path}]})
    with pytest.raises(IntegrityError):
        open_bundle(bundle.root, verify=False)


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3},
        {"dims": {"image_size": 16}},
        {"dims": {**DIMS.__dict__, "grid": "4"}},
        {"dims": []},
        {"sampler": {"image_steps": -1}},
        {"sampler": {"no_such_option": 1}},
        {"artefacts": {}},
        {"artefacts": [7]},
        {"artefacts": [{"path": "x"}]},
        {"summaries": None},
    ],
)
def test_a_malformed_index_is_an_integrity_error(bundle: Bundle, change: dict[str, object]) -> None:
    rewrite(bundle.root, change)
    with pytest.raises(IntegrityError):
        open_bundle(bundle.root)


@pytest.mark.parametrize("field", ["role", "graph"])
def test_unknown_roles_and_graphs_are_refused(bundle: Bundle, field: str) -> None:
    raw = bundle.artefacts("onnx")[0].as_dict()
    rewrite(bundle.root, {"artefacts": [{**raw, field: "nonsense"}]})
    with pytest.raises(IntegrityError, match="nonsense"):
        open_bundle(bundle.root)


def test_the_same_path_twice_is_refused(bundle: Bundle) -> None:
    raw = bundle.artefacts("onnx")[0].as_dict()
    rewrite(bundle.root, {"artefacts": [raw, raw]})
    with pytest.raises(IntegrityError, match="wrongly"):
        open_bundle(bundle.root)


@pytest.mark.parametrize("number", [2, 0, "1", None, True, 1.0])
def test_an_unknown_format_is_refused_with_a_hint(bundle: Bundle, number: object) -> None:
    rewrite(bundle.root, {"format": number})
    with pytest.raises(IntegrityError, match="format") as caught:
        open_bundle(bundle.root)
    assert "mmprod" in caught.value.hint


@pytest.mark.parametrize("data", [b"[]", b"nonsense", b"\xff", b"3"])
def test_an_index_that_is_no_object_is_refused(bundle: Bundle, data: bytes) -> None:
    (bundle.root / "bundle.json").write_bytes(data)
    (bundle.root / "bundle.sha256").write_text(f"{sha256_bytes(data)}  bundle.json\n")
    with pytest.raises(IntegrityError):
        open_bundle(bundle.root)


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="missing") as caught:
        open_bundle(tmp_path / "nowhere")
    assert "mmprod export" in caught.value.hint


def test_add_takes_new_content_and_remove_deletes(bundle: Bundle) -> None:
    path = bundle.root / "reports" / "parity.json"
    path.write_text("{}")
    bundle.add(path, role="report")
    bundle.remove(bundle.root / "tokenizer.json")
    bundle.remove(Path("config.toml"))
    bundle.save()
    assert {a.role for a in open_bundle(bundle.root).artefacts()} == {
        "onnx", "engine", "engine-info", "reference", "report",
    }  # fmt: skip
    assert not (bundle.root / "tokenizer.json").exists()
    with pytest.raises(KeyError):
        bundle.remove(Path("tokenizer.json"))


def test_add_refuses_what_it_cannot_vouch_for(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("x")
    with pytest.raises(IntegrityError, match="outside"):
        bundle.add(tmp_path / "outside", role="report")
    with pytest.raises(ValueError, match="role"):
        bundle.add(Path("tokenizer.json"), role="poem")
    with pytest.raises(ValueError, match="graph"):
        bundle.add(Path("tokenizer.json"), role="onnx", graph="codec_encod")
    (bundle.root / "Tokenizer.json").write_text("x")
    with pytest.raises(ValueError, match="case only"):
        bundle.add(Path("Tokenizer.json"), role="tokenizer")
    with pytest.raises(ValueError, match="own file"):
        bundle.add(bundle.root / "bundle.json", role="report")


def test_relative_roots_work(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.root.parent)
    opened = open_bundle("b")
    opened.add(Path("b/tokenizer.json"), role="tokenizer")
    opened.add(Path("config.toml"), role="config")
    opened.save()
    assert open_bundle("b").artefacts() == opened.artefacts()


def test_summaries_are_strict_json(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="JSON"):
        bundle.put_summary("parity", {"worst": float("nan")})
    with pytest.raises(ValueError, match="unknown summary"):
        bundle.put_summary("poems", {})  # type: ignore[arg-type]
    for kind, content in (("parity", {"ok": True}), ("engines", {}), ("bench", {"rows": []})):
        with pytest.raises(ValueError, match="form"):
            bundle.put_summary(kind, content)  # type: ignore[arg-type]


def test_an_interrupted_write_is_refused(bundle: Bundle) -> None:
    (bundle.root / "onnx" / ".codec_encode.fp32.onnx.tmp").write_bytes(b"half")
    with pytest.raises(IntegrityError, match="not listed"):
        open_bundle(bundle.root)


def test_the_later_of_two_handles_is_refused_and_harms_nothing(bundle: Bundle) -> None:
    one, two = open_bundle(bundle.root), open_bundle(bundle.root)
    one.put_summary("parity", {"ok": False, "rows": []})
    one.save()
    one.save()
    two.put_summary("parity", {"ok": True, "rows": []})
    for act in (two.check_current, two.save):
        with pytest.raises(IntegrityError, match="another process"):
            act()
    assert open_bundle(bundle.root).summaries == {"parity": {"ok": False, "rows": []}}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_place_is_filled_at_once_or_not_at_all(tmp_path: Path) -> None:
    place = Place(tmp_path / "deep" / "b")
    with pytest.raises(KeyError), place.staged() as folder:
        (folder / "half").write_text("x")
        raise KeyError
    assert names(tmp_path / "deep") == set()
    with place.staged() as folder:
        (folder / "whole").write_text("x")
        assert not place.root.exists()
    assert names(tmp_path / "deep") == {"b"}
    assert names(place.root) == {"whole"}


def test_replacing_keeps_the_old_bundle_until_the_new_one_is_whole(bundle: Bundle) -> None:
    place = Place(bundle.root, replace=True)
    with pytest.raises(KeyError), place.staged():
        raise KeyError
    open_bundle(bundle.root)
    with place.staged() as folder:
        (folder / "new").write_text("x")
        open_bundle(bundle.root)
    assert names(bundle.root) == {"new"}
    assert names(bundle.root.parent) == {"b"}


@pytest.mark.parametrize("interrupts", [1, 2])
def test_an_interrupted_swap_loses_no_bundle(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, interrupts: int
) -> None:
    rename, calls = Path.rename, []

    def interrupted(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2 and interrupts == 2:  # while it is put back
            raise KeyboardInterrupt
        rename(self, target)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return target

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), Place(bundle.root, replace=True).staged():
        pass
    left = bundle.root.parent.glob(".b.*/old")
    open_bundle(bundle.root if interrupts == 1 else next(left)).verify()
    assert list(left) == []


def test_a_folder_with_anything_unlisted_is_never_replaced(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not empty"):
        Place(bundle.root).check()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious.txt").write_text("x")
    (tmp_path / "link").symlink_to(bundle.root)
    for name, words in (("data", "not a bundle"), ("link", "no folder")):
        with pytest.raises(ConfigError, match=words):
            Place(tmp_path / name, replace=True).check()
    (bundle.root / "onnx" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt"), Place(bundle.root, True).staged():
        pytest.fail("it must not come to this")
    assert (bundle.root / "onnx" / "notes.txt").read_text() == "mine"


def test_the_current_folder_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="current folder"), Place(Path()).staged():
        pytest.fail("it must not come to this")


def test_leftovers_of_dead_processes_are_cleared_and_a_moved_bundle_comes_back(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    root = bundle.root
    host = re.sub(r"[^A-Za-z0-9]", "_", platform.node())
    dead, alive, other = (
        root.parent / f".b.{name}.x"
        for name in (f"{host}-99999999", f"{host}-{os.getpid()}", "elsewhere-99999999")
    )
    for folder in (dead, alive, other):
        (folder / "new").mkdir(parents=True)
    root.rename(dead / "old")
    with pytest.raises(ConfigError, match="not empty"), Place(root).staged():
        pytest.fail("it must not come to this")
    open_bundle(root)
    assert names(root.parent) == {"b", alive.name, other.name}
    assert "interrupted" in caplog.text
