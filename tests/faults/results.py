"""A small finished run with a mixture at every place, and what opens its parts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.mixtures.adapters.test_recipe import lora

import coterie
from coterie import report
from coterie.run.grow import Grown

RIDGE = {"kind": "ridge", "scope": "model", "reads": "prefix"}


def finished(root: Path) -> Path:
    """Its results folder; the store is beside it."""
    asked = lora(root / "data")
    asked["mixtures"] = [
        {"name": "out", "at": "outputs", "slots": ["fruit", "tools"], "router": {"kind": "linear", "epochs": 1}},
        {"name": "in", "at": "layers", "slots": ["fruit-ffn", "tools-ffn"]},
        {"name": "on", "at": "adapters", "slots": ["fruit", "tools"], "router": RIDGE},
    ]
    asked["experts"] += [{"name": f"{n}-ffn", "corpus": n, "kind": "ffn"} for n in ("fruit", "tools")]
    coterie.run(asked, store=root / "store", out=root / "out")
    return root / "out"


def openers(out: Path, file: Path) -> Iterator[Callable[[], object]]:
    """Every way in which a file of a run's results is read by us."""
    inside = file.relative_to(out).parts
    if inside[0] in ("experts", "mixtures"):
        yield lambda: coterie.load(out / inside[0] / inside[1])
    elif inside[0] == "base":
        yield lambda: coterie.load(out / "base")
    else:
        yield lambda: report.markdown(out)
        yield lambda: Grown(out, out.parent / "store")


def files(out: Path) -> list[Path]:
    """Everything but the page, which is made anew from the rest."""
    return [p for p in sorted(out.rglob("*")) if p.is_file() and p.name != "report.html"]


def flip(path: Path, draw: random.Random) -> bytes:
    """Flip one bit; the bytes before."""
    before = path.read_bytes()
    path.chmod(0o644)
    changed = bytearray(before)
    bit = draw.randrange(8 * len(before))
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    return before
