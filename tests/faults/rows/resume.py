"""Trainings that are killed up to three times and gone on with: the bytes of the one that nobody touched."""

from __future__ import annotations

import os
import random
from pathlib import Path

import torch
from tests.faults import harness as h
from tests.faults.row import Draw, Row, Trial
from tests.invariants.test_resume import Case, after_step, checkpoints


def combination(draw: random.Random) -> dict[str, object]:
    """A kind of expert and settings of its training, as `tests.invariants.test_resume.Case` takes them."""
    kind = draw.choice(["full", "ffn", "lora"])
    changes: dict[str, object] = {
        "accumulation": draw.choice([1, 2, 3]),
        "batch_size": draw.choice([1, 2, 4]),
        "precision": draw.choice(["fp32", "bf16"]),
        "schedule": draw.choice(["cosine", "linear", "constant", "wsd"]),
        "save_every": draw.choice([90, 130, 250]),
        "log_every": draw.choice([1, 3]),
    }
    changes |= draw.choice([{}, {"tokens": None, "epochs": draw.choice([1.5, 2.5])}, {"tokens": 800}])
    if draw.random() < 0.3:
        changes["snapshots"] = 200
    stops_early = draw.random() < 0.3
    if stops_early:
        changes |= {"early_stopping": {"every": 100, "patience": 3}, "learning_rate": 0.1}
    return {"kind": kind, "dropout": draw.random() < 0.7, "held_out": stops_early, "changes": changes}


def trial(prepared: Path, home: Path, draw: Draw) -> Trial:
    torch.set_num_threads(1)
    asked = combination(draw)
    kind = str(asked["kind"])
    case = Case(home, **asked)
    straight = case.run(case.store())
    store, steps = case.store(), straight.facts["steps"]
    kills = sorted(draw.sample(range(1, steps + 1), min(draw.choice([1, 2, 3]), steps)))
    killed = 0
    for step in kills:

        def doomed(step: int = step) -> None:
            os.close(2)
            os.open(os.devnull, os.O_WRONLY)
            after_step(step)()
            case.run(store)

        killed += h.in_child(doomed) < 0
    saved = [folder.name for folder in checkpoints(store)]
    settings = ", ".join(f"{key} {value}" for key, value in dict(asked["changes"]).items())  # type: ignore[call-overload]
    what = f"{kind}, dropout {asked['dropout']}, {settings}; killed after steps {kills} of {steps}, then had {saved}"
    found = case.run(store)
    bad = [] if found.digest == straight.digest else ["other bytes than the straight run"]
    bad += h.broken(store.root)
    bad += [f"left over: {p}" for p in (store.root / "work").glob("*")] if (store.root / "work").exists() else []
    return Trial(kind, what, landed=killed > 0, violations=tuple(bad))


ROWS = [
    Row(
        "resume",
        "training of any kind and settings killed one to three times, at any step",
        "weights, facts and logged losses of the straight run, bit for bit",
        (1, 10, 64),
        trial,
    )
]
