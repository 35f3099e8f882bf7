"""Bytes of one rank by kind, for every ZeRO stage, kind of weights, offload and number of ranks.

What is sharded is ZeRO's (Rajbhandari et al. 2020, section 5): moments and fp32 masters from stage
1, gradients from 2, weights from 3. What DeepSpeed 0.19 keeps beyond the paper was measured and is
counted too: a second fp32 copy of fp32 weights from stage 1 on, a flat fp32 copy of the gradients
and AdamW's two temporaries while it updates, buckets, the gathered weights of stage 3.

A step has two peaks: the backward pass (gradients, buckets, gathered weights, activations) and the
update (gradients in fp32, temporaries); in between and at rest is less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmprod.planning.sizes import Sizes

Weights = Literal["fp32", "bf16", "fp16"]
Offload = Literal["none", "optimizer", "optimizer+param"]

FP32 = 4
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
LIVE = 1_000_000_000
"""DeepSpeed's stage3_max_live_parameters and stage3_max_reuse_distance: below it a gathered model
stays whole from its forward to its backward pass
"""
BUCKET = 5_000_000
"""elements, as in configs/deepspeed"""
STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Layout:
    """How a job is laid out. `stage` None: plain PyTorch on one rank, without DeepSpeed."""

    stage: int | None
    weights: Weights = "fp32"
    offload: Offload = "none"
    world: int = 1
    accumulation: int = 1
    bucket: int = BUCKET

    @property
    def possible(self) -> bool:
        """Stage 0 keeps fp32 weights (DeepSpeed's first step is wrong otherwise) and offloads
        nothing; parameters are offloaded at stage 3 alone.
        """
        if self.stage is None:
            return self.weights == "fp32" and self.offload == "none" and self.world == 1
        if self.stage == 0:
            return self.weights == "fp32" and self.offload == "none"
        return self.offload != "optimizer+param" or self.stage == 3


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank. `device` and `host` name what is there at rest, by kind; `backward` and
    `update` what comes on top at the two peaks, activations excluded.
    """

    device: dict[str, int]
    host: dict[str, int]
    backward: dict[str, int]
    update: dict[str, int]

    @property
    def rest(self) -> int:
        """On the device between two steps."""
        return sum(self.device.values())

    @property
    def host_rest(self) -> int:
        """In the memory of the host between two steps."""
        return sum(self.host.values())

    def peak(self, activations: int = 0) -> int:
        """On the device at the higher of both peaks."""
        backward = sum(self.backward.values()) + activations
        return self.rest + max(backward, sum(self.update.values()))


def memory_of(sizes: Sizes, layout: Layout) -> Memory:
    """The figures of a stage under one layout. Exact for what is at rest, up to padding."""
    if layout.stage is None:
        return _plain(sizes)
    stage, world = layout.stage, layout.world
    width, trained = BYTES[layout.weights], sizes.trained
    part = -(-trained // world)
    partitioned = part if stage else trained
    device = _beside(sizes)
    shared = FP32 * partitioned
    device["weights"] = width * (-(-sizes.parameters // world) if stage == 3 else sizes.parameters)
    device |= {
        "masters": shared if stage else 0,
        "moments": 2 * FP32 * partitioned,
        "averages": shared,
    }
    if stage == 3:
        device |= {"gradients": width * part, "buckets": width * layout.bucket}
    host: dict[str, int] = {}
    offloaded = {"none": (), "optimizer": OPTIMIZER, "optimizer+param": (*OPTIMIZER, "weights")}
    for kind in offloaded[layout.offload]:
        host[kind] = device.pop(kind)
    return Memory(device, host, _backward(sizes, layout), _update(sizes, layout))


OPTIMIZER = ("masters", "moments", "averages")
"""what follows the optimizer to the host"""


def _backward(sizes: Sizes, layout: Layout) -> dict[str, int]:
    """On top of the rest while gradients come out of the backward pass."""
    stage, width, trained = layout.stage, BYTES[layout.weights], sizes.trained
    part = -(-trained // layout.world)
    # A tensor beyond the bucket is reduced by itself, beside its own gradient.
    passing = width * 2 * sizes.largest
    if stage == 0:
        flat = width * trained if layout.world > 1 else 0
        return {"gradients": width * trained, "buckets": flat}
    bucket = width * min(layout.bucket, trained)
    if stage == 1:
        return {"gradients": width * (trained + part), "buckets": bucket}
    if stage == 2:
        kept = part * (2 if layout.accumulation > 1 else 1)
        return {"gradients": width * kept, "buckets": bucket + passing}
    gathered = 0 if layout.world == 1 else width * min(sizes.parameters, LIVE)
    return {"gathered": gathered, "buckets": passing}


def _update(sizes: Sizes, layout: Layout) -> dict[str, int]:
    """On top of the rest while AdamW moves the weights."""
    stage, width, trained = layout.stage, BYTES[layout.weights], sizes.trained
    if stage == 0:
        return {"gradients": width * trained, "temporaries": 2 * FP32 * sizes.largest}
    part = -(-trained // layout.world)
    own = width * part if stage in (1, 2) else 0
    if layout.offload != "none":
        return {"gradients": own}
    return {"gradients": own + FP32 * part, "temporaries": 2 * FP32 * part}


def _plain(sizes: Sizes) -> Memory:
    """Plain PyTorch: fused AdamW, or Muon with one moment a matrix; no copies."""
    trained = FP32 * sizes.trained
    moments = 2 * trained - FP32 * sizes.one_moment
    device = _beside(sizes) | {
        "weights": FP32 * sizes.parameters, "moments": moments, "averages": trained,
    }  # fmt: skip
    return Memory(device, {}, {"gradients": trained}, {"gradients": trained})


def _beside(sizes: Sizes) -> dict[str, int]:
    """Whole on every rank: codebook and tables; the discriminator with gradients and AdamW's
    moments; the perceptual network; the codec that draws samples in the fusion stage.
    """
    found = {"buffers": sizes.buffer_bytes}
    if sizes.discriminator:
        found["discriminator"] = 4 * FP32 * sizes.discriminator
    if sizes.sampler_bytes:
        found["codec"] = sizes.sampler_bytes
    if sizes.perceptual:
        found["perceptual"] = FP32 * sizes.perceptual
    return found
