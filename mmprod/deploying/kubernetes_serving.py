"""Kubernetes manifests for serving: Deployment, Service, autoscaler, disruption budget and network
policy; and KServe's InferenceService with a runtime of its own.
"""

from __future__ import annotations

from typing import Any

from mmprod.deploying.facts import Facts
from mmprod.deploying.files import Files
from mmprod.deploying.labels import DOMAIN, object_labels, selector
from mmprod.deploying.options import Options
from mmprod.deploying.pods import (
    END_S,
    POD_SECURITY,
    SERVE,
    document,
    node_selector,
    pod_labels,
    serving_container,
    serving_pod,
    serving_volumes,
)
from mmprod.deploying.server import PODS
from mmprod.deploying.yaml_text import to_yaml

BUSY_PERCENT = 70
MODEL_FORMAT = "mmprod"


def render_serving(facts: Facts, options: Options) -> Files:
    """`kubernetes/namespace.yaml`, `serve.yaml` and `kserve.yaml`."""
    secret = options.serving.key_secret
    comments = (
        "kubectl apply --filename namespace.yaml --filename serve.yaml, after the key was made:",
        f"  kubectl create secret generic {secret} --namespace {options.namespace} "
        "--from-literal=key=...",
    )
    documents = [
        _deployment(facts, options),
        _service(facts, options),
        _addresses(facts, options),
        _autoscaler(facts, options),
        _budget(facts, options),
        _network(facts, options),
    ]
    return {
        "kubernetes/namespace.yaml": to_yaml([_namespace(facts, options)]),
        "kubernetes/serve.yaml": to_yaml(documents, comments),
        "kubernetes/kserve.yaml": _kserve(facts, options),
    }


def _namespace(facts: Facts, options: Options) -> dict[str, Any]:
    levels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    labels = object_labels(facts, options, "namespace") | levels
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": options.namespace, "labels": labels},
    }


def _deployment(facts: Facts, options: Options) -> dict[str, Any]:
    """How many pods there are is the autoscaler's to say, so `replicas` is left out."""
    pods = selector(options, SERVE)
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": pods},
    }
    pod = serving_pod(facts, options, "/bundle") | {"topologySpreadConstraints": [spread]}
    spec = {
        "revisionHistoryLimit": 3,
        "progressDeadlineSeconds": 300,
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
        },
        "selector": {"matchLabels": pods},
        "template": {"metadata": pod_labels(facts, options, SERVE), "spec": pod},
    }
    return document(facts, options, ("apps/v1", "Deployment"), options.name, SERVE) | {"spec": spec}


def _service(facts: Facts, options: Options) -> dict[str, Any]:
    ports = {"http": options.serving.port, "grpc": options.serving.grpc_port}
    spec = {
        "type": "ClusterIP",
        "selector": selector(options, SERVE),
        "ports": [
            {"name": name, "port": number, "targetPort": name, "protocol": "TCP"}
            for name, number in ports.items()
        ],
    }
    return document(facts, options, ("v1", "Service"), options.name, SERVE) | {"spec": spec}


def _addresses(facts: Facts, options: Options) -> dict[str, Any]:
    """An address for every pod, those that are not ready, too: what Prometheus reads."""
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": selector(options, SERVE),
        "ports": [{"name": "http", "port": options.serving.port, "targetPort": "http"}],
    }
    name = f"{options.name}-{PODS}"
    return document(facts, options, ("v1", "Service"), name, SERVE) | {"spec": spec}


def _autoscaler(facts: Facts, options: Options) -> dict[str, Any]:
    """By processor time. It says little of a GPU's load: see docs/deploy.md."""
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": options.name}
    busy = {"type": "Utilization", "averageUtilization": BUSY_PERCENT}
    spec = {
        "scaleTargetRef": target,
        "minReplicas": options.serving.replicas,
        "maxReplicas": options.serving.max_replicas,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": busy}}],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}},
    }
    kind = ("autoscaling/v2", "HorizontalPodAutoscaler")
    return document(facts, options, kind, options.name, SERVE) | {"spec": spec}


def _budget(facts: Facts, options: Options) -> dict[str, Any]:
    """One pod at a time may be taken from a node; `minAvailable` would block the drain of one."""
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": selector(options, SERVE)}}
    kind = ("policy/v1", "PodDisruptionBudget")
    return document(facts, options, kind, options.name, SERVE) | {"spec": spec}


def _network(facts: Facts, options: Options) -> dict[str, Any]:
    """In: pods that carry the client label, in any namespace, and Prometheus. Out: nothing."""
    serving = options.serving
    clients = {
        "podSelector": {"matchLabels": {f"{DOMAIN}/client": "true"}},
        "namespaceSelector": {},
    }
    prometheus = {
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
        "namespaceSelector": {},
    }
    both = [{"protocol": "TCP", "port": port} for port in (serving.port, serving.grpc_port)]
    spec = {
        "podSelector": {"matchLabels": selector(options, SERVE)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [
            {"from": [clients], "ports": both},
            {"from": [prometheus], "ports": both[:1]},
        ],
        "egress": [],
    }
    kind = ("networking.k8s.io/v1", "NetworkPolicy")
    return document(facts, options, kind, options.name, SERVE) | {"spec": spec}


def _kserve(facts: Facts, options: Options) -> str:
    """The runtime that knows how to serve a bundle, and the service that uses it.

    KServe lays the bundle at /mnt/models from the volume; the label tells which one it must be.
    """
    name = f"{options.name}-runtime"
    container = serving_container(facts, options, "kserve-container", "/mnt/models")
    runtime = document(
        facts, options, ("serving.kserve.io/v1alpha1", "ServingRuntime"), name, "runtime"
    ) | {
        "spec": {
            "multiModel": False,
            "protocolVersions": ["v2", "grpc-v2"],
            "supportedModelFormats": [{"name": MODEL_FORMAT, "version": "1", "autoSelect": True}],
            **node_selector(options),
            "containers": [container],
            "volumes": serving_volumes(options),
        }
    }
    model = {
        "modelFormat": {"name": MODEL_FORMAT, "version": "1"},
        "runtime": name,
        "protocolVersion": "v2",
        "storageUri": f"pvc://mmprod-bundles/{facts.name}-{facts.label}",
    }
    service = document(
        facts, options, ("serving.kserve.io/v1beta1", "InferenceService"), options.name, SERVE
    ) | {
        "spec": {
            "predictor": {
                "minReplicas": options.serving.replicas,
                "maxReplicas": options.serving.max_replicas,
                "automountServiceAccountToken": False,
                "securityContext": POD_SECURITY,
                "terminationGracePeriodSeconds": END_S,
                "model": model,
            }
        }
    }
    # The other mode, Knative's, allows one port only.
    service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] = "RawDeployment"
    return to_yaml([runtime, service])
