"""The fusion transformer: masked discrete diffusion over image codes and text tokens.

Absorbing-state discrete diffusion without a time input (Austin et al. 2021; MaskGIT, Chang et al.
2022; MDLM, Sahoo et al. 2024), independent mask ratios per modality (UniDiffuser, Bao et al. 2023,
in masked form), towers before fusion so that each modality has a search embedding and the text
tower runs once per sample.

    codes  (B, N) --E_image--> (B, R+N, D) --+                     +--> D_image --> logits (B, N, K)
                                             +-> M: joint, shared -+
    tokens (B, L) --E_text---> (B, R+L, D) --+                     +--> D_text  --> logits (B, L, V)

    mask id: K for codes, V for tokens. R register tokens lead each stream.
    embedding of a picture or a text: unit vector from the mean of its tower's output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmprod.config.schema import Dims, FusionConfig
from mmprod.models.attention import Block, JointBlock, Rotary
from mmprod.models.rms_norm import RMSNorm


@dataclass(frozen=True)
class Modality:
    """What the model must know of one modality: vocabulary, sequence length, and the grid side when
    it is a picture (whose length is a whole number of grids, one per plane).

    A further modality is one more of these, with its tower and decoder (see `Stream`).
    """

    vocabulary: int
    length: int
    grid: int = 0
    features: int = 0
    """size of the fixed feature vector of each id (the code vectors of a codec); 0: none"""


class Stream(nn.Module):
    """Tower (E), decoder (D), tied head and embedding projection of one modality.

    Where ids have feature vectors (codes have their place on the codec's sphere), the embedding of
    an id is a free vector plus a learned map of its features, at the input and in the tied head
    alike: what is learned of a code then holds for its neighbours.
    """

    features: Tensor

    def __init__(self, modality: Modality, cfg: FusionConfig, encoder: int, decoder: int) -> None:
        super().__init__()
        width = cfg.width
        self.vocabulary = modality.vocabulary
        self.registers_count = cfg.registers
        self.embed = nn.Embedding(modality.vocabulary + 1, width)
        self.register_buffer("features", torch.zeros(modality.vocabulary + 1, modality.features))
        self.feature_map = (
            nn.Linear(modality.features, width, bias=False) if modality.features else None
        )
        self.place = nn.Parameter(torch.empty(modality.length, width))
        self.registers = nn.Parameter(torch.empty(cfg.registers, width))
        self.rotary = Rotary(
            width // cfg.heads, modality.length, registers=cfg.registers, grid=modality.grid
        )
        self.tower = nn.ModuleList(Block(width, cfg.heads) for _ in range(encoder))
        self.decoder = nn.ModuleList(Block(width, cfg.heads) for _ in range(decoder))
        self.head_norm = RMSNorm(width)
        self.head_bias = nn.Parameter(torch.zeros(modality.vocabulary))
        self.search_norm = RMSNorm(width)
        self.search = nn.Linear(width, cfg.embedding, bias=False)

    def table(self) -> Tensor:
        """The embedding of every id, the mask id last: (vocabulary + 1, D)."""
        if self.feature_map is None:
            return self.embed.weight
        mapped: Tensor = self.feature_map(self.features)
        return self.embed.weight + mapped

    def encode(self, ids: Tensor) -> Tensor:
        """ids (B, S) integer in [0, vocabulary] -> features (B, R+S, D)."""
        x = F.embedding(ids.to(torch.int64), self.table()) + self.place
        x = torch.cat([self.registers.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)
        for block in self.tower:
            x = block(x, self.rotary)
        return x

    def decode(self, x: Tensor) -> Tensor:
        """fused features (B, R+S, D) -> logits (B, S, vocabulary) float32. The mask token is never
        predicted.
        """
        return self.predict(self.decode_features(x), self.table())

    def decode_features(self, x: Tensor) -> Tensor:
        """fused features (B, R+S, D) -> what the head reads (B, S, D)."""
        for block in self.decoder:
            x = block(x, self.rotary)
        normed: Tensor = self.head_norm(x[:, self.registers_count :])
        return normed

    def predict(self, x: Tensor, table: Tensor) -> Tensor:
        """The head: x (..., D), `table()` -> logits (..., vocabulary) float32."""
        return F.linear(x, table[: self.vocabulary]).float() + self.head_bias

    def embedding(self, features: Tensor) -> Tensor:
        """features of the tower (B, R+S, D) -> unit vectors (B, E) float32."""
        return F.normalize(self.search(self.search_norm(features.mean(1))).float(), dim=1)


class Fusion(nn.Module):
    """The whole model. `forward` is the denoising step; the parts are public for samplers, search
    and export.
    """

    def __init__(self, cfg: FusionConfig, dims: Dims) -> None:
        super().__init__()
        image = Modality(dims.codebook_size, dims.positions, dims.grid, dims.code_dim)
        text = Modality(dims.vocabulary, dims.text_length)
        self.image = Stream(image, cfg, cfg.image_encoder, cfg.image_decoder)
        self.text = Stream(text, cfg, cfg.text_encoder, cfg.text_decoder)
        shared = [False] * cfg.joint + [True] * cfg.shared
        self.connector = nn.ModuleList(JointBlock(cfg.width, cfg.heads, shared=s) for s in shared)
        self.similarity = nn.Parameter(torch.tensor([2.3, -10.0]))
        self._initialise(cfg)

    def _initialise(self, cfg: FusionConfig) -> None:
        """Truncated normal 0.02; projections into the residual stream scaled by 1/sqrt(2 depth)
        (GPT-2, sec. 2.3).
        """
        depth = (
            cfg.joint
            + cfg.shared
            + max(cfg.image_encoder + cfg.image_decoder, cfg.text_encoder + cfg.text_decoder)
        )
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.trunc_normal_(
                    parameter, std=0.02 / (2 * depth) ** 0.5 if residual else 0.02
                )

    @torch.no_grad()
    def adopt_codebook(self, codes: Tensor) -> None:
        """Take over the codec's table (K, D), one vector per id, as features of the image ids."""
        self.image.features[: len(codes)].copy_(codes)

    def fuse(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """M: image (B, R+N, D) and text features (B, R+L, D) -> fused, the same shapes."""
        for block in self.connector:
            image, text = block(image, text, self.image.rotary, self.text.rotary)
        return image, text

    def forward(self, codes: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """codes (B, N) in [0, K], tokens (B, L) in [0, V] -> image logits (B, N, K), text logits
        (B, L, V).
        """
        image, text = self.fuse(self.image.encode(codes), self.text.encode(tokens))
        return self.image.decode(image), self.text.decode(text)

    def embed_image(self, codes: Tensor) -> Tensor:
        """codes (B, N) -> unit vectors (B, E)."""
        return self.image.embedding(self.image.encode(codes))

    def embed_text(self, tokens: Tensor) -> Tensor:
        """tokens (B, L) -> unit vectors (B, E)."""
        return self.text.embedding(self.text.encode(tokens))


def build_fusion(cfg: FusionConfig, dims: Dims) -> Fusion:
    """A fusion transformer with fresh weights."""
    return Fusion(cfg, dims)
