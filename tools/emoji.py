"""The two figures of the emoji experiment: concepts and a drawing style that training never saw.

    python tools/emoji.py RUN|BUNDLE --data DATA --unseen DATA [--split val]

`--data` is what the model was trained on, without one drawing style; `--unseen` is that style
alone. Unseen concepts: the English name of each concept of the split finds its picture among those
of all of them, one picture a concept, for every style. Unseen style: pictures of concepts that
training knows, without skin tones, find their name among all names of the style. Search embeddings
only; docs/evaluation.md has the commands that make the data and the run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmprod.cli.scores import codes_of, embed
from mmprod.cli.source import Source, open_source
from mmprod.data.store import Split, open_split, read_manifest
from mmprod.errors import ConfigError
from mmprod.evaluation.retrieval import chance_recall, recalls
from mmprod.sampling import Pixels
from tools.command import explained

DEPTHS = (1, 10)


@dataclass(frozen=True)
class Emoji:
    """Pictures (B, H, W, 3) uint8, with the English name, concept and style of each."""

    pictures: Pixels
    names: list[str]
    concepts: list[str]
    styles: list[str]


def read(split: Split) -> Emoji:
    """The emoji of a split without skin tone, the first of each style and name. Raises ConfigError
    for another kind of data.
    """
    every = np.arange(len(split))
    about = split.attributes(every)
    if not all({"style", "concept"} <= set(row) for row in about):
        raise ConfigError("this is no emoji data", hint="mmprod data prepare emoji")
    texts = split.references(every, ("en",))
    if not all(texts):
        raise ConfigError("an emoji has no English name", hint="mmprod data prepare emoji")
    names = [own[0] for own in texts]
    first: dict[tuple[str, str], int] = {}
    for index, (row, name) in enumerate(zip(about, names, strict=True)):
        if "skin_tone" not in row:
            first.setdefault((row["style"], name), index)
    rows = np.array(list(first.values()), np.intp)
    return Emoji(
        split.images(rows),
        [names[i] for i in rows],
        [about[i]["concept"] for i in rows],
        [about[i]["style"] for i in rows],
    )


def unseen_concepts(
    source: Source, data: Path, split: str
) -> Iterator[tuple[str, int, float, dict[str, float]]]:
    """Of each style: its name, the number of concepts, R@10 by chance, recalls."""
    found = read(open_split(data, split))
    tokens = source.tokenizer.encode(found.names, source.dims.text_length)
    images, texts = embed(source, codes_of(source, found.pictures), tokens)
    for style in dict.fromkeys(found.styles):
        first: dict[str, int] = {}
        for index, (own, concept) in enumerate(zip(found.styles, found.concepts, strict=True)):
            if own == style:
                first.setdefault(concept, index)
        rows = list(first.values())
        right = np.eye(len(rows), dtype=np.bool_)
        guess = chance_recall(right, 10)
        yield style, len(rows), guess, recalls(texts[rows], images[rows], right, DEPTHS)


def unseen_style(source: Source, data: Path, unseen: Path) -> tuple[int, int, dict[str, float]]:
    """Pictures, names, and recalls of the right name."""
    train = open_split(data, "train")
    about = train.attributes(np.arange(len(train)))
    known = {row["concept"] for row in about if "concept" in row and "skin_tone" not in row}
    parts = [read(open_split(unseen, split)) for split in read_manifest(unseen)["splits"]]
    names = list(dict.fromkeys(name for part in parts for name in part.names))
    asked = [(part, i) for part in parts for i, c in enumerate(part.concepts) if c in known]
    if not asked:
        raise ConfigError(f"{unseen} has no concept of {data}", hint="prepare both with one seed")
    pictures = np.stack([part.pictures[i] for part, i in asked])
    tokens = source.tokenizer.encode(names, source.dims.text_length)
    images, texts = embed(source, codes_of(source, pictures), tokens)
    right = np.array([[part.names[i] == name for name in names] for part, i in asked])
    return len(asked), len(names), recalls(images, texts, right, DEPTHS)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="what it was trained on")
    parser.add_argument("--unseen", type=Path, required=True, help="the style left out of it")
    parser.add_argument("--split", default="val", help="whose concepts are unseen")
    return explained(lambda: _measure(parser.parse_args(arguments)))


def _measure(given: argparse.Namespace) -> int:
    source = open_source(given.source, None)
    print(f"names -> pictures, concepts of {given.split} that training never saw")
    for style, count, guess, found in unseen_concepts(source, given.data, given.split):
        times = found["R@10"] / guess
        print(
            f"  {style:12} {count} concepts: R@1 {found['R@1']:.1%}, R@10 {found['R@10']:.1%}, "
            f"{times:.2f} times chance ({guess:.1%})"
        )
    pictures, names, found = unseen_style(source, given.data, given.unseen)
    print("pictures -> names, a style that training never saw")
    print(f"  {pictures} pictures, {names} names: R@1 {found['R@1']:.3f}, R@10 {found['R@10']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
