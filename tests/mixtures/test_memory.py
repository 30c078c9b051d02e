"""The vocabulary axis exists for one expert at a time, and in scoring for a chunk of its tokens: bytes alive, counted."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from tests.routing.cases import RECIPES, name
from tests.tiny import llama
from torch.utils._python_dispatch import TorchDispatchMode

from coterie.mixtures.load import combine
from coterie.models import logprob

WIDE, B, T = 4096, 4, 64


class Peak(TorchDispatchMode):
    """Most bytes alive at once in storages that operators made, the weights left out."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.weights = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
        self.alive: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return out

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.alive or key in self.weights or storage.nbytes() == 0:
            return
        self.alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)


@pytest.mark.parametrize("router", RECIPES, ids=name)
def test_nll_of_eight_experts_peaks_like_one(router: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprob, "CHUNK", B * T * WIDE // 4)
    experts = {f"e{u}": llama(u, vocab_size=WIDE, context=T) for u in range(8)}
    x_BT, most = torch.randint(0, WIDE, (B, T)), []
    for names in (["e0"], list(experts)):
        m = combine({n: experts[n] for n in names}, router=router)
        m.nll(x_BT[:1, :4])
        gc.collect()
        with Peak(m) as watched:
            m.nll(x_BT)
        most.append(watched.most)
    assert most[0] > B * T * WIDE  # the watch sees the chunks
    assert most[1] <= 1.3 * most[0]


@pytest.mark.parametrize("router", RECIPES, ids=name)
def test_log_probs_hold_a_few_vocabularies_not_one_for_each_expert(router: Any) -> None:
    experts = {f"e{u}": llama(u, vocab_size=WIDE, context=T) for u in range(8)}
    x_BT, most = torch.randint(0, WIDE, (B, T)), []
    for names in (["e0", "e1"], list(experts)):
        m = combine({n: experts[n] for n in names}, router=router)
        m.log_probs(x_BT[:1, :4])
        gc.collect()
        with Peak(m) as watched:
            m.log_probs(x_BT)
        most.append(watched.most)
    assert most[1] <= 1.05 * most[0]
