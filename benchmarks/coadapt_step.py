"""A co-adaptation step with six windows against a plain training step of one expert, on the same batch.

The active expert has a forward and a backward pass (three forwards' worth), the other E - 1 a forward each, so the goal is
(E + 2) / 3 plain steps, within 15 %. Both steps are timed in turns within one process, optimizer included; the control is the
plain step against itself.

    python benchmarks/coadapt_step.py [--experts 6] [--batch 8] [--length 256] [--turns 12]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from functools import partial

import torch
from train_overhead import processor
from transformers import LlamaConfig, LlamaForCausalLM

from coterie.experts import training
from coterie.experts.train_settings import Train
from coterie.mixtures.outputs.coadaptation import Together
from coterie.models.device import pick
from coterie.routing.fit_settings import FitSettings
from coterie.routing.output_routers import Linear

V = 2048


def expert(seed: int, length: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=length,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--experts", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--turns", type=int, default=12)
    asked = parser.parse_args()
    where = torch.device(pick())
    E = asked.experts
    experts = [expert(i, asked.length).to(where) for i in range(E)]
    router = Linear(kind="linear").build(E, V).to(where)
    model = Together(experts, router, torch.ones(E, E).tril().bool(), torch.zeros(E), FitSettings()).train()
    alone = expert(99, asked.length).to(where).train()
    ids = torch.randint(V, (asked.batch, asked.length), device=where)
    position = torch.arange(asked.length, device=where).expand_as(ids)
    together_adamw, alone_adamw = (training.optimizer(m, Train()) for m in (model, alone))

    def adapt(active: int) -> None:
        (model.loss(ids, position, ids, active) / ids.numel()).backward()
        together_adamw.step()
        together_adamw.zero_grad()

    def plain() -> None:
        alone(input_ids=ids, position_ids=position, labels=ids, use_cache=False).loss.backward()
        alone_adamw.step()
        alone_adamw.zero_grad()

    def seconds(work: Callable[[], None]) -> float:
        if where.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(3):
            work()
        if where.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    result: dict = {"benchmark": "coadapt_step", "date": str(date.today()), "processor": processor(where), "experts": E}
    result |= {"threads": torch.get_num_threads(), "batch": [asked.batch, asked.length], "turns": asked.turns}
    for eligible in sorted({1, E // 2, E}):
        rows = []
        for turn in range(asked.turns + 1):
            rows.append((seconds(plain), seconds(partial(adapt, eligible - 1)), seconds(plain)))
            if turn == 0:
                rows.clear()
        result[f"ratio_{eligible}"] = round(statistics.median(2 * a / (p + q) for p, a, q in rows), 3)
        result[f"goal_{eligible}"] = round((eligible + 2) / 3, 3)
        result["control"] = round(statistics.median(p / q for p, _, q in rows), 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
