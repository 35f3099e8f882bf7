"""What each rank of the codebook tests does: train every quantizer, resume, go on elsewhere.

Started as a program: `codebook_ranks.py ORDER.json`, with the launcher's variables set. Rank r
writes <folder>/rank-r.json. All quantizers sit side by side in one model of three small layers
(encoder, decoder, SimVQ's map), so that one run of an engine trains them all.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from mmprod.config.schema import TrainConfig
from mmprod.models.quantizers.build import build_quantizer
from mmprod.training.backend import Backend, named_weights
from mmprod.training.checkpointing import Identity, find_checkpoint, load_checkpoint
from mmprod.training.deepspeed_backend import DeepSpeedBackend
from mmprod.training.deepspeed_config import read_deepspeed, resolve
from mmprod.training.distributed import World, join, leave
from mmprod.training.ema import Ema
from mmprod.training.progress import Progress
from mmprod.training.saving import Saver
from mmprod.training.snapshot import Trained
from tests.models.kinds import small
from tests.training.ranks import digest

KINDS = ("spherical", "euclid", "fsq", "lfq", "simvq", "product", "residual")
BATCH, TOKENS, CHANNELS = 8, 16, 12


class SideBySide(nn.Module):
    """x (B, CHANNELS, 4, 4) -> one latent for each quantizer -> x again, from all of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        quantizers = {kind: build_quantizer(small(kind)) for kind in KINDS}
        self.dims = [q.dim for q in quantizers.values()]
        self.encoder = nn.Conv2d(CHANNELS, sum(self.dims), 1)
        self.quantizers = nn.ModuleDict(quantizers)
        self.decoder = nn.Conv2d(sum(self.dims), CHANNELS, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = self.encoder(x).split(self.dims, dim=1)
        made = [q(z) for q, z in zip(self.quantizers.values(), parts, strict=True)]
        restored = self.decoder(torch.cat([m.latents for m in made], dim=1))
        loss = (restored - x).square().mean() + sum(m.encoder_loss for m in made)
        return {"loss": loss}


def share(step: int, world: World) -> torch.Tensor:
    """This rank's part of a step's global batch; the pictures change, so codes fall out of use."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, CHANNELS, 4, 4, generator=generator)
    x = x.sign() * x.abs().sqrt() + 2 * torch.sin(torch.tensor(step / 40.0))
    return x.chunk(world.size)[world.rank]


class Run:
    """One model in one engine."""

    def __init__(self, raw: dict[str, Any], world: World) -> None:
        cfg = TrainConfig(batch=BATCH, precision="fp32", lr=1e-3)
        self.model, self.world = SideBySide(), world
        self.raw, self.cfg = raw, cfg
        self.restarts: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self.backend: Backend | None = None

    def start(self) -> Run:
        """Hand the model to the engine."""
        resolved = resolve(self.raw, self.cfg, self.world.size)
        self.backend = DeepSpeedBackend(self.model, self.cfg, resolved, self.world)
        return self

    def train(self, start: int, stop: int) -> Run:
        assert self.backend is not None
        for step in range(start, stop):
            losses = self.backend.forward(share(step, self.world))
            self.backend.backward(losses["loss"])
            self.backend.step(1e-3)
            for kind, quantizer in self.model.quantizers.items():
                readout = quantizer.update()  # type: ignore[operator,union-attr]
                if step >= small("residual").books:  # the first placing is over
                    self.restarts[kind] += readout["restarts"]
        return self

    def save(self, folder: Path, step: int) -> Run:
        trained, identity = self._trained()
        Saver(trained, folder, identity, self.cfg).save(Progress(step=step))
        return self

    def load(self, folder: Path) -> Run:
        trained, identity = self._trained()
        found = find_checkpoint(self.world, folder, identity, "auto")
        assert found is not None
        load_checkpoint(trained, found)
        return self

    def _trained(self) -> tuple[Trained, Identity]:
        assert self.backend is not None
        task: Any = SimpleNamespace(
            model=self.model,
            codebook={},
            core=lambda model: model,
            state=dict,
            load_state=lambda state: None,
        )
        average = Ema(self.backend.weights(), 0.9)
        identity = Identity("codec", "", "", "", self.backend.identity)
        return Trained(self.backend, average, self.world, task), identity

    def report(self) -> dict[str, Any]:
        """Hashes of every quantizer's buffers on this rank and, on rank 0, of the weights."""
        assert self.backend is not None
        buffers = {k: dict(q.named_buffers()) for k, q in self.model.quantizers.items()}
        return {
            "buffers": {kind: digest(found) for kind, found in buffers.items()},
            "finite": all(bool(b.isfinite().all()) for b in self.model.buffers()),
            "restarts": self.restarts,
            "updates": {kind: int(found["updates"]) for kind, found in buffers.items()},
            "sharded": self.backend.sharded,
            "weights": digest(self.backend.gather(self.backend.weights())),
        }

    def whole(self) -> dict[str, torch.Tensor]:
        """Weights and buffers on rank 0, what a consolidated file holds."""
        assert self.backend is not None
        weights = self.backend.gather(self.backend.weights())
        return weights | {k: b.clone() for k, b in self.model.named_buffers()}


def main(order_path: Path) -> None:
    torch.set_num_threads(1)
    order = json.loads(order_path.read_text())
    world, folder = join(group=True), order_path.parent
    raw = read_deepspeed(Path(order["file"]))
    results = {}
    run = Run(raw, world).start().train(0, order["saved"]).save(folder / "saved", order["saved"])
    results["straight"] = run.train(order["saved"], order["steps"]).report()
    whole = run.whole()
    if world.is_main:
        torch.save(whole, folder / "whole.pt")
    again = Run(raw, world).start().load(folder / "saved")
    results["resumed"] = again.train(order["saved"], order["steps"]).report()
    if order.get("state"):
        other = Run(raw, world).start().load(Path(order["state"]))
        results["elsewhere"] = other.train(order["saved"], order["steps"]).report()
    if order.get("start"):
        moved = Run(raw, world)
        given = torch.load(order["start"], weights_only=True)
        assert given.keys() >= named_weights(moved.model).keys()
        moved.model.load_state_dict(given, strict=False)
        moved.start().train(order["steps"], order["steps"] + order["on"])
        results["moved"] = moved.report()
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(results))
    leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
