"""What a recipe needs, as data: a graph of requests with their addresses, what of it is there, and what each costs.

A plan is found by asking for all goals with a store that makes nothing. `--dry-run` prints it; `--jobs` and `--slurm` read
from it what can be done at once and what must come before what; a run walks its goals, numbers its steps by it and
leaves it as ``plan.json``, from which the report tells where figures come from.

The address of what depends on something missing is provisional: it follows from what was asked for, and the final one from
what comes out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Literal

from coterie.corpora.tokenizer import TrainedTokenizer
from coterie.progress import say
from coterie.recipe import Recipe
from coterie.recipe.base import FreshBase
from coterie.store import Step


@dataclass(frozen=True)
class Goal:
    """What a run makes because the recipe names it; everything else is made because a goal needs it."""

    kind: Literal["base", "expert", "mixture", "single", "evaluation"]
    name: str


@dataclass(frozen=True)
class Plan:
    """What is asked for, and the steps to it."""

    steps: Mapping[str, Step]
    """By key, each after those that it needs."""
    goals: Sequence[Goal] = ()
    """In the order in which they are made."""

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps.values())

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def missing(self) -> list[Step]:
        """What there is to make."""
        return [step for step in self if not step.cached]

    @property
    def training_tokens(self) -> int:
        """Tokens that will be trained on."""
        return sum(step.tokens or 0 for step in self.missing if step.kind in ("experts", "routers", "mixtures"))

    def before(self, key: str, among: Iterable[str]) -> frozenset[str]:
        """Those of some steps that a step needs, straight or through others that are missing."""
        wanted, found, left = set(among) - {key}, set(), [key]
        seen = {key}
        while left:
            for need in self.steps[left.pop()].needs:
                if need in wanted:
                    found.add(need)
                elif need not in seen and not self.steps[need].cached:
                    left.append(need)
                seen.add(need)
        return frozenset(found)

    def announce(self, label: str) -> None:
        """Tell a person that a step begins, and how many there are."""
        if label in self._place:
            say(f"  [{self._place[label]} of {len(self._place)}] {label}")

    @cached_property
    def _place(self) -> dict[str, int]:
        """Of each step to make, by its label: the how-manieth it is."""
        return {step.label: place for place, step in enumerate(self.missing, 1)}

    def done(self, after: Plan) -> Plan:
        """The same with final addresses and results, as they are ``after`` the run; `cached` is what was there before."""
        cached = {step.label for step in self if step.cached}
        return replace(after, steps={k: replace(s, cached=s.label in cached) for k, s in after.steps.items()})

    def text(self, recipe: Recipe) -> str:
        """For a person: a line a step, and what it costs."""
        width = max((len(step.label) for step in self), default=0)
        lines = []
        for step in self:
            cost = f"{step.tokens:>14,} tokens" if step.tokens and not step.cached else ""
            lines.append(f"{'cached' if step.cached else 'make':<7} {step.kind:<12} {step.label:<{width}} {cost}".rstrip())
        if used := Counter(step.numerics for step in self if step.numerics is not None):
            lines.append("computed in " + ", ".join(f"{name} ({n} steps)" for name, n in used.items()))
        tokens = self.training_tokens
        lines.append(
            f"{recipe.name}: {len(self) - len(self.missing)} cached, {len(self.missing)} to make; "
            f"{tokens:,} tokens to train on" + (f", {_estimate(recipe, tokens)}" if tokens else "")
        )
        return "\n".join(lines)

    def json(self) -> str:
        return json.dumps({"schema": 1, "steps": [asdict(step) for step in self]}, indent=1) + "\n"


def _estimate(recipe: Recipe, tokens: int) -> str:
    """A rough cost: 6 floating-point operations for each parameter and token."""
    base = recipe.base
    if not isinstance(base, FreshBase):
        return "size of the checkpoint not counted"
    wide = base.intermediate_size or (4 if base.init == "gpt2" else 8 / 3) * base.hidden_size
    block = 4 * base.hidden_size**2 + (2 if base.init == "gpt2" else 3) * base.hidden_size * wide
    vocabulary = base.tokenizer.vocab_size if isinstance(base.tokenizer, TrainedTokenizer) else 32_000
    parameters = base.layers * block + vocabulary * base.hidden_size
    return f"about {6 * parameters * tokens / 1e12:,.1f} TFLOP"
