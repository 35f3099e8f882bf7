"""Ties of ids: only what the reference itself nearly chose, and only as near as a tie may be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mmprod.graphs.runner import Array, Ranked, Rivals, example_inputs
from mmprod.graphs.spec import Tensor
from mmprod.models.quantizers.search import nearest_in_graph, rivals_in
from mmprod.parity.candidates import Candidate
from mmprod.parity.cases import generated_cases
from mmprod.parity.check import check_graph
from mmprod.parity.compare import Stats, compare
from mmprod.parity.report import Row, Subject
from mmprod.parity.ties import UNKNOWN, needed_changes, settle
from mmprod.runners.torch import TorchRunner
from tests.parity.toy import SPECS, FakeRunner

ENCODE = SPECS["codec_encode"]
CODES = Tensor("codes", "int32", (1, 3), "codes", below=24)
REFERENCE = np.array([[4, 5, 6]], np.int32)
RIVALS = Rivals(
    np.array([[[4, 9], [5, 8], [6, 7]]], np.int32),
    np.array([[[0, 1e-6], [0, 0.2], [0, 3.0]]], np.float32),
)


def settled(candidate: Array, tie: float = 1e-5) -> Stats:
    return settle(compare(CODES, REFERENCE, candidate, "c"), REFERENCE, candidate, RIVALS, tie)


def test_equal_ids_need_no_change() -> None:
    assert not needed_changes(REFERENCE, REFERENCE, RIVALS).any()
    figures = settled(REFERENCE.copy()).figures()
    assert figures["settled"] == figures["agreement"] == 1 and figures["change"] == 0


@pytest.mark.parametrize(
    ("candidate", "settled_share", "change"),
    [
        ([9, 5, 6], 1.0, 1e-6),  # nearly chosen
        ([4, 8, 6], 2 / 3, 0.2),  # a rival, but far
        ([4, 5, 7], 2 / 3, UNKNOWN),  # no change of features explains it
        ([1, 5, 6], 2 / 3, UNKNOWN),  # never near
        ([9, 8, 6], 2 / 3, 0.2),
    ],
)
def test_raw_and_margin_aware_figures(
    candidate: list[int], settled_share: float, change: float
) -> None:
    ids = np.array([candidate], np.int32)
    figures = settled(ids).figures()
    assert figures["agreement"] == pytest.approx(float((ids == REFERENCE).mean()))
    assert figures["settled"] == pytest.approx(settled_share)
    assert figures["change"] == pytest.approx(change)


def test_nothing_is_a_tie_when_no_tie_is_allowed() -> None:
    assert settled(np.array([[9, 5, 6]], np.int32), tie=0.0).figures()["settled"] < 1


def test_what_one_case_does_not_know_the_whole_does_not_claim() -> None:
    known = settled(REFERENCE.copy())
    plain = compare(CODES, REFERENCE, REFERENCE, "c")
    for merged in (known.merge(plain), plain.merge(known)):
        assert "settled" not in merged.figures()
    assert known.merge(known).figures()["settled"] == 1


@pytest.mark.parametrize("unit", [False, True])
def test_the_change_is_what_it_takes_to_move_the_choice(unit: bool) -> None:
    torch.manual_seed(0)
    x, codes = torch.randn(2, 5, 4), torch.randn(12, 4)
    if unit:
        codes = nn.functional.normalize(codes, dim=1)
    chosen = nearest_in_graph(x, codes, unit=unit)
    ids, changes = rivals_in(x, codes, 4, unit=unit)
    assert ids.shape == changes.shape == (2, 5, 4)
    assert torch.equal(ids[..., 0].long(), chosen) and not changes[..., 0].any()
    for rival in range(1, 4):
        toward = codes[ids[..., rival].long()] - codes[chosen]
        step = nn.functional.normalize(toward, dim=2) * x.norm(dim=2, keepdim=True)
        size = changes[..., rival, None]
        scores = [
            nn.functional.linear(x + share * size * step, codes)
            - (0 if unit else codes.square().sum(1) / 2)
            for share in (0.999, 1.001)
        ]
        lead = [
            s.gather(2, chosen[..., None]) - s.gather(2, ids[..., rival, None].long())
            for s in scores
        ]
        assert (lead[0] > 0).all(), "a smaller change leaves the chosen code in front"
        assert (lead[1] < 0).all(), "a larger one does not"


def test_equal_codes_are_ties() -> None:
    codes = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    _, changes = rivals_in(torch.tensor([[[1.0, 0.2]]]), codes, 9, unit=True)
    assert changes.shape == (1, 1, 3) and changes[0, 0, 1] == 0 < changes[0, 0, 2]


class Search(nn.Module):
    """Mean colours of a picture's quarters looked up in a book with two nearly equal rows."""

    def __init__(self) -> None:
        super().__init__()
        book = torch.linspace(0, 255, 24)[:, None].repeat(1, 3)
        book[11] = book[10] + 1e-4
        self.register_buffer("book", book)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        quarters = pixels.double().view(-1, 2, 2, 2, 2, 3).mean(dim=(2, 4))
        return quarters.float().view(-1, 4, 3)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (nearest_in_graph(self.features(pixels), self.book, unit=False).int(),)

    def rivals(self, pixels: torch.Tensor) -> dict[str, tuple[torch.Tensor, ...]]:
        return {"codes": rivals_in(self.features(pixels), self.book, 4, unit=False)}


def judge(wrong: int, instead: int) -> Row:
    """A candidate that gives `instead` wherever the reference gives `wrong`, in one place."""
    runner = TorchRunner(ENCODE, Search())

    def run(inputs: dict[str, Array]) -> dict[str, Array]:
        codes = runner(inputs)["codes"].copy()
        places = np.argwhere(codes == wrong)
        if len(places):
            codes[tuple(places[0])] = instead
        return {"codes": codes}

    made = Candidate(
        Subject("torch-ort", ENCODE.name, "fp32"),
        lambda: FakeRunner(ENCODE, run),  # type: ignore[arg-type]
    )
    assert isinstance(runner, Ranked)
    (row,) = check_graph(ENCODE, generated_cases(ENCODE, (8,), 20), runner, [made])
    return row


def test_a_live_comparison_forgives_a_tie_and_nothing_else() -> None:
    runner = TorchRunner(ENCODE, Search())
    inputs = [example_inputs(ENCODE, 8, seed) for seed in range(20)]
    seen = np.concatenate([runner(i)["codes"] for i in inputs])
    chosen = next(code for code in (10, 11) if (seen == code).any())
    other = 21 - chosen
    row = judge(chosen, other)
    figures = row.outputs[0].figures
    assert figures["agreement"] < 1, "the raw figure shows it"
    assert (figures["settled"] < 1) is (figures["change"] > 2e-5)
    far = judge(chosen, 2)
    assert far.status == "fail" and "settled" in far.reason
    assert far.outputs[0].figures["change"] > 2e-5
