"""The section of a training stage: `codec_train` and `fusion_train`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from mmprod.config.section import Section

Share = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Section):
    """One training stage. `lr` is the peak of a linear warm-up followed by a cosine to `lr_final *
    lr`.
    """

    steps: PositiveInt = 1000
    batch: PositiveInt = Field(
        default=64, description="global batch: samples per optimizer step over all ranks"
    )
    lr: float = Field(default=4e-4, gt=0)
    lr_final: float = Field(default=0.05, ge=0, le=1)
    warmup: int = Field(default=100, ge=0)
    optimizer: Literal["adamw", "muon", "auto"] = Field(
        default="adamw",
        description="muon: for hidden matrices, adamw for the rest; auto: muon on one process, "
        "adamw under DeepSpeed, which does not keep matrices whole",
    )
    betas: tuple[Share, Share] = (0.9, 0.98)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(
        default=1.0, ge=0, description="largest gradient norm; 0 turns clipping off"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="bf16",
        description="what the model computes in; fp16 is for devices without bf16, with a loss "
        "scale",
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="compute the activations of blocks again in the backward pass: less memory, "
        "about a third more time",
    )
    ema: float = Field(
        default=0.999,
        ge=0,
        lt=1,
        description="decay of the averaged weights that are evaluated and exported",
    )
    seed: int = Field(default=0, ge=0)
    log_every: PositiveInt = 20
    eval_every: PositiveInt = 500
    save_every: PositiveInt = 500
    keep: PositiveInt = Field(default=2, description="newest checkpoints kept beside the best one")
    keep_every: int = Field(
        default=0, ge=0, description="keep every checkpoint whose step is a multiple; 0: none"
    )
    async_save: bool = Field(
        default=False,
        description="write checkpoints while training goes on; takes host memory for a copy",
    )
    patience: int = Field(
        default=0,
        ge=0,
        description="evaluations without a better result before stopping early; 0: never",
    )
    init_from: str = Field(
        default="",
        description="weights to start from: a run, a stage folder or a model.safetensors (what "
        "fits is loaded, the rest reported)",
    )
    freeze: tuple[str, ...] = Field(
        default=(),
        description="parts that keep the weights of init_from, e.g. encoder (config/parts.py)",
    )
    spike: float = Field(
        default=0,
        ge=0,
        description="do not learn from a batch whose loss lies more than this many robust standard "
        "deviations above the running median; 0: learn from all",
    )
    hang_s: float = Field(
        default=1800,
        ge=0,
        description="seconds without progress after which all ranks write their stacks and end; "
        "0: wait for ever",
    )
