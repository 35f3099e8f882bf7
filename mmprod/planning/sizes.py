"""What a stage is made of, counted exactly on models without storage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor, nn

from mmprod.config.schema import Config, TrainConfig
from mmprod.models.contrast import CONTRAST_GROUP
from mmprod.models.example import build_beside, build_stage
from mmprod.models.hidden import hidden_matrices
from mmprod.models.quantizers.book import POOL

STAGES = ("codec", "fusion")


@dataclass(frozen=True)
class Sizes:
    """Elements of the parameters, bytes of the buffers, and what stands beside the model.

    sampler_bytes: the codec that draws pictures beside the fusion model.
    group: samples that a micro-batch must hold whole numbers of; length: codes and text tokens of
    one sample; counted, pooled: elements that the codebook's update sums over, and gathers from,
    all ranks; one_moment: elements that Muon moves, with one moment, where it does (one process
    without DeepSpeed).
    """

    trained: int
    frozen: int
    largest: int
    tensors: int
    buffer_bytes: int
    saved_buffer_bytes: int
    discriminator: int
    perceptual: int
    sampler_bytes: int
    length: int
    group: int
    counted: int
    pooled: int
    one_moment: int = 0

    @property
    def parameters(self) -> int:
        """All of the model's own."""
        return self.trained + self.frozen


@lru_cache(maxsize=32)
def sizes_of(config: Config, stage: str) -> Sizes:
    """Count a stage. The tokenizer may turn out smaller than `data.vocabulary`; this takes that
    upper limit.
    """
    model, beside = build_stage(config, stage), build_beside(config, stage)
    muon = train_section(config, stage).optimizer in ("auto", "muon")
    hidden = hidden_matrices(model) if muon else []
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    total = _elements(model)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    saved = [t for name, t in model.state_dict().items() if name not in names]
    dims = config.dims(config.data.vocabulary)
    counted, pooled = _codebook(config, dict(model.named_buffers())) if stage == "codec" else (0, 0)
    return Sizes(
        trained=sum(trained),
        frozen=total - sum(trained),
        largest=max(trained),
        tensors=len(trained),
        buffer_bytes=sum(t.numel() * t.element_size() for t in model.buffers()),
        saved_buffer_bytes=sum(t.numel() * t.element_size() for t in saved),
        discriminator=_elements(beside.get("discriminator")),
        perceptual=_elements(beside.get("perceptual")),
        sampler_bytes=_codec_bytes(config) if stage == "fusion" else 0,
        length=dims.positions + (dims.text_length if stage == "fusion" else 0),
        group=CONTRAST_GROUP if stage == "fusion" else 1,
        counted=counted,
        pooled=pooled,
        one_moment=sum(p.numel() for p in hidden),
    )


def train_section(config: Config, stage: str) -> TrainConfig:
    """The training section of a stage."""
    section: TrainConfig = getattr(config, f"{stage}_train")
    return section


def largest_share(cfg: TrainConfig, group: int, world: int) -> int:
    """Samples of a global batch on each of `world` ranks; 0 where they cannot be shared out."""
    share, rest = divmod(cfg.batch, world)
    whole = share % group == 0 or cfg.batch < group
    return share if not rest and share and whole else 0


def batch_for(world: int, group: int, wanted: int) -> int:
    """The global batch nearest to `wanted`, from above, that `world` ranks can share out."""
    unit = world * group
    return unit * max(1, math.ceil(wanted / unit))


def _codebook(config: Config, buffers: dict[str, Tensor]) -> tuple[int, int]:
    """Elements that one update of the codebook sums and gathers (see models/quantizers)."""
    moving = [b.numel() for name, b in buffers.items() if name.endswith(".averages")]
    if not moving:
        return 2 + buffers["quantizer.rate"].numel(), 0
    batch, planes = config.codec_train.batch, config.codec.books
    places = config.latent_positions // planes
    rows = batch * max(1, min(places, POOL // batch))
    return 2 + sum(moving), rows * planes * config.codec.code_dim


def _codec_bytes(config: Config) -> int:
    codec = build_stage(config, "codec")
    tensors = (*codec.parameters(), *codec.buffers())
    return sum(t.numel() * t.element_size() for t in tensors)


def _elements(network: nn.Module | None) -> int:
    return 0 if network is None else sum(p.numel() for p in network.parameters())
