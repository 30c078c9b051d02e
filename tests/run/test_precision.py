"""Weights that do not train: in the checkpoint's own precision where the device multiplies it faster, and that is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.run.small import recipe
from tests.tiny import write_checkpoint

import coterie
from coterie.models import device
from coterie.models.weight_precision import frozen_precision, opening_precision
from coterie.run.parts import Parts
from coterie.store import Store

LORA = {"kind": "lora", "lora": {"r": 2}}


def asked(home: Path, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> dict[str, Any]:
    """Every place, a fitted router, and questions."""
    ask = {"question": "the cat", "options": ["sat", "ran"], "label": 0}
    (home / "questions.jsonl").write_text(json.dumps(ask) + "\n")
    made = recipe(
        home / "data",
        experts=[
            {"name": "fruit", "corpus": "fruit", "kind": "ffn"},
            {"name": "tools", "corpus": "tools", "kind": "ffn"},
            *({"name": f"{name}-low", "corpus": name, **LORA} for name in ("fruit", "tools")),
        ],
        mixtures=[
            {"name": "outputs", "at": "outputs", "slots": ["fruit", "tools"], "router": {"kind": "linear", "epochs": 1}},
            {"name": "layers", "at": "layers", "slots": ["fruit", "tools"], "router": {"kind": "ridge", "top_k": 1}},
            {"name": "adapters", "at": "adapters", "slots": ["*-low"], "router": "ridge"},
        ],
        single=False,
        **changes,
    )
    made["base"] = {"path": str(write_checkpoint(home / "base", dtype=dtype))}
    made["evaluation"].append({"name": "questions", "choices": str(home / "questions.jsonl"), "bootstrap": 10})
    return made


def classes(run: Any) -> dict[str, set[str]]:
    """Numerics classes in the plan of everything that is not trained, by kind of artifact."""
    found: dict[str, set[str]] = {}
    for step in run.plan:
        if step.numerics and not step.tokens and "scores of outputs" not in step.label:  # made of others' scores, in fp32
            found.setdefault(step.kind, set()).add(step.numerics)
    return found


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that multiplies bf16 faster."""
    monkeypatch.setattr(device, "_has_amx", lambda: True)


@pytest.mark.usefixtures("fast")
def test_a_bf16_checkpoint_is_used_in_bf16(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = asked(tmp_path)
    coterie.run(wanted, store=tmp_path / "store", out=tmp_path / "out", dry_run=True)
    assert "cpu-bf16 (" in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("computed in "))
    run = coterie.run(wanted, store=tmp_path / "store", out=tmp_path / "out")
    found = classes(run)
    assert found["scores"] == {"cpu-bf16"}
    assert found["gates"] == {"cpu-bf16"}
    assert "cpu-bf16" in found["evaluations"]
    record = json.loads((run.out / "plan.json").read_text())
    of_experts = [s for s in record["steps"] if s["kind"] == "scores" and "scores of outputs" not in s["label"]]
    assert {s["numerics"] for s in of_experts} == {"cpu-bf16"}
    parts = Parts(run.recipe, Store(tmp_path / "store"))
    scores = parts.score(parts.seats(["fruit"])[0], parts.blocks("fruit", "test"))
    assert '"numerics":"cpu-bf16"' in scores.file("manifest.json").read_text().replace(" ", "")

    again = coterie.run({**wanted, "precision": "fp32"}, store=tmp_path / "store", out=tmp_path / "wide")
    assert classes(again)["scores"] == {"cpu-fp32"}
    for model, groups in run.summary["evaluation"]["losses"].items():
        wide = again.summary["evaluation"]["losses"][model]["all"]["nll"]
        assert groups["all"]["nll"] == pytest.approx(wide, abs=0.05), model
        assert groups["all"]["nll"] != wide, model


@pytest.mark.usefixtures("fast")
def test_what_opens_is_used_in_the_same_precision_and_routers_in_fp32(tmp_path: Path) -> None:
    run = coterie.run(asked(tmp_path), store=tmp_path / "store", out=tmp_path / "out")
    ids_BT = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    for name in ("outputs", "layers", "adapters"):
        mixture, wide = run.mixtures[name], coterie.load(run.out / "mixtures" / name, dtype=torch.float32)
        weights = [p for n, p in mixture.named_parameters() if "gate." not in n and "router" not in n and "lora" not in n]
        assert torch.bfloat16 in {p.dtype for p in weights}, name
        logp_BTV = mixture.log_probs(ids_BT)
        assert logp_BTV.dtype == torch.float32
        assert logp_BTV.exp().sum(-1).sub(1).abs().max() < 1e-5
        assert (logp_BTV - wide.log_probs(ids_BT)).abs().mean() < 0.05
        assert mixture.generate(ids_BT[:1], max_new_tokens=3).shape == (1, 15)
    assert {gate.weight.dtype for gate in run.mixtures["layers"].router} == {torch.float32}
    assert {p.dtype for p in run.mixtures["outputs"].router.parameters()} == {torch.float32}
    assert all(p.dtype == torch.float32 for p in run.mixtures["adapters"].router.parameters())


def test_without_such_hardware_or_on_an_fp32_checkpoint_it_is_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half, whole = write_checkpoint(tmp_path / "half"), write_checkpoint(tmp_path / "whole", dtype=torch.float32)
    for amx, folders, expected in [
        (True, [half], "bf16"),
        (False, [half], "fp32"),
        (True, [whole], "fp32"),
        (True, [half, whole], "fp32"),
    ]:
        monkeypatch.setattr(device, "_has_amx", lambda amx=amx: amx)
        assert frozen_precision("auto", folders, "cpu") == expected
        assert frozen_precision("fp32", folders, "cpu") == "fp32"
    assert opening_precision(half) == "bf16"
    assert opening_precision(whole) == "fp32"
