"""How like their references written captions are: BLEU, ROUGE-L, CIDEr-D. Torch-free.

BLEU (Papineni et al. 2002) of the whole corpus, orders 1 to 4, by sacreBLEU (Post 2018), whose
signature is reported beside it. ROUGE-L (Lin 2004, section 3): F1 of the longest common subsequence
of words, the best over the references, mean over captions. CIDEr-D (Vedantam, Zitnick and Parikh
2015, section 4 and eq. 6): clipped tf-idf cosines of 1- to 4-grams with a Gaussian length penalty,
the document frequencies those of the references of these very samples, times 10. Words are not
stemmed, and punctuation counts as words.

All three read the same words: lower case, split by sacreBLEU's `13a`, or by its `zh` (every Chinese
character a word) where a caption has any Chinese. A model of two languages writes in either, so
each written caption is held against the references of its own kind, and figures are given for each
kind apart: they are not comparable with each other, nor with those of another tokenization.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mmprod.errors import ConfigError

Kind = Literal["13a", "zh"]
Words = tuple[str, ...]
Grams = Counter[Words]

ORDER = 4
SIGMA = 6.0
"""of CIDEr-D's length penalty, in words"""
_HAN = re.compile("[\u3400-\u9fff]")


@dataclass(frozen=True)
class Pairs:
    """Captions of one kind, tokenized: each written one and its references, at least one."""

    written: tuple[Words, ...]
    references: tuple[tuple[Words, ...], ...]


def kind_of(text: str) -> Kind:
    """Which tokenization a text takes."""
    return "zh" if _HAN.search(text) else "13a"


def check_words() -> None:
    """Raises ModuleNotFoundError without sacreBLEU, before any work is done."""
    import sacrebleu.metrics.bleu  # noqa: F401


def word_figures(
    written: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, dict[str, Any]]:
    """Figures by tokenization, of the captions that are written so.

    Each has "samples", "references" (their mean number), "bleu_1" ... "bleu_4" and "rouge_l" in
    [0, 1], "cider_d" in [0, 10] (None for a single sample: it has no document frequencies) and
    "signature". A written caption without any reference of its kind is scored against all of its
    references. Raises ConfigError when the lists differ in length or a sample has no reference.
    """
    if len(written) != len(references) or not all(references):
        raise ConfigError(
            f"{len(written)} captions and {len(references)} sets of references, "
            f"{sum(not texts for texts in references)} of them empty",
            hint="give each caption one reference or more",
        )
    found = {}
    for kind in ("13a", "zh"):
        rows = [i for i, text in enumerate(written) if kind_of(text) == kind]
        if rows:
            chosen = [_of_kind(references[i], kind) for i in rows]
            found[kind] = _figures([written[i] for i in rows], chosen, kind)
    return found


def rouge_l(written: Words, references: Sequence[Words]) -> float:
    """F1 of the longest common subsequence, the best over the references; 0 for no words."""
    return max(_f1(written, reference) for reference in references)


def cider_d(pairs: Pairs) -> float:
    """The mean over samples, in [0, 10]. Needs two samples or more."""
    spread = [[_grams(words) for words in texts] for texts in pairs.references]
    seen = Counter(gram for texts in spread for gram in set().union(*texts))
    weight = _Weights(math.log(len(spread)), seen)
    scores = [
        np.mean([weight.similarity(_grams(words), grams) for grams in texts])
        for words, texts in zip(pairs.written, spread, strict=True)
    ]
    return 10 * float(np.mean(scores))


@dataclass(frozen=True)
class _Weights:
    """tf-idf: log of the number of samples, and in how many of them each n-gram occurs."""

    log_count: float
    seen: Grams

    def similarity(self, written: Grams, reference: Grams) -> float:
        """The mean over orders of the clipped cosine, times the length penalty."""
        difference = _length(written) - _length(reference)
        penalty = math.exp(-(difference**2) / (2 * SIGMA**2))
        total = 0.0
        for order in range(1, ORDER + 1):
            a, b = self._vector(written, order), self._vector(reference, order)
            norms = math.hypot(*a.values()) * math.hypot(*b.values())
            clipped = sum(min(a[gram], b[gram]) * b[gram] for gram in a.keys() & b.keys())
            total += clipped / norms if norms else 0.0
        return penalty * total / ORDER

    def _vector(self, grams: Grams, order: int) -> dict[Words, float]:
        return {
            gram: count * (self.log_count - math.log(max(1, self.seen[gram])))
            for gram, count in grams.items()
            if len(gram) == order
        }


def _figures(
    written: Sequence[str], references: Sequence[Sequence[str]], kind: Kind
) -> dict[str, Any]:
    split, bleu = _sacrebleu(kind)
    pairs = Pairs(
        tuple(map(split, written)), tuple(tuple(map(split, texts)) for texts in references)
    )
    scores = zip(pairs.written, pairs.references, strict=True)
    return {
        "samples": len(written),
        "references": sum(map(len, references)) / len(references),
        **bleu(written, references),
        "rouge_l": float(np.mean([rouge_l(words, texts) for words, texts in scores])),
        "cider_d": cider_d(pairs) if len(written) > 1 else None,
    }


def _sacrebleu(
    kind: Kind,
) -> tuple[
    Callable[[str], Words], Callable[[Sequence[str], Sequence[Sequence[str]]], dict[str, Any]]
]:
    """sacreBLEU's way to split a text, and its BLEU of several orders with the signature."""
    from sacrebleu.metrics.bleu import BLEU

    metrics = [BLEU(tokenize=kind, lowercase=True, max_ngram_order=n + 1) for n in range(ORDER)]

    def bleu(written: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
        most = max(map(len, references))  # sacreBLEU wants columns; None where there is no further
        columns: Any = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
        found = [metric.corpus_score(list(written), columns) for metric in metrics]
        figures = {f"bleu_{n}": min(1.0, score.score / 100) for n, score in enumerate(found, 1)}
        return figures | {"signature": str(metrics[-1].get_signature())}

    tokenize = metrics[0].tokenizer
    return lambda text: tuple(tokenize(text.lower()).split()), bleu


def _of_kind(texts: Sequence[str], kind: Kind) -> list[str]:
    return [text for text in texts if kind_of(text) == kind] or list(texts)


def _grams(words: Words) -> Grams:
    """All n-grams of orders 1 to ORDER."""
    return Counter(words[i : i + n] for n in range(1, ORDER + 1) for i in range(len(words) - n + 1))


def _length(grams: Grams) -> int:
    return sum(count for gram, count in grams.items() if len(gram) == 1)


def _f1(a: Words, b: Words) -> float:
    """2 LCS / (|a| + |b|), which is F1 of LCS / |a| and LCS / |b|."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = row[:]
        for j, other in enumerate(b):
            row[j + 1] = before[j] + 1 if word == other else max(row[j], before[j + 1])
    return 2 * row[-1] / (len(a) + len(b)) if row[-1] else 0.0
