"""Rendered files, each before the validators of its kind: programs and libraries that know the
format, then rules of ours for what those do not see.

Offline. A validator that is missing leaves its file `not validated`, with the way to get it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmprod.deploying import cluster_schemas, own_containers, own_machines, programs
from mmprod.deploying.files import MARK
from mmprod.deploying.verdicts import Missing, Verdict
from mmprod.deploying.yaml_text import from_yaml
from mmprod.errors import ConfigError, IntegrityError

OWN = "own rules"
MALFORMED = (SyntaxError, ValueError, KeyError, TypeError, AttributeError)
"""What reading a file of another form than ours raises: then the file is wrong, not we."""
Check = Callable[[Path], str]
"""Complaints about a file, "" for none. Raises Missing, IntegrityError."""


def validate(folder: Path) -> list[Verdict]:
    """A verdict for every file and validator, by path. Raises ConfigError where nothing lies."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder", hint="mmprod deploy render all BUNDLE --out it")
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MARK and not _is_listed(path)
    )
    verdicts = [verdict for name in names for verdict in _verdicts(folder, name)]
    if not any(verdict.validator for verdict in verdicts):
        raise ConfigError(
            f"{folder} holds no rendered files", hint="mmprod deploy render all BUNDLE --out it"
        )
    return verdicts


def _verdicts(folder: Path, name: str) -> Iterator[Verdict]:
    path = folder / name
    if path.suffix == ".yaml" and path.name not in FIXED:
        yield from _objects(path, name)
        return
    checks = _checks(path)
    if not checks:
        yield Verdict(name, "", "not validated", "nothing checks files of this kind")
    for validator, check in checks:
        yield _asked(path, name, validator, check)


def _checks(path: Path) -> Sequence[tuple[str, Check]]:
    """The validators of a file, by its name."""
    if path.name.startswith("Dockerfile.") and path.suffix != ".dockerignore":
        return (("hadolint", programs.hadolint), (OWN, _text(own_containers.dockerfile)))
    if path.suffix == ".sbatch":
        return (("shellcheck", programs.shellcheck), (OWN, _text(own_machines.batch_script)))
    if path.suffix == ".service":
        return (
            ("systemd-analyze verify", programs.systemd_unit),
            ("systemd-analyze security", programs.systemd_exposure),
            (OWN, _text(own_machines.unit)),
        )
    return FIXED.get(path.name, ())


def _text(rules: Callable[[str], Iterator[str]]) -> Check:
    return lambda path: "; ".join(rules(path.read_text(encoding="utf-8")))


def _compose(path: Path) -> str:
    (content,) = from_yaml(path.read_text(encoding="utf-8"))
    return "; ".join(own_containers.compose(content))


def _alerts(path: Path) -> str:
    (content,) = from_yaml(path.read_text(encoding="utf-8"))
    return "; ".join(own_machines.alert_rules(content))


def _queries(path: Path) -> str:
    queries = own_machines.dashboard_queries(path.read_text(encoding="utf-8"))
    return programs.prometheus_expressions(queries)


def _protobuf(path: Path) -> str:
    _message(path)
    return ""


def _model_folder(path: Path) -> str:
    return "; ".join(own_machines.model_folder(path, _message(path)))


def _message(path: Path) -> Any:
    try:
        from mmprod.deploying.triton_config import parse
    except ModuleNotFoundError as error:
        raise Missing("tritonclient", programs.EXTRA) from error
    return parse(path.read_text(encoding="utf-8"))


def _python(path: Path) -> str:
    compile(path.read_text(encoding="utf-8"), path.name, "exec")
    return ""


FIXED: dict[str, Sequence[tuple[str, Check]]] = {
    "compose.yaml": (("compose-spec schema", programs.compose_schema), (OWN, _compose)),
    "alerts.yml": (("promtool check rules", programs.prometheus_rules), (OWN, _alerts)),
    "prometheus.yml": (("promtool check config", programs.prometheus_config),),
    "dashboard.json": (
        ("promtool check rules (its queries)", _queries),
        (f"{OWN} (model of Grafana)", _text(own_machines.dashboard)),
    ),
    "config.pbtxt": (
        ("protobuf of Triton", _protobuf),
        (OWN, _model_folder),
    ),
    "device.sh": (("shellcheck", programs.shellcheck),),
    "model.py": (("Python's compiler", _python),),
}
"""By file name. Grafana publishes no schema of its model that can be had offline: own rules."""


def _objects(path: Path, name: str) -> Iterator[Verdict]:
    """A verdict for each object of a manifest, then our rules over all of them."""
    try:
        documents = from_yaml(path.read_text(encoding="utf-8"))
    except IntegrityError as error:
        yield Verdict(name, "YAML", "fail", error.message)
        return
    if not documents:
        yield Verdict(name, "Kubernetes", "fail", "no object of Kubernetes")
    for document in documents:
        yield _object(name, document)

    def complaints(path: Path) -> str:
        return "; ".join(text for document in documents for text in _own_of_object(document))

    yield _asked(path, name, OWN, complaints)


def _object(name: str, document: Any) -> Verdict:
    """By the schema of its kind."""
    try:
        part = f"{name} ({document.get('kind', '?')})"
        return Verdict(part, *cluster_schemas.check(document))
    except Missing as missing:
        return Verdict(part, missing.tool, "not validated", missing.detail)
    except MALFORMED as error:
        return Verdict(name, "Kubernetes", "fail", f"no object of Kubernetes: {error!r}")


def _own_of_object(document: dict[str, object]) -> Iterator[str]:
    kind = document.get("kind", "?")
    for where, spec in own_containers.pods(document):
        for complaint in own_containers.pod(spec, whole=kind != "ServingRuntime"):
            yield f"{kind} {where}: {complaint}"
    for complaint in own_machines.jobs(document):
        yield f"{kind}: {complaint}"


def _asked(path: Path, name: str, validator: str, check: Check) -> Verdict:
    try:
        detail = check(path)
    except Missing as missing:
        return Verdict(name, validator, "not validated", missing.detail)
    except IntegrityError as error:
        return Verdict(name, validator, "fail", error.message)
    except MALFORMED as error:
        return Verdict(name, validator, "fail", f"{type(error).__name__}: {error}")
    return Verdict(name, validator, "fail" if detail else "pass", detail)


def _is_listed(path: Path) -> bool:
    """Whether a file came from the bundle: its hash is checked with the model's configuration."""
    in_model = path.parent.name == "1" and (path.parent.parent / "config.pbtxt").is_file()
    return in_model and path.suffix != ".py"
