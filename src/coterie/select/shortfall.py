"""What a selection falls short of: the certificate in words, and the refusal of what cannot be met."""

from __future__ import annotations

from coterie.errors import RequestError
from coterie.select.choose import Chosen
from coterie.select.select_settings import Select
from coterie.select.strategies import STRATEGIES

_LISTED = 12
"""Values of an axis that are listed."""


def met(chosen: Chosen, request: Select) -> bool:
    """Whether the request can be met: its targets, or for a strategy that sets its own, the budget."""
    if chosen.plan is None:
        return bool(chosen.capacity_C.sum() >= request.budget.size)
    return chosen.plan.feasible if _has_targets(request) else "budget" not in chosen.plan.missing


def _has_targets(request: Select) -> bool:
    return "axes" not in STRATEGIES[request.strategy].replaces


def shortfall(chosen: Chosen, request: Select) -> list[str]:
    """What is short, in lines; empty where the request is met."""
    if met(chosen, request):
        return []
    unit, wanted = request.budget.unit, request.budget.size
    there = chosen.plan.budget if chosen.plan is not None else float(chosen.capacity_C.sum())
    missing, shorts = (chosen.plan.missing, chosen.plan.short) if chosen.plan is not None else ({}, {})
    lines = []
    if _has_targets(request):
        lines.append(f"at least {missing['total']:,.0f} of {wanted:,} {unit} must miss their targets, in any selection")
    if there < wanted:
        lines.append(f"budget: {wanted - there:,.0f} {unit} more than the {there:,.0f} that are there")
    for axis, short in shorts.items():
        worst = sorted(short.items(), key=lambda kv: -kv[1])
        listed = ", ".join(f"{value} {lack:,.0f}" for value, lack in worst[:_LISTED]) + (", ..." if worst[_LISTED:] else "")
        if worst or missing.get(axis, 0) > 0:
            which = f"; there is too little of {listed}" if worst else ""
            lines.append(f"{axis}: {missing.get(axis, 0):,.0f}{which}")
    return lines


def refuse_unmet(chosen: Chosen, request: Select, label: str) -> None:
    """Refuse what cannot be met, unless the recipe takes what comes nearest.

    Raises:
        RequestError: with the certificate and every value that is short.
    """
    if not request.relax and (lines := shortfall(chosen, request)):
        raise RequestError(
            "the plan cannot be met",
            where=f"corpora.{label}.select",
            found="\n            ".join(lines),
            do="lower the budget, change the targets, or take what comes nearest: --relax (select.relax: true)",
        )
