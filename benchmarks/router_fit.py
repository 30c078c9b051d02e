"""Fitting a router on cached scores against the same fit that runs the experts again in every epoch.

One fit, written once (`coterie.routing.fit.fit`): 6 slots on 6 experts, a linear router, 3 epochs. What differs is where the
scores of a batch come from. CPU time of this process; the scoring pass, which the cache needs once and an evaluation makes
anyway, is printed beside it. The fit also takes the loss before its first step, so the experts run four times over. Control: the cached fit is timed several times, and its spread is the noise.

    python benchmarks/router_fit.py [--blocks 48] [--length 256]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from coterie.models.logprob import target_logp
from coterie.routing.fit import Scored, fit
from coterie.routing.fit_settings import FitSettings
from coterie.routing.output_routers import Linear

EXPERTS, V = 6, 2048


def expert(seed: int, context: int) -> LlamaForCausalLM:
    """The quickstart's size."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=context,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


class Rerun(Scored):
    """Scores that are made when a batch asks for them."""

    def __getitem__(self, rows: torch.Tensor) -> Scored:
        part = super().__getitem__(rows)
        if rows.dtype == torch.bool:  # the split into fitting and held-out rows, made once: nothing is scored yet
            return Rerun(part.ids_NT, part.position_NT, part.target_NT, part.logp_UNT1, part.eligible_NTU)
        with torch.no_grad():
            part.logp_UNT1.copy_(torch.stack([target_logp(e, part.ids_NT, part.position_NT) for e in MODELS]))
        return part


BATCH = 16
MODELS: list[LlamaForCausalLM] = []


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=48)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    N, T = args.blocks, args.length
    MODELS.extend(expert(seed, T) for seed in range(EXPERTS))
    torch.manual_seed(0)
    ids_NT, position_NT = torch.randint(0, V, (N, T)), torch.arange(T).expand(N, T)
    held_NT = (torch.arange(N) % 5 == 0)[:, None].expand(N, T)
    settings = FitSettings(epochs=3, patience=3, batch_size=BATCH)

    def scored(kind: type[Scored], logp_UNT1: torch.Tensor) -> Scored:
        return kind(ids_NT, position_NT, position_NT > 0, logp_UNT1, torch.ones(N, 1, EXPERTS, dtype=torch.bool))

    def fitted(data: Scored) -> dict[str, torch.Tensor]:
        router = Linear(kind="linear").build(EXPERTS, V)
        fit(router, data, held_NT, torch.zeros(EXPERTS), settings, seed=0)
        return router.state_dict()

    @torch.no_grad()
    def score() -> torch.Tensor:
        batches = zip(ids_NT.split(BATCH), position_NT.split(BATCH), strict=True)
        return torch.cat([torch.stack([target_logp(e, i, p) for e in MODELS]) for i, p in batches], dim=1)

    scoring, logp_UNT1 = cpu(score)
    fitted(scored(Scored, logp_UNT1))  # the first call of every operator is slower
    cached = [cpu(lambda: fitted(scored(Scored, logp_UNT1))) for _ in range(args.repeats)]
    rerun, live_state = cpu(lambda: fitted(scored(Rerun, torch.zeros_like(logp_UNT1))))
    seconds = [s for s, _ in cached]
    apart = max((cached[0][1][k] - live_state[k]).abs().max().item() for k in live_state)
    print(
        f"cached {statistics.median(seconds):.3f} s, experts run again {rerun:.1f} s, one scoring pass {scoring:.1f} s (CPU time)"
    )
    print(
        json.dumps(
            {
                "benchmark": "router_fit",
                "date": date.today().isoformat(),
                "cpu": platform.machine(),
                "cores": os.cpu_count(),
                "torch": torch.__version__,
                "experts": EXPERTS,
                "epochs": settings.epochs,
                "tokens": N * T,
                "cached_cpu_seconds": round(statistics.median(seconds), 4),
                "rerun_cpu_seconds": round(rerun, 3),
                "scoring_pass_cpu_seconds": round(scoring, 3),
                "ratio": round(rerun / statistics.median(seconds), 1),
                "noise": round(max(seconds) / min(seconds), 3),
                "largest_difference": apart,
                "passed": rerun / statistics.median(seconds) >= 50 and apart <= 1e-5,
            }
        )
    )


if __name__ == "__main__":
    main()
