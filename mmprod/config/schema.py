"""The configuration: frozen pydantic models, unknown keys forbidden at every depth, defaults only
here.

A file (TOML, at most two levels) says what differs from these defaults. Each builder receives only
its own section. The resolved whole is saved with every artefact. `Dims`, the sizes both models
share, is derived from it (`dims`), never written.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from mmprod.config.dims import Dims as Dims
from mmprod.config.effects import check_effects, check_patience
from mmprod.config.logs import LogConfig as LogConfig
from mmprod.config.losses import check_losses
from mmprod.config.parts import check_freeze
from mmprod.config.quantizers import check_quantizer
from mmprod.config.section import Section as Section
from mmprod.config.train import TrainConfig as TrainConfig

NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")


class DataConfig(Section):
    """Where pictures and captions come from, and the sizes they are brought to."""

    source: Literal["avatars", "folder", "emoji"] = "avatars"
    path: str = Field(
        default="",
        description="folder of images (source=folder) or prepared data set; empty: the run's own",
    )
    image_size: PositiveInt = Field(default=64, description="pixels per side")
    count: PositiveInt = Field(default=2000, description="pictures to draw (source=avatars)")
    seed: int = Field(default=0, ge=0)
    text_length: PositiveInt = Field(
        default=32, description="tokens per caption, end-of-text included"
    )
    vocabulary: PositiveInt = Field(
        default=1024, description="largest size of the byte-level BPE vocabulary"
    )
    languages: tuple[str, ...] = Field(default=("en",), min_length=1)
    caption_variants: int = Field(
        default=4, ge=1, le=4, description="caption templates per language (source=avatars)"
    )
    flip: bool = Field(
        default=False,
        description="mirror pictures at random; in the fusion stage only where the caption does "
        "not speak of left and right (English and Chinese words)",
    )


class CodecConfig(Section):
    """The VQ-VAE codec: conv encoder, quantizer, mirror decoder."""

    patch: Literal[1, 2, 4] = Field(
        default=1, description="side of the stem's space-to-depth patch"
    )
    channels: PositiveInt = 64
    multipliers: tuple[PositiveInt, ...] = Field(
        default=(1, 2, 4),
        min_length=1,
        description="channel factor per level; one strided step between levels",
    )
    blocks: PositiveInt = Field(default=1, description="residual blocks per level")
    attention: bool = Field(
        default=False, description="one self-attention block at the coarsest level"
    )
    quantizer: Literal["spherical", "euclid", "fsq", "lfq", "simvq", "product", "residual"] = (
        "spherical"
    )
    codebook_size: int = Field(default=1024, ge=2, description="codes of one book")
    code_dim: int = Field(default=8, ge=2, description="channels of a latent position")
    books: PositiveInt = Field(
        default=1, description="ids per latent position (quantizer=product, residual)"
    )
    book: Literal["spherical", "euclid"] = Field(
        default="spherical", description="kind of each book (quantizer=product)"
    )
    levels: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        default=(), description="levels per channel (quantizer=fsq)"
    )
    entropy: float = Field(
        default=0.1, ge=0, description="weight of the entropy term (quantizer=lfq)"
    )
    gradient: Literal["straight", "rotation"] = Field(
        default="straight", description="how the gradient passes the quantizer"
    )
    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    restart: bool = Field(
        default=True, description="replace codes that no token used for a while by current features"
    )
    commitment: float = Field(default=0.25, ge=0)
    rate_weight: float = Field(
        default=0.0,
        description="weight of a code's bits in the search, 1: what they are worth at high rate "
        "(entropy-constrained quantization, for compressed files; with restart=false); below 0: "
        "rare codes are preferred, which evens the usage of a large codebook",
    )
    loss: Literal["archive", "natural"] = Field(
        default="archive",
        description="archive: distortion only; natural: L1 with a perceptual term and a GAN "
        "(models/losses.py)",
    )
    perceptual: str = Field(
        default="",
        description="VGG16 weights in torchvision naming, .pth or .safetensors (loss=natural); "
        "empty: edges and structure in their place",
    )
    perceptual_heads: str = Field(
        default="", description="LPIPS heads for it, when they are in a file of their own"
    )
    gan_weight: float = Field(
        default=0.0, ge=0, description="weight of the adversarial term (loss=natural); 0: none"
    )
    gan_start: float = Field(
        default=0.35, ge=0, lt=1, description="share of the steps after which it begins"
    )

    @model_validator(mode="after")
    def _keys_go_together(self) -> Self:
        check_quantizer(self)
        check_losses(self)
        check_effects(self)
        return self

    @property
    def factor(self) -> int:
        """Pixels per latent position, along one side."""
        return int(self.patch * 2 ** (len(self.multipliers) - 1))


class FusionConfig(Section):
    """The fusion transformer: two towers, a connector, two decoders."""

    width: PositiveInt = 256
    heads: PositiveInt = 4
    image_encoder: PositiveInt = Field(default=2, description="blocks of E_image")
    text_encoder: PositiveInt = Field(default=2, description="blocks of E_text")
    joint: PositiveInt = Field(
        default=2, description="double-stream blocks of the connector M (weights per modality)"
    )
    shared: PositiveInt = Field(
        default=2, description="blocks of the connector M with shared weights"
    )
    image_decoder: PositiveInt = Field(default=1, description="blocks of D_image")
    text_decoder: PositiveInt = Field(default=1, description="blocks of D_text")
    registers: PositiveInt = Field(default=2, description="register tokens per modality")
    embedding: PositiveInt = Field(default=256, description="size of the search embedding")
    text_weight: float = Field(default=0.5, ge=0)
    pad_weight: float = Field(
        default=0.1, ge=0, description="loss weight of padding after the end of a text"
    )
    contrastive_weight: float = Field(default=0.2, ge=0)
    contrast: Literal["groups", "batch"] = Field(
        default="groups",
        description="what a picture's text is told from: groups: the texts of 8 samples, alike for "
        "any number of ranks; batch: those of the micro-batches of all ranks",
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ValueError(
                f"width {self.width} must split into {self.heads} heads of a multiple of 4 channels"
            )
        return self


class SamplerConfig(Section):
    """The samplers baked into the exported graphs."""

    image_steps: PositiveInt = 8
    text_steps: PositiveInt = 8
    guidance: float = Field(
        default=2.0,
        ge=0,
        description="classifier-free guidance weight at the last step; ramps up from 0",
    )
    image_temperature: float = Field(default=1.0, gt=0)
    text_temperature: float = Field(default=0.5, gt=0)
    min_probability: float = Field(
        default=0.03,
        ge=0,
        lt=1,
        description="codes less likely than this share of the likeliest are never drawn",
    )


class DistillConfig(Section):
    """A fusion stage that learns to draw in fewer steps what another run draws in many."""

    teacher: str = Field(
        default="",
        description="run whose sampler is learned, for sampler.image_steps steps without guidance "
        "(mmprod distill); empty: learn from the data alone",
    )


class Config(Section):
    """A whole job: data, both models, their training, the samplers, where figures go."""

    name: str = Field(
        default="custom",
        description="also the name of folders: letters, digits and ._-, not starting with ._-",
        json_schema_extra={"pattern": NAME.pattern},
    )
    data: DataConfig = DataConfig()
    codec: CodecConfig = CodecConfig()
    codec_train: TrainConfig = TrainConfig()
    fusion: FusionConfig = FusionConfig()
    fusion_train: TrainConfig = TrainConfig()
    sampler: SamplerConfig = SamplerConfig()
    distill: DistillConfig = DistillConfig()
    log: LogConfig = LogConfig()

    @field_validator("name")
    @classmethod
    def _name_is_plain(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} cannot be a name: only letters, digits and ._-, the first one of them a "
                "letter or digit"
            )
        return name

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.data.image_size % self.codec.factor:
            raise ValueError(
                f"data.image_size {self.data.image_size} is not a multiple of the codec's factor "
                f"{self.codec.factor} "
                "(codec.patch times 2 for each level after the first)"
            )
        steps = max(
            self.sampler.image_steps - self.latent_positions,
            self.sampler.text_steps - self.data.text_length,
        )
        if steps > 0:
            raise ValueError("a sampler cannot have more steps than the sequence has positions")
        most = max(self.sampler.image_steps, self.sampler.text_steps)
        if self.data.text_length * most**2 >= 2**31:  # counted in int32 (models/unmask.py)
            raise ValueError("data.text_length times a sampler's steps squared must be below 2^31")
        return self

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        check_patience(self.codec.gan_weight, self.codec_train.patience)
        for stage, train in (("codec", self.codec_train), ("fusion", self.fusion_train)):
            check_freeze(stage, train.freeze, train.init_from)
        return self

    @property
    def latent_positions(self) -> int:
        """Codes per picture."""
        return self.codec.books * (self.data.image_size // self.codec.factor) ** 2

    def dims(self, vocabulary: int) -> Dims:
        """The shared sizes when the tokenizer has `vocabulary` ids."""
        return Dims(
            image_size=self.data.image_size,
            grid=self.data.image_size // self.codec.factor,
            codebook_size=self.codec.books * self.codec.codebook_size,
            text_length=self.data.text_length,
            vocabulary=vocabulary,
            embedding=self.fusion.embedding,
            code_dim=self.codec.code_dim,
            planes=self.codec.books,
        )
