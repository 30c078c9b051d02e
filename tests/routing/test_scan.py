"""Running sums against a slow loop in fp64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coterie.routing.scan import decayed_sum

lengths = st.lists(st.integers(1, 9), min_size=1, max_size=6)
decays = st.floats(0, 1)


def packed(document_lengths: list[int]) -> torch.Tensor:
    return torch.cat([torch.arange(n) for n in document_lengths])[None]


def slow(x_BTD: torch.Tensor, position_BT: torch.Tensor, decay: float | torch.Tensor) -> torch.Tensor:
    y_BTD = x_BTD.clone()
    for b, row in enumerate(position_BT):
        for t, position in enumerate(row):
            if position > 0:
                y_BTD[b, t] = x_BTD[b, t] + decay * y_BTD[b, t - 1]
    return y_BTD


@given(lengths, decays)
def test_equals_the_loop(document_lengths: list[int], decay: float) -> None:
    position_BT = packed(document_lengths)
    x_BTD = torch.randn(1, position_BT.shape[1], 3, dtype=torch.float64)
    assert torch.allclose(decayed_sum(x_BTD, position_BT, decay), slow(x_BTD, position_BT, decay), atol=1e-12)
    decay_D = torch.rand(3, dtype=torch.float64)
    assert torch.allclose(decayed_sum(x_BTD, position_BT, decay_D), slow(x_BTD, position_BT, decay_D), atol=1e-12)


@given(lengths, decays)
def test_packed_is_alone_bitwise(document_lengths: list[int], decay: float) -> None:
    position_BT = packed(document_lengths)
    x_BTD = torch.randn(1, position_BT.shape[1], 2)
    alone = [decayed_sum(x, packed([x.shape[1]]), decay) for x in x_BTD.split(document_lengths, dim=1)]
    assert torch.equal(decayed_sum(x_BTD, position_BT, decay), torch.cat(alone, dim=1))


@given(lengths, decays, st.data())
def test_goes_on_from_a_carry(document_lengths: list[int], decay: float, data: st.DataObject) -> None:
    position_BT = packed(document_lengths)
    T = position_BT.shape[1]
    cut = data.draw(st.integers(1, T))
    x_BTD = torch.randn(1, T, 2, dtype=torch.float64)
    whole = decayed_sum(x_BTD, position_BT, decay)
    first = decayed_sum(x_BTD[:, :cut], position_BT[:, :cut], decay)
    assert torch.allclose(first, whole[:, :cut], atol=1e-12)
    if cut < T:
        rest = decayed_sum(x_BTD[:, cut:], position_BT[:, cut:], decay, first[:, -1])
        assert torch.allclose(rest, whole[:, cut:], atol=1e-12)


def test_gradients() -> None:
    position_BT = packed([3, 5, 1])
    x_BTD = torch.randn(1, 9, 2, dtype=torch.float64, requires_grad=True)
    decay = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    carry_BD = torch.randn(1, 2, dtype=torch.float64, requires_grad=True)
    position_BT += position_BT < 3  # the first document goes on from the carry
    assert torch.autograd.gradcheck(lambda x, g, c: decayed_sum(x, position_BT, g, c), (x_BTD, decay, carry_BD))


@pytest.mark.parametrize("T", [1, 2, 3, 64, 65])
def test_long_rows_do_not_cancel(T: int) -> None:
    """A huge early document leaves no trace in a later one."""
    x_BTD = torch.cat([torch.full((1, T, 1), 1e8), torch.full((1, T, 1), 1e-3)], dim=1)
    y_BTD = decayed_sum(x_BTD, packed([T, T]))
    assert torch.allclose(y_BTD[0, T:, 0], 1e-3 * torch.arange(1, T + 1), rtol=1e-5)
