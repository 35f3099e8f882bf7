"""The sizes that codec, fusion transformer and graphs share. Derived, never written in a file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Dims:
    """Sizes shared by codec, fusion transformer and graphs. Derived from a Config and the
    tokenizer's real size by `Config.dims`.
    """

    image_size: int
    """H = W, pixels"""
    grid: int
    """h = w, latent positions per side"""
    codebook_size: int
    """K, ids of all planes together"""
    text_length: int
    """L, tokens"""
    vocabulary: int
    """V, ids of the tokenizer; the mask token is id V, the masked code is id K"""
    embedding: int
    """size of the search embedding"""
    code_dim: int = 8
    """D of the codec's code vectors"""
    planes: int = 1
    """ids per latent position; those of plane p lie in [p K / planes, (p + 1) K / planes)"""

    @property
    def positions(self) -> int:
        """N, codes per picture: plane after plane, row-major inside a plane."""
        return self.planes * self.grid * self.grid
