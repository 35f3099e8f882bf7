"""The quantizer: exact straight-through values, averages, restarts, health readouts."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mmprod.models.quantizers.book import Rules
from mmprod.models.quantizers.spherical import SphericalQuantizer


def quantizer(size: int = 64, dim: int = 4, restart: bool = True) -> SphericalQuantizer:
    return SphericalQuantizer(size, dim, Rules(0.9, restart, unit=True), commitment=0.25)


def latents(seed: int, batch: int = 4, dim: int = 4) -> torch.Tensor:
    return torch.randn(batch, dim, 3, 5, generator=torch.Generator().manual_seed(seed))


def test_values_are_exactly_codes_and_gradients_pass_straight_through() -> None:
    q = quantizer()
    z = latents(0).requires_grad_()
    out = q(z)
    assert torch.equal(out.latents, q.decode(out.codes, (3, 5)))
    weight = torch.randn_like(out.latents)
    (out.latents * weight).sum().backward()
    unit = latents(0).requires_grad_()
    (F.normalize(unit, dim=1) * weight).sum().backward()
    assert z.grad is not None and unit.grad is not None
    torch.testing.assert_close(z.grad, unit.grad)


def test_training_search_and_exported_search_agree() -> None:
    q = quantizer(size=300)
    z = latents(1, batch=40)
    assert torch.equal(q(z).codes.to(torch.int32), q.encode(z))


def test_search_finds_the_nearest_code() -> None:
    q = quantizer()
    z = latents(2)
    flat = F.normalize(z, dim=1).permute(0, 2, 3, 1).reshape(-1, 4)
    nearest = torch.cdist(flat.double(), q.codes.double()).argmin(1)
    assert torch.equal(q.encode(z).flatten().long(), nearest)


def test_first_update_places_every_code_on_features() -> None:
    q = quantizer().train()
    z = latents(3)
    q(z)
    readout = q.update()
    assert readout["restarts"] == 64
    flat = F.normalize(z, dim=1).permute(0, 2, 3, 1).reshape(-1, 4)
    assert float((q.codes @ flat.T).amax(1).min()) > 0.99
    torch.testing.assert_close(q.codes.norm(dim=1), torch.ones(64))


def test_codes_move_to_the_average_of_their_tokens() -> None:
    q = quantizer(size=2, dim=2, restart=False).train()
    z = torch.tensor([[1.0, 0.2], [1.0, -0.2]])[:, :, None, None]
    for _ in range(80):
        q(z)
        q.update()
    mean = F.normalize(F.normalize(z.flatten(1), dim=1).mean(0), dim=0)
    used = q.encode(z).flatten().unique()
    if len(used) == 1:
        torch.testing.assert_close(q.codes[int(used)], mean, atol=1e-4, rtol=0)
    else:
        found = q.codes[q.encode(z).flatten().long()]
        torch.testing.assert_close(found, F.normalize(z.flatten(1), dim=1), atol=1e-4, rtol=0)


def test_an_unused_code_is_restarted_and_its_average_reset() -> None:
    q = quantizer(size=8).train()
    q(latents(4))
    q.update()
    lost = F.normalize(torch.tensor([-1.0, 0.0, 0.0, 0.0]), dim=0)
    z = latents(5)
    z[:, 0] = z[:, 0].abs() + 3
    q.codes[0], q.book.averages[0, 1:] = lost, 5 * lost
    restarts = 0.0
    for _ in range(20):
        q(z)
        restarts += q.update()["restarts"]
    assert restarts >= 1
    assert float(q.codes[0] @ lost) < 0
    assert float(q.book.averages[0, 1:] @ lost) < 0


def test_evaluation_gathers_nothing() -> None:
    q = quantizer().eval()
    before = q.codes.clone()
    q(latents(6))
    assert q.update() == {}
    assert torch.equal(q.codes, before)


def test_quantizer_stays_in_fp32_under_autocast() -> None:
    q = quantizer(size=300)
    z = latents(7, batch=40)
    with torch.autocast("cpu", torch.bfloat16):
        out = q(z)
    assert out.latents.dtype == torch.float32
    assert torch.equal(out.codes, quantizer(size=300)(z).codes)


def test_restart_pool_is_the_same_for_any_cut_of_the_batch() -> None:
    """More tokens than the pool holds, in one micro-batch or in four: the same codebook."""
    z = torch.randn(64, 4, 16, 8, generator=torch.Generator().manual_seed(8))
    whole, cut = quantizer(size=200).train(), quantizer(size=200).train()
    whole(z)
    for part in z.split(16):
        cut(part)
    assert whole.update()["restarts"] == cut.update()["restarts"] == 200
    torch.testing.assert_close(whole.codes, cut.codes)
