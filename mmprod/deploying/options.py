"""What a user says about a deployment beyond the bundle itself: images, ports, sizes, the cluster.

Defaults stand here and nowhere else. Whether they fit each other and the bundle is for `refusals`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

BACKENDS = ("python", "onnxruntime", "tensorrt")
"""Of Triton."""


@dataclass(frozen=True)
class Images:
    """Names of container images, each with a tag or a digest. python, jetson: where Dockerfiles
    start. triton_tensorrt: the TensorRT inside the Triton image, which its name does not say.
    """

    serve: str = "registry.example/mmprod-serve:0.1.0"
    train: str = "registry.example/mmprod-train:0.1.0"
    triton: str = "nvcr.io/nvidia/tritonserver:26.06-py3"
    triton_tensorrt: str = ""
    python: str = "docker.io/library/python:3.11.14-slim-bookworm"
    jetson: str = "nvcr.io/nvidia/tensorrt:26.06-py3"
    prometheus: str = "docker.io/prom/prometheus:v3.12.0"


@dataclass(frozen=True)
class Serving:
    """How the bundle is served. gpu: a name of gpus.py, or `none`. memory_mib: 0 derives it."""

    precision: str = "fp32"
    backend: str = "python"
    gpu: str = "none"
    replicas: int = 2
    max_replicas: int = 6
    port: int = 8080
    grpc_port: int = 8081
    prometheus_port: int = 9090
    bind: str = "127.0.0.1"
    key_secret: str = "mmprod-key"
    max_batch: int = 0
    """0: as large as the graphs allow."""
    memory_mib: int = 0
    shadow: float = 0.01
    """Share of requests that are repeated on the reference, see docs/serve.md."""
    demand_signature: bool = False


@dataclass(frozen=True)
class Training:
    """How a model is trained on a cluster. config: preset or file; batch: its global batch."""

    config: str = "base"
    deepspeed: str = "configs/deepspeed/zero2.json"
    data: str = ""
    """Pictures or a prepared data set, where the job runs; "": `data`, if `config` needs one."""
    nodes: int = 2
    gpus: int = 8
    nproc: int = 0
    """Ranks on a node; 0: one for each GPU."""
    grace_s: int = 300
    hours: int = 24
    claim: str = "mmprod-runs"
    partition: str = "gpu"

    @property
    def ranks(self) -> int:
        return self.nproc or self.gpus


@dataclass(frozen=True)
class Options:
    """Everything a renderer may ask for."""

    name: str = "mmprod"
    namespace: str = "mmprod"
    images: Images = field(default_factory=Images)
    serving: Serving = field(default_factory=Serving)
    training: Training = field(default_factory=Training)
    jetpack: int = 7
