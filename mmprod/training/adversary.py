"""The discriminator beside the codec: trained here, never by the backend.

It is no submodule of the model that the backend owns: DeepSpeed neither shards nor steps it, and
its weights are in no exported file. One global step:

    x, x' --each micro-batch: D with detached weights--> generator term, gradient to x' alone
          --D on x and x'.detach()--> hinge + LeCAM, backward at once: gradients add up in D
    after the codec's step: ONE flat all_reduce of [gradients | sums of readouts], AdamW, anchors

Every rank starts from the same seed and applies the same sums, so all hold the same bits.
Its first step is `gan_start` of the training; from there the weight of the generator term rises
linearly over RAMP of the training to `gan_weight` (no adaptive weight: that needs two more backward
passes and a decoder weight, which ZeRO-3 hides).
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor
from torch.func import functional_call

from mmprod.config.schema import CodecConfig, TrainConfig
from mmprod.errors import ConfigError, IntegrityError, NumericsError
from mmprod.models.discriminator import (
    SMALLEST,
    Discriminator,
    generator_loss,
    hinge_loss,
    lecam_loss,
)
from mmprod.training.schedule import ema_decay, learning_rate

RAMP = 0.05
LECAM_WEIGHT = 1e-3
ANCHOR_DECAY = 0.99
RATE = 2e-4
BETAS = (0.5, 0.9)
READOUTS = ("real_logit", "fake_logit", "accuracy")


class Adversary:
    """Discriminator, its optimizer and LeCAM's anchors for the codec stage of `train`."""

    def __init__(
        self, cfg: CodecConfig, train: TrainConfig, image_size: int, device: torch.device
    ) -> None:
        if image_size < SMALLEST:
            raise ConfigError(
                f"codec.gan_weight: pictures of {image_size} pixels are too small to judge",
                hint=f"data.image_size of at least {SMALLEST}, or codec.gan_weight=0",
            )
        self._train, self._device, self._limit = train, device, cfg.gan_weight
        self._first = math.floor(cfg.gan_start * train.steps)
        self._ramp = max(1, math.ceil(RAMP * train.steps))
        self.discriminator = Discriminator().to(device)
        self._parameters = dict(self.discriminator.named_parameters())
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=RATE, betas=BETAS, weight_decay=0.0
        )
        self._anchors = torch.zeros(2, device=device)
        self._updates = 0
        self._step = 0
        self._sums = torch.zeros(1 + len(READOUTS), device=device)

    def weight(self, step: int) -> float:
        """Weight of the generator term in the step-th step (from 0); 0 before the start."""
        return self._limit * min(1.0, max(0, step + 1 - self._first) / self._ramp)

    def losses(self, restored: Tensor, x: Tensor, step: int) -> dict[str, Tensor]:
        """One micro-batch: generator (with a gradient to `restored` alone), discriminator, lecam,
        unweighted scalars; the discriminator's gradient is added up for `update`. Nothing before
        the start.

        restored, x (B, 3, H, W) in [-1, 1].
        """
        if step < self._first:
            return {}
        self._step = step
        frozen = {name: p.detach() for name, p in self._parameters.items()}
        with self._autocast():
            generator = generator_loss(functional_call(self.discriminator, frozen, (restored,)))
        with self._autocast():
            logits = self.discriminator(torch.cat([x, restored.detach()]))
        real, fake = logits.chunk(2)
        hinge, lecam = hinge_loss(real, fake), lecam_loss(real, fake, self._anchors)
        torch.autograd.backward(hinge + LECAM_WEIGHT * lecam)
        with torch.no_grad():
            right = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
            one = torch.ones((), device=self._device)
            self._sums += torch.stack([real.mean(), fake.mean(), right, one])
        return {"generator": generator, "discriminator": hinge.detach(), "lecam": lecam.detach()}

    @torch.no_grad()
    def update(self) -> dict[str, float]:
        """Step the discriminator on the gradients of all micro-batches of all ranks. Collective.

        Returns the mean logit of real and of restored patches and the share of patches on the right
        side of 0. Raises NumericsError when the gradient is not finite though the losses were (see
        `train_step`): the discriminator has not moved then, the codec has made its step, and
        neither is saved.
        """
        if not self._sums[-1]:
            return {}
        gradients = [p.grad.flatten() for p in self._parameters.values() if p.grad is not None]
        flat = torch.cat([*gradients, self._sums])
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(flat)
        flat /= flat[-1].clone()
        if not flat.isfinite().all():
            raise NumericsError(
                "the gradient of the discriminator is NaN or infinite",
                hint="resume with a lower codec.gan_weight or codec_train.precision fp32 in "
                "another --out",
            )
        start = 0
        for p in self._parameters.values():
            p.grad = flat[start : start + p.numel()].view_as(p)
            start += p.numel()
        self._apply()
        means = flat[-len(self._sums) : -1]
        self._updates += 1
        self._anchors.lerp_(means[:2], 1 - ema_decay(ANCHOR_DECAY, self._updates))
        self._sums.zero_()
        return dict(zip(READOUTS, means.tolist(), strict=True))

    def forget(self) -> None:
        """Drop what was added up for `update`."""
        self._optimizer.zero_grad(set_to_none=True)
        self._sums.zero_()

    def _apply(self) -> None:
        """Clip as the codec is clipped, move the weights (at a rate that falls as the codec's
        does), clear the gradients.
        """
        if self._train.clip:
            torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._train.clip)
        for group in self._optimizer.param_groups:
            group["lr"] = RATE * learning_rate(self._train, self._step) / self._train.lr
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self._device.type, torch.bfloat16, enabled=self._train.precision == "bf16"
        )

    def tensors(self) -> list[Tensor]:
        """Weights, gradients and moments that live now."""
        moments = [value for p in self._parameters.values() for value in self._moments(p)]
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        return [*self._parameters.values(), *gradients, *moments]

    def _moments(self, p: Tensor) -> list[Tensor]:
        return [value for value in self._optimizer.state[p].values() if value.ndim]

    def state(self) -> dict[str, Tensor]:
        """Everything that a later step depends on, by name."""
        tensors = {f"discriminator.{name}": p.detach() for name, p in self._parameters.items()}
        for name, p in self._parameters.items():
            for key, value in self._optimizer.state[p].items():
                tensors[f"optimizer.{name}.{key}"] = value
        tensors["anchors"] = self._anchors
        tensors["updates"] = torch.tensor(self._updates)
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` gave. Raises IntegrityError when a tensor is missing or of another
        shape.
        """
        try:
            for name, p in self._parameters.items():
                p.copy_(state[f"discriminator.{name}"])
                prefix = f"optimizer.{name}."
                moments = {
                    key.removeprefix(prefix): value.clone()
                    for key, value in state.items()
                    if key.startswith(prefix)
                }
                self._optimizer.state[p] = {
                    key: value if key == "step" else value.to(self._device).view_as(p)
                    for key, value in moments.items()
                }
            self._anchors.copy_(state["anchors"])
            self._updates = int(state["updates"])
        except (KeyError, RuntimeError) as error:
            raise IntegrityError(
                f"the checkpoint's discriminator does not fit: {error}",
                hint="resume from another checkpoint, or train this stage anew with --resume never",
            ) from error
