"""Ways to harm a bundle, drawn by a seeded generator. Each leaves a folder that must be refused.

`strike` draws one and says in words what it did, or returns None when it changed nothing (two equal
files were swapped). An attacker may know the format: those that change bundle.json or a graph hash
everything anew afterwards, so that only what the content means can give them away.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmprod.manifest import sha256_bytes, sha256_file

Graph = Callable[..., bytes]


def strike(root: Path, rng: random.Random, graph: Graph) -> str | None:
    """Harm the bundle at `root`; graph: makes an ONNX file with weights outside."""
    kind = rng.choice(KINDS)
    if kind is external_data:
        return external_data(root, rng, graph)
    return kind(root, rng)


def rehash(root: Path) -> None:
    """bundle.json and bundle.sha256 say what lies there now."""
    content = json.loads((root / "bundle.json").read_text())
    for entry in content["artefacts"]:
        path = root / entry["path"]
        entry["sha256"], entry["bytes"] = sha256_file(path), path.stat().st_size
    write_index(root, json.dumps(content).encode())


def write_index(root: Path, data: bytes) -> None:
    """bundle.json with this content, and a bundle.sha256 that agrees; the signature is dropped."""
    (root / "bundle.json").write_bytes(data)
    (root / "bundle.sig").unlink(missing_ok=True)
    (root / "bundle.sha256").write_text(f"{sha256_bytes(data)}  bundle.json\n")


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def flipped_bits(root: Path, rng: random.Random) -> str:
    path = rng.choice(_files(root))
    data = bytearray(path.read_bytes())
    places = rng.sample(range(len(data) * 8), rng.choice((1, 1, 2, 8)))
    for place in places:
        data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)
    return f"bits {places} of {path.name} flipped"


def cut(root: Path, rng: random.Random) -> str:
    path = rng.choice(_files(root))
    data = path.read_bytes()
    size = rng.randrange(len(data))
    path.write_bytes(data[:size])
    return f"{path.name} cut to {size} bytes"


def grown(root: Path, rng: random.Random) -> str:
    path = rng.choice(_files(root))
    with path.open("ab") as stream:
        stream.write(rng.randbytes(rng.randint(1, 40)))
    return f"{path.name} longer"


def removed(root: Path, rng: random.Random) -> str:
    path = rng.choice(_files(root))
    path.unlink()
    if rng.random() < 0.3:
        path.mkdir()
    return f"{path.name} gone"


def swapped(root: Path, rng: random.Random) -> str | None:
    one, two = rng.sample(_files(root), 2)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    return None if first == second else f"{one.name} and {two.name} swapped"


def stranger(root: Path, rng: random.Random) -> str:
    names = (
        "extra.onnx", ".hidden", "onnx/weights.data.1", "onnx/‮txt.onnx", "new/x", "a\nb", "\udcff",
    )  # fmt: skip
    path = root / rng.choice(names)
    path.parent.mkdir(exist_ok=True)
    kind = rng.choice(("file", "empty", "pipe", "link", "dangling"))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(root / "tokenizer.json")
    elif kind == "dangling":
        path.symlink_to("/nowhere")
    else:
        path.write_bytes(b"x" if kind == "file" else b"")
    return f"stranger {path.name!r}: {kind}"


def replaced(root: Path, rng: random.Random) -> str:
    """Something that is no plain file of its own, with the right content where there is any."""
    path = rng.choice(_files(root))
    aside = root.parent / f"{root.name}-{path.name}"
    kind = rng.choice(("link", "hard", "pipe", "folder link", "device"))
    if kind == "folder link":
        folder = root / "onnx"
        shutil.move(folder, aside)
        folder.symlink_to(aside)
        return "onnx is a link to a folder"
    if kind == "hard":
        os.link(path, aside)
        return f"{path.name} has a second name outside"
    path.rename(aside)
    if kind == "link":
        path.symlink_to(aside)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)
    return f"{path.name} is a {kind}"


PATHS = (
    "/etc/hostname", "../outside", "onnx/../../outside", "..", ".", "", "./tokenizer.json", "a//b",
    "onnx/", "onnx\\x", "C:\\x", "C:x", "tokenizer.json\0", "tokenizer.json ", "TOKENIZER.JSON",
    "Onnx/weights.data", "bundle.json", "bundle.sig", "Bundle.Sha256", "tokenizer.jsoń",
    "tokenizer.json", "‮nosj", "tok\u200benizer.json", "con", "onnx/NUL.onnx", "x" * 300,
    "/".join("x" * 12), "-rf", ".hidden", "tokenizer.json.", "file:///etc/hostname", "~root/x",
    "https://example.org/x", "\ud800", "a\nb", "$HOME", "*", "%2e%2e/x", "/dev/zero",
)  # fmt: skip


def path_trick(root: Path, rng: random.Random) -> str:
    """An entry of bundle.json names a file elsewhere, or one name twice."""
    content = json.loads((root / "bundle.json").read_text())
    entries = content["artefacts"]
    path = rng.choice(PATHS)
    entry = rng.choice([e for e in entries if e["path"] != path])
    if rng.random() < 0.5:
        entries.append({**entry, "path": path})
    else:
        entry["path"] = path
    write_index(root, json.dumps(content).encode())
    return f"bundle.json lists {path!r}"


WRONG: dict[str, tuple[Any, ...]] = {
    "path": (None, 5, [], {}),
    "role": ("", "root", None, 1, "ONNX"),
    "graph": ("nothing", None, 3),
    "precision": (None, 32),
    "sha256": ("", "0" * 64, "A" * 64, None, 7, "0" * 63, "\uff10" * 64),
    "bytes": (-1, 0, 10**30, 2**63, True, 1.5, "9", None, 2**44 + 1),
    "meta": (None, [], "x"),
}
TOP: dict[str, tuple[Any, ...]] = {
    "format": (0, 2, 999, True, 1.0, "1", None),
    "name": (None, 7, []),
    "dims": ({}, None, [], {"image_size": 16}),
    "sampler": (None, [], {"image_steps": -1}, {"speed": 1}, {"image_steps": "x"}),
    "provenance": (None, [], "run"),
    "artefacts": (None, {}, [], [None], [[]], ["x"]),
    "summaries": (None, [], {"poems": {}}, {"parity": []}, {"parity": {"ok": 1}},
                  {"parity": {"ok": True, "rows": [{}]}}, {"engines": {}}, {"engines": [1]},
                  {"bench": []}, {"bench": {"machine": {}, "settings": {}, "rows": [{}]}}),
}  # fmt: skip


def wrong_value(root: Path, rng: random.Random) -> str:
    """A field of bundle.json that cannot be, or is missing."""
    content = json.loads((root / "bundle.json").read_text())
    if rng.random() < 0.5:
        target, table = rng.choice(content["artefacts"]), WRONG
    else:
        target, table = content, TOP
    key = rng.choice(sorted(table))
    if rng.random() < 0.15:
        del target[key]
        what = "missing"
    elif rng.random() < 0.1:
        target[f"{key}2"], what = None, "followed by an unknown one"
    else:
        value = rng.choice(table[key])
        target[key], what = value, repr(value)[:40]
    write_index(root, json.dumps(content).encode())
    return f"{key} is {what}"


def wrong_size(root: Path, rng: random.Random) -> str:
    """A size of the model that cannot be."""
    content = json.loads((root / "bundle.json").read_text())
    key = rng.choice(sorted(content["dims"]))
    content["dims"][key] = value = rng.choice((0, -1, 2**40, True, 1.0, "8", None))
    write_index(root, json.dumps(content).encode())
    return f"dims.{key} is {value!r}"


def bad_forms(data: bytes) -> dict[str, bytes]:
    """Forms of a bundle.json that the standard parser reads too kindly, or stumbles over."""
    inside = data.index(b'"provenance": {') + len(b'"provenance": {')

    def given(text: bytes) -> bytes:
        return data[:inside] + text + b", " + data[inside:]

    return {
        "names twice": given(b'"run": "x"'),
        "NaN": given(b'"x": NaN'),
        "infinite": given(b'"x": 1e999'),
        "deep": given(b'"x": ' + b"[" * 100_000 + b"]" * 100_000),
        "deeper than is needed": given(b'"x": ' + b"[" * 200 + b"]" * 200),
        "long number": given(b'"x": ' + b"9" * 6000),
        "half a pair": given(b'"x": "\\ud800"'),
        "not UTF-8": given(b'"x": "\xff"'),
        "unknown key": data[: data.rindex(b"}")] + b', "x": 1}',
        "mark": b"\xef\xbb\xbf" + data,
        "UTF-16": data.decode().encode("utf-16"),
        "list": b"[" + data + b"]",
        "two": data + data,
        "nothing": b"",
        "null": b"null",
    }


BAD_FORMS = tuple(bad_forms(b'{"provenance": {}}'))


def no_json(root: Path, rng: random.Random) -> str:
    name = rng.choice(BAD_FORMS)
    write_index(root, bad_forms((root / "bundle.json").read_bytes())[name])
    return f"bundle.json: {name}"


LOCATIONS = (
    "/etc/hostname", "../tokenizer.json", "../../outside", "", ".", "..", "weights.data/",
    "absent.data", "./weights.data", "x/../weights.data", "*/_ORT_MEM_ADDR_/*", "file:///etc/hostname",
    "WEIGHTS.DATA", "https://example.org/w", "weights.data\0", "..\\tokenizer.json",
    "codec_encode.fp32.onnx", "/proc/self/mem", "weights.dat\u0430",
)  # fmt: skip


def external_data(root: Path, rng: random.Random, graph: Graph) -> str:
    """A graph whose weights lie where they must not, everything hashed anew."""
    if rng.random() < 0.6:
        asked = {"location": rng.choice(LOCATIONS)}
    else:
        numbers = ("-1", "1e3", "0x10", "999999", "9" * 30, "٣", "257", " 0", "+1")
        asked = {rng.choice(("offset", "length")): rng.choice(numbers)}
    (root / "onnx" / "codec_decode.fp32.onnx").write_bytes(graph(**asked))
    rehash(root)
    return f"external data: {asked}"


KINDS: tuple[Callable[..., str | None], ...] = (
    flipped_bits, flipped_bits, cut, grown, removed, swapped, stranger, replaced, path_trick,
    path_trick, wrong_value, wrong_value, wrong_size, no_json, external_data,
)  # fmt: skip
