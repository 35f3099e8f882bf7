"""What can be rendered, and the one way in: check everything, render, write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mmprod.bundle import Bundle
from mmprod.bundle.proof import Verdict
from mmprod.deploying.compose import render_compose
from mmprod.deploying.containers import render_docker
from mmprod.deploying.facts import Facts, read_facts
from mmprod.deploying.files import Files, check_target, write_files
from mmprod.deploying.kubernetes_serving import render_serving
from mmprod.deploying.kubernetes_training import render_training
from mmprod.deploying.machines import render_slurm, render_systemd
from mmprod.deploying.monitoring import render_monitoring
from mmprod.deploying.options import Options
from mmprod.deploying.refusals import check


def _triton(facts: Facts, options: Options) -> Files:
    # It needs tritonclient, which the others do not.
    from mmprod.deploying.triton import render_graphs
    from mmprod.deploying.triton_friendly import friendly_models

    files, served = render_graphs(facts, options)
    return files | friendly_models(facts, options, served)


def _kubernetes(facts: Facts, options: Options) -> Files:
    return render_serving(facts, options) | render_training(facts, options)


RENDERERS: dict[str, tuple[Callable[[Facts, Options], Files], str]] = {
    "triton": (_triton, "a Triton model repository: every graph, and text_to_image for people"),
    "docker": (render_docker, "Dockerfiles for train, export and serve; for a Jetson where named"),
    "compose": (render_compose, "the server and Prometheus on one machine"),
    "kubernetes": (_kubernetes, "serving, KServe, and training as JobSet and TrainJob"),
    "slurm": (render_slurm, "a batch script that requeues itself on exit code 75"),
    "systemd": (render_systemd, "a confined unit for an edge device, self-test first"),
    "monitoring": (render_monitoring, "Prometheus rules and a Grafana dashboard"),
}
ALL = "all"


def kinds_of(what: str) -> tuple[str, ...]:
    return tuple(RENDERERS) if what == ALL else (what,)


def render(facts: Facts, options: Options, kinds: Sequence[str]) -> Files:
    """The files of these kinds. Raises ConfigError for a combination that cannot work."""
    check(facts, options, kinds)
    files: Files = {}
    for kind in kinds:
        files |= RENDERERS[kind][0](facts, options)
    return files


def render_to(
    bundle: Bundle,
    verdicts: Iterable[Verdict],
    options: Options,
    kinds: Sequence[str],
    folder: Path,
) -> Files:
    """Render into a folder: all or nothing. `verdicts`: see `read_facts`. Raises as `render` and
    `check_target` do.
    """
    check_target(folder, bundle.root)
    files = render(read_facts(bundle, verdicts), options, kinds)
    write_files(files, folder, bundle.root)
    return files
