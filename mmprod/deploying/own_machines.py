"""Our own rules for jobs, batch scripts, units, alerts, dashboards and model repositories."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from mmprod.deploying.kubernetes_training import AGAIN
from mmprod.manifest import sha256_file

REFERENCES = re.compile(r"^sha256:(.+)$")
UNIT = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "CapabilityBoundingSet": "",
    "DynamicUser": "yes",
    "Restart": "on-failure",
}


def jobs(document: Any) -> Iterator[str]:
    """Of every Job inside: exit code 75 means once more, and is not counted."""
    stack = [document]
    while stack:
        part = stack.pop()
        if isinstance(part, Mapping):
            if "completions" in part and "template" in part:
                yield from _job(part)
            stack += part.values()
        elif isinstance(part, list):
            stack += part


def _job(spec: Mapping[str, Any]) -> Iterator[str]:
    rules = spec.get("podFailurePolicy", {}).get("rules", ())
    again = [r for r in rules if AGAIN in r.get("onExitCodes", {}).get("values", ())]
    if [rule["action"] for rule in again] != ["Ignore"]:
        yield f"exit code {AGAIN} is counted as a failure: podFailurePolicy"
    pod = spec["template"]["spec"]
    if pod.get("restartPolicy") != "Never":
        yield "podFailurePolicy needs restartPolicy Never"
    if pod.get("terminationGracePeriodSeconds", 30) <= 30:
        yield "30 s are short for a save: terminationGracePeriodSeconds"


def batch_script(text: str) -> Iterator[str]:
    for wanted in ("--requeue", "--signal=TERM@", "--open-mode=append"):
        if f"#SBATCH {wanted}" not in text:
            yield f"no #SBATCH {wanted}"
    if f"-eq {AGAIN}" not in text or "scontrol requeue" not in text:
        yield f"exit code {AGAIN} does not put the job back into the queue"


def unit(text: str) -> Iterator[str]:
    pairs = [line.partition("=")[::2] for line in text.splitlines() if line[:1] not in ("#", "[")]
    found = dict(pairs)
    for key, value in UNIT.items():
        if found.get(key) != value:
            yield f"{key} is {found.get(key, 'not set')}, not {value or 'empty'}"
    if "MemoryMax" not in found:
        yield "no MemoryMax"
    if "parity selftest" not in found.get("ExecStartPre", ""):
        yield "serves without a self-test first"
    for key, value in pairs:
        if key == "Environment" and re.match(r"\w*(KEY|TOKEN|PASSWORD)=", value):
            yield "a secret in Environment: take LoadCredential"
    if "--host 127.0.0.1" not in text and "--key-file" not in text:
        yield "listens beyond this machine without a key"


def alert_rules(content: Mapping[str, Any]) -> Iterator[str]:
    rules = [rule for group in content.get("groups", ()) for rule in group["rules"]]
    for rule in rules:
        for part, key in (("labels", "severity"), ("annotations", "summary")):
            if not rule.get(part, {}).get(key):
                yield f"{rule.get('alert')}: no {key}"
    names = [rule.get("alert") for rule in rules]
    if len(set(names)) != len(names):
        yield "two alerts have one name"


def dashboard_queries(text: str) -> list[str]:
    return [target["expr"] for panel in json.loads(text)["panels"] for target in panel["targets"]]


def dashboard(text: str) -> Iterator[str]:
    """What Grafana's import needs of the model, and that no panel lies on another."""
    content = json.loads(text)
    for key in ("uid", "title", "schemaVersion", "panels", "templating", "time"):
        if key not in content:
            yield f"no {key}"
    if len(content.get("uid", "")) > 40:
        yield "uid is longer than 40"
    panels = content.get("panels", ())
    if len({panel["id"] for panel in panels}) != len(panels):
        yield "two panels have one id"
    for one, other in combinations(panels, 2):
        a, b = one["gridPos"], other["gridPos"]
        across = a["x"] < b["x"] + b["w"] and b["x"] < a["x"] + a["w"]
        if across and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]:
            yield f"panels {one['title']!r} and {other['title']!r} overlap"
    for panel in panels:
        if panel["gridPos"]["x"] + panel["gridPos"]["w"] > 24:
            yield f"panel {panel['title']!r} is wider than the page"


def model_folder(path: Path, config: Any) -> Iterator[str]:
    """A `config.pbtxt` and its message: name, version, and the files with the hashes it lists."""
    if config.name != path.parent.name:
        yield f"is called {config.name} and lies in {path.parent.name}"
    if not config.backend and not config.platform:
        yield "names no backend"
    if not config.instance_group:
        yield "no instance_group: Triton would take every GPU it finds"
    listed = {m.group(1): v for k, v in config.parameters.items() if (m := REFERENCES.match(k))}
    if not listed:
        yield "lists no file with its hash"
    version = path.parent / "1"
    if version.is_dir():
        yield from _files(version, {name: value.string_value for name, value in listed.items()})
    else:
        yield "has no version 1"


def _files(version: Path, listed: Mapping[str, str]) -> Iterator[str]:
    """Files of a version against the hashes that its model lists."""
    held = {file.name for file in version.iterdir()}
    for name in sorted(held - listed.keys() - {"model.py"}):
        yield f"1/{name} is not listed with a hash"
    for name, digest in listed.items():
        if name not in held:
            yield f"1/{name} is missing"
        elif sha256_file(version / name) != digest:
            yield f"1/{name} differs from its listed hash"
