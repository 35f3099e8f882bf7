"""What the bundle itself, or how it is offered to clients, makes impossible."""

from __future__ import annotations

import ipaddress
import re

from mmprod.deploying.gpus import NONE
from mmprod.deploying.options import BACKENDS, Images, Options
from mmprod.deploying.rule import CONTAINERS, EVERY, SERVER, SERVING, TRITON, Asked, Found, Rule
from mmprod.deploying.server import is_jetson, needed_mib, target_of

NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
"""A DNS label that leaves room for what is appended to it within 63 characters."""
IMAGE = re.compile(r"[a-z0-9][\w.:/-]*(:[\w][\w.-]{0,127}|@sha256:[0-9a-f]{64})")
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
MOVING = ("latest", "main", "master", "nightly", "edge", "stable")
ON_CPU = ("fp32", "fp16", "mixed", "int8")


def _precision(asked: Asked) -> Found:
    wanted, facts = asked.serving.precision, asked.facts
    from_graphs = asked.on_graphs or is_jetson(asked.options)
    if not from_graphs or wanted in facts.precisions():
        return None
    held = facts.precisions()
    return f"the bundle has no graphs in {wanted}, it has {', '.join(held)}", (
        f"--precision {held[0]}, or: mmprod export RUN --precision {wanted}"
    )


def _on_cpu(asked: Asked) -> Found:
    wanted, gpu = asked.serving.precision, asked.serving.gpu != NONE
    if not asked.on_graphs or gpu or wanted in ON_CPU:
        return None
    return (
        f"{wanted} graphs are emulated on processors, which takes far longer than fp32",
        f"--precision fp32, or name a GPU whose engines compute in {wanted}: --gpu l4",
    )


def _parity(asked: Asked) -> Found:
    graphs = asked.facts.of_precision(asked.serving.precision) if asked.on_graphs else ()
    unproven = [graph for graph in graphs if graph.parity != "pass"]
    if not unproven:
        return None
    named = ", ".join(f"{g.graph} ({g.parity or 'never compared'})" for g in unproven)
    return f"no parity pass on these files: {named}", "mmprod parity run BUNDLE"


def _failed_engine(asked: Asked) -> Found:
    failed = [e.path for e in asked.facts.engines if e.parity == "fail"]
    if not asked.on_engines or not failed:
        return None
    return f"failed parity on a device: {', '.join(failed)}", "mmprod parity explain BUNDLE"


def _unproven_engine(asked: Asked) -> Found:
    """Containers hold the bundle as it is; a unit or a Jetson runs the self-test before."""
    if not asked.on_engines or is_jetson(asked.options):
        return None
    engines = [e for e in asked.facts.engines if e.target == target_of(asked.options)]
    unproven = [e.path for e in engines if e.parity not in ("pass", "fail")]
    if not unproven:
        return None
    return (
        f"no parity pass on a device, and no server takes them: {', '.join(unproven[:3])}",
        "on such a device: mmprod parity selftest BUNDLE; then render from that bundle",
    )


def _unsigned(asked: Asked) -> Found:
    if asked.facts.signed or not asked.serving.demand_signature:
        return None
    return (
        "servers are to demand a signature, and the bundle has none",
        "mmprod bundle sign BUNDLE --key KEY",
    )


def _shadow(asked: Asked) -> Found:
    serving = asked.serving
    if not 0 <= serving.shadow <= 1:
        return f"--shadow {serving.shadow:g} is no share", "--shadow 0.01"
    held = {graph.graph for graph in asked.facts.of_precision("fp32")}
    lacking = {graph.graph for graph in asked.facts.graphs} - held
    if serving.shadow and lacking:
        named = ", ".join(sorted(lacking))
        return (
            f"shadow parity needs fp32 graphs to compare with, there are none of {named}",
            "--shadow 0, or: mmprod export RUN --precision fp32,fp16",
        )
    return None


def _batch(asked: Asked) -> Found:
    wanted = asked.serving.max_batch
    most = min(spec.dims[0].max for spec in asked.facts.specs.values())
    if 0 <= wanted <= most:
        return None
    return (
        f"--max-batch {wanted}: the graphs and engines take batches of 1 to {most}",
        f"--max-batch {most}, or leave it out",
    )


def _memory(asked: Asked) -> Found:
    wanted, needed = asked.serving.memory_mib, needed_mib(asked.facts, asked.options)
    if not wanted or wanted >= needed:
        return None
    return (
        f"--memory-mib {wanted}: the graphs alone need {needed} and the server would be killed",
        f"--memory-mib {needed}, or leave it out",
    )


def _ports(asked: Asked) -> Found:
    serving = asked.serving
    ports = {
        "--port": serving.port,
        "--grpc-port": serving.grpc_port,
        "--prometheus-port": serving.prometheus_port,
    }
    for name, port in ports.items():
        same = [other for other, number in ports.items() if number == port and other != name]
        if same:
            return f"{name} and {same[0]} are both {port}", f"give {same[0]} another"
    return None


def _privileged(asked: Asked) -> Found:
    serving = asked.serving
    for port in (serving.port, serving.grpc_port, serving.prometheus_port):
        if not 1024 <= port <= 65535:
            return (
                f"port {port}: who is not root may listen on 1024 to 65535 only",
                "--port 8080; a Service or proxy in front may have any port",
            )
    return None


def _bind(asked: Asked) -> Found:
    serving = asked.serving
    if ipaddress.ip_address(serving.bind).is_loopback or serving.key_secret:
        return None
    return (
        f"--bind {serving.bind} can be reached from other machines, and no key is asked for",
        "--key-secret NAME, or leave --bind out",
    )


def _pods_need_key(asked: Asked) -> Found:
    if asked.serving.key_secret:
        return None
    return (
        "in a container the server listens on all addresses, and without a key it will not start",
        "--key-secret NAME",
    )


def _names(asked: Asked) -> Found:
    names = {
        "--name": asked.options.name,
        "--namespace": asked.options.namespace,
        "--key-secret": asked.serving.key_secret or "none",
        "--claim": asked.training.claim,
    }
    for option, name in names.items():
        if not NAME.fullmatch(name):
            return (
                f"{option} {name!r} is no name: small letters, digits and -, at most 40",
                f"{option} mmprod",
            )
    return None


def _values(asked: Asked) -> Found:
    """What is written into files of another language as it is must be of a plain kind."""
    training, bind = asked.training, asked.serving.bind
    if not PLAIN.fullmatch(asked.facts.name):
        return (
            f"the bundle's name {asked.facts.name!r}: letters, digits and ._- alone",
            "give the run a plain name in its configuration, and export it again",
        )
    if not PLAIN.fullmatch(training.partition.replace(",", "-")):
        return f"--partition {training.partition!r} is no name of Slurm's", "--partition gpu"
    for option, text in {
        "--config": training.config,
        "--deepspeed": training.deepspeed,
        "--data": training.data or "data",
    }.items():
        if not text.isprintable() or "$" in text:
            return f"{option} {text!r} has a $ or what cannot be printed", "give another path"
    try:
        ipaddress.ip_address(bind)
    except ValueError:
        return f"--bind {bind!r} is no address", "--bind 127.0.0.1, or 0.0.0.0 for every one"
    return None


def _images(options: Options) -> dict[str, str]:
    every = vars(options.images)
    return {name: image for name, image in every.items() if name != "triton_tensorrt"}


def _moving(asked: Asked) -> Found:
    for name, image in _images(asked.options).items():
        last = image.rpartition("/")[2]
        tag = last.partition(":")[2]
        if "@sha256:" in image or (tag and tag not in MOVING):
            continue
        return (
            f"{image}: {'the tag moves' if tag else 'no tag'}, so nobody knows what will run",
            f"give a version or a digest: --{name}-image {image.removesuffix(f':{tag}')}:1.2.3",
        )
    return None


def _image_name(asked: Asked) -> Found:
    for name, image in _images(asked.options).items():
        if not IMAGE.fullmatch(image):
            example = getattr(Images(), name)
            return f"{image!r} is no name of an image", f"--{name}-image {example}"
    return None


def _backend(asked: Asked) -> Found:
    if asked.serving.backend in BACKENDS:
        return None
    return f"Triton has no backend {asked.serving.backend!r}", f"one of {', '.join(BACKENDS)}"


RULES = (
    Rule("name-invalid", EVERY, _names),
    Rule("value-invalid", EVERY, _values),
    Rule("image-moves", EVERY, _moving),
    Rule("image-invalid", EVERY, _image_name),
    Rule("backend-unknown", TRITON, _backend),
    Rule("precision-missing", SERVING, _precision),
    Rule("precision-on-cpu", SERVING, _on_cpu),
    Rule("no-parity-pass", SERVING, _parity),
    Rule("engine-failed-parity", SERVING, _failed_engine),
    Rule("engine-unproven", CONTAINERS | TRITON, _unproven_engine),
    Rule("unsigned", SERVING, _unsigned),
    Rule("shadow-without-reference", SERVER, _shadow),
    Rule("batch-beyond-graph", SERVING, _batch),
    Rule("memory-too-small", SERVER, _memory),
    Rule("port-clash", SERVER, _ports),
    Rule("port-privileged", SERVER, _privileged),
    Rule("bind-without-key", frozenset({"compose", "systemd"}), _bind),
    Rule("container-without-key", CONTAINERS, _pods_need_key),
)
