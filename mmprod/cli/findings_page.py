"""The page of `mmprod eval`: figures with what they mean, and the first samples, never picked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmprod.cli.findings import Findings
from mmprod.cli.findings_views import percent, rows
from mmprod.manifest import write_json
from mmprod.report.page import Card, DemoPage, Grid, Section, write_demo_page

SHOWN = 24
"""samples of a section"""
QUERIES, HITS = 4, 6
"""searches shown, and how many of what each finds"""


def write_report(
    folder: Path, title: str, result: Mapping[str, Any], found: Findings
) -> list[Path]:
    """Write report.json, with every caption that was written, and report.html; the two paths."""
    captions = [
        {"asked": asked, "written": written, "references": references}
        for asked, written, references in zip(
            found.held_out.captions, found.written, found.held_out.references, strict=True
        )
    ]
    kind = {"kind": "evaluation", "format": 1}
    plain = {name: str(v) if isinstance(v, Path) else v for name, v in result.items()}
    write_json(folder / "report.json", kind | plain | {"captions_written": captions})
    sections = [
        Section("Figures", grid=_grid(found.figures)),
        Section(
            "Reconstructions",
            "Left a held-out picture, right what its codes keep of it.",
            pairs=tuple(zip(found.held_out.pictures[:SHOWN], found.restored[:SHOWN], strict=True)),
        ),
        *_drawn(found),
        _written(found),
        *_together(found),
        Section(
            "Inpainting",
            "The grey part was drawn anew for the picture's caption; the codes around it are kept.",
            pairs=tuple(zip(found.inpainted.holes, found.inpainted.filled, strict=True))[:SHOWN],
        ),
        *_searches(found),
        _naming(found),
    ]
    lead = f"{result['samples']} samples of the split {result['split']}, seed {result['seed']}. "
    lead += "Pictures and words are those of the first samples, in order; none was picked."
    page = DemoPage(f"Evaluation: {title}", lead, tuple(_facts(found.figures)), tuple(sections))
    write_demo_page(folder / "report.html", page)
    return [folder / "report.html", folder / "report.json"]


def _facts(figures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The figures that matter most."""
    yield "reconstruction", f"{figures['psnr']:.1f} dB PSNR"
    for name, words in (
        ("faces", "pictures follow their captions"),
        ("captions", "captions state what shows"),
        ("joint", "picture and caption agree"),
    ):
        if isinstance(figures[name], Mapping):
            yield words, percent(figures[name]["overall"])
    if isinstance(figures["joint"], Mapping):
        text = " / ".join(percent(figures["joint"][name]) for name in ("complete", "shifted"))
        yield "captions drawn that state everything / agree with the next picture", text
    if isinstance(figures["unseen"], Mapping):
        own, real = (figures["unseen"][name]["pairs"] for name in ("faces", "judge"))
        if own is not None:
            text = f"{percent(own)}, of real ones {percent(real)}"
            yield "unseen pairs that show in pictures drawn for them", text
    search = figures["search"]
    ways = (percent(search[way]["R@1"]) for way in ("text_to_image", "image_to_text"))
    yield f"R@1 of {search['text_to_image']['items']}, both ways", " / ".join(ways)


def _grid(figures: Mapping[str, Any]) -> Grid:
    return Grid(("figure", "value", "what it means"), tuple(map(tuple, rows(figures))))


def _drawn(found: Findings) -> Iterator[Section]:
    if found.drawn is not None:
        cards = tuple(
            Card(picture, lines=(caption,))
            for picture, caption in zip(found.drawn, found.held_out.captions, strict=True)
        )
        text = "Each picture was drawn for the caption below it."
        yield Section("Pictures for captions", text, cards=cards[:SHOWN])


def _written(found: Findings) -> Section:
    cards = tuple(
        Card(picture, title=written, lines=(f"reference: {references[0]}",))
        for picture, written, references in zip(
            found.held_out.pictures, found.written, found.held_out.references, strict=True
        )
    )
    text = "Each caption was written for the real picture above it."
    return Section("Captions for pictures", text, cards=cards[:SHOWN])


def _together(found: Findings) -> Iterator[Section]:
    if found.both is not None:
        cards = tuple(
            Card(picture, lines=(caption,)) for picture, caption in zip(*found.both, strict=True)
        )
        text = "Picture and caption were drawn together, out of nothing."
        yield Section("Drawn together", text, cards=cards[:SHOWN])


def _searches(found: Findings) -> Iterator[Section]:
    """What the first captions find, one section each."""
    images, texts = found.embeddings
    for index, caption in enumerate(found.held_out.captions[:QUERIES]):
        cosine = images @ texts[index]
        best = np.argsort(-cosine, kind="stable")[:HITS]
        cards = tuple(
            Card(found.held_out.pictures[hit], lines=(_hit(found, hit, index, cosine[hit]),))
            for hit in best
        )
        text = f"The pictures nearest to: {caption}"
        yield Section(f"Search by words {index + 1}", text, cards=cards)


def _naming(found: Findings) -> Section:
    """What the first pictures find."""
    images, texts = found.embeddings
    cards = []
    for index, picture in enumerate(found.held_out.pictures[: 2 * QUERIES]):
        cosine = texts @ images[index]
        best = np.argsort(-cosine, kind="stable")[: HITS // 2]
        lines = [
            f"{_hit(found, hit, index, cosine[hit])}: {found.held_out.captions[hit]}"
            for hit in best
        ]
        cards.append(Card(picture, lines=tuple(lines)))
    return Section("Search by pictures", "The captions nearest to each.", cards=tuple(cards))


def _hit(found: Findings, hit: int, wanted: int, cosine: float) -> str:
    """Its similarity, and whether it is the right one: samples of equal captions are one."""
    right = found.held_out.captions[hit] == found.held_out.captions[wanted]
    return f"{cosine:.2f}{', the right one' if right else ''}"
