"""What holds for every quantizer: exact values, gradients, legal codes, health readouts, export."""

from __future__ import annotations

import io
import math

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from mmprod.export.onnx_export import Part, export_part
from mmprod.models.quantizers.base import WINDOW, Quantizer
from mmprod.models.quantizers.gradients import rotation, straight_through
from tests.models.kinds import KINDS, MOVING, TURNED, latents, quantizer, trained

every = pytest.mark.parametrize("kind", sorted(KINDS))


@every
def test_latents_are_exactly_what_the_codes_stand_for(kind: str) -> None:
    q = trained(kind)
    z = latents(q, 0)
    out = q(z)
    assert out.latents.dtype == torch.float32 and out.latents.shape == z.shape
    assert torch.equal(out.latents, q.decode(out.codes, (3, 5)))
    assert torch.equal(q.encode(z), out.codes.to(torch.int32))
    assert q.encode(z).dtype == torch.int32


@every
def test_an_id_lies_in_its_plane_and_adds_its_row_of_the_table(kind: str) -> None:
    q = trained(kind)
    codes = q.encode(latents(q, 1))
    assert codes.shape == (8, q.planes * 15)
    planes = codes.view(8, q.planes, 3, 5).long()
    size = q.codebook_size // q.planes
    assert torch.equal(planes // size, torch.arange(q.planes)[:, None, None].expand_as(planes))
    table = q.table()
    assert table.shape == (q.codebook_size, q.dim) and table.dtype == torch.float32
    summed = table[planes].sum(1).permute(0, 3, 1, 2)
    torch.testing.assert_close(summed, q.decode(codes, (3, 5)), atol=1e-6, rtol=0)


@every
def test_any_id_at_any_place_can_be_decoded(kind: str) -> None:
    q = trained(kind)
    codes = torch.arange(q.planes * 15).flip(0)[None] % q.codebook_size
    assert torch.isfinite(q.decode(codes.int(), (3, 5))).all()


@every
def test_the_order_of_the_batch_does_not_matter(kind: str) -> None:
    q = trained(kind)
    z = latents(q, 2)
    assert torch.equal(q.encode(z).flip(0), q.encode(z.flip(0)))
    assert torch.equal(q(z).codes.flip(0), q(z.flip(0)).codes)


@every
def test_autocast_changes_nothing(kind: str) -> None:
    q = trained(kind)
    z = latents(q, 3).to(torch.bfloat16)
    plain, encoded = q(z.float()), q.encode(z.float())
    with torch.autocast("cpu", torch.bfloat16):
        out = q(z)
        assert torch.equal(q.encode(z), encoded)
        assert torch.equal(q.decode(encoded, (3, 5)), out.latents)
    assert torch.equal(out.codes, plain.codes) and torch.equal(out.latents, plain.latents)
    assert torch.equal(out.encoder_loss, plain.encoder_loss)


@every
def test_every_parameter_and_the_latents_get_a_gradient(kind: str) -> None:
    q = trained(kind)
    z = latents(q, 4).requires_grad_()
    out = q(z)
    ((out.latents * torch.rand_like(z).add(1)).sum() + out.encoder_loss).backward()
    assert z.grad is not None and bool((z.grad != 0).any(1).all())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in q.parameters())


@pytest.mark.parametrize("kind", ["euclid", "simvq", "lfq", "residual", "product-euclid"])
def test_the_gradient_passes_straight_through(kind: str) -> None:
    q = trained(kind)
    z = latents(q, 5).requires_grad_()
    weight = torch.randn(z.shape)
    (q(z).latents * weight).sum().backward()
    assert z.grad is not None and torch.equal(z.grad, weight)


@pytest.mark.parametrize("kind", TURNED)
def test_a_rotated_gradient_changes_no_value(kind: str) -> None:
    straight, turned = trained(kind), trained(kind, gradient="rotation")
    z = latents(straight, 6)
    assert torch.equal(straight(z).latents, turned(z).latents)
    a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
    straight(a).latents.square().sum().backward()
    turned(b).latents.square().sum().backward()
    assert a.grad is not None and b.grad is not None and not torch.allclose(a.grad, b.grad)


def test_rotation_turns_and_scales_the_gradient() -> None:
    """Against the formula: |q|/|z| R with R the rotation in the plane of z and q, per vector."""
    generator = torch.Generator().manual_seed(0)
    z, q, g = (torch.randn(20, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    leaf = z.clone().requires_grad_()
    out = rotation(leaf, q)
    assert torch.equal(out, q)
    (out * g).sum().backward()
    assert leaf.grad is not None
    for i in range(20):
        a, b = z[i] / z[i].norm(), q[i] / q[i].norm()
        axis = b - (a @ b) * a
        axis = axis / axis.norm()
        cosine, sine = a @ b, axis @ b
        plane = torch.stack([a, axis], dim=1)
        turn = torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)
        matrix = torch.eye(5, dtype=torch.float64) + plane @ (turn - torch.eye(2)) @ plane.T
        torch.testing.assert_close(matrix @ a, b)
        expected = q[i].norm() / z[i].norm() * (matrix.T @ g[i])
        torch.testing.assert_close(leaf.grad[i], expected)


def test_rotation_survives_opposite_and_zero_vectors() -> None:
    """No rotation there: the gradient is copied, also where it is nearly so."""
    z = torch.tensor([[1.0, 0.0], [1.0, 1e-6], [0.0, 0.0], [1e-7, 0.0], [1.0, 2.0]])
    q = torch.tensor([[-2.0, 0.0], [-2.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    z.requires_grad_()
    out, slope = rotation(z, q), torch.tensor([3.0, -1.0])
    (out * slope).sum().backward()
    assert z.grad is not None and torch.equal(z.grad, slope.expand(5, 2))
    assert torch.equal(out, q) and torch.equal(straight_through(z, q), q)


@every
def test_readouts_equal_numpy(kind: str) -> None:
    q = quantizer(kind)
    counts, last = np.zeros(q.codebook_size), np.zeros(q.codebook_size, np.int64)
    for step in range(1, 4):
        z = latents(q, step)
        out = q(z)
        codes = out.codes.numpy()
        counts += np.bincount(codes.ravel(), minlength=q.codebook_size)
        last[np.unique(codes)] = step * 8 * 15
        readout = q.update()
    share = counts / counts.sum()
    np.testing.assert_allclose(q.rate.numpy(), share, atol=1e-6)
    np.testing.assert_array_equal(q.seen.numpy(), last)
    used = share[share > 0]
    assert readout["perplexity"] == pytest.approx(math.exp(-(used * np.log(used)).sum()), rel=1e-4)
    assert readout["usage"] == pytest.approx((counts > 0).mean())
    assert set(readout) == {"usage", "perplexity", "restarts", "snr"}
    if kind in ("euclid", "residual", "simvq", "lfq"):
        z64, error = z.double(), (z - out.latents.detach()).double()
        snr = 10 * math.log10(z64.square().sum() / error.square().sum())
        assert readout["snr"] == pytest.approx(snr, abs=1e-3)


@every
def test_usage_forgets_after_the_window(kind: str) -> None:
    q = trained(kind)
    q.seen.fill_(1)
    q.tokens.fill_(WINDOW + 1)
    z = latents(q, 7)
    q(z)
    expected = len(q.encode(z).unique()) / q.codebook_size
    assert q.update()["usage"] == pytest.approx(expected)
    assert float(q.rate.sum()) == pytest.approx(1, abs=1e-5)


@every
def test_evaluation_and_an_update_without_training_change_nothing(kind: str) -> None:
    q = trained(kind).eval()
    before = {name: tensor.clone() for name, tensor in q.named_buffers()}
    q(latents(q, 8))
    assert q.update() == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in q.named_buffers())


@every
def test_micro_batches_count_like_one_batch(kind: str) -> None:
    whole, cut = trained(kind), trained(kind)
    z = latents(whole, 9)
    whole(z)
    for part in z.split(2):
        cut(part)
    a, b = whole.update(), cut.update()
    assert a == pytest.approx(b, abs=1e-4)
    for name, tensor in whole.named_buffers():
        torch.testing.assert_close(tensor, cut.get_buffer(name), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", MOVING)
def test_no_code_stays_unused(kind: str) -> None:
    """Codes of every book far from all latents come back within the patience, and only then."""
    q = trained(kind)
    size = q.codebook_size // q.planes
    far = torch.zeros_like(q.book.codes)  # type: ignore[operator,union-attr]
    far[:, 0] = 1.0 if kind in ("spherical", "product") else 1e3
    lost = torch.arange(q.codebook_size) % size < 3
    q.book.codes[lost] = far[lost]  # type: ignore[index,union-attr]
    restarts = []
    for step in range(20):
        z = latents(q, 20 + step)
        if kind == "spherical":
            z[:, 0] = -z[:, 0].abs() - 2
        if kind == "product":
            z[:, 0], z[:, 2] = -z[:, 0].abs() - 2, -z[:, 2].abs() - 2
        q(z)
        restarts.append(q.update()["restarts"])
    assert sum(restarts[:9]) == 0 and sum(restarts) >= int(lost.sum())
    assert not torch.equal(q.book.codes[lost], far[lost])  # type: ignore[index,union-attr]


class RoundTrip(nn.Module):
    """z -> codes -> latents, as the exported graphs compute them."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.quantizer.encode(z)
        return codes, self.quantizer.decode(codes, (3, 5))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"spherical-rotation"}))
def test_the_exported_graph_gives_the_same_codes(kind: str) -> None:
    q = trained(kind).eval()
    z = latents(q, 10)
    model = export_part(
        Part("round_trip", RoundTrip(q), ("z",), ("codes", "latents"), (z,), ("batch",))
    )
    allowed = {
        "Add", "ArgMax", "Cast", "Clip", "Concat", "Div", "Expand", "Gather", "Gemm", "Greater",
        "MatMul", "Mul", "Pow", "ReduceL2", "ReduceSum", "Reshape", "Round", "Shape", "Slice",
        "Split", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
    }  # fmt: skip
    assert {node.op_type for node in model.graph.node} <= allowed
    buffer = io.BytesIO(model.SerializeToString())
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    many = latents(q, 11, batch=40)
    codes, decoded = session.run(None, {"z": many.numpy()})
    assert np.array_equal(codes, q.encode(many).numpy())
    np.testing.assert_allclose(decoded, q.decode(q.encode(many), (3, 5)).detach(), atol=1e-6)
