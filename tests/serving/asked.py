"""What a server answers to JSON, and what a page shows, to be compared."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np

from tests.serving.browser import Watched
from tests.serving.fakes import pixels_of
from tests.serving.process import Served


def ask(served: Served, model: str, **inputs: Any) -> dict[str, Any]:
    """What the server answers to JSON; BYTES outputs as they came."""
    kinds = {str: "BYTES", bytes: "BYTES", int: "INT64"}
    sent = []
    for name, value in inputs.items():
        datatype = "INT32" if name == "count" else kinds[type(value)]
        data = base64.b64encode(value).decode() if isinstance(value, bytes) else value
        sent.append({"name": name, "datatype": datatype, "shape": [1], "data": [data]})
    body = json.dumps({"inputs": sent}).encode()
    status, content = served.request("POST", f"/v2/models/{model}/infer", body)
    assert status == 200, content
    return {output["name"]: output["data"] for output in json.loads(content)["outputs"]}


def shown(watched: Watched, view: str) -> list[np.ndarray]:
    """The pictures of a view's gallery as pixels (H, W, 4), as the browser decoded them."""
    script = """(images) => Promise.all(images.map(async (image) => {
      await image.decode();
      const [width, height] = [image.naturalWidth, image.naturalHeight];
      const canvas = Object.assign(document.createElement("canvas"), { width, height });
      const context = canvas.getContext("2d");
      context.drawImage(image, 0, 0);
      return [height, width, [...context.getImageData(0, 0, width, height).data]];
    }))"""
    found = watched.page.locator(f"#{view} .shown img").evaluate_all(script)
    return [np.array(data, np.uint8).reshape(h, w, 4)[..., :3] for h, w, data in found]


def decoded(elements: list[str]) -> list[np.ndarray]:
    return [pixels_of(base64.b64decode(element)) for element in elements]
