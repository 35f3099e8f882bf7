"""Whether the graphs of a bundle agree with PyTorch, and the gate that stands before engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmprod.cli.output import Output, shown
from mmprod.cli.parity_page import parity_page
from mmprod.cli.progress import parity_tick, progress
from mmprod.cli.source import torch_runners
from mmprod.errors import ConfigError, EnvironmentMissing, ParityFailed

if TYPE_CHECKING:
    from mmprod.bundle import Bundle
    from mmprod.checkpoint import Run
    from mmprod.parity.report import ParityReport

BATCHES = (1, 3, 8)
SEEDS = 2

Pair = tuple[str, str]
"""graph and precision"""


def check(
    out: Output,
    bundle: Bundle,
    run: Run | None,
    *,
    foreign: bool = False,
    batches: tuple[int, ...] = BATCHES,
    seeds: int = SEEDS,
) -> ParityReport:
    """The parity report of a bundle: live against a run, else against the stored outputs.

    `foreign`: the bundle may come from elsewhere, so each graph runs in a process of its own. On a
    device every one does: an engine that crashes there must not take this process along.
    """
    from mmprod.parity.run import Comparison
    from mmprod.parity.worker import TIMEOUT_S
    from mmprod.runners.cuda import find_device

    runners = torch_runners(run) if run else None
    with progress(out, parity_tick) as on_event:
        return Comparison(
            bundle,
            reference=(lambda spec: runners(spec.name)) if runners else None,
            batches=batches,
            seeds=seeds,
            on_event=on_event,
            timeout_s=TIMEOUT_S if foreign or find_device().found else None,
            page=parity_page,
        ).run()


def gate(
    out: Output, bundle: Bundle, precisions: tuple[str, ...], *, foreign: bool = False
) -> None:
    """Let only graphs become engines that agree with PyTorch in exactly their present files.

    Verdicts that the bundle holds about these files are used, if they were given under the present
    limits; if one is lacking, the graphs are compared with their stored outputs now. Raises
    ParityFailed for a graph that disagrees, EnvironmentMissing for one that could not be compared,
    ConfigError for one that is not there.
    """
    wanted = _present_files(bundle, precisions)
    verdicts = _verdicts(bundle, wanted)
    if len(verdicts) < len(wanted):
        out.note("checking the graphs against their stored outputs before building")
        check(out, bundle, None, foreign=foreign)
        verdicts = _verdicts(bundle, wanted)
    hint = f"see {shown(bundle.root / 'reports' / 'parity.md')}, then export the run again"
    failed = [
        f"{' '.join(pair)}: {row['reason']}"
        for pair, row in verdicts.items()
        if row["status"] == "fail"
    ]
    if failed:
        text = "no engines were built, these graphs failed parity:\n  " + "\n  ".join(failed)
        raise ParityFailed(text, hint=hint)
    unproved = [
        f"{' '.join(pair)}: {_why(bundle, pair)}" for pair in wanted.keys() - verdicts.keys()
    ]
    if unproved:
        raise EnvironmentMissing(
            "no engines were built, these graphs could not be compared with PyTorch:\n  "
            + "\n  ".join(sorted(unproved)),
            hint="`mmprod doctor` shows what is missing here; else export the run again",
        )


def _present_files(bundle: Bundle, precisions: tuple[str, ...]) -> dict[Pair, dict[str, str]]:
    """For each graph and precision to build, its files: path and SHA-256. Raises ConfigError."""
    from mmprod.bundle.assignment import resolve

    wanted: dict[Pair, dict[str, str]] = {}
    for graph in dict.fromkeys(a.graph for a in bundle.artefacts(role="onnx")):
        for precision in (resolve(bundle, graph, asked) for asked in precisions):
            files = bundle.artefacts(role="onnx", graph=graph, precision=precision)
            if not files:
                raise ConfigError(
                    f"{shown(bundle.root)} has no {graph} in {precision}",
                    hint=f"mmprod export RUN --precision {precision}",
                )
            files += bundle.artefacts(role="onnx-data", graph=graph, precision=precision)
            wanted[graph, precision] = {a.path: a.sha256 for a in files}
    return wanted


def _verdicts(
    bundle: Bundle, wanted: Mapping[Pair, Mapping[str, str]]
) -> dict[Pair, Mapping[str, Any]]:
    """The rows that say pass or fail about exactly the wanted files. Where one provider of ONNX
    Runtime fails them and another does not, the failure counts.
    """
    return {
        (row["graph"], row["precision"]): row
        for status in ("pass", "fail")  # the last stays
        for row in _rows(bundle)
        if row["status"] == status and row["sha256"] == wanted.get((row["graph"], row["precision"]))
    }


def _why(bundle: Bundle, pair: Pair) -> str:
    """What the bundle's report says about a graph without a verdict."""
    reasons = [row["reason"] for row in _rows(bundle) if (row["graph"], row["precision"]) == pair]
    return reasons[0] if reasons else "the report does not speak of it"


def _rows(bundle: Bundle) -> list[Mapping[str, Any]]:
    from mmprod.parity.standing import standing_rows

    return [row for row in standing_rows(bundle) if row["leg"] == "torch-ort"]
