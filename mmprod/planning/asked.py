"""What the user fixed of a layout, and which of it training would refuse."""

from __future__ import annotations

from dataclasses import dataclass

from mmprod.config.schema import Config, TrainConfig
from mmprod.errors import ConfigError
from mmprod.planning.memory import Layout, Offload, Weights
from mmprod.planning.sizes import train_section

KINDS: dict[str, tuple[Weights, ...]] = {
    "fp32": ("fp32",),
    "bf16": ("fp32", "bf16"),
    "fp16": ("fp16",),
}
"""weights that training takes by precision, the usual first (bf16: autocast over fp32 weights)"""


@dataclass(frozen=True)
class Asked:
    """weights None: the usual of the stage's precision; stage, offload None: the cheapest that
    fits; grow: enlarge the global batch where there are more devices than samples (and take fewer
    steps: as many samples).
    """

    weights: Weights | None = None
    stage: int | None = None
    offload: Offload | None = None
    grow: bool = False
    micro: int | None = None

    def weights_for(self, cfg: TrainConfig) -> Weights:
        """The kind that a stage's weights are kept in."""
        return self.weights or KINDS[cfg.precision][0]

    def check(self, config: Config, stages: tuple[str, ...]) -> None:
        """Raises ConfigError where training would refuse what is asked."""
        for stage in stages:
            kinds = KINDS[train_section(config, stage).precision]
            if self.weights is not None and self.weights not in kinds:
                precision = train_section(config, stage).precision
                raise ConfigError(
                    f"{stage}: precision = {precision} takes {' or '.join(kinds)} weights, "
                    f"not {self.weights}",
                    hint=f"--weights {kinds[-1]}, or -o {stage}_train.precision={self.weights}",
                )
            if self.stage is None:
                continue
            chosen = [self.weights] if self.weights else kinds
            if not any(Layout(self.stage, k, self.offload or "none").possible for k in chosen):
                what = "offload" if self.offload not in (None, "none") else f"{chosen[0]} weights"
                raise ConfigError(
                    f"{stage}: ZeRO stage {self.stage} takes no {what}",
                    hint=f"--stage {3 if self.offload == 'optimizer+param' else 1}",
                )

    def check_optimizer(self, config: Config, stages: tuple[str, ...]) -> None:
        """Every layout of a cluster is DeepSpeed's. Raises ConfigError."""
        for stage in stages:
            if train_section(config, stage).optimizer == "muon":
                raise ConfigError(
                    f"{stage}: optimizer = muon needs whole matrices, which ZeRO divides",
                    hint=f"-o {stage}_train.optimizer=auto (adamw under DeepSpeed)",
                )
