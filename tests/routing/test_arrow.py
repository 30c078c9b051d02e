"""Prototypes against the singular value decomposition of updates that are multiplied out, and against PEFT's Arrow."""

from __future__ import annotations

import pytest
import torch

from coterie.routing.arrow import prototype


@pytest.mark.parametrize(("rank", "parts"), [(1, 1), (3, 1), (4, 3), (9, 2)])
def test_it_is_the_first_right_singular_vector(rank: int, parts: int) -> None:
    torch.manual_seed(rank)
    factors = [(torch.randn(rank, 7), torch.randn(5, rank)) for _ in range(parts)]
    whole = torch.cat([B @ A for A, B in factors])
    expected = torch.linalg.svd(whole.double()).Vh[0]
    found = prototype(factors)
    assert torch.allclose((found.double() @ expected).abs(), torch.ones((), dtype=torch.float64), atol=1e-6)
    assert found[found.abs().argmax()] > 0


def test_scales_and_what_is_equal_do_not_change_it() -> None:
    A, B = torch.randn(3, 7), torch.randn(5, 3)
    torch.testing.assert_close(prototype([(A, B)]), prototype([(2 * A, 0.3 * B)]), atol=1e-5, rtol=1e-5)


def test_nothing_has_no_direction() -> None:
    assert torch.equal(prototype([(torch.randn(3, 7), torch.zeros(5, 3))]), torch.zeros(7))


def test_it_is_what_peft_finds_by_iteration() -> None:
    from peft.tuners.lora.arrow import ArrowLoraLinearLayer

    torch.manual_seed(0)
    A, B = torch.randn(4, 12), torch.randn(9, 4)
    layer = ArrowLoraLinearLayer.__new__(ArrowLoraLinearLayer)
    torch.nn.Module.__init__(layer)
    layer.rng_seed = 0
    theirs = layer.top_right_singular_vec_from_BA(A, B, iters=300)
    assert (theirs @ prototype([(A, B)])).abs().item() == pytest.approx(1.0, abs=1e-4)
