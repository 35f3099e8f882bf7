"""Labels that say which bundle something serves, in the forms of containers and of Kubernetes."""

from __future__ import annotations

import json
from typing import Any

import mmprod
from mmprod.deploying.facts import Facts
from mmprod.deploying.options import Options

DOMAIN = "mmprod.dev"
TRAIN = "train"
"""The component that trains."""


def image_labels(facts: Facts, title: str) -> dict[str, str]:
    """OCI annotation keys; no time of building, so that the same input gives the same file."""
    return {
        "org.opencontainers.image.title": title,
        "org.opencontainers.image.version": mmprod.__version__,
        "org.opencontainers.image.licenses": "Apache-2.0",
        f"{DOMAIN}.bundle.name": facts.name,
        f"{DOMAIN}.bundle.sha256": facts.digest,
    }


def in_dockerfile(labels: dict[str, str]) -> str:
    return " \\\n      ".join(f"{key}={json.dumps(value)}" for key, value in labels.items())


def selector(options: Options, component: str) -> dict[str, str]:
    """What selects pods: never changes while a deployment lives."""
    return {"app.kubernetes.io/name": options.name, "app.kubernetes.io/component": component}


def metadata(facts: Facts, options: Options, name: str, component: str) -> dict[str, Any]:
    """`metadata` of a Kubernetes object."""
    found = {
        "name": name,
        "namespace": options.namespace,
        "labels": object_labels(facts, options, component),
    }
    bundle = {"annotations": {f"{DOMAIN}/bundle-sha256": facts.digest}}
    return found if component == TRAIN else found | bundle


def object_labels(facts: Facts, options: Options, component: str) -> dict[str, str]:
    """Training comes before any bundle, and its objects name none."""
    found = {
        **selector(options, component),
        "app.kubernetes.io/version": mmprod.__version__,
        "app.kubernetes.io/part-of": "mmprod",
    }
    return found if component == TRAIN else found | {f"{DOMAIN}/bundle": facts.label}
