"""Golden losses: one small run, as text. A refactor leaves them as they are; a change that moves them says why.

They are fp32 on one CPU thread. Another processor may differ in the last bits, so figures are compared to 1e-4; on one
machine they are equal. `COTERIE_GOLDEN=write` writes the file anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from tests.run.small import recipe

import coterie

GOLDEN = Path(__file__).parents[1] / "golden" / "small.txt"


def lines(out: Path) -> list[str]:
    """`what step loss`, then `evaluation model group loss`."""
    summary = json.loads((out / "summary.json").read_text())
    names = {digest: e["name"] for digest, e in summary["experts"].items()}
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    trained = [
        f"{names.get(s['expert'], s['expert'])} {s['step']} {s['loss']!r}" for s in steps if s.get("loss") is not None
    ]
    evaluated = [
        f"losses {model} {group} {figures['nll']!r}"
        for model, groups in summary["evaluation"]["losses"].items()
        for group, figures in groups.items()
    ]
    return trained + evaluated


def test_losses_are_the_golden_ones(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    raw = recipe(tmp_path / "data")
    raw["train"] |= {"threads": 1, "log_every": 1}
    coterie.run(raw, store=tmp_path / "store", out=tmp_path / "out")
    found = lines(tmp_path / "out")
    if os.environ.get("COTERIE_GOLDEN") == "write":
        GOLDEN.write_text("\n".join(found) + "\n")
    golden = GOLDEN.read_text().splitlines()
    assert [line.rpartition(" ")[0] for line in found] == [line.rpartition(" ")[0] for line in golden]
    for new, old in zip(found, golden, strict=True):
        assert float(new.rpartition(" ")[2]) == pytest.approx(float(old.rpartition(" ")[2]), rel=1e-4), new
