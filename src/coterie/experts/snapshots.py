"""An expert as it was on the way: an artifact of its own, addressed by the step."""

from __future__ import annotations

from coterie.store import Action


def snapshot(action: Action, step: int) -> Action:
    """The action whose result is an expert as it was after ``step`` steps."""
    spec = {**action.spec, "snapshot_step": step}
    return Action(action.kind, spec, action.inputs, action.libraries, action.numerics)
