"""Numbers as people read them: few digits, a real minus, units near."""

from __future__ import annotations

MISSING = "–"


def nats(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}".replace("-", "−")


def signed(value: float | None) -> str:
    return MISSING if value is None else f"{value:+.3f}".replace("-", "−")


def percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}".replace("-", "−")


def signed_percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:+.1f}".replace("-", "−")


def perplexity(value: float | None) -> str:
    if value is None:
        return MISSING
    if value >= 1e6:
        return f"{value:.1e}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.4g}".rstrip(".")


def count(value: float | None) -> str:
    """``812``, ``26.4 k``, ``2.00 M``."""
    if value is None:
        return MISSING
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g} {unit}"
    return f"{value:,.0f}"


def seconds(value: float | None) -> str:
    if value is None:
        return MISSING
    if value < 60:
        return f"{value:.1f} s"
    if value < 3600:
        return f"{value // 60:.0f} min {value % 60:02.0f} s"
    return f"{value // 3600:.0f} h {value % 3600 // 60:02.0f} min"


def ticks(lo: float, hi: float, most: int = 6) -> list[float]:
    """Round values between two ends, at steps of 1, 2 or 5."""
    from math import ceil, floor, log10

    if not hi > lo:
        return [lo]
    step = 10 ** floor(log10((hi - lo) / most))
    step *= next(m for m in (1, 2, 5, 10) if (hi - lo) / (step * m) <= most)
    return [round(i * step, 12) for i in range(ceil(lo / step - 1e-9), floor(hi / step + 1e-9) + 1)]
