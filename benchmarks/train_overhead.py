"""Tokens/s of `coterie.experts.train` over a plain PyTorch loop: same model, same batches, fused AdamW, 8 x 256 tokens.

The two take turns inside one process: after every few steps of the Trainer, the plain loop runs as many, and then once more
as a control for noise. Ratios are of neighbouring turns, and their median is reported, in wall time and in CPU time. What
happens once in a run (opening, publishing) is left out of the ratio and printed beside it.

    python benchmarks/train_overhead.py [--threads 1] [--turns 30] [--steps 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

from coterie import progress
from coterie.corpora.blocks import Blocks
from coterie.experts import loop
from coterie.experts.expert_actions import train_expert
from coterie.experts.train_settings import Train
from coterie.experts.training_request import Request
from coterie.models import device
from coterie.models.initialise import initialise
from coterie.models.open import open_model
from coterie.recipe.base import FreshBase
from coterie.store import Action, Artifact, Store

VOCABULARY = 4096


def plain_loop(model, batches, settings: Train):
    """The 15 lines. Yields after each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    model.train()
    for ids, position, labels in batches:
        loss = model(input_ids=ids, position_ids=position, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        yield


def words(store: Store) -> Artifact:
    def build(folder: Path) -> None:
        Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0")).save(
            str(folder / "tokenizer.json")
        )
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "w1"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))

    return store.make(Action("tokenizers", {"benchmark": 1}), build, label="words")


def random_blocks(store: Store, count: int, length: int) -> Artifact:
    def build(folder: Path) -> None:
        rng = np.random.default_rng(0)
        ids = rng.integers(0, VOCABULARY, (count, length), dtype=np.int32)
        position = np.tile(np.arange(length // 2, dtype=np.int32), (count, 2))  # two documents a row
        arrays = {
            "ids": ids,
            "position": position,
            "document": np.zeros_like(ids),
            "target": (position > 0).astype(np.uint8),
        }
        save_file(arrays, folder / "blocks.safetensors")
        (folder / "facts.json").write_text(json.dumps({"tokens": count * length}))

    return store.make(Action("blocks", {"benchmark": [count, length]}), build, label="blocks")


def processor(where: torch.device) -> str:
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--steps", type=int, default=3, help="steps in a turn")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=256, help="width; 4 layers")
    asked = parser.parse_args()
    rows, length = asked.batch, asked.length
    progress.QUIET = True
    torch.set_num_threads(asked.threads)

    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        base = FreshBase(init="llama", hidden_size=asked.hidden, layers=4, heads=4)
        start = initialise(store, base, words(store), seed=0, sequence_length=length)
        blocks = random_blocks(store, rows * 16, length)
        steps = asked.steps * (asked.turns + 1)
        settings = Train(tokens=steps * rows * length, batch_size=rows, threads=asked.threads, precision="fp32")

        where = torch.device(device.pick())
        packed = Blocks.open(blocks)
        ids, position, target = (
            torch.from_numpy(np.array(a)).long().to(where) for a in (packed.ids, packed.position, packed.target)
        )
        labels = ids.masked_fill(target == 0, -100)
        slices = [slice(i % 16 * rows, (i % 16 + 1) * rows) for i in range(2 * steps + 2)]
        plain = plain_loop(open_model(start, device=where), [(ids[s], position[s], labels[s]) for s in slices], settings)

        turns: list[list[tuple[float, float]]] = []
        original, begun = loop.Calendar.on_step_end, [(0.0, 0.0)]

        def clock() -> tuple[float, float]:
            if where.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter(), time.process_time()

        def since(start: tuple[float, float]) -> tuple[float, float]:
            now = clock()
            return now[0] - start[0], now[1] - start[1]

        def turn(self, args, state, control, **rest) -> None:
            original(self, args, state, control, **rest)
            if state.global_step % asked.steps:
                return
            mine = [since(begun[0])]
            for _ in range(2):
                start = clock()
                for _ in range(asked.steps):
                    next(plain)
                mine.append(since(start))
            turns.append(mine)
            begun[0] = clock()

        loop.Calendar.on_step_end = turn
        started = begun[0] = clock()
        train_expert(Request(store, start=start, blocks=[blocks], train=settings, seed=0, label="benchmark"))
        whole = since(started)[0] - sum(t[k][0] for t in turns for k in range(3))

    once = turns[0][0][0] - turns[0][1][0] + whole  # the first turn holds the start
    turns = turns[1:]
    result = {"benchmark": "train_overhead", "date": str(date.today()), "device": str(where), "processor": processor(where)}
    result |= {
        "threads": asked.threads,
        "batch": [rows, length],
        "hidden": asked.hidden,
        "turns": len(turns),
        "steps_a_turn": asked.steps,
    }
    for kind, name in ((0, "wall"), (1, "cpu")):
        result[f"ratio_{name}"] = round(statistics.median(t[1][kind] / t[0][kind] for t in turns), 4)
        result[f"ratio_{name}_control"] = round(statistics.median(t[1][kind] / t[2][kind] for t in turns), 4)
    tokens = asked.steps * rows * length
    result["tokens_per_second"] = round(tokens / statistics.median(t[0][0] for t in turns))
    result["tokens_per_second_plain"] = round(tokens / statistics.median(t[1][0] for t in turns))
    result["seconds_once_a_run"] = round(once, 2)
    result["target"] = 0.97
    print(json.dumps(result))


if __name__ == "__main__":
    main()
