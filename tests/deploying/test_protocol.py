"""One suite of clients against every server of the Open Inference Protocol that there is.

tritonclient, over HTTP and gRPC, asks a real Triton with a rendered model repository and
`mmprod serve`; the answers are the bytes that the bare runner gives. Other servers of the same
bundle: MMPROD_TEST_SERVERS="HTTP GRPC", e.g. "127.0.0.1:8080 127.0.0.1:8081".
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmprod.bundle import Bundle
from mmprod.data.tokenizer import Tokenizer
from mmprod.deploying.facts import read_facts
from mmprod.deploying.files import write_files
from mmprod.deploying.options import Options
from mmprod.deploying.render import render
from mmprod.graphs.runner import Array, example_inputs
from mmprod.graphs.spec import GraphSpec
from mmprod.parity.standing import standing_rows
from mmprod.runners.ort import OrtRunner
from mmprod.sampling import generate_images
from tests.deploying import triton_server
from tests.deploying.bundles import NODES, small_bundle
from tests.deploying.triton_server import Address

pytestmark = pytest.mark.slow
TYPES = {"uint8": "UINT8", "int32": "INT32", "float32": "FP32", "int64": "INT64"}
PROMPT = "a face with red hair"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Graphs made by hand, each with a parity pass."""
    return small_bundle(tmp_path_factory.mktemp("small") / "bundle")


@pytest.fixture(scope="module", params=["triton", "mmprod serve"])
def address(
    request: pytest.FixtureRequest, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Address]:
    folder = tmp_path_factory.mktemp("server")
    if given := os.environ.get("MMPROD_TEST_SERVERS"):
        http, grpc = given.split()
        yield Address(http, grpc)
    elif request.param == "triton":
        with _triton(bundle, folder) as found:
            yield found
    else:
        with _mmprod(bundle, folder) as found:
            yield found


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, address: Address) -> Iterator[Any]:
    library = pytest.importorskip(f"tritonclient.{request.param}")
    found = library.InferenceServerClient(getattr(address, request.param))
    found.library = library
    yield found
    found.close()


def test_it_is_alive_and_ready(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("graph.codec_decode") and client.is_model_ready("text_to_image")
    assert not client.is_model_ready("graph.unknown")


def test_metadata_is_that_of_the_graph_table(client: Any, bundle: Bundle) -> None:
    spec = bundle.specs["text_to_image"]
    found = client.get_model_metadata("graph.text_to_image")
    found = found if isinstance(found, dict) else _as_dict(found)
    ports = {p["name"]: (p["datatype"], [int(n) for n in p["shape"]]) for p in found["inputs"]}
    assert ports == {t.name: (TYPES[t.dtype], [-1, *t.sizes_at("min")[1:]]) for t in spec.inputs}


def test_every_graph_gives_the_bytes_of_the_bare_runner(client: Any, bundle: Bundle) -> None:
    for name, spec in ((name, bundle.specs[name]) for name in NODES):
        for batch in (1, 3):
            inputs = example_inputs(spec, batch, seed=batch)
            wanted = _bare(bundle, name)(inputs)
            found = _ask(client, f"graph.{name}", inputs)
            for port, value in wanted.items():
                assert np.array_equal(found[port], value), (name, batch, port)


def test_a_prompt_gives_the_pictures_of_mmprod_generate(client: Any, bundle: Bundle) -> None:
    inputs = {
        "prompt": np.array([PROMPT.encode()], np.object_),
        "seed": np.array([7], np.int64),
        "count": np.array([3], np.int32),
    }
    files = _ask(client, "text_to_image", inputs)["pictures"]
    tokenizer = Tokenizer.load(bundle.root / "tokenizer.json")
    runner = _bare(bundle, "text_to_image")
    wanted = generate_images(runner, tokenizer, [PROMPT] * 3, seed=7)
    assert [bytes(file) for file in files] == [_png(picture) for picture in wanted]


def test_without_a_seed_pictures_differ(client: Any) -> None:
    alone = _ask(client, "text_to_image", {"prompt": np.array([PROMPT.encode()], np.object_)})
    assert len(alone["pictures"]) == 1
    # Of graphs this small, one picture in a few is the same again; sixteen in a row are not.
    inputs = {
        "prompt": np.array([PROMPT.encode()], np.object_),
        "count": np.array([16], np.int32),
    }
    first, second = (_ask(client, "text_to_image", inputs)["pictures"] for _ in range(2))
    assert len(first) == len(second) == 16
    assert [bytes(file) for file in first] != [bytes(file) for file in second]


@pytest.mark.parametrize("prompt", [b" ", b"\xff\xfe", b"a" * 2001])
def test_an_unusable_prompt_is_an_error_in_words(client: Any, prompt: bytes) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match="prompt") as caught:
        _ask(client, "text_to_image", {"prompt": np.array([prompt], np.object_)})
    assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")


def test_more_than_the_largest_batch_is_refused(client: Any, bundle: Bundle) -> None:
    from tritonclient.utils import InferenceServerException

    spec = bundle.specs["embed_text"]
    with pytest.raises(InferenceServerException):
        _ask(client, "graph.embed_text", example_inputs(spec, spec.dims[0].max + 1, seed=0))


def test_requests_at_once_each_get_their_own_rows(address: Address, bundle: Bundle) -> None:
    import tritonclient.grpc as library

    spec, runner = bundle.specs["codec_encode"], _bare(bundle, "codec_encode")
    every = [example_inputs(spec, 1, seed) for seed in range(24)]

    def ask(inputs: dict[str, Array]) -> Array:
        with library.InferenceServerClient(address.grpc) as one:
            one.library = library
            return _ask(one, "graph.codec_encode", inputs)["codes"]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, every))
    assert all(np.array_equal(a, runner(b)["codes"]) for a, b in zip(found, every, strict=True))


def _ask(client: Any, model: str, inputs: dict[str, Array]) -> dict[str, Array]:
    asked = []
    for name, value in inputs.items():
        kind = "BYTES" if value.dtype == np.object_ else TYPES[str(value.dtype)]
        one = client.library.InferInput(name, list(value.shape), kind)
        asked.append(one.set_data_from_numpy(value))
    answer = client.infer(model, asked)
    content = answer.get_response()
    outputs = content["outputs"] if isinstance(content, dict) else content.outputs
    names = [port["name"] if isinstance(port, dict) else port.name for port in outputs]
    return {name: answer.as_numpy(name) for name in names}


def _bare(bundle: Bundle, name: str) -> OrtRunner:
    spec: GraphSpec = bundle.specs[name]
    artefact = bundle.artefacts(role="onnx", graph=name, precision="fp32")[0]
    return OrtRunner(spec, bundle.path(artefact))


def _png(picture: Array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "png")
    return stream.getvalue()


def _as_dict(message: Any) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    found: dict[str, Any] = MessageToDict(message)
    return found


@contextlib.contextmanager
def _triton(bundle: Bundle, folder: Path) -> Iterator[Address]:
    try:
        triton_server.prepare()
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or b"")[-300:].decode(errors="replace")
        pytest.skip(f"no Triton: {triton_server.PYTRITON} cannot be used here: {error} {said}")
    write_files(
        render(read_facts(bundle, standing_rows(bundle)), Options(), ["triton"]),
        folder / "out",
        bundle.root,
    )
    with triton_server.serving(folder / "out" / "triton", folder / "log") as found:
        yield found


@contextlib.contextmanager
def _mmprod(bundle: Bundle, folder: Path) -> Iterator[Address]:
    http, grpc = triton_server.free_ports(2)
    command = [sys.executable, "-m", "mmprod", "serve", str(bundle.root), "--port", str(http)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([*command, "--grpc-port", str(grpc)], stdout=log, stderr=log)
        try:
            _ready(server, http, folder / "log")
            yield Address(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", folder / "log")
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)


def _ready(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=2).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise RuntimeError(f"the server is not ready:\n{log.read_text(encoding='utf-8')[-6000:]}")
