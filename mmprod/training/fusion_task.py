"""The fusion stage: codes and caption tokens in, the three losses out."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmprod.config.schema import Config, Dims
from mmprod.data.store import Split
from mmprod.data.texts import speaks_of_sides
from mmprod.data.tokenizer import Tokenizer
from mmprod.graphs.catalog import build_catalog
from mmprod.graphs.modules import build_module
from mmprod.models.codec import Codec
from mmprod.models.contrast import CONTRAST_GROUP, Neighbours
from mmprod.models.fusion import Fusion, build_fusion
from mmprod.models.fusion_loss import FusionObjective, draw_noise
from mmprod.runners.torch import TorchRunner
from mmprod.sampling import generate_images
from mmprod.training.codec_task import grid_of, mirror_coins
from mmprod.training.codes import Codes
from mmprod.training.sharded_build import Build
from mmprod.training.shares import Indices, Share, mixed_seed
from mmprod.training.task import Evaluation

EVALUATED = 256
"""samples of the val split that an evaluation measures"""
SHOWN = 8
CHUNK = 64


@dataclass(frozen=True)
class FusionData:
    """What the stage reads: both splits, their codes, the tokenizer, the trained codec (to draw
    samples).
    """

    train: Split
    val: Split
    train_codes: Codes
    val_codes: Codes
    tokenizer: Tokenizer
    codec: Codec


class FusionTask:
    """Trains the fusion transformer on cached codes (see `Task`)."""

    name = "fusion"
    learns_buffers = False

    def __init__(
        self,
        config: Config,
        dims: Dims,
        data: FusionData,
        device: torch.device,
        build: Build | None = None,
    ) -> None:
        self.codebook: dict[str, Any] = {}
        self.files: dict[str, str] = {}
        self._config, self._dims, self._data, self._device = config, dims, data, device
        with build or nullcontext():
            fusion = build_fusion(config.fusion, dims)
        fusion.adopt_codebook(data.codec.quantizer.table())
        self._objective = self.objective(fusion)
        self.model: nn.Module = self._objective
        self.size, self.weights = len(data.train), data.train.weights

    def objective(self, fusion: Fusion) -> FusionObjective:
        """The model with its losses."""
        return FusionObjective(fusion, self._config.fusion, self._dims)

    def lessons(
        self, generator: torch.Generator, whole: int, rows: slice, given: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, ...]:
        """What the objective takes beside codes, tokens and noise: nothing. `given`: codes and
        tokens of the rows of a global batch of `whole` samples.
        """
        return ()

    def join(self, neighbours: Neighbours) -> None:
        """Contrast with the texts of other ranks, too, where the configuration says so."""
        self._objective.neighbours = neighbours

    def batch(self, share: Share) -> tuple[Tensor, ...]:
        """(codes (B, N) int32, tokens (B, L) int32, noise (B, ...) float32, then the lessons).

        The caption is drawn anew in each step. With data.flip a picture is mirrored at random,
        unless the caption speaks of sides.
        """
        seed = mixed_seed(share.seed, share.step, "caption")
        captions = self._data.train.captions(share.indices, self._config.data.languages, seed)
        codes = self._data.train_codes.rows(share.indices)
        if self._config.data.flip:
            true = np.array([not speaks_of_sides(caption) for caption in captions])
            mirrored = share.cut(mirror_coins(share)).numpy() & true
            codes = np.where(
                mirrored[:, None], self._data.train_codes.mirrored_rows(share.indices), codes
            )
        tokens = self._tokens(captions)
        noise = share.cut(draw_noise(share.generator("mask"), len(share.batch), self._dims))
        given = torch.from_numpy(codes).to(self._device), tokens
        rows = slice(share.start, share.stop)
        lessons = self.lessons(share.generator("lesson"), len(share.batch), rows, given)
        return *given, noise.to(self._device), *lessons

    def losses(
        self, outputs: dict[str, Tensor], batch: tuple[Tensor, ...], step: int
    ) -> dict[str, Tensor]:
        return outputs

    def keys(self, indices: Indices) -> list[str]:
        return self._data.train.keys(indices)

    def after_step(self, *, learn: bool = True) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Nothing is trained beside the model."""

    def beside(self) -> list[Tensor]:
        return list(self._data.codec.state_dict().values())

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Losses on `val` under fixed masks, and pictures drawn for its first captions above the
        real ones.
        """
        if not isinstance(model, FusionObjective):
            raise TypeError(f"expected a FusionObjective, got {type(model).__name__}")
        count = min(EVALUATED, len(self._data.val))
        count -= count % CONTRAST_GROUP if count > CONTRAST_GROUP else 0
        indices = np.arange(count)
        noise = draw_noise(torch.Generator().manual_seed(0), count, self._dims)
        captions = self._data.val.captions(indices, self._config.data.languages, 0)
        tokens = self._tokens(captions)
        codes = torch.from_numpy(self._data.val_codes.rows(indices)).to(self._device)
        sums: dict[str, float] = {}
        with torch.no_grad():
            for start in range(0, count, CHUNK):
                part = slice(start, start + CHUNK)
                given = codes[part], tokens[part]
                lessons = self.lessons(torch.Generator().manual_seed(0), count, part, given)
                losses = model(*given, noise[part].to(self._device), *lessons)
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + float(value) * len(codes[part])
        picture = self._samples(model, indices[:SHOWN])
        return Evaluation({name: total / count for name, total in sums.items()}, picture)

    def better(self, metrics: dict[str, float], step: int) -> float:
        return -metrics["loss"]

    def core(self, model: nn.Module) -> nn.Module:
        if not isinstance(model, FusionObjective):
            raise TypeError(f"expected a FusionObjective, got {type(model).__name__}")
        return model.fusion

    def _tokens(self, captions: list[str]) -> Tensor:
        return torch.from_numpy(self._data.tokenizer.encode(captions, self._dims.text_length)).to(
            self._device
        )

    def _samples(
        self, model: FusionObjective, indices: Indices
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        sampler, dims = self._config.sampler, self._dims
        module = build_module(
            "text_to_image", codec=self._data.codec, fusion=model.fusion, dims=dims, sampler=sampler
        )
        runner = TorchRunner(build_catalog(dims, sampler)["text_to_image"], module)
        captions = self._data.val.captions(indices, self._config.data.languages, 0)
        drawn = generate_images(runner, self._data.tokenizer, captions, seed=0)
        return grid_of([drawn, self._data.val.images(indices)])
