"""Dockerfiles for training, export, serving and Jetson, and what starts on a Jetson."""

from __future__ import annotations

import json
import shlex
from importlib import resources
from string import Template

import mmprod
from mmprod.deploying.facts import Facts
from mmprod.deploying.files import Files
from mmprod.deploying.labels import image_labels, in_dockerfile
from mmprod.deploying.options import Options
from mmprod.deploying.server import is_jetson, on_engines, serve_arguments, target_of

TEMPLATES = resources.files("mmprod.deploying") / "templates"
BUNDLE = "/bundle"
CONTEXT = "*\n!dist/*.whl\n!constraints.txt\n!bundle\n!device.sh\n!trusted\n"
"""All that an image may take along; Docker reads the file beside each Dockerfile."""
TRUST = """\
# Every command opens a bundle only if one of these keys signed it.
COPY trusted/ /etc/mmprod/trusted/
ENV MMPROD_TRUSTED_KEYS=/etc/mmprod/trusted
"""
KEY_FILE = "/run/secrets/mmprod-key"


def filled(name: str, values: dict[str, str]) -> str:
    """A template of the package with all its places filled; a place too many is a KeyError."""
    return Template((TEMPLATES / name).read_text(encoding="utf-8")).substitute(values)


def render_docker(facts: Facts, options: Options) -> Files:
    """All of `docker/`. The Jetson's belong to a Jetson and are written where one is named."""
    kinds = ["train", "export", "serve"]
    files: Files = {}
    if is_jetson(options):
        kinds.append("jetson")
        files["docker/device.sh"] = filled("device.sh", _device(options))
    for kind in kinds:
        values = _values(facts, options, kind)
        files[f"docker/Dockerfile.{kind}"] = filled(f"Dockerfile.{kind}", values)
        files[f"docker/Dockerfile.{kind}.dockerignore"] = CONTEXT
    return files


def container_command(options: Options) -> list[str]:
    """The serving container's program and its arguments."""
    return ["mmprod", *serve_arguments(options, BUNDLE, "0.0.0.0", KEY_FILE)]


def _values(facts: Facts, options: Options, kind: str) -> dict[str, str]:
    """All that any Dockerfile asks for."""
    serving, images = options.serving, options.images
    return {
        "name": facts.name,
        "digest": facts.digest,
        "base": images.jetson if kind == "jetson" else images.python,
        "wheel": f"mmprod-{mmprod.__version__}-py3-none-any.whl",
        "extras": "serve,sign" + (",trt" if on_engines(options) else ""),
        "labels": in_dockerfile(image_labels(facts, f"mmprod {kind}")),
        "port": str(serving.port),
        "ports": f"{serving.port} {serving.grpc_port}",
        "entrypoint": json.dumps(container_command(options)),
        "jetpack": str(options.jetpack),
        "trust": TRUST if serving.demand_signature else "",
    }


def _device(options: Options) -> dict[str, str]:
    return {
        "target": target_of(options),
        # A signed bundle must stay as it is.
        "report": " --output /tmp/selftest.json" if options.serving.demand_signature else "",
        "precision": options.serving.precision,
        "serve": shlex.join(container_command(options)),
    }
