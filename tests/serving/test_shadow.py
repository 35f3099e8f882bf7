"""Shadow parity: equal answers pass, sabotaged ones show in the metrics, nothing waits for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmprod.bundle import Bundle
from mmprod.errors import ConfigError
from mmprod.graphs.runner import example_inputs
from mmprod.serving.metrics import Metrics
from mmprod.serving.shadow import WAITING, Shadow, check_reference
from tests.parity.answers import decode, embed
from tests.parity.toy import SPECS, make_toy


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_toy(tmp_path_factory.mktemp("bundles") / "toy")


def page(metrics: Metrics) -> str:
    return metrics.page().decode()


def test_equal_answers_pass(bundle: Bundle) -> None:
    metrics = Metrics()
    shadow = Shadow(bundle, metrics)
    for name, function in (("codec_decode", decode), ("embed_text", embed)):
        inputs = example_inputs(SPECS[name], 3, 1)
        shadow.offer(name, "fp32", inputs, function(inputs))
    shadow.close()
    text = page(metrics)
    assert 'mmprod_shadow_checks_total{graph="codec_decode",verdict="pass"} 1.0' in text
    assert 'mmprod_shadow_checks_total{graph="embed_text",verdict="pass"} 1.0' in text
    assert 'mmprod_shadow_figure{figure="cosine",graph="embed_text",output="embedding"}' in text
    assert 'verdict="fail"' not in text


def test_a_drift_is_seen(bundle: Bundle) -> None:
    metrics = Metrics()
    shadow = Shadow(bundle, metrics)
    inputs = example_inputs(SPECS["embed_text"], 2, 1)
    wrong = embed(inputs)["embedding"]
    shadow.offer("embed_text", "fp32", inputs, {"embedding": wrong * np.float32(1.01)})
    shadow.offer("embed_text", "fp32", inputs, {"embedding": wrong * np.float32(np.nan)})
    shadow.offer("embed_text", "int3", inputs, {"embedding": wrong})  # no limits for it
    shadow.close()
    text = page(metrics)
    assert 'mmprod_shadow_checks_total{graph="embed_text",verdict="fail"} 2.0' in text
    assert 'mmprod_shadow_checks_total{graph="embed_text",verdict="error"} 1.0' in text
    assert 'mmprod_shadow_limit_used_bucket{graph="embed_text",le="5.0"} 1.0' in text


def test_what_does_not_fit_is_dropped(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    gate, entered = threading.Event(), threading.Event()

    def wait(self: Shadow, pair: object) -> None:
        entered.set()
        gate.wait(10)

    monkeypatch.setattr(Shadow, "_compare", wait)
    metrics = Metrics()
    shadow = Shadow(bundle, metrics)
    shadow.offer("embed_text", "fp32", {}, {})
    assert entered.wait(10)
    for _ in range(WAITING + 3):
        shadow.offer("embed_text", "fp32", {}, {})
    gate.set()
    shadow.close()
    assert "mmprod_shadow_dropped_total 3.0" in page(metrics)


def test_the_reference_is_that_of_the_bundle_that_was_opened(
    bundle: Bundle, tmp_path: Path
) -> None:
    from mmprod.serving.deployment import open_deployment
    from mmprod.serving.settings import Settings

    here = tmp_path / "current"
    here.symlink_to(bundle.root)
    metrics = Metrics()
    deployed = open_deployment(Settings(here, unproven=True, shadow=1), metrics)
    here.unlink()  # the next bundle is about to be linked here
    graph = deployed.graphs["embed_text"]
    inputs = example_inputs(SPECS["embed_text"], 1, 1)
    graph.took(inputs, graph.submit(inputs).result(10))
    assert deployed.close(10)
    assert 'mmprod_shadow_checks_total{graph="embed_text",verdict="pass"} 1.0' in page(metrics)


def test_a_bundle_without_references_is_refused(tmp_path: Path) -> None:
    from tests.parity.toy import add_onnx

    made = make_toy(tmp_path / "toy", ["embed_text"])
    add_onnx(made, "codec_decode", "fp16")
    with pytest.raises(ConfigError, match="no fp32 graph of codec_decode"):
        check_reference(made)
