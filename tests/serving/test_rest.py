"""REST over a deployment of fakes: the protocol, the people-friendly models, and refusals."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mmprod.graphs.runner import example_inputs
from mmprod.serving.door import same_key
from mmprod.serving.service import Service
from mmprod.serving.tensors import split_elements
from tests.serving.fakes import (
    DIMS,
    SETTINGS,
    SPECS,
    Got,
    answer,
    ask,
    file,
    get,
    infer,
    limited,
    pixels_of,
    png,
    serve,
    tensor,
    text,
)

FRIENDLY = ["text_to_image", "image_to_text", "joint", "edit"]
FRIENDLY += ["compress", "decompress", "embed", "search"]


@pytest.fixture(scope="module")
def service() -> Any:
    made = serve()
    yield made
    made.close()


def outputs(got: Got) -> dict[str, Any]:
    assert got.status == 200, got.body
    return {output["name"]: output for output in got.json()["outputs"]}


def files(output: Any) -> list[bytes]:
    assert output["parameters"] == {"content_type": "base64"}
    return [base64.b64decode(value) for value in output["data"]]


def test_what_is_served(service: Service) -> None:
    names = get(service, "/v2/models").json()["models"]
    assert names == [*FRIENDLY, *(f"graph.{name}" for name in SPECS)]
    assert get(service, "/v2").json()["name"] == "mmprod"
    assert get(service, "/v2/health/live").json() == {"live": True}
    assert get(service, "/v2/health/ready").json() == {"ready": True}
    for name in names:
        about = get(service, f"/v2/models/{name}").json()
        assert about == get(service, f"/v2/models/{name}/versions/1").json()
        assert about["name"] == name
        assert about["parameters"]["runner"] == "numpy"
        assert about["parameters"]["precision"] == "fp32"
        assert get(service, f"/v2/models/{name}/ready").json() == {"name": name, "ready": True}
    about = get(service, "/v2/models/graph.embed_text").json()
    assert about["inputs"] == [{"name": "tokens", "datatype": "INT32", "shape": [-1, 8]}]
    assert about["parameters"]["max_batch"] == 16


@pytest.mark.parametrize("name", list(SPECS))
def test_every_graph_answers_in_json_and_in_bytes(service: Service, name: str) -> None:
    spec = SPECS[name]
    inputs = example_inputs(spec, 2, 3)
    wanted = answer(spec)(inputs)
    kinds = {"uint8": "UINT8", "int32": "INT32", "float32": "FP32"}
    sent = [
        tensor(key, kinds[value.dtype.name], value.ravel().tolist(), value.shape)
        for key, value in inputs.items()
    ]
    found = outputs(infer(service, f"graph.{name}", sent))
    for key, value in wanted.items():
        assert found[key]["shape"] == list(value.shape)
        np.testing.assert_array_equal(np.ravel(value), np.array(found[key]["data"], value.dtype))
    blobs = [value.tobytes() for value in inputs.values()]
    head = {
        "id": "mine",
        "parameters": {"binary_data_output": True},
        "inputs": [
            {**one, "data": None, "parameters": {"binary_data_size": len(blob)}}
            for one, blob in zip(sent, blobs, strict=True)
        ],
    }
    got = binary(service, f"graph.{name}", head, b"".join(blobs))
    length = int(got.headers["inference-header-content-length"])
    document, rest = json.loads(got.body[:length]), got.body[length:]
    assert document["id"] == "mine"
    for output in document["outputs"]:
        size = output["parameters"]["binary_data_size"]
        assert rest[:size] == wanted[output["name"]].tobytes()
        rest = rest[size:]
    assert not rest


def binary(service: Service, model: str, head: Any, rest: bytes, length: int | None = None) -> Got:
    content = json.dumps(head).encode()
    size = len(content) if length is None else length
    headers = {"Inference-Header-Content-Length": str(size)}
    path = f"/v2/models/{model}/infer"
    return asyncio.run(ask(service, "POST", path, content + rest, headers=headers))


def test_only_the_outputs_that_are_wanted_come(service: Service) -> None:
    body = {
        "inputs": [text("prompt", "red")],
        "outputs": [{"name": "pictures", "parameters": {"binary_data": True}}],
    }
    path = "/v2/models/text_to_image/infer"
    got = asyncio.run(ask(service, "POST", path, json.dumps(body).encode()))
    length = int(got.headers["inference-header-content-length"])
    (picture,) = split_elements(got.body[length:], 1)
    assert pixels_of(picture).shape == (16, 16, 3)
    body["outputs"][0]["name"] = "nothing"
    got = asyncio.run(ask(service, "POST", path, json.dumps(body).encode()))
    assert (got.status, got.json()["error"]) == (
        400,
        "there is no output 'nothing'; outputs: pictures",
    )


def test_text_to_image_is_a_function_of_its_seed(service: Service) -> None:
    asked = [text("prompt", "red"), tensor("seed", "INT64", [5]), tensor("count", "INT32", [3])]
    first, again = (infer(service, "text_to_image", asked) for _ in range(2))
    assert outputs(first)["pictures"]["data"] == outputs(again)["pictures"]["data"]
    assert outputs(first)["pictures"]["shape"] == [3]
    told = first.json()["parameters"]
    assert told["seed"] == 5
    assert told["graph"] == "text_to_image"
    assert told["sha256"] == "0" * 64
    assert told["queue_ms"] >= 0 and told["compute_ms"] > 0
    alone = infer(service, "text_to_image", asked[:2])
    assert outputs(alone)["pictures"]["data"] == outputs(first)["pictures"]["data"][:1]
    unseeded = {
        infer(service, "text_to_image", asked[:1]).json()["parameters"]["seed"] for _ in "ab"
    }
    assert len(unseeded) == 2


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_image_to_text(service: Service, kind: str) -> None:
    found = outputs(infer(service, "image_to_text", [file("picture", png(30, 40, kind))]))
    assert found["text"]["data"][0].startswith("tokens")


def test_a_picture_and_its_text_are_drawn_together(service: Service) -> None:
    asked = [tensor("seed", "INT64", [5]), tensor("count", "INT32", [3])]
    first = infer(service, "joint", asked)
    found = outputs(first)
    assert [pixels_of(made).shape for made in files(found["pictures"])] == [(16, 16, 3)] * 3
    assert found["texts"]["shape"] == [3]
    assert all(made.startswith("tokens") for made in found["texts"]["data"])
    assert len(set(found["texts"]["data"])) == 3
    told = first.json()["parameters"]
    assert (told["seed"], told["graph"]) == (5, "joint")
    alone = outputs(infer(service, "joint", asked[:1]))
    assert alone["pictures"]["data"] == found["pictures"]["data"][:1]
    assert alone["texts"]["data"] == found["texts"]["data"][:1]
    unseeded = [infer(service, "joint", []).json()["parameters"]["seed"] for _ in "ab"]
    assert unseeded[0] != unseeded[1]


def test_edit_by_mask_and_by_words(service: Service) -> None:
    picture = file("picture", png(16, 16))
    mask = np.zeros((16, 16), np.uint8)
    mask[:4, :4] = 255
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "png")
    got = infer(service, "edit", [picture, file("mask", stream.getvalue())])
    assert got.json()["parameters"]["places_drawn"] == 1
    assert got.json()["parameters"]["graph"] == "edit"
    got = infer(service, "edit", [picture, text("prompt", "blue"), tensor("count", "INT32", [2])])
    assert outputs(got)["pictures"]["shape"] == [2]
    assert got.json()["parameters"]["graph"] == "image_to_text,codec_encode,fusion_step,edit"
    assert got.json()["parameters"]["places_drawn"] == 6  # 0.4 of 16
    assert infer(service, "edit", [picture]).status == 400


def test_compress_and_decompress(service: Service) -> None:
    found = outputs(infer(service, "compress", [file("picture", png(37, 21))]))
    (packed,) = files(found["file"])
    assert found["bits_per_pixel"]["data"][0] == pytest.approx(8 * len(packed) / (37 * 21))
    (back,) = files(outputs(infer(service, "decompress", [file("file", packed)]))["pictures"])
    assert pixels_of(back).shape == (37, 21, 3)
    for broken in (b"", b"mm", packed[:-3], packed + b"x", b"\xff" * 200):
        got = infer(service, "decompress", [file("file", broken)])
        assert got.status == 400 and got.json()["error"].startswith("file:")


def test_what_a_small_file_unpacks_to_is_bounded(service: Service) -> None:
    from mmprod.bitstream import CodecId, Picture, RawPrior, write_file

    codec = CodecId("ab" * 32, DIMS.codebook_size, DIMS.planes, DIMS.image_size // DIMS.grid)
    small = Picture(np.zeros(1, np.int32), 1, 1)
    few = serve(limited(pixels=16 * 16 * 20))
    for count, status in ((20, 200), (21, 400)):
        data = write_file([small] * count, codec, RawPrior(codec)).data
        got = infer(few, "decompress", [file("file", data)])
        assert got.status == status, got.body
    few.close()


def test_a_jpeg_of_many_scans_is_refused(service: Service) -> None:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels_of(png(40, 40))).save(stream, "jpeg", progressive=True)
    usual = stream.getvalue()
    scan = usual[usual.rindex(b"\xff\xda") : -2]
    assert infer(service, "image_to_text", [file("picture", usual)]).status == 200
    many = usual[:-2] + scan * 60 + usual[-2:]
    for model in ("image_to_text", "compress", "edit"):
        got = infer(
            service, model, [file("picture", many), text("prompt", "x")][: 1 + (model == "edit")]
        )
        assert got.status == 400 and "more than 64 scans" in got.json()["error"]


def test_embed_and_search(service: Service) -> None:
    for given in (text("text", "red"), file("picture", png(20, 20))):
        assert outputs(infer(service, "embed", [given]))["embedding"]["shape"] == [DIMS.embedding]
        found = outputs(infer(service, "search", [given, tensor("count", "INT32", [2])]))
        assert found["keys"]["data"] == ["key 0", "key 1"]
        assert found["scores"]["data"] == pytest.approx([1, 0.9])
        assert len(files(found["pictures"])) == 2
    assert infer(service, "embed", []).json()["error"] == "give one of text, picture"


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        ("text_to_image", [text("prompt", " ")], "blank"),
        ("text_to_image", [text("prompt", "x" * 2001)], "at most 2000"),
        ("text_to_image", [text("prompt", "x"), tensor("count", "INT32", [17])], "within 1 to 16"),
        ("text_to_image", [text("prompt", "x"), tensor("count", "INT32", [0])], "within 1 to 16"),
        ("text_to_image", [text("prompt", "x"), tensor("seed", "INT64", [-1])], "within 0"),
        ("text_to_image", [], "'prompt' is missing"),
        ("text_to_image", [text("prompts", "x")], "no input 'prompts'"),
        ("joint", [tensor("count", "INT32", [17])], "within 1 to 16"),
        ("joint", [text("prompt", "x")], "no input 'prompt'"),
        ("image_to_text", [file("picture", b"no picture")], "no whole PNG, JPEG, WEBP file"),
        ("image_to_text", [file("picture", png(1, 1))], "sides of 8 to"),
        ("image_to_text", [file("picture", png(40, 7))], "sides of 8 to"),
        ("image_to_text", [file("picture", png(20, 20)[:-30])], "no whole"),
        ("image_to_text", [file("picture", png(20, 20, "bmp"))], "no whole"),
        ("image_to_text", [file("picture", png(20, 20, "gif"))], "no whole"),
        ("edit", [file("picture", png(9, 9)), file("mask", png(9, 9)),
                  tensor("strength", "FP32", [1])], "no effect beside mask"),
        ("edit", [file("picture", png(9, 9)), text("prompt", "x"), tensor("strength", "FP32", [0])],
         "above 0"),
        ("graph.embed_text", [tensor("tokens", "INT32", [300] * 8, [1, 8])], "outside 0..299"),
        ("graph.embed_text", [tensor("tokens", "INT32", [1] * 8 * 17, [17, 8])], "outside 1..16"),
        ("graph.embed_text", [tensor("tokens", "INT32", [], [0, 8])], "outside 1..16"),
    ],
)  # fmt: skip
def test_requests_that_are_refused(service: Service, model: str, inputs: Any, words: str) -> None:
    got = infer(service, model, inputs)
    assert got.status == 400
    assert words in got.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"inputs": null}',
        b'{"inputs": [{}]}',
        b'{"inputs": [{"name": "a", "shape": [1.5], "datatype": "INT32", "data": []}]}',
        b'{"inputs": [{"name": "a", "shape": [-1], "datatype": "INT32", "data": []}]}',
        b'{"inputs": [{"name": "a", "shape": ["1"], "datatype": "INT32", "data": []}]}',
        b'{"inputs": [{"name": 1, "shape": [1], "datatype": "INT32", "data": []}]}',
        b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b"\xff\xfe",
        b'{"inputs": [], "id": "' + b"x" * 300 + b'"}',
    ],
)
def test_json_that_is_no_request(service: Service, body: bytes) -> None:
    got = asyncio.run(ask(service, "POST", "/v2/models/embed/infer", body))
    assert got.status == 400
    assert len(got.json()["error"]) < 200


def test_wrong_lengths_of_binary_parts(service: Service) -> None:
    one = {"name": "tokens", "datatype": "INT32", "shape": [1, 8]}
    head = {"inputs": [{**one, "parameters": {"binary_data_size": 32}}]}
    assert binary(service, "graph.embed_text", head, bytes(32)).status == 200
    assert binary(service, "graph.embed_text", head, bytes(31)).status == 400
    assert binary(service, "graph.embed_text", head, bytes(33)).status == 400
    assert binary(service, "graph.embed_text", head, bytes(32), length=10**6).status == 400
    head["inputs"][0]["parameters"]["binary_data_size"] = -1  # type: ignore[index]
    assert binary(service, "graph.embed_text", head, bytes(32)).status == 400
    got = asyncio.run(
        ask(
            service,
            "POST",
            "/v2/models/embed/infer",
            headers={"Inference-Header-Content-Length": "x"},
        )
    )
    assert got.status == 400


def test_what_is_not_there(service: Service) -> None:
    for path in ("/nothing", "/v2/models/nothing", "/v2/models/embed/versions/2", "/web/nothing"):
        got = get(service, path)
        assert got.status == 404 and "error" in got.json()
    assert infer(service, "nothing", []).status == 404
    assert get(service, "/v2/models/embed/infer").status == 405
    assert get(service, "/web/..%2frest.py").status == 404
    assert 'model="nothing"' not in get(service, "/metrics").body.decode()


def test_limits_of_the_body(service: Service) -> None:
    small = serve(limited(body_bytes=100))
    assert infer(small, "embed", [text("text", "x" * 200)]).status == 413
    got = infer(small, "embed", [text("text", "x" * 200)], headers={"content-length": "5"})
    assert got.status == 413  # said to be small
    got = infer(service, "embed", [text("text", "x")], headers={"content-encoding": "gzip"})
    assert got.status == 415
    small.close()


def test_all_bodies_together_are_bounded(service: Service) -> None:
    small = serve(limited(all_bodies_bytes=100))
    for _ in range(2):
        got = infer(small, "embed", [text("text", "x" * 200)])
        assert got.status == 503 and got.headers["retry-after"] == "1"
        path = "/v2/models/embed/infer"
        assert asyncio.run(ask(small, "POST", path, b"{}")).status == 400  # nothing is held
    small.close()


def test_a_slow_body_is_given_up() -> None:
    slow = serve(limited(receive_s=0.05))

    async def never() -> Got:
        from mmprod.serving.door import Door
        from mmprod.serving.rest import build_routes

        sent: list[Any] = []

        async def receive() -> Any:
            await asyncio.sleep(10)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/v2/models/embed/infer", "root_path": "",
            "query_string": b"", "headers": [(b"host", b"localhost")],
        }  # fmt: skip
        await Door(build_routes(slow), slow)(scope, receive, send)
        return Got(sent[0]["status"], {}, b"")

    assert asyncio.run(never()).status == 408
    slow.close()


def test_headers_of_an_answer(service: Service) -> None:
    got = get(service, "/v2", headers={"X-Request-Id": "mine-1"})
    assert got.headers["x-request-id"] == "mine-1"
    assert got.headers["x-content-type-options"] == "nosniff"
    got = get(service, "/v2", headers={"X-Request-Id": "bad id\n"})
    assert got.headers["x-request-id"] != "bad id\n"
    got = get(service, "/v2", headers={"x": "y" * 20000})
    assert got.status == 431
    got = get(service, "/")
    assert got.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in got.headers["content-security-policy"]
    assert get(service, "/web/app.js").headers["content-type"].startswith("text/javascript")


def test_other_hosts_and_origins_are_kept_out(service: Service) -> None:
    assert get(service, "/v2", headers={"host": "evil.example"}).status == 403
    assert get(service, "/v2", headers={"host": "localhost:1"}).status == 200
    assert get(service, "/v2", headers={"host": "[::1]:1"}).status == 200
    for host in ("", "[", "evil.example:80", "127.0.0.1.evil.example", "localhost:x"):
        assert get(service, "/v2", headers={"host": host}).status == 403
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9", "http://[", ""):
        assert get(service, "/v2", headers={"origin": origin}).status == 403
    assert get(service, "/v2", headers={"origin": "http://127.0.0.1:8080"}).status == 200


def test_a_key_opens_the_door() -> None:
    locked = serve(replace(SETTINGS, key="s3cret"))
    assert get(locked, "/v2/health/live").status == 200
    assert get(locked, "/").status == 200
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer ké"}):
        for path in ("/v2/models", "/metrics", "/openapi.json"):
            got = get(locked, path, headers=headers)
            assert got.status == 401 and got.headers["www-authenticate"] == "Bearer"
    right = {"authorization": "Bearer s3cret", "host": "any.example"}
    assert get(locked, "/v2/models", headers=right).status == 200
    assert same_key("a", "a") and not same_key("", "a")
    assert "s3cret" not in repr(locked.settings)
    locked.close()


def test_the_openapi_page_names_every_model(service: Service) -> None:
    page = get(service, "/openapi.json").json()
    for name in get(service, "/v2/models").json()["models"]:
        assert f"/v2/models/{name}/infer" in page["paths"]
    for path in page["paths"]:
        if "get" in page["paths"][path]:
            assert get(service, path).status == 200
