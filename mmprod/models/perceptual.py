"""Perceptual distance in the features of VGG16 (Simonyan and Zisserman 2015), from weights that the
user gives.

LPIPS (Zhang et al. 2018, sec. 3): features after the last convolution of each of the five stages,
unit length per place, squared differences, weighted per channel by learned heads, averaged over
places, summed over stages. Without heads every channel has weight 1 ("LPIPS baseline").

    a, b (B, 3, H, W) --scale--> VGG16 --relu1_2 .. relu5_3--> unit(F_a), unit(F_b)
        --sum over channels of w (F_a - F_b)^2, mean over places, sum over stages--> (B,)

Nothing is ever downloaded. Two files of the published weights are known by these names:
`vgg16-397923af.pth` (torchvision) holds the network, `vgg.pth` (LPIPS 0.1) the heads.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mmprod.errors import ConfigError, IntegrityError
from mmprod.manifest import sha256_file

logger = logging.getLogger(__name__)

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""output channels of VGG16's convolutions; a 2x2 maximum lies between stages"""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""of LPIPS: ImageNet's mean and deviation for pictures in [-1, 1]"""
SMALLEST = 16
"""smallest side of a picture: four halvings"""
EPSILON = 1e-8
SHOWN = 4
FORMS = "VGG16 in torchvision naming (features.0.weight ... features.28.bias)"


class Perceptual(nn.Module):
    """Distance of pictures; frozen. `trunk_sha256`, `heads_sha256`: the files it was read from
    (empty: no heads).
    """

    def __init__(self, *, trunk_sha256: str = "", heads_sha256: str = "") -> None:
        super().__init__()
        self.trunk_sha256, self.heads_sha256 = trunk_sha256, heads_sha256
        stages, current = [], 3
        for number, widths in enumerate(STAGES):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if number else []
            for width in widths:
                layers += [nn.Conv2d(current, width, 3, padding=1), nn.ReLU()]
                current = width
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self.heads = nn.ParameterList([torch.ones(widths[-1]) for widths in STAGES])
        self.register_buffer("shift", _per_channel(SHIFT), persistent=False)
        self.register_buffer("scale", _per_channel(SCALE), persistent=False)
        self.eval().requires_grad_(False)

    @property
    def files(self) -> dict[str, str]:
        """The hashes of the files it was read from, by what they hold."""
        found = {"perceptual": self.trunk_sha256, "perceptual_heads": self.heads_sha256}
        return {name: sha256 for name, sha256 in found.items() if sha256}

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b (B, 3, H, W) in [-1, 1], sides of at least 16 -> (B,) float32 >= 0; 0 for equal
        pictures.

        The gradient goes to `a` and `b`. Raises ConfigError for smaller pictures.
        """
        if min(a.shape[2:]) < SMALLEST:
            raise ConfigError(
                f"pictures of {a.shape[2]} x {a.shape[3]} pixels are too small for VGG16",
                hint=f"give pictures of at least {SMALLEST} pixels per side, or no such weights",
            )
        f, g = (self._scaled(x) for x in (a, b))
        total = torch.zeros(len(a), device=a.device)
        for stage, head in zip(self.stages, self.heads, strict=True):
            f, g = stage(f), stage(g)
            difference = (_unit(f) - _unit(g)).square()
            total = total + torch.einsum("bchw,c->bhw", difference, head).mean((1, 2))
        return total

    def _scaled(self, x: Tensor) -> Tensor:
        return (x - self.get_buffer("shift")) / self.get_buffer("scale")


def _per_channel(values: Sequence[float]) -> Tensor:
    """(1, C, 1, 1), made in one go: fake tensor modes refuse operations on a tensor from a list."""
    return torch.tensor([[[[value]] for value in values]])


def _unit(features: Tensor) -> Tensor:
    """Unit length over channels, fp32, with a finite gradient where all channels are 0."""
    with torch.autocast(features.device.type, enabled=False):
        features = features.float()
        return features / torch.sqrt(features.square().sum(1, keepdim=True) + EPSILON)


def load_perceptual(trunk: Path, heads: Path | None = None) -> Perceptual:
    """The network of the file `trunk`, with LPIPS heads from `heads` or from `trunk` itself when it
    holds any (`lin0.model.1.weight` ...).

    Files are .safetensors, or .pth read without executing anything. Logs the hashes. Raises
    ConfigError for a file that is missing or holds something else, IntegrityError for one that
    cannot be read or holds NaN.
    """
    tensors = _read(trunk)
    given = tensors if heads is None else _read(heads)
    found = "lin0.model.1.weight" in given
    if heads is not None and not found:
        raise _wrong(heads, given, "lin0.model.1.weight is missing", "LPIPS heads for VGG16")
    net = Perceptual(
        trunk_sha256=sha256_file(trunk), heads_sha256=sha256_file(heads or trunk) if found else ""
    )
    for name, parameter in _trunk_names(net).items():
        _copy(trunk, tensors, name, parameter)
    if found:
        for number, head in enumerate(net.heads):
            _copy(heads or trunk, given, f"lin{number}.model.1.weight", head)
    logger.info(
        "perceptual: VGG16 from %s (sha256 %s), %s",
        trunk,
        net.trunk_sha256,
        f"LPIPS heads from {heads or trunk} (sha256 {net.heads_sha256})"
        if found
        else "no LPIPS heads: every channel has weight 1",
    )
    return net


def _trunk_names(net: Perceptual) -> dict[str, nn.Parameter]:
    """torchvision's name of every weight: it counts all layers, also those without weights."""
    layers = [layer for stage in net.stages for layer in stage.children()]
    return {
        f"features.{index}.{kind}": layer.get_parameter(kind)
        for index, layer in enumerate(layers)
        if isinstance(layer, nn.Conv2d)
        for kind in ("weight", "bias")
    }


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise ConfigError(
            f"perceptual weights: {path} does not exist"
            + ("" if path.is_absolute() else f" in {Path.cwd()}, where the command runs"),
            hint=f"give a file with {FORMS}",
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise IntegrityError(
            f"perceptual weights: {path} cannot be read: {str(error).splitlines()[0]}",
            hint="give a good copy, as .safetensors or as a .pth that holds tensors only",
        ) from error
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise ConfigError(
            f"perceptual weights: {path} holds a {type(content).__name__}, not named tensors",
            hint=f"save its state_dict: {FORMS}",
        )
    return content


def _copy(path: Path, tensors: Mapping[str, Tensor], name: str, parameter: nn.Parameter) -> None:
    """Fill `parameter` from the file's tensor `name`; a head (1, C, 1, 1) fits (C,)."""
    if name not in tensors:
        raise _wrong(path, tensors, f"{name} is missing", FORMS)
    tensor, shape = tensors[name], tuple(parameter.shape)
    wanted = (1, *shape, 1, 1) if name.startswith("lin") else shape
    if tuple(tensor.shape) != wanted:
        what = f"{name} has shape {tuple(tensor.shape)}, not {wanted}"
        raise _wrong(path, tensors, what, FORMS)
    if not tensor.isfinite().all():
        raise IntegrityError(
            f"perceptual weights: {name} of {path} is NaN or infinite", hint="give a good copy"
        )
    parameter.data.copy_(tensor.view(shape))


def _wrong(path: Path, tensors: Mapping[str, Tensor], what: str, wanted: str) -> ConfigError:
    names = list(tensors)
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ConfigError(
        f"perceptual weights: {path} is no {wanted}: {what}; "
        f"it holds {', '.join(names[:SHOWN]) or 'nothing'}{rest}",
        hint=f"give a file with {FORMS}",
    )
