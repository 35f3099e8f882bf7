"""Task metrics for a parity report: how well each backend does what the model is for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from mmprod.cli.output import Output

if TYPE_CHECKING:
    from mmprod.bundle import Bundle
    from mmprod.checkpoint import Run
    from mmprod.cli.scores import Sample
    from mmprod.cli.source import Source
    from mmprod.data.store import Split
    from mmprod.evaluation.judge import Judge
    from mmprod.parity.report import Task

SEED = 0
Unit = Literal["dB", "share"]


@dataclass(frozen=True)
class Tasks:
    """What is asked of each backend: held-out samples, and what a judge learns from."""

    bundle: Bundle
    run: Run
    held: Sample
    train: Split

    @classmethod
    def of(cls, bundle: Bundle, run: Run, count: int) -> Tasks:
        """`count` samples of the test split. Raises as `open_split` does where data are missing:
        before anything is compared.
        """
        from mmprod.cli import scores
        from mmprod.data.store import open_split

        test = open_split(run.data_root, "test")
        held = scores.sample(test, count, run.config.data.languages[:1])
        return cls(bundle, run, held, open_split(run.data_root, "train"))

    def figures(self, out: Output) -> list[Task]:
        """PSNR of reconstructions, and where attributes are known the share of them that captions
        and drawn pictures get right: by PyTorch and by the graphs of each precision in ONNX
        Runtime. What a backend cannot do (a graph is not there, or fails) is left out and noted.
        """
        from mmprod.cli import scores
        from mmprod.cli.source import open_source
        from mmprod.parity.candidates import exported_precisions

        judge = scores.train_judge(self.train, SEED) if self.held.scorable else None
        if judge is None:
            out.note("the data set states no attributes: PSNR is the only task metric")
        found = _figures(out, "PyTorch", open_source(self.run.root, "torch"), self.held, judge)
        for precision in exported_precisions(self.bundle):
            out.note(f"task metrics in {precision}")
            source = open_source(self.bundle.root, "ort", precision=precision)
            found += _figures(out, precision, source, self.held, judge)
        return found


def _figures(
    out: Output, backend: str, source: Source, held: Sample, judge: Judge | None
) -> list[Task]:
    from mmprod.cli import scores
    from mmprod.evaluation.agreement import caption_agreement, picture_agreement
    from mmprod.evaluation.pictures import psnr
    from mmprod.parity.report import Task

    def restored() -> float:
        return float(psnr(held.pictures, scores.reconstruct(source, held.pictures)).mean())

    def told() -> float:
        captions = scores.describe(source, held.pictures, SEED)
        return caption_agreement(held.attributes, captions)["overall"]

    def seen(judge: Judge) -> float:
        drawn = scores.draw(source, held.captions, SEED)
        return picture_agreement(judge, held.attributes, drawn)["overall"]

    asked: list[tuple[str, Unit, Callable[[], float]]] = [
        ("PSNR of reconstructions", "dB", restored)
    ]
    if judge is not None:
        asked.append(("attributes right in captions", "share", told))
        asked.append(("attributes right in drawn pictures", "share", partial(seen, judge)))
    found = []
    for metric, unit, measure in asked:
        try:
            found.append(Task(metric, unit, backend, measure(), len(held.pictures)))
        except Exception as error:  # noqa: BLE001 - as in parity: graphs may fail in any way
            out.note(f"{metric}, {backend}: not measured: {error}")
    return found
