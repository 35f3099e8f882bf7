"""Our own rules for what runs in containers: who it runs as, what it may do, where the key is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SECRET = re.compile(r"(?i)(key|token|password|secret)$")
"""Names of variables whose values belong into a file."""
ROOT = ("0", "root")
MOVING = re.compile(r"^(latest|main|master|nightly|edge|stable)$")


def image(name: str) -> Iterator[str]:
    """An image must name a version or a digest."""
    tag = name.rpartition("/")[2].partition(":")[2]
    if "@sha256:" not in name and (not tag or MOVING.match(tag)):
        yield f"image {name} names no version"


def dockerfile(text: str) -> Iterator[str]:
    """Of a whole Dockerfile."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line[:1] not in ("#", "")]
    by_name: dict[str, list[str]] = {}
    for line in lines:
        name, _, rest = line.partition(" ")
        by_name.setdefault(name.upper(), []).append(rest.strip())
    stages = {line.split()[-1] for line in by_name.get("FROM", ()) if " AS " in line.upper()}
    for line in by_name.get("FROM", ()):
        yield from () if line.split()[0] in stages else image(line.split()[0])
    user = by_name.get("USER", ["root"])[-1].split(":")[0]
    shells = [line for line in by_name.get("ENTRYPOINT", ()) if not line.startswith("[")]
    yield from _true(
        (not stages, "one stage: compilers and caches stay in the image"),
        (user in ROOT, "runs as root"),
        (bool(shells), "ENTRYPOINT starts a shell, which passes no signals on"),
        *((name not in by_name, f"no {name}") for name in ("HEALTHCHECK", "LABEL", "ENTRYPOINT")),
    )
    for name in ("ENV", "ARG"):
        for variable in re.findall(r"([A-Za-z_]\w*)=", " ".join(by_name.get(name, ()))):
            if SECRET.search(variable):
                yield f"{name} {variable}: a secret in the image"


def _true(*rules: tuple[bool, str]) -> Iterator[str]:
    """The complaints whose condition holds."""
    return (complaint for holds, complaint in rules if holds)


def compose(content: Mapping[str, Any]) -> Iterator[str]:
    for name, service in content.get("services", {}).items():
        for complaint in _service(service):
            yield f"{name}: {complaint}"


def _service(service: Mapping[str, Any]) -> Iterator[str]:
    yield from image(str(service.get("image", "")))
    limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
    yield from _true(
        (str(service.get("user", "0")).split(":")[0] in ROOT, "runs as root"),
        (service.get("read_only") is not True, "its root is writable"),
        (service.get("cap_drop") != ["ALL"], "keeps capabilities"),
        ("no-new-privileges:true" not in service.get("security_opt", ()), "may gain privileges"),
        (bool(service.get("privileged")), "is privileged"),
        ("memory" not in limits, "no memory limit"),
        ("healthcheck" not in service, "no health check"),
    )
    for variable in _variables(service.get("environment", ())):
        if SECRET.search(variable):
            yield f"{variable} stands in the file: take a secret"
    for port in service.get("ports", ()):
        if str(port).count(":") < 2:
            yield f"port {port} is open on every address"


def _variables(environment: Any) -> list[str]:
    return [str(entry).partition("=")[0] for entry in environment]


def pods(document: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every pod spec in an object, with where it stands: whatever lists containers."""
    stack: list[tuple[str, Any]] = [("", document)]
    while stack:
        where, part = stack.pop()
        if isinstance(part, Mapping):
            if isinstance(part.get("containers"), Sequence):
                yield where or "spec", part
            stack += [(f"{where}.{key}".lstrip("."), value) for key, value in part.items()]
        elif isinstance(part, list):
            stack += [(f"{where}[{i}]", value) for i, value in enumerate(part)]


def pod(spec: Mapping[str, Any], *, whole: bool = True) -> Iterator[str]:
    """whole: the settings of the pod itself stand here, too; a ServingRuntime has none."""
    if whole and spec.get("securityContext", {}).get("runAsNonRoot") is not True:
        yield "may run as root: runAsNonRoot"
    if whole and spec.get("automountServiceAccountToken") is not False:
        yield "gets a token of the cluster: automountServiceAccountToken"
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            yield f"sees the node: {name}"
    for volume in spec.get("volumes", ()):
        if "hostPath" in volume:
            yield f"volume {volume['name']} is a folder of the node"
    for one in spec["containers"]:
        for complaint in _container(one):
            yield f"{one['name']}: {complaint}"


def _container(one: Mapping[str, Any]) -> Iterator[str]:
    yield from image(str(one.get("image", "")))
    security = one.get("securityContext", {})
    limits = one.get("resources", {}).get("limits", {})
    yield from _true(
        (security.get("readOnlyRootFilesystem") is not True, "its root is writable"),
        (security.get("allowPrivilegeEscalation") is not False, "may gain privileges"),
        (security.get("capabilities", {}).get("drop") != ["ALL"], "keeps capabilities"),
        (bool(security.get("privileged")), "is privileged"),
        ("memory" not in limits, "no memory limit"),
    )
    for variable in one.get("env", ()):
        if "value" in variable and SECRET.search(variable["name"]):
            yield f"{variable['name']} stands in the file: take a Secret"
    if "serve" in one.get("args", ()):
        probes = ("readinessProbe", "livenessProbe", "startupProbe")
        yield from _true(
            ("--key-file" not in one["args"], "serves other pods without a key: --key-file"),
            *((probe not in one, f"no {probe}") for probe in probes),
        )
