"""The figures of `mmprod eval` in words: a row each, with what it means."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mmprod.cli.output import Table


class Row(NamedTuple):
    """One figure: its name, its value as text, what it means."""

    name: str
    value: str
    meaning: str = ""


ALL = {
    "exact": "samples with all of these right",
    "every_attribute": "all eight attributes",
    "every_exact": "samples with all eight right",
    "complete": "captions that state all eight",
    "pairs": "unseen pairs with both values right",
    "shifted": "captions of the next pictures, overall right",
    "different": "different faces among these",
}
"""Names of the shares that are not those of one attribute."""
MEANING = {
    "captions": "attributes read back from the words, compared with the picture's own",
    "faces": "attributes that a classifier of real pictures sees, compared with the caption's",
    "joint": "drawn together out of nothing: of what a classifier sees, what the caption states",
    "judge": "how well the same classifier reads the real pictures",
    "unseen": "pairs of attribute values that training never showed together",
}


def figure_table(title: str, figures: Mapping[str, Any]) -> Table:
    """The table of the command."""
    return Table(title, ("figure", "value"), [(row.name, row.value) for row in rows(figures)])


def rows(figures: Mapping[str, Any]) -> list[Row]:
    """Every figure there is, in order."""
    return [
        *_likeness(figures),
        *_shares("captions of pictures", figures["captions"], MEANING["captions"]),
        *_shares("pictures for captions", figures["faces"], MEANING["faces"]),
        *_shares("drawn together", figures["joint"], MEANING["joint"]),
        *_shares("real pictures, judged", figures["judge"], MEANING["judge"]),
        *_unseen(figures["unseen"]),
        *_words(figures["words"]),
        *_inpainting(figures["inpainting"]),
        *_frechet(figures["frechet"]),
        *_search(figures["search"]),
        *(_bits(figures["likelihood"]) if "likelihood" in figures else ()),
    ]


def percent(share: float) -> str:
    """A share in [0, 1], rounded down, so that none looks as if it reached a bar that it missed."""
    if share in (0, 1):
        return f"{share:.0%}"
    return f"{math.floor(1e4 * share + 1e-6) / 1e4:.2%}"


def _likeness(figures: Mapping[str, Any]) -> Iterator[Row]:
    meaning = "pictures -> codes -> pictures, mean over pictures; more is better"
    yield Row("reconstruction, PSNR", f"{figures['psnr']:.2f} dB", meaning)
    yield Row("reconstruction, SSIM", f"{figures['ssim']:.4f}", "at most 1")
    yield Row("reconstruction, MS-SSIM", f"{figures['ms_ssim']:.4f}", "at most 1")
    if "chance" in figures:
        meaning = "what answers to other samples would score, words or pictures"
        yield Row("answers for other pictures, overall right", percent(figures["chance"]), meaning)


def _shares(title: str, shares: Mapping[str, float] | str, meaning: str) -> Iterator[Row]:
    if isinstance(shares, str):
        yield Row(title, shares, meaning)
        return
    for name, share in shares.items():
        if share is not None:
            named = ALL.get(name, f"{name.replace('_', ' ')} right")
            yield Row(f"{title}, {named}", percent(share), meaning if name == "overall" else "")


def _unseen(found: Mapping[str, Any] | str) -> Iterator[Row]:
    if isinstance(found, str):
        yield Row("unseen pairs", found, MEANING["unseen"])
        return
    for name, title in (
        ("faces", "pictures for captions"),
        ("captions", "captions of pictures"),
        ("judge", "real pictures, judged"),
    ):
        kept = ("overall", "exact", "pairs", "every_attribute", "every_exact")
        shares = {key: found[name][key] for key in kept if key in found[name]}
        yield from _shares(f"unseen pairs: {title}", shares, MEANING["unseen"])


def _words(figures: Mapping[str, Mapping[str, Any]]) -> Iterator[Row]:
    for kind, own in figures.items():
        title = f"captions against references, words by {kind}"
        bleu = ", ".join(f"{own[f'bleu_{n}']:.3f}" for n in range(1, 5))
        counts = f"{own['samples']} captions, {own['references']:.1f} references each"
        yield Row(f"{title}, BLEU-1 to 4", bleu, f"{counts}; {own['signature']}")
        yield Row(f"{title}, ROUGE-L", f"{own['rouge_l']:.3f}", "F1, best reference")
        cider = "not run: one caption" if own["cider_d"] is None else f"{own['cider_d']:.2f}"
        yield Row(f"{title}, CIDEr-D", cider, "0 to 10; document frequencies of these references")


def _inpainting(own: Mapping[str, float]) -> Iterator[Row]:
    meaning = f"codes outside the hole that are as before; {own['redrawn']:.0%} were drawn anew"
    yield Row("inpainting, codes kept", percent(own["kept"]), meaning)


def _frechet(found: Mapping[str, Mapping[str, float]] | str) -> Iterator[Row]:
    if isinstance(found, str):
        yield Row("Frechet distance", found)
        return
    for name, own in found.items():
        for what, distance in own.items():
            title = {
                "generated": "generated pictures",
                "reconstructed": "reconstructions",
                "real": "real pictures",
            }[what]
            meaning = "from other real pictures, of the split test or val"
            meaning += "; the floor: the pictures whose captions were drawn" * (what == "real")
            yield Row(f"{name}, {title}", f"{distance:.4g}", meaning)


def _search(figures: Mapping[str, Mapping[str, float]]) -> Iterator[Row]:
    for name, title in (
        ("text_to_image", "search, captions -> pictures"),
        ("image_to_text", "search, pictures -> captions"),
    ):
        own = figures[name]
        text = ", ".join(f"{key} {percent(own[key])}" for key in ("R@1", "R@5", "R@10"))
        meaning = f"by the towers' embeddings, among {own['items']:.0f} samples"
        yield Row(title, f"{text}, R@1 by chance {percent(own['chance'])}", meaning)


def _bits(figures: Mapping[str, Any]) -> Iterator[Row]:
    """Rows of the likelihood bounds."""
    meaning = "upper bound of the bits that the model needs; less is better"
    for name, title in (("image", "picture"), ("image_given_text", "picture given its caption")):
        own = figures[name]
        text = f"{own['bits']:.1f} bits, {own['bits_per_code']:.3f} a code"
        yield Row(f"bound, {title}", f"{text}, {own['bits_per_pixel']:.4f} a pixel", meaning)
    for name, title in (("text", "caption"), ("text_given_image", "caption given its picture")):
        own = figures[name]
        text = f"{own['bits']:.1f} bits, {own['bits_per_token']:.3f} a token"
        yield Row(f"bound, {title}", text, meaning)
    for name, title in (
        ("information_from_images", "pictures"),
        ("information_from_texts", "captions"),
    ):
        own = figures[name]
        margin = "" if own["error"] is None else f" +- {own['error']:.1f}"
        yield Row(
            f"information of the two about each other, from {title}",
            f"{own['bits']:.1f}{margin} bits",
            "difference of two bounds; where the two estimates agree, so do the model's halves",
        )
