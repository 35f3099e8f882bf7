"""An attribute classifier trained on real pictures: does a generated face follow its caption?

A small convolutional network with one head per attribute. It is trained on blurred, blocky, noisy
and shifted copies, so that what a codec does to a picture does not by itself change a verdict. It
never sees a generated picture.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mmprod.data.attributes import ATTRIBUTES, HIDDEN, SCORED
from mmprod.errors import ConfigError, IntegrityError
from mmprod.evaluation.agreement import attribute_agreement
from mmprod.manifest import read_json, sha256_file, write_json

FORMAT = 1
_INPUT = 64  # pixels: what the network looks at, whatever the picture's size
_BATCH = 64
_IGNORED = -100
_HINT = "train it again with `mmprod eval`"

logger = logging.getLogger(__name__)


class _Net(nn.Module):
    """pixels (B, 3, 64, 64) in [0, 1] -> one row of logits per sample, all heads side by side.

    patches of 4 -> 48 @16 -> 64 @16 -> 128 @8 -> 128 @8 -> mean to 4x4 -> linear
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            _stage(3, 48, kernel=4, stride=4),
            _stage(48, 64, kernel=3, stride=1),
            _stage(64, 128, kernel=3, stride=2),
            _stage(128, 128, kernel=3, stride=1),
        )
        self.head = nn.Linear(128 * 4 * 4, outputs)

    def forward(self, pixels: Tensor) -> Tensor:
        features = F.adaptive_avg_pool2d(self.stages(pixels - 0.5), 4)  # (B, 128, 4, 4)
        logits: Tensor = self.head(features.flatten(1))
        return logits


def _stage(inputs: int, outputs: int, *, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel % 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Judge:
    """Reads attributes off pictures. Make one with `train_judge` or `Judge.load`."""

    def __init__(self, net: _Net, names: tuple[str, ...]) -> None:
        self.names = names
        """The attributes it reads."""
        self._net = net.eval()

    @torch.inference_mode()
    def predict(self, images: NDArray[np.uint8]) -> list[dict[str, str]]:
        """images (N, H, W, 3) uint8 -> attributes of each.

        Hair under a hat is `HIDDEN`, as in the data.
        """
        rows = [
            self._net(_shrink(_pixels(images[i : i + 256]))) for i in range(0, len(images), 256)
        ]
        if not rows:
            return []
        heads = torch.split(torch.cat(rows), [len(ATTRIBUTES[name]) for name in self.names], dim=1)
        chosen = [head.argmax(1).tolist() for head in heads]
        return [
            _hide({n: ATTRIBUTES[n][v] for n, v in zip(self.names, values, strict=True)})
            for values in zip(*chosen, strict=True)
        ]

    @torch.inference_mode()
    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """images (N, H, W, 3) uint8 -> what it sees in each, averaged over places: (N, 128)."""
        rows = [
            self._net.stages(_shrink(_pixels(images[i : i + 256])) - 0.5).mean((2, 3))
            for i in range(0, len(images), 256)
        ]
        return np.asarray(torch.cat(rows).numpy())

    def accuracy(
        self, images: NDArray[np.uint8], attributes: Sequence[Mapping[str, str]]
    ) -> dict[str, float]:
        """Share of visible attributes read as stated:

        One figure per attribute, "overall" over `SCORED`.
        """
        got = self.predict(images)
        headline = [name for name in SCORED if name in self.names]
        overall = attribute_agreement(attributes, got, headline or self.names)["overall"]
        return attribute_agreement(attributes, got, self.names) | {"overall": overall}

    def save(self, folder: Path) -> None:
        """Write judge.safetensors and judge.json into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = folder / "judge.safetensors"
        save_file({name: t.contiguous() for name, t in self._net.state_dict().items()}, weights)
        about = {"kind": "judge", "format": FORMAT, "names": list(self.names)}
        write_json(folder / "judge.json", about | {"sha256": sha256_file(weights)})

    @classmethod
    def load(cls, folder: Path) -> Judge:
        """Read what `save` wrote.

        Raises IntegrityError when it is missing, changed or of another format.
        """
        about = read_json(folder / "judge.json", hint=_HINT)
        if not isinstance(about, dict) or not {"kind", "format", "names", "sha256"} <= set(about):
            raise IntegrityError(f"{folder / 'judge.json'} does not describe a judge", hint=_HINT)
        names, weights = tuple(about["names"]), folder / "judge.safetensors"
        if (about["kind"], about["format"]) != ("judge", FORMAT) or not set(names) <= set(
            ATTRIBUTES
        ):
            raise IntegrityError(f"{folder} does not hold a judge of format {FORMAT}", hint=_HINT)
        if not weights.is_file() or sha256_file(weights) != about["sha256"]:
            raise IntegrityError(f"{weights} is missing or was changed", hint=_HINT)
        net = _Net(_outputs(names))
        try:
            net.load_state_dict(load_file(weights))
        except (SafetensorError, RuntimeError) as error:
            raise IntegrityError(
                f"{weights} does not fit this version: {error}", hint=_HINT
            ) from error
        return cls(net, names)


def train_judge(
    images: NDArray[np.uint8],
    attributes: Sequence[Mapping[str, str]],
    *,
    steps: int,
    seed: int,
    names: Sequence[str] = tuple(ATTRIBUTES),
) -> Judge:
    """Train on real pictures (N, H, W, 3) uint8 and their attributes; hidden ones teach nothing.

    Deterministic by `seed` at a given number of threads. Raises ConfigError for unusable input.
    """
    if len(images) != len(attributes) or not len(images) or steps < 1:
        raise ConfigError(
            f"{len(images)} pictures, {len(attributes)} sets of attributes, {steps} steps",
            hint="give one set of attributes per picture, and at least one step",
        )
    sizes = [len(ATTRIBUTES[name]) for name in names]
    targets = _targets(attributes, names)
    pixels = _pixels(images)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _Net(_outputs(names))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1.0, weight_decay=0.02)
    net.train()
    for step in range(steps):
        chosen = torch.randint(len(pixels), (_BATCH,), generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, steps)
        batch = _distort(pixels[chosen], generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=_bfloat16_pays()):
            logits = net(batch.contiguous(memory_format=torch.channels_last))
        heads = zip(torch.split(logits.float(), sizes, 1), targets[chosen].unbind(1), strict=True)
        loss = torch.stack([_cross_entropy(head, target) for head, target in heads]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    logger.info("judge: %d steps on %d pictures, last loss %.3f", steps, len(images), loss.item())
    return Judge(net, tuple(names))


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over the visible values; 0 when the batch holds none."""
    total = F.cross_entropy(
        logits, target, ignore_index=_IGNORED, reduction="sum", label_smoothing=0.02
    )
    return total / (target != _IGNORED).sum().clamp(min=1)


def _learning_rate(step: int, steps: int) -> float:
    """Linear warm-up over a tenth, then half a cosine to zero."""
    done = (step + 1) / steps
    return 4e-3 * min(1.0, done / 0.1) * 0.5 * (1 + math.cos(math.pi * done))


def _bfloat16_pays() -> bool:
    """True where the processor multiplies bfloat16 in hardware; elsewhere it would be emulated."""
    return (
        bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and torch.cpu._is_avx512_bf16_supported()
    )


def _targets(attributes: Sequence[Mapping[str, str]], names: Sequence[str]) -> Tensor:
    rows = []
    for sample in attributes:
        values = [(name, sample.get(name, HIDDEN)) for name in names]
        rows.append([_IGNORED if v == HIDDEN else ATTRIBUTES[n].index(v) for n, v in values])
    return torch.tensor(rows)


def _outputs(names: Sequence[str]) -> int:
    return sum(len(ATTRIBUTES[name]) for name in names)


def _pixels(images: NDArray[np.uint8]) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255


def _shrink(pixels: Tensor) -> Tensor:
    return F.interpolate(pixels, (_INPUT, _INPUT), mode="bilinear", antialias=True)


def _distort(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """One shift for the batch; mirror, blur or blocks, colour cast, noise for each sample.

    pixels (B, 3, H, W) in [0, 1] -> (B, 3, 64, 64) in [0, 1]
    """

    def uniform(low: float, high: float, channels: int = 1) -> Tensor:
        drawn = torch.rand((len(pixels), channels, 1, 1), generator=generator)
        return low + (high - low) * drawn

    height, width = pixels.shape[2:]
    reach = max(1, height // 16)
    down, right = torch.randint(2 * reach + 1, (2,), generator=generator).tolist()
    padded = F.pad(pixels, (reach,) * 4, mode="replicate")
    image = _shrink(padded[:, :, down : down + height, right : right + width])
    image = torch.where(uniform(0, 1) < 0.5, image.flip(-1), image)
    blurred = F.interpolate(F.avg_pool2d(image, 2), scale_factor=2, mode="bilinear")
    blocks = F.interpolate(F.avg_pool2d(image, 4), scale_factor=4, mode="nearest")
    kind, amount = uniform(0, 1), uniform(0, 1)
    image = torch.where(kind < 0.4, torch.lerp(image, blurred, amount), image)
    image = torch.where(kind > 0.8, torch.lerp(image, blocks, 0.5 * amount), image)
    image = image * uniform(0.92, 1.08, 3) + uniform(-0.04, 0.04, 3)
    noise = torch.randn(image.shape, generator=generator) * uniform(0, 0.06)
    return (image + noise).clamp(0, 1)


def _hide(attributes: dict[str, str]) -> dict[str, str]:
    """What the data set hides is hidden in a reading too:

    Hair under a hat, the hair colour of a bald head.
    """
    covered = attributes.get("hat", "none") != "none"
    unseen = {"hair", "hair_color"} if covered else set()
    if attributes.get("hair") == "bald":
        unseen.add("hair_color")
    return {name: HIDDEN if name in unseen else value for name, value in attributes.items()}
