"""Combinations that cannot work, each refused by its name with something to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from mmprod.deploying.facts import Facts
from mmprod.deploying.gpus import GPUS
from mmprod.deploying.options import Images, Options, Serving, Training
from mmprod.deploying.refusals import RULES, check
from mmprod.deploying.render import RENDERERS, render
from mmprod.engines.targets import TARGETS
from mmprod.errors import ConfigError
from tools.deploy_golden import facts

KINDS = tuple(RENDERERS)
Change = Callable[[Facts], Facts]


@dataclass(frozen=True)
class Wrong:
    """What differs from what works."""

    name: str
    serving: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)
    other: dict[str, Any] = field(default_factory=dict)
    bundle: Change = lambda found: found
    kinds: tuple[str, ...] = ("docker", "compose", "kubernetes", "systemd", "slurm")
    says: str = ""

    def options(self) -> Options:
        return Options(
            serving=replace(Serving(), **self.serving),
            training=replace(Training(), **self.training),
            images=replace(Images(), **self.images),
            **self.other,
        )


def parity(word: str) -> Change:
    """The same verdict on every graph."""
    return lambda f: replace(f, graphs=tuple(replace(g, parity=word) for g in f.graphs))


def engines(**changes: Any) -> Change:
    return lambda f: replace(f, engines=tuple(replace(e, **changes) for e in f.engines))


def without_fp32(found: Facts) -> Facts:
    return replace(found, graphs=tuple(g for g in found.graphs if g.precision != "fp32"))


def only(flavour: str) -> Change:
    return lambda f: replace(f, engines=tuple(e for e in f.engines if e.flavour == flavour))


def without_one_engine(found: Facts) -> Facts:
    return replace(found, engines=found.engines[1:])


L4 = {"precision": "fp16", "gpu": "l4"}
H100 = {"precision": "fp16", "gpu": "h100", "backend": "tensorrt"}
ORIN = {"precision": "fp16", "gpu": "jetson-orin"}
IMAGE = {"triton_tensorrt": "11.4.0"}
TRITON = ("triton",)
EDGE = ("docker", "systemd")

WRONG = (
    Wrong("name-invalid", other={"name": "My_Server"}),
    Wrong("name-invalid", other={"namespace": "a" * 60}, says="--namespace"),
    Wrong("name-invalid", serving={"key_secret": "key/../x"}, says="--key-secret"),
    Wrong("value-invalid", bundle=lambda f: replace(f, name="a\nUSER root"), says="run"),
    Wrong("value-invalid", training={"partition": "gpu\nrm"}, says="--partition"),
    Wrong("value-invalid", training={"data": "/runs/$(x)"}, says="--data"),
    Wrong("value-invalid", training={"deepspeed": "a\nb"}, says="--deepspeed"),
    Wrong("value-invalid", serving={"bind": "0.0.0.0 --serve-unproven"}, says="--bind"),
    Wrong("value-invalid", serving={"bind": "localhost"}, says="no address"),
    Wrong("image-moves", images={"serve": "registry.example/serve:latest"}, says="latest"),
    Wrong("image-moves", images={"train": "registry.example:5000/train"}, says="no tag"),
    Wrong("image-invalid", images={"serve": "Registry.Example/Serve: 1"}),
    Wrong("backend-unknown", serving={"backend": "pytorch"}, kinds=TRITON, says="pytorch"),
    Wrong("precision-missing", serving={"precision": "int8"}, says="fp16, fp32"),
    Wrong("precision-missing", {**ORIN, "precision": "fp16; id"}, bundle=only("none"), kinds=EDGE),
    Wrong(
        "precision-on-cpu",
        serving={"precision": "bf16"},
        bundle=lambda f: replace(f, graphs=tuple(replace(g, precision="bf16") for g in f.graphs)),
    ),
    Wrong("no-parity-pass", bundle=parity("fail"), says="codec_encode (fail)"),
    Wrong("no-parity-pass", bundle=parity(""), kinds=TRITON, says="never compared"),
    Wrong("engine-failed-parity", serving=L4, bundle=engines(parity="fail"), kinds=("systemd",)),
    Wrong("engine-unproven", serving=L4, bundle=engines(parity="not run"), says="rtx-sm89"),
    Wrong("engine-unproven", H100, images=IMAGE, bundle=engines(parity=""), kinds=TRITON),
    Wrong(
        "unsigned",
        serving={"demand_signature": True},
        bundle=lambda f: replace(f, signed=False),
    ),
    Wrong("shadow-without-reference", {"precision": "fp16"}, bundle=without_fp32, says="fp32"),
    Wrong("shadow-without-reference", serving={"shadow": 1.5}),
    Wrong("batch-beyond-graph", serving={"max_batch": 64}, kinds=TRITON, says="1 to 16"),
    Wrong("batch-beyond-graph", serving={"max_batch": -1}, kinds=TRITON),
    Wrong("memory-too-small", serving={"memory_mib": 64}),
    Wrong("port-clash", serving={"grpc_port": 8080}, says="--port and --grpc-port"),
    Wrong("port-clash", serving={"prometheus_port": 8081}),
    Wrong("port-privileged", serving={"port": 443}, says="443"),
    Wrong("port-privileged", serving={"port": 70000}),
    Wrong(
        "bind-without-key",
        serving={"bind": "0.0.0.0", "key_secret": ""},
        kinds=("systemd",),
        says="0.0.0.0",
    ),
    Wrong("container-without-key", serving={"key_secret": ""}, kinds=("kubernetes",)),
    Wrong("gpu-unknown", serving={"gpu": "l5"}, says="'l5'"),
    Wrong("engines-without-gpu", serving={"backend": "tensorrt"}, kinds=TRITON),
    Wrong("python-backend-on-gpu", serving={"gpu": "l4"}, kinds=TRITON),
    Wrong(
        "jetson-in-cluster",
        serving=ORIN,
        bundle=lambda f: replace(f, engines=()),
        kinds=("kubernetes",),
    ),
    Wrong("jetson-with-rtx-engines", serving=ORIN, bundle=only("rtx"), kinds=EDGE),
    Wrong(
        "jetson-drops-signature",
        {**ORIN, "demand_signature": True},
        bundle=lambda f: replace(f, engines=()),
        kinds=EDGE,
    ),
    Wrong("jetpack-too-old", ORIN, bundle=only("none"), other={"jetpack": 6}, kinds=EDGE),
    Wrong(
        "jetpack-too-old",
        {"precision": "fp16", "gpu": "jetson-thor"},
        bundle=only("none"),
        other={"jetpack": 6},
        kinds=EDGE,
        says="does not run",
    ),
    Wrong(
        "jetson-image",
        ORIN,
        bundle=only("none"),
        images={"jetson": "nvcr.io/nvidia/l4t-tensorrt:r10.3.0-runtime"},
        kinds=EDGE,
    ),
    Wrong("jetson-image", images={"python": "nvcr.io/nvidia/l4t-base:r36.2.0"}),
    Wrong("no-engines", serving=L4, bundle=only("none"), says="--flavour rtx --target sm89"),
    Wrong("target-not-gpu", serving={**L4, "gpu": "NVIDIA A100"}, says="sm80"),
    Wrong("engines-incomplete", serving=L4, bundle=without_one_engine, says="codec_encode"),
    Wrong("rtx-engine-on-triton", {**H100, "gpu": "l4"}, images=IMAGE, kinds=TRITON),
    Wrong("tensorrt-of-image-unknown", serving=H100, kinds=TRITON, says="dpkg"),
    Wrong("tensorrt-version", H100, images={"triton_tensorrt": "10.15.1"}, kinds=TRITON),
    Wrong("tensorrt-version", H100, images={"triton_tensorrt": "11.4"}, kinds=TRITON),
    Wrong("replica-bounds", serving={"replicas": 8}, says="--max-replicas 6"),
    Wrong("replica-bounds", serving={"replicas": 0}),
    Wrong("no-ranks", training={"nodes": 0}),
    Wrong("no-ranks", training={"gpus": 0}, kinds=("slurm",)),
    Wrong("ranks-not-gpus", training={"nproc": 4}, says="4 on 8 GPUs"),
    Wrong("batch-not-divisible", training={"nodes": 3, "gpus": 7}, says="cannot be shared by 21"),
    Wrong("grace-too-short", training={"grace_s": 10}),
    Wrong("grace-too-short", training={"grace_s": 7200, "hours": 1}),
)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_what_cannot_work_is_refused_by_name(wrong: Wrong) -> None:
    with pytest.raises(ConfigError) as caught:
        check(wrong.bundle(facts()), wrong.options(), wrong.kinds)
    assert caught.value.message.startswith(f"{wrong.name}: ")
    assert wrong.says in caught.value.message + caught.value.hint
    assert caught.value.hint and caught.value.exit_code == 2


def test_every_rule_has_an_example() -> None:
    assert {wrong.name for wrong in WRONG} == {rule.name for rule in RULES}


def test_what_works_is_not_refused() -> None:
    check(facts(), Options(), KINDS)
    check(facts(), Options(serving=replace(Serving(), **L4)), ("docker", "kubernetes", "systemd"))
    check(
        facts(),
        Options(serving=replace(Serving(), **H100), images=replace(Images(), **IMAGE)),
        TRITON,
    )


def test_a_jetson_with_signed_engines_leaves_its_bundle_alone() -> None:
    whole = facts()
    own = tuple(replace(e, flavour="tensorrt", target="sm87") for e in whole.engines[:10])
    options = Options(serving=replace(Serving(), **ORIN, demand_signature=True))
    files = render(replace(whole, engines=own), options, EDGE)
    assert 'selftest "$bundle" --output /tmp/selftest.json' in str(files["docker/device.sh"])
    assert "MMPROD_TRUSTED_KEYS" in str(files["docker/Dockerfile.jetson"])
    assert "MMPROD_TRUSTED_KEYS" in str(files["systemd/mmprod-serve.service"])


def test_a_unit_may_serve_engines_that_its_self_test_proves() -> None:
    unproven = engines(parity="not run")(facts())
    check(unproven, Options(serving=replace(Serving(), **L4)), ("systemd",))


def test_devices_have_capabilities_that_engines_are_built_for() -> None:
    assert set(GPUS.values()) <= set(TARGETS)
    named = {gpu: target for gpu, target in GPUS.items() if not TARGETS[target].rtx}
    assert set(named.values()) == {"sm90", "sm100", "sm103", "sm87", "sm110"}
