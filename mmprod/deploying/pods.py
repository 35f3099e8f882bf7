"""What all pods share: who they run as, what they may do, and how they are probed."""

from __future__ import annotations

from typing import Any

from mmprod.deploying.facts import Facts
from mmprod.deploying.labels import metadata, object_labels
from mmprod.deploying.options import Options
from mmprod.deploying.server import (
    CORES,
    DRAIN_S,
    LIVE,
    READY,
    USER,
    memory_mib,
    on_engines,
    serve_arguments,
    target_of,
)

KEY_FOLDER = "/run/secrets/mmprod"
SERVE = "serve"
LEAVING_S = 5
END_S = LEAVING_S + DRAIN_S + 10

POD_SECURITY: dict[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
SCRATCH = {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}}
SCRATCH_MOUNT = {"name": "tmp", "mountPath": "/tmp"}


def document(
    facts: Facts, options: Options, kind: tuple[str, str], name: str, component: str
) -> dict[str, Any]:
    """The head of a Kubernetes object; `spec` is added by who asks. kind: apiVersion and kind."""
    return {
        "apiVersion": kind[0],
        "kind": kind[1],
        "metadata": metadata(facts, options, name, component),
    }


def serving_container(facts: Facts, options: Options, name: str, bundle: str) -> dict[str, Any]:
    """The container of `mmprod serve`, its key mounted as a file."""
    serving = options.serving
    return {
        "name": name,
        "image": options.images.serve,
        "imagePullPolicy": "IfNotPresent",
        "command": ["mmprod"],
        "args": serve_arguments(options, bundle, "0.0.0.0", f"{KEY_FOLDER}/key"),
        "ports": [
            {"name": "http", "containerPort": serving.port, "protocol": "TCP"},
            {"name": "grpc", "containerPort": serving.grpc_port, "protocol": "TCP"},
        ],
        "startupProbe": _probe(READY, period=2, failures=60),
        "readinessProbe": _probe(READY, period=5, failures=2),
        "livenessProbe": _probe(LIVE, period=10, failures=3),
        "resources": _resources(facts, options),
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [
            SCRATCH_MOUNT,
            {"name": "key", "mountPath": KEY_FOLDER, "readOnly": True},
        ],
    }


def serving_volumes(options: Options) -> list[dict[str, Any]]:
    secret = {"secretName": options.serving.key_secret, "defaultMode": 0o440}
    return [
        SCRATCH,
        {"name": "key", "secret": {**secret, "items": [{"key": "key", "path": "key"}]}},
    ]


def serving_pod(facts: Facts, options: Options, bundle: str) -> dict[str, Any]:
    """The `spec` of a serving pod."""
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": END_S,
        "securityContext": POD_SECURITY,
        # Until every node has heard that the pod ends, requests still come. (Not for KServe: its
        # definitions may be older than `sleep`.)
        "containers": [
            serving_container(facts, options, SERVE, bundle)
            | {"lifecycle": {"preStop": {"sleep": {"seconds": LEAVING_S}}}}
        ],
        "volumes": serving_volumes(options),
    }
    return pod | node_selector(options)


def node_selector(options: Options) -> dict[str, Any]:
    """Nodes whose GPU has the compute capability, by the labels that NVIDIA's feature discovery
    puts there.
    """
    target = target_of(options)
    if not target:
        return {}
    major, minor = divmod(int(target.removeprefix("sm")), 10)
    return {
        "nodeSelector": {
            "nvidia.com/gpu.compute.major": str(major),
            "nvidia.com/gpu.compute.minor": str(minor),
        }
    }


def pod_labels(facts: Facts, options: Options, component: str) -> dict[str, Any]:
    return {"labels": object_labels(facts, options, component)}


def _resources(facts: Facts, options: Options) -> dict[str, Any]:
    """Memory asked for is memory allowed: a server killed in the middle helps nobody."""
    memory = f"{memory_mib(facts, options)}Mi"
    limits = {"memory": memory, "cpu": str(CORES)}
    if on_engines(options):
        limits["nvidia.com/gpu"] = "1"
    requests = {**limits, "cpu": "1"}
    return {"requests": requests, "limits": limits}


def _probe(path: str, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": period,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }
