"""Numbers as people read them: few digits, a real minus, units near."""

from __future__ import annotations

from math import ceil, floor, log10

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
    """``812``, ``26.4 k``, ``2 M``."""
    if value is None:
        return MISSING
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= max(0.9995 * size, 1e4):
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}"


def seconds(value: float | None) -> str:
    if value is None:
        return MISSING
    if value < 59.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def ticks(lo: float, hi: float, most: int = 6) -> list[float]:
    """Round values between two ends, at steps of 1, 2 or 5."""
    if not hi > lo:
        return [lo]
    step = 10 ** floor(log10((hi - lo) / most))
    step *= next(m for m in (1, 2, 5, 10) if (hi - lo) / (step * m) <= most)
    return [round(i * step, 12) for i in range(ceil(lo / step - 1e-9), floor(hi / step + 1e-9) + 1)]
