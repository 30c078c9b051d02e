"""Families of experts by window of time: from `{start, end, every}` or a list to one expert a window."""

from __future__ import annotations

from datetime import date
from itertools import pairwise

from coterie.corpora.windows import Window
from coterie.errors import RequestError
from coterie.experts.expert_settings import Expert
from coterie.spec.settings import check_name


def family(expert: Expert, where: str) -> list[Expert]:
    if expert.windows is None:
        return [expert.model_copy(update={"from_": "fresh"})] if expert.from_ == "previous" else [expert]
    windows = _windows(expert, where)
    members: list[Expert] = []
    for window in windows:
        name = expert.name.replace("{start}", _label(window.start)).replace("{end}", _label(window.end))
        try:
            check_name(name)
        except ValueError as error:
            raise RequestError(str(error), where=f"{where}.name") from None
        start = expert.from_
        if start == "previous":  # the first window has no past: fresh weights, so that an expert knows only its past
            start = members[-1].name if members else "fresh"
        members.append(expert.model_copy(update={"name": name, "windows": None, "window": window, "from_": start}))
    return members


def _windows(expert: Expert, where: str) -> list[Window]:
    windows = expert.windows
    if isinstance(windows, tuple):
        ordered = sorted(windows, key=lambda w: (w.start, w.end))
        for a, b in pairwise(ordered):
            kind = "overlap" if a.end > b.start else "gap"
            if a.end != b.start and kind not in expert.allow:
                raise RequestError(
                    "windows overlap" if kind == "overlap" else "windows leave a gap",
                    where=f"{where}.windows",
                    expected=f"a window that starts on {a.end}",
                    found=f"[{a.start}, {a.end}) and then [{b.start}, {b.end})",
                    do=f"correct the dates, or say that it is meant: allow: [{kind}]",
                )
        return ordered
    assert windows is not None
    if windows.end <= windows.start:
        raise RequestError(
            "the windows end before they start", where=f"{where}.windows", found=f"{windows.start} to {windows.end}"
        )
    return windows.spans()


def _label(day: date) -> str:
    if (day.month, day.day) == (1, 1):
        return str(day.year)
    return day.strftime("%Y-%m") if day.day == 1 else day.isoformat()
