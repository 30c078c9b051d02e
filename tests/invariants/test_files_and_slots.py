"""Save and load (8), and slots are free (10): on disk, in memory, in expert runs, in operators."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from tests.invariants.cases import Runs, ids, mixture, settings, some
from tests.mixtures.built import members, recipe, whole
from tests.routing.cases import RECIPES, name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from coterie.mixtures.load import load
from coterie.mixtures.outputs.outputs_place import materialise
from coterie.routing.output_routers import OutputRouter
from coterie.store import Store


@given(case=settings())
def test_8_saved_and_loaded(tmp_path_factory: pytest.TempPathFactory, case: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("saved")
    m, x_BT = mixture(some(case["counts"]), **case), ids()
    m.save_pretrained(folder / "one")
    shutil.move(folder / "one", folder / "two")
    opened = AutoModelForCausalLM.from_pretrained(folder / "two")
    for time in (None, "2015-03-01"):
        assert torch.equal(opened.log_probs(x_BT, time=time), m.log_probs(x_BT, time=time))
        assert torch.equal(opened.weights(x_BT, time=time), m.weights(x_BT, time=time))
    assert opened.slots == m.slots
    assert opened.state_dict().keys() == m.state_dict().keys()
    shutil.rmtree(folder)


class Operators(TorchDispatchMode):
    """Counts what torch computes."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def quick(kind: type[OutputRouter]) -> dict[str, Any]:
    """Settings of a kind that are fitted in seconds."""
    return {"kind": kind.tag()} | {key: 1 for key in ("epochs",) if key in kind.model_fields}


@pytest.mark.parametrize("router", [quick(kind) for kind in OutputRouter.members()], ids=lambda r: r["kind"])
def test_10_thirty_two_slots_cost_what_two_do(store: Store, tiny_tokenizer: Path, tmp_path: Path, router: Any) -> None:
    opened = []
    for repeats in (1, 16):
        seated = members(store, tiny_tokenizer, repeats=repeats)
        target = materialise(whole(store, tiny_tokenizer, recipe(seated, router), seated), seated, tmp_path / f"{repeats}")
        opened.append((load(target), size(target)))
    (few, few_bytes), (many, many_bytes) = opened
    assert len(many.slots) == 32
    lines = len((tmp_path / "16" / "config.json").read_bytes()) - len((tmp_path / "1" / "config.json").read_bytes())
    assert many_bytes - few_bytes == lines  # the list of slots, some bytes each
    assert lines < 32 * 100
    assert sum(p.numel() for p in many.parameters()) == sum(p.numel() for p in few.parameters())
    assert sum(1 for _ in many.modules()) == sum(1 for _ in few.modules())
    x_BT, costs = ids(), []
    for m in (few, many):
        m.nll(x_BT)  # what is measured once on an architecture is not counted
        with Runs(m) as runs, FlopCounterMode(display=False) as flops, Operators() as operators:
            nll_BT1 = m.nll(x_BT)
        costs.append((runs.of, flops.get_total_flops(), operators.count))
    assert costs[0] == costs[1]
    assert torch.allclose(nll_BT1, few.nll(x_BT), atol=1e-5 if router == {"kind": "uniform"} else 0.1)


@pytest.mark.parametrize("router", RECIPES, ids=name)
def test_10_a_slot_s_share_is_its_expert_s_split_evenly(router: Any) -> None:
    m, x_BT = mixture(some([1, 1]), recipe=router, counts=[3, 1]), ids()
    weight_BTS, seats = m.weights(x_BT), [slot["expert"] for slot in m.slots]
    first = [s for s, u in enumerate(seats) if u == 0]
    assert len(first) == 3
    assert all(torch.equal(weight_BTS[..., s], weight_BTS[..., first[0]]) for s in first)


@pytest.mark.parametrize("router", RECIPES, ids=name)
def test_10_nll_runs_each_expert_once_and_a_generated_token_too(router: Any) -> None:
    m, x_BT = mixture(some([1, 1]), recipe=router, counts=[4, 4]), ids()
    m.nll(x_BT)  # the head of an architecture is measured once
    with Runs(m) as runs:
        m.nll(x_BT)
    assert runs.of == [1, 1]
    with Runs(m) as runs:
        m.generate(x_BT, max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert runs.of == [5, 5]
