"""The perceptual net: what it computes, and which files it is read from or refuses."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
import torchmetrics.functional.image as torchmetrics_image
from safetensors.torch import save_file
from torch import nn

from mmprod.errors import ConfigError, IntegrityError, MmprodError
from mmprod.manifest import sha256_file
from mmprod.models.perceptual import Perceptual, load_perceptual
from tests.models.test_losses import photographs, worse

CONVOLUTIONS = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256}
CONVOLUTIONS |= dict.fromkeys((17, 19, 21, 24, 26, 28), 512)
HEADS = Path(torchmetrics_image.__file__).parent / "lpips_models" / "vgg.pth"
"""the published heads, which come with torchmetrics"""


def vgg16(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under torchvision's names, some of its classifier among them."""
    generator = torch.Generator().manual_seed(seed)
    tensors, current = {"classifier.6.bias": torch.zeros(1000)}, 3
    for index, width in CONVOLUTIONS.items():
        scale = (2 / (9 * current)) ** 0.5
        kernel = scale * torch.randn(width, current, 3, 3, generator=generator)
        tensors[f"features.{index}.weight"] = kernel
        tensors[f"features.{index}.bias"] = 0.1 * torch.randn(width, generator=generator)
        current = width
    return tensors


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(vgg16(), path)
    return path


def by_hand(a: torch.Tensor, b: torch.Tensor, heads: dict[str, torch.Tensor]) -> torch.Tensor:
    """LPIPS written out: torchvision's layer list, then eq. 1 of the paper."""
    tensors, total = vgg16(), torch.zeros(len(a))
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    f, g = (a - shift) / scale, (b - shift) / scale
    index, stage = 0, 0
    for index in range(30):
        if index in CONVOLUTIONS:
            weights = tensors[f"features.{index}.weight"], tensors[f"features.{index}.bias"]
            f, g = (nn.functional.conv2d(x, *weights, padding=1) for x in (f, g))
        elif index - 1 in CONVOLUTIONS:
            f, g = f.relu(), g.relu()
        else:
            f, g = (nn.functional.max_pool2d(x, 2) for x in (f, g))
        if index in (3, 8, 15, 22, 29):
            unit = [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in (f, g)]
            squares = (unit[0] - unit[1]).square()
            head = heads.get(f"lin{stage}.model.1.weight", torch.ones(1, f.shape[1], 1, 1))
            total += nn.functional.conv2d(squares, head).mean((1, 2, 3))
            stage += 1
    return total


@pytest.mark.parametrize("with_heads", [True, False])
def test_distance_is_lpips(trunk: Path, with_heads: bool) -> None:
    net = load_perceptual(trunk, HEADS if with_heads else None)
    heads = torch.load(HEADS, map_location="cpu", weights_only=True) if with_heads else {}
    x = photographs(32)
    y = worse(x)
    torch.testing.assert_close(net.distance(y, x), by_hand(y, x, heads), atol=1e-5, rtol=1e-4)
    assert net.trunk_sha256 == sha256_file(trunk)
    assert net.heads_sha256 == (sha256_file(HEADS) if with_heads else "")


def test_0_for_equal_pictures_and_grows_with_blur_and_noise(trunk: Path) -> None:
    net, x = load_perceptual(trunk), photographs(64)
    assert net.distance(x, x).tolist() == [0, 0, 0]

    def blur(side: int) -> torch.Tensor:
        return nn.functional.avg_pool2d(x, side, 1, side // 2, count_include_pad=False)

    for damaged in ([blur(3), blur(5), blur(9)], [worse(x, s) for s in (0.05, 0.2, 0.5)]):
        distances = torch.stack([net.distance(y, x) for y in damaged])
        assert (distances[0] > 0).all() and (distances.diff(dim=0) > 0).all()


def test_gradients_reach_the_picture_and_no_weight(trunk: Path) -> None:
    net = load_perceptual(trunk)
    flat = torch.zeros(1, 3, 32, 32, requires_grad=True)
    net.distance(flat, photographs(32)[:1]).sum().backward()
    assert flat.grad is not None and flat.grad.isfinite().all() and flat.grad.any()
    assert not any(p.requires_grad for p in net.parameters())


def test_bf16_autocast_stays_near_fp32(trunk: Path) -> None:
    net, x = load_perceptual(trunk), photographs(32)
    exact = net.distance(worse(x), x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net.distance(worse(x), x)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0)


def test_one_file_may_hold_both_and_both_formats_give_the_same(trunk: Path, tmp_path: Path) -> None:
    both = {**vgg16(), **torch.load(HEADS, map_location="cpu", weights_only=True)}
    path = tmp_path / "both.safetensors"
    save_file(both, path)
    apart, together = load_perceptual(trunk, HEADS), load_perceptual(path)
    assert together.heads_sha256 == together.trunk_sha256 == sha256_file(path)
    state = apart.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in together.state_dict().items())


def test_small_pictures_are_refused() -> None:
    x = torch.zeros(1, 3, 15, 64)
    with pytest.raises(ConfigError, match="too small"):
        Perceptual().distance(x, x)


class Executed:
    """What a hostile .pth would hold."""

    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("executed",))


def write(path: Path, content: object) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    return path


def changed(name: str, tensor: torch.Tensor | None) -> dict[str, torch.Tensor]:
    rest = {k: v for k, v in vgg16().items() if k != name}
    return rest if tensor is None else rest | {name: tensor}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: b"garbage", IntegrityError, "cannot be read"),
        (lambda: pickle.dumps(Executed(), protocol=2), IntegrityError, "cannot be read"),
        (lambda: [1, 2], ConfigError, "holds a list"),
        (lambda: {"a.weight": torch.ones(1)}, ConfigError, "it holds a.weight"),
        (lambda: changed("features.28.bias", None), ConfigError, "features.28.bias is missing"),
        (lambda: changed("features.2.weight", torch.ones(64)), ConfigError, r"has shape \(64,\)"),
        (
            lambda: changed("features.0.bias", torch.full((64,), torch.nan)),
            IntegrityError,
            "features.0.bias of .* is NaN",
        ),
    ],
)
def test_wrong_files_are_refused_with_a_hint(make, error, message, tmp_path, capsys) -> None:
    path = write(tmp_path / "weights.pth", make())
    with pytest.raises(error, match=message) as caught:
        load_perceptual(path)
    assert caught.value.hint and str(path) in caught.value.message
    assert caught.value.exit_code == (2 if error is ConfigError else 4)
    assert "executed" not in capsys.readouterr().out


def test_missing_files_and_files_without_heads_are_refused(trunk: Path, tmp_path: Path) -> None:
    with pytest.raises(MmprodError, match="does not exist"):
        load_perceptual(tmp_path / "none.pth")
    with pytest.raises(ConfigError, match="LPIPS heads for VGG16"):
        load_perceptual(trunk, trunk)
    (tmp_path / "broken.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(IntegrityError, match="cannot be read"):
        load_perceptual(tmp_path / "broken.safetensors")
