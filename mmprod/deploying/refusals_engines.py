"""What engines, the GPU that is named and the TensorRT of an image make impossible together."""

from __future__ import annotations

import re

from mmprod.deploying.facts import EngineFile
from mmprod.deploying.gpus import GPUS, NONE, folded, nearest
from mmprod.deploying.rule import EVERY, SERVER, SERVING, TRITON, Asked, Found, Rule
from mmprod.deploying.server import is_jetson, target_of

JETPACKS = {6: ("jetson-orin",), 7: ("jetson-orin", "jetson-thor")}
"""NVIDIA's JetPack versions and the modules they run on; Thor came with 7."""
JETSON_IMAGE = re.compile(r"(^|/)l4t-")
RTX_NONE = ("sm90", "sm100", "sm103", "sm87", "sm110")
"""Compute capabilities that TensorRT for RTX does not build for, by its support matrix."""


def _gpu(asked: Asked) -> Found:
    name = asked.serving.gpu
    if folded(name) in (*GPUS, NONE):
        return None
    near = nearest(name)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"no GPU is known as {name!r}", f"{hint}known: {', '.join([*GPUS, NONE])}"


def _no_gpu(asked: Asked) -> Found:
    if asked.serving.backend != "tensorrt" or asked.serving.gpu != NONE:
        return None
    return "--backend tensorrt runs engines, and --gpu is none", "--gpu l4, or --backend python"


def _python_on_gpu(asked: Asked) -> Found:
    if asked.serving.backend != "python" or asked.serving.gpu == NONE:
        return None
    return (
        "Triton's python backend runs on processors here, it has no use for a GPU",
        "--gpu none, or --backend tensorrt or onnxruntime",
    )


def _any(asked: Asked) -> Found:
    if not asked.on_engines or is_jetson(asked.options) or _of_precision(asked):
        return None
    precision, target = asked.serving.precision, target_of(asked.options)
    flavour = "tensorrt" if target in RTX_NONE else "rtx"
    return (
        f"the bundle holds no engines in {precision}, and a server on a GPU answers with engines",
        f"mmprod build BUNDLE --trt --flavour {flavour} --target {target} --precision {precision}",
    )


def _target(asked: Asked) -> Found:
    if not asked.on_engines or is_jetson(asked.options):
        return None
    target = target_of(asked.options)
    held = sorted({engine.target for engine in _of_precision(asked)})
    if target in held:
        return None
    flavour = "tensorrt" if target in RTX_NONE else "rtx"
    where = " on that device" if flavour == "tensorrt" else ""
    return (
        f"{folded(asked.serving.gpu)} is {target}, the engines are for {', '.join(held)}",
        f"build them{where}: mmprod build BUNDLE --trt --flavour {flavour} --target {target}",
    )


def _incomplete(asked: Asked) -> Found:
    if not asked.on_engines or is_jetson(asked.options):
        return None
    here = {e.graph for e in _of_precision(asked) if e.target == target_of(asked.options)}
    lacking = [
        g.graph for g in asked.facts.of_precision(asked.serving.precision) if g.graph not in here
    ]
    if not lacking:
        return None
    return (
        f"there are no engines of {', '.join(lacking)} for {target_of(asked.options)}",
        f"mmprod build BUNDLE --trt --target {target_of(asked.options)}",
    )


def _rtx(asked: Asked) -> Found:
    if asked.serving.backend != "tensorrt" or _flavours(asked) != {"rtx"}:
        return None
    return (
        "these engines are of TensorRT for RTX; Triton's tensorrt backend loads those of regular "
        "TensorRT only",
        "on the device: mmprod build BUNDLE --trt --flavour tensorrt; or --backend onnxruntime; "
        "or serve them with mmprod serve",
    )


def _unknown_version(asked: Asked) -> Found:
    if asked.serving.backend != "tensorrt" or asked.options.images.triton_tensorrt:
        return None
    return (
        f"which TensorRT is in {asked.options.images.triton} is not written on it, and a plan "
        "loads in its own version only",
        "--triton-tensorrt VERSION, from: docker run --rm IMAGE sh -c 'dpkg -l | grep libnvinfer'",
    )


def _version(asked: Asked) -> Found:
    wanted = asked.options.images.triton_tensorrt
    if asked.serving.backend != "tensorrt":
        return None
    engines = [e for e in _of_precision(asked) if e.flavour == "tensorrt"]
    built = sorted({engine.version for engine in engines if not _same(engine.version, wanted)})
    if not built:
        return None
    return (
        f"engines built by TensorRT {', '.join(built)} do not load in "
        f"{asked.options.images.triton}, which has {wanted}",
        f"build them in that image, or take one with TensorRT {built[0]}",
    )


def _jetson_rtx(asked: Asked) -> Found:
    if not is_jetson(asked.options) or not asked.facts.engines:
        return None
    if {engine.flavour for engine in asked.facts.engines} != {"rtx"}:
        return None
    return (
        f"{folded(asked.serving.gpu)} is no target of TensorRT for RTX, and the bundle holds "
        "engines of that alone, which would travel along for nothing",
        "export a bundle without engines: mmprod export RUN; the device builds its own",
    )


def _jetson_signature(asked: Asked) -> Found:
    target = target_of(asked.options)
    built = [e for e in asked.facts.engines if (e.flavour, e.target) == ("tensorrt", target)]
    if not is_jetson(asked.options) or not asked.serving.demand_signature or built:
        return None
    return (
        "a Jetson writes the engines that it builds into its bundle, and a changed bundle has no "
        "signature any more",
        "build and self-test on one Jetson, sign that bundle, and render from it",
    )


def _jetpack(asked: Asked) -> Found:
    if not is_jetson(asked.options):
        return None
    version, device = asked.options.jetpack, folded(asked.serving.gpu)
    if version not in JETPACKS:
        return f"JetPack {version} is not known here", "--jetpack 7"
    if device not in JETPACKS[version]:
        return f"{device} does not run JetPack {version}", "--jetpack 7"
    if version == 6:
        return (
            "JetPack 6 brings Python 3.10 and TensorRT 10, mmprod needs Python 3.11",
            "--jetpack 7",
        )
    return None


def _jetson_image(asked: Asked) -> Found:
    if is_jetson(asked.options) and JETSON_IMAGE.search(asked.options.images.jetson):
        return (
            f"{asked.options.images.jetson} is of JetPack 6 or older, not {asked.options.jetpack}",
            "--jetson-image nvcr.io/nvidia/tensorrt:26.06-py3",
        )
    if not is_jetson(asked.options) and JETSON_IMAGE.search(asked.options.images.python):
        return (
            f"{asked.options.images.python} is an image for Jetson, {asked.serving.gpu} is none",
            "--gpu jetson-orin, or another --python-image",
        )
    return None


def _jetson_elsewhere(asked: Asked) -> Found:
    if not is_jetson(asked.options):
        return None
    return (
        f"{folded(asked.serving.gpu)} is a device at the edge, no node of a cluster",
        "mmprod deploy render docker or systemd",
    )


def _of_precision(asked: Asked) -> list[EngineFile]:
    return [e for e in asked.facts.engines if e.precision == asked.serving.precision]


def _flavours(asked: Asked) -> set[str]:
    target = target_of(asked.options)
    return {e.flavour for e in _of_precision(asked) if e.target == target}


def _same(one: str, other: str) -> bool:
    """Whether two versions agree as far as both are given, at least to major, minor and patch."""
    first, second = one.split("."), other.split(".")
    length = max(3, min(len(first), len(second)))
    return first[:length] == second[:length]


RULES = (
    Rule("gpu-unknown", SERVING, _gpu),
    Rule("engines-without-gpu", TRITON, _no_gpu),
    Rule("python-backend-on-gpu", TRITON, _python_on_gpu),
    Rule("jetson-in-cluster", frozenset({"kubernetes", "triton"}), _jetson_elsewhere),
    Rule("jetson-with-rtx-engines", SERVER, _jetson_rtx),
    Rule("jetson-drops-signature", SERVER, _jetson_signature),
    Rule("jetpack-too-old", SERVER, _jetpack),
    Rule("jetson-image", EVERY, _jetson_image),
    Rule("no-engines", SERVING, _any),
    Rule("target-not-gpu", SERVING, _target),
    Rule("engines-incomplete", SERVING, _incomplete),
    Rule("rtx-engine-on-triton", TRITON, _rtx),
    Rule("tensorrt-of-image-unknown", TRITON, _unknown_version),
    Rule("tensorrt-version", TRITON, _version),
)
