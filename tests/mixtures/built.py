"""A whole mixture in a store, from tiny experts to the directory that a person opens."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from tests.tiny import artifact, blocks_artifact, expert_artifact, gpt2, llama, scores_artifact, tokenizer_artifact
from torch.nn import init

from coterie.corpora.windows import Window
from coterie.mixtures.outputs.outputs_place import OutputsPlace, assemble, fit_router
from coterie.mixtures.seats import Seat
from coterie.store import Artifact, Store

DOCUMENTS = [[0, *[(7 * d + 3 * i) % 90 + 1 for i in range(4 + d % 9)]] for d in range(24)]
TIMES = [date(2014 + d % 6, 1 + d % 12, 1) for d in range(24)]


def members(store: Store, tokenizer: Path, names: Sequence[str] = ("a", "b"), repeats: int = 1) -> list[Seat]:
    """Experts with a year each, the first one's knowledge ending with 2014."""
    made = []
    for i, name in enumerate(names):
        model = gpt2(i + 10) if i % 2 else llama(i + 10)
        window = Window(start=date(2014 + i, 1, 1), end=date(2015 + i, 1, 1))
        made.append(Seat(name, expert_artifact(store, name, model, tokenizer), (name,) * repeats, None, window, window.end))
    return made


def lora_member(store: Store, tokenizer: Path, name: str = "low") -> Seat:
    base = artifact(store, "weights", "base", lambda folder: llama(20).save_pretrained(folder))

    def build(folder: Path) -> None:
        model = get_peft_model(llama(20), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                init.normal_(parameter, std=0.3)
        model.save_pretrained(folder)
        for file in tokenizer.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())

    return Seat(name, artifact(store, "experts", name, build), base=base)


def blocks(store: Store, times: bool = False) -> Artifact:
    return blocks_artifact(store, f"valid{times}", DOCUMENTS, times=TIMES if times else None)


def recipe(mixture_members: Sequence[Seat], router: Any = "uniform", **more: Any) -> OutputsPlace:
    slots = tuple(name for m in mixture_members for name in m.slots)
    return OutputsPlace.model_validate({"name": "mix", "at": "outputs", "slots": slots, "router": router, **more})


def whole(
    store: Store, tokenizer: Path, spec: OutputsPlace, seated: Sequence[Seat], valid: Artifact | None = None
) -> Artifact:
    """Score, fit (unless uniform), assemble."""
    reader, router = tokenizer_artifact(store, tokenizer), None
    if spec.router.fitting is not None:
        valid = valid or blocks(store)
        router = fit_router(store, spec, seated, [valid], [scores(store, seated, valid)], reader, 0)
    return assemble(store, spec, seated, router, reader)


def scores(store: Store, seated: Sequence[Seat], valid: Artifact) -> list[Artifact]:
    return [scores_artifact(store, f"{m.name} on {valid.digest}", m.artifact, valid) for m in seated]
