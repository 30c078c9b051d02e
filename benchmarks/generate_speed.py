"""Generating at a date with E eligible experts against generating with one expert alone, both through Hugging Face's generate.

Goals: at least 0.9 / E of one expert's tokens a second, and at least 0.95 of it where one expert is eligible. Timed in turns
within one process, each after a few untimed tokens of its own; the control is the expert against itself, before and after.

    python benchmarks/generate_speed.py [--experts 6] [--tokens 128] [--turns 7]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from datetime import date
from typing import Any

import torch
from train_overhead import processor
from transformers import LlamaConfig, LlamaForCausalLM

from coterie.mixtures.outputs.outputs_files import OutputsConfig
from coterie.mixtures.outputs.outputs_mixture import OutputsMixture
from coterie.models.device import pick
from coterie.routing.output_routers import Posterior, Uniform

V = 2048


def expert(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def mixture(experts: list[LlamaForCausalLM], router: Any) -> OutputsMixture:
    """A window a year from 2013; on 1 January of 2014 + E the first E experts may answer."""
    names = [f"y{2013 + i}" for i in range(len(experts))]
    dates = [
        {"start": f"{2013 + i}-01-01", "end": f"{2014 + i}-01-01", "knowledge": f"{2014 + i}-01-01"}
        for i in range(len(names))
    ]
    config = OutputsConfig(
        slots=[{"name": n, "expert": i} for i, n in enumerate(names)],
        experts=[{"name": n, "dir": n, "base": None, "digest": None, **d} for n, d in zip(names, dates, strict=True)],
        router=router.model_dump(mode="json"),
        eligible={"rule": "strict", "fallback": None, "default_time": None},
        vocab_size=V,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    return OutputsMixture(config, experts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--experts", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--turns", type=int, default=7)
    asked = parser.parse_args()
    where = pick()
    experts = [expert(i).to(where) for i in range(asked.experts)]
    ids = torch.randint(1, V, (1, 32), device=where)
    result: dict = {"benchmark": "generate_speed", "date": str(date.today()), "processor": processor(torch.device(where))}
    result |= {"threads": torch.get_num_threads(), "tokens": asked.tokens, "turns": asked.turns}

    def seconds(model: Any, **given: Any) -> float:
        # Untimed, so that its weights are near and not another's.
        model.generate(ids, max_new_tokens=16, min_new_tokens=16, do_sample=False, **given)
        start = time.perf_counter()
        out = model.generate(ids, max_new_tokens=asked.tokens, min_new_tokens=asked.tokens, do_sample=False, **given)
        assert out.shape[1] == ids.shape[1] + asked.tokens
        return time.perf_counter() - start

    for name, router in (("uniform", Uniform()), ("posterior", Posterior())):
        model = mixture(experts, router).to(where)
        for eligible in sorted({1, 2, asked.experts}):
            time_of = f"{2013 + eligible}-01-01"
            rows = []
            for turn in range(asked.turns + 1):
                rows.append((seconds(experts[0]), seconds(model, time=time_of), seconds(experts[0])))
                if turn == 0:
                    rows.clear()
            ratio = statistics.median((p + q) / 2 / m for p, m, q in rows)
            result[f"{name}_{eligible}"] = round(ratio, 3)
            result[f"goal_{eligible}"] = 0.95 if eligible == 1 else round(0.9 / eligible, 3)
            result[f"control_{name}_{eligible}"] = round(statistics.median(p / q for p, _, q in rows), 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
