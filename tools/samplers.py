"""What edits, pictures drawn with their captions, and the best of several are worth on faces.

    python tools/samplers.py RUN|BUNDLE --run RUN [--faces 100] [--seed 0]

An edit changes one attribute of a held-out face in its caption. A classifier that has seen real
pictures only says in how many the new value shows, and how many of the other attributes stay. The
places are those of `sampling.places_that_agree`, or as many at random. `unchanged`: codes of the
whole picture that are as before.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from mmprod.checkpoint.run import open_run
from mmprod.cli.scores import Sample, draw_both, sample, train_judge
from mmprod.cli.source import Source, open_source
from mmprod.data.attributes import ATTRIBUTES, HIDDEN, caption, is_held_out, parse_caption
from mmprod.data.store import open_split
from mmprod.evaluation.agreement import attribute_agreement
from mmprod.evaluation.judge import Judge
from mmprod.sampling import (
    Ids,
    best_of,
    draw_images,
    edit_images,
    likelihood,
    places_that_agree,
    run_batched,
    similarity,
)

CHANGED = ("hair_color", "glasses", "beard", "clothes_color", "background", "expression")
STRENGTHS = (0.1, 0.2, 0.4, 0.6, 1.0)
CANDIDATES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--run", type=Path, required=True, help="whose data is used")
    parser.add_argument("--faces", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    source, run = open_source(given.source, None), open_run(given.run)
    faces = sample(open_split(run.data_root, "test"), given.faces, ("en",))
    judge = train_judge(open_split(run.data_root, "train"), given.seed)
    seen = attribute_agreement(faces.attributes, judge.predict(faces.pictures), tuple(ATTRIBUTES))
    print(f"{len(faces.pictures)} faces; the judge reads {seen['overall']:.1%} of the real ones\n")
    show_edits(source, faces, judge, given.seed)
    show_joint(source, judge, len(faces.pictures), given.seed)
    show_best(source, faces, judge, given.seed)


def show_edits(source: Source, faces: Sample, judge: Judge, seed: int) -> None:
    """One attribute changed: a line per rule and strength."""
    rng = np.random.default_rng(seed)
    names, wanted = zip(*(change(old, rng) for old in faces.attributes), strict=True)
    captions = tuple(
        encode(source, [caption(values, "en", 0) for values in attributes])
        for attributes in (faces.attributes, wanted)
    )
    with closing(source.runner("codec_encode")) as encoder:
        codes = run_batched(encoder, "pixels", faces.pictures)["codes"]
    print("places      drawn anew   new value   others kept   unchanged   kept codes equal")
    with closing(source.runner("edit")) as editor, closing(source.runner("fusion_step")) as step:
        for strength in STRENGTHS:
            agreed = places_that_agree(step, source.dims, codes, captions, strength)
            for rule, keep in (("likelihood", agreed), ("random", shuffled(agreed, rng))):
                drawn = edit_images(editor, faces.pictures, keep, captions[1], seed)
                got = judge.predict(drawn.pixels)
                same = (drawn.codes == codes)[keep > 0]
                equal = f"{same.mean():.2%}" if same.size else "-"
                new, others = judged(wanted, got, names)
                shares = f"{strength:11.0%} {new:11.1%} {others:13.1%}"
                print(f"{rule:10} {shares} {(drawn.codes == codes).mean():11.1%} {equal:>18}")


def change(old: Mapping[str, str], rng: np.random.Generator) -> tuple[str, dict[str, str]]:
    """An attribute that shows, and all attributes with another value of it."""
    while True:
        name = CHANGED[int(rng.integers(len(CHANGED)))]
        value = ATTRIBUTES[name][int(rng.integers(len(ATTRIBUTES[name])))]
        new = {**old, name: value}
        if old[name] not in (HIDDEN, value) and not is_held_out(new):
            return name, new


def judged(
    wanted: Sequence[Mapping[str, str]], got: Sequence[Mapping[str, str]], names: Sequence[str]
) -> tuple[float, float]:
    """Shares of new values and of other attributes that show."""
    new = [
        want[name] == have.get(name) for want, have, name in zip(wanted, got, names, strict=True)
    ]
    rest = [
        {key: value for key, value in want.items() if key != name}
        for want, name in zip(wanted, names, strict=True)
    ]
    return float(np.mean(new)), attribute_agreement(rest, got, tuple(ATTRIBUTES))["overall"]


def shuffled(keep: Ids, rng: np.random.Generator) -> Ids:
    """As many places of each sample, at random. Codecs with one book only."""
    return rng.permuted(keep, axis=1)


def show_joint(source: Source, judge: Judge, count: int, seed: int) -> None:
    """Pictures drawn with their captions: does the picture show what the caption says?"""
    pictures, captions = draw_both(source, count, seed)
    told = [parse_caption(text) for text in captions]
    whole = [set(found) == set(ATTRIBUTES) for found in told]
    agreement = attribute_agreement(told, judge.predict(pictures), tuple(ATTRIBUTES))
    kinds = len({tuple(sorted(found.items())) for found in told})
    print(f"\njoint: {agreement['overall']:.1%} of what {count} captions say shows")
    print(f"       {np.mean(whole):.1%} name every attribute; {kinds} different faces")


def show_best(source: Source, faces: Sample, judge: Judge, seed: int) -> None:
    """Pictures for captions: the first of a few, the likeliest, the most similar."""
    tokens = encode(source, [caption(values, "en", 0) for values in faces.attributes])
    with closing(source.runner("text_to_image")) as runner:
        drawn = draw_images(runner, tokens.repeat(CANDIDATES, 0), seed)
    with closing(source.runner("fusion_step")) as runner:
        likely = likelihood(runner, source.dims, drawn.codes, drawn.tokens)
    with (
        closing(source.runner("embed_image")) as images,
        closing(source.runner("embed_text")) as texts,
    ):
        similar = similarity(images, texts, drawn.codes, drawn.tokens)
    print(f"\nbest of {CANDIDATES}: attributes of the caption that show")
    for name, scores in (("first", 0 * likely), ("likelihood", likely), ("similarity", similar)):
        chosen = best_of(drawn, scores, CANDIDATES)
        got = judge.predict(chosen.pixels)
        overall = attribute_agreement(faces.attributes, got, tuple(ATTRIBUTES))["overall"]
        print(f"{name:10} {overall:6.1%}")


def encode(source: Source, captions: Sequence[str]) -> Ids:
    return source.tokenizer.encode(list(captions), source.dims.text_length)


if __name__ == "__main__":
    main()
