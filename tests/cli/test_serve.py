"""`mmprod serve`: what is refused at the command line, and a whole bundle served end to end."""

from __future__ import annotations

import base64
import io
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmprod.serving.index import GRAPHS
from tests.parity.toy import make_toy
from tests.serving.process import Served, serving, wait_until

from .conftest import Mmprod, export_graphs, in_process_of_its_own
from .drawn import write


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--host", "0.0.0.0"), "no key is asked for"),
        (("--batch-wait-ms", "soon"), "is no time"),
        (("--batch-wait-ms", "embed_text=-1"), "is no time"),
        (("--port", "9000", "--grpc-port", "9000"), "asked for twice"),
    ],
)
def test_what_cannot_work_is_refused(
    options: tuple[str, ...], words: str, mmprod: Mmprod, tmp_path: Path
) -> None:
    result = mmprod("serve", tmp_path, *options)
    assert result.code == 2
    assert words in result.err


def test_a_blank_key_is_refused(mmprod: Mmprod, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(" \n", encoding="utf-8")
    result = mmprod("serve", tmp_path, "--key-file", tmp_path / "key")
    assert result.code == 2 and "is empty" in result.err


def test_a_key_that_no_header_can_carry_is_refused(mmprod: Mmprod, tmp_path: Path) -> None:
    for content in (b"\xff\x00random", "schlüssel".encode(), b"two lines\nof it"):
        (tmp_path / "key").write_bytes(content)
        result = mmprod("serve", tmp_path, "--key-file", tmp_path / "key")
        assert result.code == 2 and "plain ASCII" in result.err


def test_a_wait_for_a_graph_that_is_none_is_refused(tmp_path: Path) -> None:
    made = make_toy(tmp_path / "toy")
    options = ("--port", "0", "--serve-unproven", "--batch-wait-ms", "graph.embed_text=5")
    result = in_process_of_its_own("serve", str(made.root), *options)
    assert result.code == 2 and "which is no graph" in result.err


def test_a_bundle_without_a_pass_is_not_served(tmp_path: Path) -> None:
    made = make_toy(tmp_path / "toy")
    result = in_process_of_its_own("serve", str(made.root), "--port", "0", "--json")
    assert result.code == 5
    assert "--serve-unproven" in json.loads(result.out)["error"]["hint"]


def test_no_bundle_is_told(tmp_path: Path) -> None:
    result = in_process_of_its_own("serve", str(tmp_path / "nothing"), "--port", "0")
    assert result.code == 4


def ask(served: Served, model: str, **inputs: Any) -> Any:
    """The outputs by name; bytes are sent as files."""
    kinds = {int: "INT32", str: "BYTES", bytes: "BYTES"}
    sent = []
    for name, value in inputs.items():
        data = base64.b64encode(value).decode() if isinstance(value, bytes) else value
        datatype = "INT64" if name == "seed" else kinds[type(value)]
        sent.append({"name": name, "datatype": datatype, "shape": [1], "data": [data]})
    body = json.dumps({"inputs": sent}).encode()
    status, content = served.request("POST", f"/v2/models/{model}/infer", body)
    assert status == 200, content
    return {output["name"]: output["data"] for output in json.loads(content)["outputs"]}


def picture(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


def whole_bundle(run: Path, root: Path, names: Sequence[str] = ()) -> Path:
    """All graphs of the run, or these, with tokenizer and codec facts; compared with nothing."""
    import shutil

    from mmprod.checkpoint import open_run
    from mmprod.checkpoint.identity import codec_facts
    from mmprod.export.pipeline import add_codec_facts
    from mmprod.graphs.catalog import build_catalog

    opened = open_run(run)
    every = list(build_catalog(opened.dims, opened.config.sampler))
    made, opened, models = export_graphs(run, root, names or every)
    add_codec_facts(made, codec_facts(models.codec, opened.config.codec, opened.dims))
    tokenizer = made.root / "tokenizer.json"
    shutil.copy(opened.tokenizer_path, tokenizer)
    made.add(tokenizer, role="tokenizer")
    shutil.copy(opened.root / "config.toml", made.root / "config.toml")
    made.add(made.root / "config.toml", role="config")
    made.save()
    return made.root


@pytest.mark.slow
def test_a_bundle_end_to_end_and_under_attack(mmprod: Mmprod, run: Path, tmp_path: Path) -> None:
    """The models for people on real graphs, as the commands answer, with shadows that all pass."""
    from tools.hostile import run as attack

    bundle = whole_bundle(run, tmp_path / "bundle")
    file = write(tmp_path / "a.png", 37, 50)
    packed = tmp_path / "a.mm"
    mmprod("compress", bundle, file, "--out", packed)
    text = mmprod("caption", bundle, file, "--json").json()["captions"][0]["caption"]
    single = tmp_path / "single"
    mmprod("generate", bundle, "a red face", "--seed", 3, "-n", 1, "--separate", single,
           "--out", tmp_path / "grid.png")  # fmt: skip
    invented = tmp_path / "invented"
    texts = mmprod("generate", bundle, "--joint", "--seed", 3, "-n", 2, "--separate", invented,
                   "--out", tmp_path / "grid.png", "--json").json()["captions"]  # fmt: skip
    with serving(bundle, tmp_path / "log", "--shadow", "1") as served:
        drawn = ask(served, "text_to_image", prompt="a red face", seed=3)["pictures"][0]
        assert picture(drawn).tobytes() == Image.open(single / "0.png").tobytes()
        both = ask(served, "joint", seed=3, count=2)
        assert both["texts"] == texts
        assert [picture(made).tobytes() for made in both["pictures"]] == [
            Image.open(invented / f"{number}.png").tobytes() for number in range(2)
        ]
        content = file.read_bytes()
        assert ask(served, "image_to_text", picture=content, seed=0)["text"] == [text]
        small = base64.b64decode(ask(served, "compress", picture=content)["file"][0])
        assert small == packed.read_bytes()
        assert picture(ask(served, "decompress", file=small)["pictures"][0]).size == (50, 37)
        assert len(ask(served, "edit", picture=content, prompt="blue", count=2)["pictures"]) == 2
        vector = ask(served, "embed", text="a red face")["embedding"]
        assert sum(value * value for value in vector) == pytest.approx(1, abs=1e-4)
        wait_until(lambda: served.metric("mmprod_shadow_checks_total") >= 8, 60)
        page = served.request("GET", "/metrics")[1].decode()
        assert 'verdict="fail"' not in page and 'verdict="error"' not in page
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(60) == 0
        log = served.log.read_text(encoding="utf-8")
    assert "not met" not in log and "error" not in log
    outcome = attack(bundle, 300, 7)
    assert outcome.wrong == [] and outcome.good > 5


def test_serving_needs_no_torch(tmp_path: Path) -> None:
    """The server with everything it imports, where torch cannot be imported."""
    program = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'onnx', 'safetensors')); "
        "from mmprod.serving import server, grpc_edge, friendly; "
        "from mmprod.cli.main import main; main(['serve', sys.argv[1]])"
    )
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "nothing")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4, done.stderr


@pytest.mark.slow
def test_an_index_is_searched_by_its_own_bundle_only(
    mmprod: Mmprod, run: Path, tmp_path: Path
) -> None:
    bundle = whole_bundle(run, tmp_path / "bundle", GRAPHS)
    folder, index = tmp_path / "pictures", tmp_path / "index"
    folder.mkdir()
    for number in range(5):
        write(folder / f"{number}.png", 20 + number, 30)
    assert mmprod("search", "index", bundle, folder, "--out", index, "-q").code == 0
    file = folder / "2.png"
    words = mmprod("search", "query", index, "a red face", "-k", 5, "--json").json()["hits"]
    with serving(bundle, tmp_path / "log", "--index", str(index)) as served:
        found = ask(served, "search", picture=file.read_bytes(), count=3)
        assert len(found["keys"]) == 3
        assert found["scores"][0] == pytest.approx(1, abs=1e-4)
        first = found["keys"].index(str(file))
        assert found["scores"][first] == pytest.approx(1, abs=1e-4)
        assert base64.b64decode(found["pictures"][first]) == file.read_bytes()
        by_words = ask(served, "search", text="a red face", count=5)
        assert by_words["keys"] == [hit["name"] for hit in words]
        assert by_words["scores"] == pytest.approx([hit["score"] for hit in words], abs=1e-5)
        (folder / "0.png").write_bytes(b"changed")
        (folder / "1.png").unlink()
        by_words = ask(served, "search", text="a red face", count=5)
        given = dict(zip(by_words["keys"], by_words["pictures"], strict=True))
        assert {Path(key).name for key, data in given.items() if not data} == {"0.png", "1.png"}
        served.process.send_signal(signal.SIGHUP)
        wait_until(lambda: served.metric("mmprod_bundle_swaps_total") == 1)
        assert ask(served, "search", text="a red face", count=5)["keys"] == by_words["keys"]
        record = json.loads((bundle / "bundle.json").read_text())
        for entry in record["provenance"]["files"]:
            entry["sha256"] = "0" * 64
        _rewrite(bundle, record)
        served.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "another model" in served.log.read_text())
        assert ask(served, "search", text="a red face", count=5)["keys"] == by_words["keys"]
    refused = in_process_of_its_own(
        "serve", str(bundle), "--port", "0", "--serve-unproven", "--index", str(index), "--json"
    )
    assert refused.code == 4
    assert "another model" in json.loads(refused.out)["error"]["message"]
    absent = in_process_of_its_own(
        "serve", str(bundle), "--port", "0", "--index", str(tmp_path / "absent"), "--json"
    )
    assert absent.code == 2
    assert "is no index" in json.loads(absent.out)["error"]["message"]


def _rewrite(bundle: Path, record: dict[str, Any]) -> None:
    """bundle.json anew, as if the bundle had been exported from another run."""
    from mmprod.bundle import open_bundle

    opened = open_bundle(bundle)
    opened.provenance = record["provenance"]
    opened.save()
