"""The work of `mmprod eval`: everything a model makes of held-out samples, and its figures.

    pictures -> codes -> pictures           reconstruction
    pictures -> captions                    attributes stated, words against references
    captions -> pictures                    attributes a judge sees, Frechet distance
    nothing  -> pictures with captions      does the picture show what the caption says
    pictures with a hole -> filled          are the codes around it kept
    pictures, captions -> embeddings        recall, both ways
    pictures, captions -> likelihood        bits alone and given the other

Nothing is picked: what is shown of these are the first samples of the split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmprod.cli import scores
from mmprod.cli.output import Output
from mmprod.cli.source import Source
from mmprod.data.attributes import ATTRIBUTES
from mmprod.evaluation.agreement import (
    attribute_agreement,
    chance,
    exact_agreement,
    pair_agreement,
    stated,
)
from mmprod.evaluation.words import word_figures

if TYPE_CHECKING:
    from mmprod.cli.scores import Inpainted, Pixels, Sample, Vectors
    from mmprod.data.store import Split
    from mmprod.evaluation.judge import Judge
    from mmprod.evaluation.rate import Judge as Distance

NO_ATTRIBUTES = "not run: the data set has no attributes"
NOT_ASKED = "not asked for"
EVERY = tuple(ATTRIBUTES)
JUDGED = ("faces", "joint", "judge", "unseen")
"""Figures that need attributes and a judge of them."""
UNSEEN = "test_combo"
"""The split whose pairs of attribute values no other split shows."""


@dataclass(frozen=True)
class Request:
    """What to measure. `train`: real pictures that a judge learns from, None where none is asked
    for; `unseen`: the samples of the split UNSEEN, None where there is none or they are measured
    already; `others`: real pictures of a further split that no training saw, None where there is
    none; `features`: a Frechet distance in given features; `draws`: masks per sample for the
    likelihood, 0 for none.
    """

    held_out: Sample
    train: Split | None
    unseen: Sample | None
    others: Pixels | None
    seed: int
    features: Distance | None
    draws: int


@dataclass
class Findings:
    """What came out: pictures and words to look at, and `figures`, which are JSON. `drawn`, `both`:
    empty where no pictures were asked for.
    """

    held_out: Sample
    restored: Pixels
    written: list[str]
    inpainted: Inpainted
    embeddings: tuple[Vectors, Vectors]
    drawn: Pixels | None = None
    both: tuple[Pixels, list[str]] | None = None
    figures: dict[str, Any] = field(default_factory=dict)


def find(out: Output, source: Source, asked: Request) -> Findings:
    """Everything asked for, in the order of the table."""
    held_out = asked.held_out
    out.note("reconstructions, captions, inpainting, search")
    codes, tokens = scores.encode(source, held_out)
    found = Findings(
        held_out,
        scores.reconstruct(source, held_out.pictures),
        scores.describe(source, held_out.pictures, asked.seed),
        scores.inpaint(source, held_out, codes, tokens, asked.seed),
        scores.embed(source, codes, tokens),
    )
    figures = found.figures
    figures |= _likeness(held_out.pictures, found.restored)
    if held_out.scorable:
        figures["chance"] = chance(held_out.attributes)["overall"]
    figures["captions"] = _captions(held_out, found.written)
    figures["words"] = word_figures(found.written, held_out.references)
    figures["inpainting"] = {
        "kept": found.inpainted.kept,
        "redrawn": found.inpainted.redrawn,
    }
    figures |= _pictures(out, source, asked, found)
    figures["search"] = scores.search(*found.embeddings, held_out.captions)
    if asked.draws:
        out.note("likelihood")
        figures["likelihood"] = scores.likelihood(source, codes, tokens, asked.draws, asked.seed)
    return found


def _likeness(pictures: Pixels, restored: Pixels) -> dict[str, float]:
    """Means over pictures."""
    from mmprod.evaluation.pictures import ms_ssim, psnr, ssim

    measures = (("psnr", psnr), ("ssim", ssim), ("ms_ssim", ms_ssim))
    return {name: float(measure(pictures, restored).mean()) for name, measure in measures}


def _captions(held_out: Sample, written: Sequence[str]) -> dict[str, float] | str:
    if not held_out.scorable:
        return NO_ATTRIBUTES
    return _agreement(held_out.attributes, [stated(text) for text in written])


def _pictures(out: Output, source: Source, asked: Request, found: Findings) -> dict[str, Any]:
    """Figures of generated pictures; those that need attributes need a judge of them too."""
    if asked.train is None:
        return dict.fromkeys((*JUDGED, "frechet"), NOT_ASKED)
    held_out = asked.held_out
    out.note("pictures for captions, and with captions")
    found.drawn = scores.draw(source, held_out.captions, asked.seed)
    found.both = scores.draw_both(source, len(held_out.pictures), asked.seed)
    if not held_out.scorable:
        frechet = _frechet(asked, found.drawn, found.restored, None)
        return dict.fromkeys(JUDGED, NO_ATTRIBUTES) | {"frechet": frechet}
    out.note("a judge of attributes, from real pictures")
    judge = scores.train_judge(asked.train, asked.seed)
    return {
        "faces": _agreement(held_out.attributes, judge.predict(found.drawn)),
        "joint": _joint(judge, *found.both),
        "judge": _agreement(held_out.attributes, judge.predict(held_out.pictures)),
        "unseen": _unseen(out, source, asked, judge),
        "frechet": _frechet(asked, found.drawn, found.restored, judge),
    }


def _joint(judge: Judge, pictures: Pixels, captions: Sequence[str]) -> dict[str, float]:
    """Of what shows, what the captions state: what they leave out is wrong. `complete`: captions
    that state every attribute; `shifted`: the overall share for the captions of the next pictures,
    which is as high for a model that always draws the same; `different`: faces by all attributes.
    """
    told = [stated(text) for text in captions]
    seen = judge.predict(pictures)
    return _agreement(seen, told) | {
        "complete": sum(set(found) == set(EVERY) for found in told) / len(told),
        "shifted": attribute_agreement(seen, [*told[1:], *told[:1]])["overall"],
        "different": len({tuple(face.items()) for face in seen}) / len(seen),
    }


def _unseen(out: Output, source: Source, asked: Request, judge: Judge) -> dict[str, Any] | str:
    """Faces whose attributes were never seen together, in both directions."""
    if asked.unseen is None:
        return f"not run: no split {UNSEEN} beside this one"
    out.note(f"{len(asked.unseen.pictures)} samples of {UNSEEN}")
    wanted = asked.unseen.attributes
    seen = judge.predict(scores.draw(source, asked.unseen.captions, asked.seed))
    written = scores.describe(source, asked.unseen.pictures, asked.seed)
    found = {
        "faces": seen,
        "captions": [stated(text) for text in written],
        "judge": judge.predict(asked.unseen.pictures),
    }
    result: dict[str, Any] = {"samples": len(wanted)}
    for name, got in found.items():
        result[name] = {**_agreement(wanted, got), "pairs": pair_agreement(wanted, got)}
    return result


def _frechet(
    asked: Request, drawn: Pixels, restored: Pixels, judge: Judge | None
) -> dict[str, dict[str, float]] | str:
    """By features: pictures drawn for the captions of the held-out ones, the held-out ones as their
    codes keep them, and these themselves, from other real pictures that nothing was trained on.
    """
    from mmprod.evaluation.given import frechet_of

    distances: list[Distance] = [asked.features] if asked.features else []
    if judge is not None:
        named = f"attribute judge of this data set, {scores.JUDGE_STEPS} steps"
        distances.append(frechet_of(judge.features, named))
    if not distances:
        return "not run: no features were given (--features)"
    if asked.others is None:
        return "not run: needs two splits beside train: val and test"
    real = asked.held_out.pictures
    if min(len(real), len(asked.others)) < 2:
        return "not run: one picture has no distribution"
    result: dict[str, dict[str, float]] = {}
    for what, pictures in (
        ("generated", drawn),
        ("reconstructed", restored),
        ("real", real),
    ):
        for distance in distances:
            for name, value in distance(asked.others, pictures).items():
                result.setdefault(name, {})[what] = value
    return result


def _agreement(
    wanted: Sequence[Mapping[str, str]], got: Sequence[Mapping[str, str]]
) -> dict[str, float]:
    """By attribute and `overall`; `exact`: samples with all of these right; `every_attribute` and
    `every_exact`: the same two over all attributes, not the headline ones only.
    """
    return attribute_agreement(wanted, got) | {
        "exact": exact_agreement(wanted, got),
        "every_attribute": attribute_agreement(wanted, got, EVERY)["overall"],
        "every_exact": exact_agreement(wanted, got, EVERY),
    }
