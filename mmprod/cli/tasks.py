"""Task metrics for a parity report: how well each backend does what the model is for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmprod.cli.output import Output

if TYPE_CHECKING:
    from mmprod.bundle import Bundle
    from mmprod.checkpoint import Run
    from mmprod.cli.scores import Sample
    from mmprod.cli.source import Source
    from mmprod.evaluation.judge import Judge
    from mmprod.parity.report import Task

SEED = 0


def task_figures(out: Output, bundle: Bundle, run: Run, count: int) -> list[Task]:
    """PSNR of reconstructions, and where attributes are known the share of them that captions and
    drawn pictures get right: `count` samples of the test split, by PyTorch and by the graphs of
    each precision in ONNX Runtime.
    """
    from mmprod.cli import scores
    from mmprod.cli.source import open_source
    from mmprod.data.store import open_split
    from mmprod.parity.candidates import exported_precisions

    held = scores.sample(open_split(run.data_root, "test"), count, run.config.data.languages[:1])
    judge = scores.train_judge(open_split(run.data_root, "train"), SEED) if held.scorable else None
    if judge is None:
        out.note("the data set states no attributes: PSNR is the only task metric")
    found = _figures("PyTorch", open_source(run.root, "torch"), held, judge)
    for precision in exported_precisions(bundle):
        out.note(f"task metrics in {precision}")
        source = open_source(bundle.root, "ort", precision=precision)
        found += _figures(precision, source, held, judge)
    return found


def _figures(backend: str, source: Source, held: Sample, judge: Judge | None) -> list[Task]:
    from mmprod.cli import scores
    from mmprod.evaluation.agreement import caption_agreement, picture_agreement
    from mmprod.evaluation.pictures import psnr
    from mmprod.parity.report import Task

    count = len(held.pictures)
    restored = scores.reconstruct(source, held.pictures)
    quality = float(psnr(held.pictures, restored).mean())
    found = [Task("PSNR of reconstructions", "dB", backend, quality, count)]
    if judge is None:
        return found
    captions = scores.describe(source, held.pictures, SEED)
    drawn = scores.draw(source, held.captions, SEED)
    told = caption_agreement(held.attributes, captions)["overall"]
    seen = picture_agreement(judge, held.attributes, drawn)["overall"]
    found.append(Task("attributes right in captions", "share", backend, told, count))
    found.append(Task("attributes right in drawn pictures", "share", backend, seen, count))
    return found
