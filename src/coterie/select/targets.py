"""From an axis's words to target shares over its values: globs, alternatives, mixes of the pool's shares and equal ones.

`V` values of an axis, `G` groups of values that share one target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from coterie.errors import RequestError
from coterie.select.plan_settings import Axis, named


@dataclass(frozen=True)
class Targets:
    """What one axis asks for."""

    name: str
    groups: list[str]
    """The keys of the target, or the values themselves."""
    share_G: Float64[np.ndarray, " G"]
    group_V: Int64[np.ndarray, " V"]
    """Group of each value; -1 for values that no key names: they are not chosen."""
    weight: float


def targets(name: str, axis: Axis, values: list[str], supply_V: Float64[np.ndarray, " V"], where: str) -> Targets:
    """Share out the values of an axis.

    Args:
        values: in a fixed order.
        supply_V: tokens (or documents) of each value in the pool.
        where: the axis's place in the recipe.

    Raises:
        RequestError: a key that no value answers to; a value that two keys name.
    """
    if axis.target is None:
        mix, there = axis.mix or 0.0, supply_V > 0
        natural = supply_V / max(supply_V.sum(), 1)
        share = (1 - mix) * natural + mix * there / max(there.sum(), 1)
        return Targets(name, values, share, np.arange(len(values)), axis.weight)
    keys = list(axis.target)
    group_V = np.full(len(values), -1)
    for v, value in enumerate(values):
        hits = [g for g, key in enumerate(keys) if named(key, value)]
        exact = [g for g in hits if keys[g] == value]
        if len(exact or hits) > 1:
            raise RequestError(
                f"{value!r} is named by two targets",
                where=f"{where}.target",
                found=", ".join(keys[g] for g in hits),
                do="name it once",
            )
        if hits:
            group_V[v] = (exact or hits)[0]
    for g, key in enumerate(keys):
        if not (group_V == g).any() and axis.target[key] > 0:
            raise RequestError(
                f"no document has the {name} {key!r}",
                where=f"{where}.target",
                expected=", ".join(v for v, s in zip(values, supply_V, strict=True) if s > 0),
                found=key,
                do="correct the name, or take the target out and share it among the others",
            )
    return Targets(name, keys, np.array([axis.target[k] for k in keys]), group_V, axis.weight)
