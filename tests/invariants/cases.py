"""Random mixtures at the outputs: any router, policy, slot counts, dates."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import torch
from hypothesis import strategies as st
from tests.routing.cases import RECIPES
from tests.tiny import V, pool
from transformers import PreTrainedModel

from coterie.mixtures.outputs.outputs_files import OutputsConfig
from coterie.mixtures.outputs.outputs_mixture import OutputsMixture

DAY = date(2015, 1, 1)
TIMES = [None, "2014-06-01", "2015-01-01", "2015-07-15", "2017-01-01"]
policies = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.3, 1.0, 2.0])}, optional={"top_k": st.integers(1, 3)}
) | st.fixed_dictionaries({"top_p": st.floats(0.05, 1.0)})


@st.composite
def settings(draw: Any, dated: bool = True) -> dict[str, Any]:
    """What `mixture` takes: router, counts, rule."""
    recipe = draw(st.sampled_from(RECIPES)).model_copy(update=draw(policies))
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    rule = draw(st.sampled_from(["all", "strict", "inclusive"])) if dated else "all"
    firsts = [draw(st.integers(-400, 400)) for _ in counts]
    seed = draw(st.integers(0, 999))
    return {"recipe": recipe, "counts": counts, "rule": rule, "firsts": firsts, "fallback": 0, "seed": seed}


def mixture(
    experts: Sequence[PreTrainedModel],
    *,
    recipe: Any,
    counts: Sequence[int],
    rule: str = "all",
    firsts: Sequence[int] | None = None,
    fallback: int | None = None,
    seed: int = 0,
    tokenizer: Any = None,
) -> OutputsMixture:
    """Of random router parameters; expert u may be used from ``DAY + firsts[u]`` days."""
    days = [(DAY + timedelta(f)).isoformat() for f in firsts or [0] * len(counts)]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(seed))
    seats = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))[order].tolist()
    config = OutputsConfig(
        slots=[{"name": f"e{u}", "expert": u} for u in seats],
        experts=[
            {"name": f"e{u}", "dir": f"experts/e{u}", "base": None, "start": day, "end": day, "knowledge": day}
            for u, day in enumerate(days)
        ],
        router=recipe.model_dump(mode="json"),
        eligible={"rule": rule, "fallback": fallback, "default_time": "2016-07-01"},
        vocab_size=V,
        max_position_embeddings=64,
        eos_token_id=0,
        pad_token_id=0,
    )
    made = OutputsMixture(config, list(experts), tokenizer=tokenizer)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in made.router.parameters():
            parameter.add_(torch.randn_like(parameter))
    made.generation_config.update(eos_token_id=0, pad_token_id=0)
    return made


def some(counts: Sequence[int]) -> list[PreTrainedModel]:
    return list(pool()[: len(counts)])


def ids(B: int = 2, T: int = 10) -> torch.Tensor:
    return torch.randint(1, V, (B, T))  # 0 is padding, from which Hugging Face infers a mask


class Runs:
    """Counts how often each expert's decoder runs."""

    def __init__(self, model: OutputsMixture) -> None:
        self.of = [0] * len(model.experts)
        self.handles = [
            getattr(expert, expert.base_model_prefix).register_forward_hook(lambda *_, u=u: self._count(u))
            for u, expert in enumerate(model.experts)
        ]

    def _count(self, u: int) -> None:
        self.of[u] += 1

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
