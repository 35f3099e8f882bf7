"""Kubernetes manifests for training: a JobSet, and Kubeflow's TrainJob with a runtime of its own.

Exit code 75 means that state is saved and the same command goes on: the pod is made again and
nothing is counted against the job. 2, 4 and 7 would come back and fail it at once. All others are
counted. See docs/launch.md for the codes.
"""

from __future__ import annotations

from typing import Any

from mmprod.deploying.facts import Facts
from mmprod.deploying.files import Files
from mmprod.deploying.labels import TRAIN, object_labels
from mmprod.deploying.options import Options
from mmprod.deploying.pods import (
    CONTAINER_SECURITY,
    POD_SECURITY,
    SCRATCH,
    SCRATCH_MOUNT,
    document,
)
from mmprod.deploying.training import train_arguments
from mmprod.deploying.yaml_text import to_yaml

AGAIN = 75
STOP = (2, 4, 7)
PORT = 29500
NODE = "node"
"""Kubeflow's name of the container and of the job that train."""
RESTARTS = 10
RUNS = "/runs"
"""Where the claim is mounted: runs, codes and data."""


def render_training(facts: Facts, options: Options) -> Files:
    """`kubernetes/claim.yaml`, `jobset.yaml` and `trainjob.yaml`."""
    return {
        "kubernetes/claim.yaml": to_yaml([_claim(facts, options)]),
        "kubernetes/jobset.yaml": to_yaml([_jobset(facts, options)]),
        "kubernetes/trainjob.yaml": to_yaml([_runtime(facts, options), _trainjob(facts, options)]),
    }


def node_arguments(options: Options, rank: str, master: str) -> list[str]:
    """What follows `mmprod` on every node. rank: of the node; master: the address of node 0."""
    training = options.training
    found = [*train_arguments(options, RUNS, RUNS), "--nproc", str(training.ranks)]
    if training.nodes == 1:
        return found
    where = ["--nnodes", str(training.nodes), "--node-rank", rank, "--master", f"{master}:{PORT}"]
    return found + where


def failure_policy() -> dict[str, Any]:
    """Of a Job: what each exit code of a pod means for it."""

    def codes(action: str, values: tuple[int, ...]) -> dict[str, Any]:
        found = {"containerName": NODE, "operator": "In", "values": list(values)}
        return {"action": action, "onExitCodes": found}

    evicted = [{"type": "DisruptionTarget", "status": "True"}]
    return {
        "rules": [
            codes("Ignore", (AGAIN,)),
            codes("FailJob", STOP),
            {"action": "Ignore", "onPodConditions": evicted},
        ]
    }


def _claim(facts: Facts, options: Options) -> dict[str, Any]:
    """Runs, codes and data: all nodes write to it."""
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "500Gi"}}}
    name = options.training.claim
    return document(facts, options, ("v1", "PersistentVolumeClaim"), name, TRAIN) | {"spec": spec}


def _container(options: Options, arguments: list[str]) -> dict[str, Any]:
    training = options.training
    resources = {
        "cpu": str(8 * max(training.ranks, 1)),
        "memory": f"{64 * max(training.ranks, 1)}Gi",
        "nvidia.com/gpu": str(training.gpus),
    }
    if not training.gpus:
        del resources["nvidia.com/gpu"]
    return {
        "name": NODE,
        "image": options.images.train,
        "imagePullPolicy": "IfNotPresent",
        "command": ["tini", "--", "mmprod"],
        "args": arguments,
        "workingDir": "/opt/mmprod",
        "env": [{"name": "HOME", "value": "/tmp"}],
        "ports": [{"name": "rendezvous", "containerPort": PORT, "protocol": "TCP"}],
        "resources": {"requests": resources, "limits": resources},
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [
            {"name": "runs", "mountPath": RUNS},
            {"name": "shm", "mountPath": "/dev/shm"},
            SCRATCH_MOUNT,
        ],
    }


def _jobs(facts: Facts, options: Options, arguments: list[str]) -> dict[str, Any]:
    """The `spec` of a JobSet: one indexed Job with a pod on each node."""
    training = options.training
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": training.grace_s,
        "securityContext": POD_SECURITY,
        "containers": [_container(options, arguments)],
        "volumes": [
            {"name": "runs", "persistentVolumeClaim": {"claimName": training.claim}},
            # NCCL and the loaders of the ranks share memory there.
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}},
            SCRATCH,
        ],
    }
    labels = {
        **object_labels(facts, options, TRAIN),
        "trainer.kubeflow.org/trainjob-ancestor-step": "trainer",
    }
    job = {
        "completionMode": "Indexed",
        "completions": training.nodes,
        "parallelism": training.nodes,
        "backoffLimit": 3 * training.nodes,
        "activeDeadlineSeconds": training.hours * 3600,
        "podFailurePolicy": failure_policy(),
        "podReplacementPolicy": "Failed",
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    given_up = {
        "name": "givenUp",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy", "DeadlineExceeded"],
    }
    return {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": {"maxRestarts": RESTARTS, "rules": [given_up]},
        "replicatedJobs": [
            {
                "name": NODE,
                "replicas": 1,
                "template": {"metadata": {"labels": labels}, "spec": job},
            }
        ],
    }


def _jobset(facts: Facts, options: Options) -> dict[str, Any]:
    name = f"{options.name}-train"
    master = f"{name}-{NODE}-0-0.{name}"
    arguments = node_arguments(options, "$(JOB_COMPLETION_INDEX)", master)
    head = document(facts, options, ("jobset.x-k8s.io/v1alpha2", "JobSet"), name, TRAIN)
    return head | {"spec": _jobs(facts, options, arguments)}


def _runtime(facts: Facts, options: Options) -> dict[str, Any]:
    """Without Kubeflow's torch policy: mmprod starts its own ranks, and ends with their code where
    torchrun always ends with 1.
    """
    arguments = _trainjob_arguments(options)
    kind = ("trainer.kubeflow.org/v1alpha1", "TrainingRuntime")
    return document(facts, options, kind, f"{options.name}-runtime", TRAIN) | {
        "spec": {
            "mlPolicy": {"numNodes": options.training.nodes},
            "template": {"spec": _jobs(facts, options, arguments)},
        }
    }


def _trainjob(facts: Facts, options: Options) -> dict[str, Any]:
    kind = ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    return document(facts, options, kind, f"{options.name}-train", TRAIN) | {
        "spec": {
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org",
                "kind": "TrainingRuntime",
                "name": f"{options.name}-runtime",
            },
            "trainer": {
                "image": options.images.train,
                "command": ["tini", "--", "mmprod"],
                "args": _trainjob_arguments(options),
                "numNodes": options.training.nodes,
            },
        }
    }


def _trainjob_arguments(options: Options) -> list[str]:
    name = f"{options.name}-train"
    return node_arguments(options, "$(JOB_COMPLETION_INDEX)", f"{name}-{NODE}-0-0.{name}")
