"""Kubernetes objects against schemas: the only file that imports kubernetes_validate and
kubeflow_trainer_api.

Core kinds have the schema of their Kubernetes release. JobSet, TrainingRuntime and TrainJob have
the models that Kubeflow generates from their definitions, and the Job inside is checked as a Job.
KServe's have no schema that can be had offline: their fields are those of KServe's Go types, and
the containers and volumes inside are checked as a Pod.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from mmprod.deploying.programs import EXTRA
from mmprod.deploying.verdicts import Missing, Status

RELEASE = "1.34"
"""The Kubernetes release whose schemas are asked."""
MODELS = {
    "JobSet": "JobsetV1alpha2JobSet",
    "TrainingRuntime": "TrainerV1alpha1TrainingRuntime",
    "TrainJob": "TrainerV1alpha1TrainJob",
}
RUNTIME = frozenset(
    {"multiModel", "protocolVersions", "supportedModelFormats", "containers", "volumes"}
    | {"nodeSelector", "affinity", "tolerations", "labels", "annotations", "imagePullSecrets"}
    | {"disabled", "hostIPC"}
)
"""Fields of KServe's ServingRuntimeSpec, from pkg/apis/serving/v1alpha1/servingruntime_types.go."""
FORMAT = frozenset({"name", "version", "autoSelect", "priority"})
PREDICTOR = frozenset({"minReplicas", "maxReplicas", "model", "timeout", "scaleMetric"})
"""Fields of its PredictorSpec beside those of a PodSpec, from v1beta1/predictor.go."""
MODEL = frozenset({"modelFormat", "runtime", "protocolVersion", "storageUri", "storage"})
PROTOCOLS = ("v1", "v2", "grpc-v1", "grpc-v2")


def check(document: Mapping[str, Any]) -> tuple[str, Status, str]:
    """Who checked the object, the verdict, and what is wrong with it. Raises Missing."""
    kind = document.get("kind", "")
    if kind in MODELS:
        detail = _modelled(document) or _pods_inside(document)
        return "kubeflow-trainer-api + kubernetes-validate", "fail" if detail else "pass", detail
    if kind in ("ServingRuntime", "InferenceService"):
        detail = _kserve(document)
        name = "own fields of KServe + kubernetes-validate"
        return name, "fail" if detail else "only linted", detail
    detail = _core(document)
    return f"kubernetes-validate {RELEASE}", "fail" if detail else "pass", detail


def _core(document: Mapping[str, Any]) -> str:
    library = _imported("kubernetes_validate")
    try:
        library.validate(dict(document), RELEASE, strict=True)
    except library.ValidationError as error:
        where = ".".join(str(part) for part in error.path)
        return f"{where}: {error.message}"
    except library.SchemaNotFoundError as error:
        return f"no schema: {error}"
    return ""


def _modelled(document: Mapping[str, Any]) -> str:
    """By the model: a field it does not know is lost on the way through, one of a wrong type is an
    error.
    """
    models = _imported("kubeflow_trainer_api.models")
    try:
        through = getattr(models, MODELS[document["kind"]]).from_dict(dict(document)).to_dict()
    except ValueError as error:
        return " ".join(str(error).split())
    return _lost(document, through, document["kind"])


def _lost(given: Any, kept: Any, where: str) -> str:
    """The first place at which two structures differ; "" for none."""
    if isinstance(given, Mapping) and isinstance(kept, Mapping):
        for key in given:
            if key not in kept:
                return f"{where} has no field {key}"
            if found := _lost(given[key], kept[key], f"{where}.{key}"):
                return found
        return ""
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        pairs = enumerate(zip(given, kept, strict=True))
        return next((f for i, (a, b) in pairs if (f := _lost(a, b, f"{where}[{i}]"))), "")
    return "" if given == kept else f"{where}: {given!r} was read as {kept!r}"


def _pods_inside(document: Mapping[str, Any]) -> str:
    """The Jobs of a JobSet, wherever it stands, as Jobs."""
    spec = document["spec"]
    for job in spec.get("template", {}).get("spec", spec).get("replicatedJobs", ()):
        head = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}}
        if found := _core({**head, "spec": job["template"]["spec"]}):
            return f"replicated job {job['name']}: {found}"
    return ""


def _kserve(document: Mapping[str, Any]) -> str:
    """Fields of KServe's own, and the rest as a Pod."""
    spec = document["spec"]
    if document["kind"] == "ServingRuntime":
        unknown = set(spec) - RUNTIME
        for entry in spec.get("supportedModelFormats", ()):
            unknown |= set(entry) - FORMAT
        wrong = set(spec.get("protocolVersions", ())) - set(PROTOCOLS)
        if unknown or wrong:
            return f"unknown: {', '.join(sorted(unknown | wrong))}"
        pod = {key: spec[key] for key in ("containers", "volumes", "nodeSelector") if key in spec}
        return _pod(pod)
    if set(spec) - {"predictor", "transformer", "explainer"} or "predictor" not in spec:
        return f"spec has {', '.join(spec)}; predictor is needed"
    predictor = spec["predictor"]
    if unknown := set(predictor.get("model", {})) - MODEL:
        return f"predictor.model has unknown: {', '.join(sorted(unknown))}"
    own = {key: value for key, value in predictor.items() if key not in PREDICTOR}
    return _pod({"containers": [{"name": "model", "image": "of the runtime"}], **own})


def _pod(spec: Mapping[str, Any]) -> str:
    return _core({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": dict(spec)})


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise Missing(name.partition(".")[0].replace("_", "-"), EXTRA) from error
