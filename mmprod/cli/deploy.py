"""`mmprod deploy`: files that put a bundle on machines, and what checks them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmprod.cli.command import BundleArg, command, group
from mmprod.cli.output import Output, Table, Text, shown
from mmprod.errors import ConfigError, EnvironmentMissing, IntegrityError

app = group("Render files for containers, clusters and edge devices from a bundle, and check them.")


@command(app, "list")
def list_kinds(out: Output) -> None:
    """What can be rendered."""
    from mmprod.deploying.render import ALL, RENDERERS

    rows = [(name, text) for name, (_, text) in RENDERERS.items()]
    data = {"kinds": [{"name": name, "what": text} for name, text in rows]}
    out.result(data, Table("", ("kind", "what"), [*rows, (ALL, "all of these")]))


def _option(panel: str, help_text: str, **more: Any) -> Any:
    return typer.Option(help=help_text, rich_help_panel=panel, **more)


IMAGES, SERVING, TRAINING = "Images", "Serving", "Training"


@command(app, "render")
def render(
    out: Output,
    what: Annotated[str, typer.Argument(metavar="WHAT", help="See `mmprod deploy list`, or all.")],
    bundle: BundleArg,
    target: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="New, or rendered before.")
    ] = Path("deployment"),
    name: Annotated[str, typer.Option(help="Of the service and its objects.")] = "mmprod",
    namespace: Annotated[str, typer.Option(help="Of Kubernetes.")] = "mmprod",
    precision: Annotated[str, _option(SERVING, "fp32, fp16 ...")] = "fp32",
    gpu: Annotated[str, _option(SERVING, "l4, h100, jetson-orin ..., or none.")] = "none",
    backend: Annotated[
        str, _option(SERVING, "Of Triton: python, onnxruntime, tensorrt.")
    ] = "python",
    replicas: Annotated[int, _option(SERVING, "At least so many.")] = 2,
    max_replicas: Annotated[int, _option(SERVING, "At most so many.")] = 6,
    port: Annotated[int, _option(SERVING, "REST.")] = 8080,
    grpc_port: Annotated[int, _option(SERVING, "gRPC.")] = 8081,
    prometheus_port: Annotated[int, _option(SERVING, "Of Prometheus, in compose.")] = 9090,
    bind: Annotated[str, _option(SERVING, "Address, in compose and systemd.")] = "127.0.0.1",
    key_secret: Annotated[str, _option(SERVING, "Secret with the clients' key.")] = "mmprod-key",
    max_batch: Annotated[int, _option(SERVING, "Of Triton; 0: as the graphs allow.")] = 0,
    memory_mib: Annotated[int, _option(SERVING, "Limit; 0: from the graphs' sizes.")] = 0,
    shadow: Annotated[float, _option(SERVING, "Share repeated on the reference.")] = 0.01,
    demand_signature: Annotated[
        bool, _option(SERVING, "Servers open a signed bundle only.")
    ] = False,
    jetpack: Annotated[int, _option(SERVING, "Of a Jetson.")] = 7,
    config: Annotated[str, _option(TRAINING, "Preset or file.")] = "base",
    deepspeed: Annotated[
        str, _option(TRAINING, "ds.json inside the container.")
    ] = "configs/deepspeed/zero2.json",
    data: Annotated[
        str, _option(TRAINING, "Pictures or data set, where the job runs [default: data].")
    ] = "",
    nodes: Annotated[int, _option(TRAINING, "Machines.")] = 2,
    gpus: Annotated[int, _option(TRAINING, "GPUs of a machine.")] = 8,
    nproc: Annotated[int, _option(TRAINING, "Ranks of a machine; 0: one for each GPU.")] = 0,
    grace_s: Annotated[int, _option(TRAINING, "From SIGTERM to the end.")] = 300,
    hours: Annotated[int, _option(TRAINING, "Of the whole job.")] = 24,
    claim: Annotated[str, _option(TRAINING, "Volume claim for runs.")] = "mmprod-runs",
    partition: Annotated[str, _option(TRAINING, "Of Slurm.")] = "gpu",
    serve_image: Annotated[str, _option(IMAGES, "Built by Dockerfile.serve.")] = "",
    train_image: Annotated[str, _option(IMAGES, "Built by Dockerfile.train.")] = "",
    triton_image: Annotated[str, _option(IMAGES, "Triton's.")] = "",
    triton_tensorrt: Annotated[str, _option(IMAGES, "The TensorRT in it.")] = "",
    python_image: Annotated[str, _option(IMAGES, "Where Dockerfiles start.")] = "",
    jetson_image: Annotated[str, _option(IMAGES, "Where Dockerfile.jetson starts.")] = "",
    prometheus_image: Annotated[str, _option(IMAGES, "Of compose.")] = "",
) -> None:
    """Write deployment files for a bundle; what cannot work is refused by name.

    The same bundle and options give the same bytes. Check them: mmprod deploy validate FOLDER
    """
    from mmprod.bundle import open_bundle
    from mmprod.deploying.options import Images, Options, Serving, Training
    from mmprod.deploying.render import kinds_of, render_to
    from mmprod.parity.standing import standing_rows

    _check_kind(what)
    given = {
        "serve": serve_image, "train": train_image, "triton": triton_image,
        "triton_tensorrt": triton_tensorrt, "python": python_image, "jetson": jetson_image,
        "prometheus": prometheus_image,
    }  # fmt: skip
    options = Options(
        name=name,
        namespace=namespace,
        images=Images(**{key: image for key, image in given.items() if image}),
        serving=Serving(
            precision=precision, backend=backend, gpu=gpu, replicas=replicas,
            max_replicas=max_replicas, port=port, grpc_port=grpc_port,
            prometheus_port=prometheus_port, bind=bind, key_secret=key_secret,
            max_batch=max_batch, memory_mib=memory_mib, shadow=shadow,
            demand_signature=demand_signature,
        ),
        training=Training(
            config=config, deepspeed=deepspeed, data=data, nodes=nodes, gpus=gpus, nproc=nproc,
            grace_s=grace_s, hours=hours, claim=claim, partition=partition,
        ),
        jetpack=jetpack,
    )  # fmt: skip
    opened = open_bundle(bundle)
    files = render_to(opened, standing_rows(opened), options, kinds_of(what), target)
    rows = sorted(files)
    text = (
        f"{len(rows)} files in {shown(target)}; check them: mmprod deploy validate {shown(target)}"
    )
    out.result(
        {"folder": target, "files": rows}, Table("", ("file",), [(r,) for r in rows]), Text(text)
    )


def _check_kind(what: str) -> None:
    import difflib

    from mmprod.deploying.render import ALL, RENDERERS

    known = (*RENDERERS, ALL)
    if what not in known:
        near = difflib.get_close_matches(what, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"nothing is called {what!r} here", hint=f"{hint}known: {', '.join(known)}"
        )


@command(app, "validate")
def validate(
    out: Output,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Written by `deploy render`.")],
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 3 where a validator is missing.")
    ] = False,
) -> None:
    """Check rendered files with the tools that know them, offline, and with rules of our own.

    Exit 4 when one fails, 3 with --strict when a tool is missing.
    """
    from dataclasses import asdict

    from mmprod.deploying.validate import validate as run

    verdicts = run(folder)
    count = {status: sum(v.status == status for v in verdicts) for status in STATUSES}
    failed = [v for v in verdicts if v.status == "fail"]
    missing = [v for v in verdicts if v.status == "not validated" and v.validator]
    rows = [(v.file, v.validator or "-", v.status, v.detail) for v in verdicts]
    said = ", ".join(f"{number} {status}" for status, number in count.items() if number)
    out.result(
        {"folder": folder, "counts": count, "verdicts": [asdict(v) for v in verdicts]},
        Table("", ("file", "validator", "verdict", "why"), rows, whole=("verdict",)),
        Text(said),
    )
    if failed:
        first = failed[0]
        raise IntegrityError(
            f"{len(failed)} checks failed, first {first.file} ({first.validator}): {first.detail}",
            hint="render the files again, or mend what was changed by hand",
        )
    if missing and strict:
        raise EnvironmentMissing(
            f"{missing[0].file} was not validated: {missing[0].detail}",
            hint=f"{len(missing)} checks lack their tool; leave --strict out to go on without",
        )


STATUSES = ("pass", "fail", "only linted", "not validated")
