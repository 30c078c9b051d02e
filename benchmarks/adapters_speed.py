"""K LoRA experts on one base against PEFT with one adapter of the same rank and targets: training step, prefill, decoding.

All models sit on bases of the same weights and take turns in one process, one thread; each figure is the median over rounds of
the ratio to PEFT in the same round. Control: PEFT takes a second turn. FLOPs and operators are counted, not timed.

    python benchmarks/adapters_speed.py [--width 512] [--layers 4] [--rounds 7] [--rank 16] [--precision bf16]

A ratio of times follows the ratio of FLOPs where a machine is bound by arithmetic, as one CPU thread is; that depends on the
width: 8 adapters of rank 16 add a third to the products of a base of width 512, and a twelfth at 2048.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from peft import LoraConfig, get_peft_model
from tests.mixtures.adapters.count import flops, operators
from transformers import LlamaConfig, LlamaForCausalLM

from coterie.mixtures.adapters.adapters_files import AdaptersConfig
from coterie.mixtures.adapters.adapters_mixture import AdaptersMixture
from coterie.models import lora_files as files

VOCABULARY = 4096


class Bench:
    def __init__(self, width: int, layers: int, rank: int, rows: int, length: int, precision: str) -> None:
        torch.set_num_threads(1)
        self.width, self.layers, self.rank, self.length = width, layers, rank, length
        self.precision = precision
        draw = torch.Generator().manual_seed(0)
        self.ids = torch.randint(0, VOCABULARY, (rows, length), generator=draw)

    def base(self) -> Any:
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=self.width,
                intermediate_size=self.width * 11 // 4,
                num_hidden_layers=self.layers,
                num_attention_heads=8,
                num_key_value_heads=8,
                max_position_embeddings=2 * self.length,
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=0,
            )
        ).eval()

    def peft(self) -> Any:
        asked = LoraConfig(
            r=self.rank, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
        )
        return get_peft_model(self.base(), asked).eval()

    def mixture(self, experts: int, top_k: int | None = None) -> AdaptersMixture:
        base = self.base()
        places = files.linears(base)
        named = [f"e{u}" for u in range(experts)]
        config = AdaptersConfig(
            slots=[{"name": n, "expert": u} for u, n in enumerate(named)],
            experts=[{"name": n, "dir": n, "digest": None, "maturity": "mature"} for n in named],
            base={"dir": "base", "digest": None},
            vocab_size=VOCABULARY,
            pad_token_id=0,
            router={
                "kind": "learned",
                "scope": "layer",
                "reads": "token",
                "top_k": top_k,
                "top_p": None,
                "temperature": 1.0,
            },
        )
        fresh = [files.fresh(places, "all-linear", self.rank, 32, u) for u in range(experts)]
        made = AdaptersMixture(config, base, [{n: f._replace(B_OR=f.B_OR + 0.01) for n, f in a.items()} for a in fresh])
        made.set_gates({n: torch.randn(experts, h) * 0.1 for n, h in made.layout.sizes.items()})
        return made

    def computing(self) -> Any:
        """bf16 is as in training: autocast over fp32 weights."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16")

    def step(self, model: Any) -> Callable[[], None]:
        def call() -> None:
            with self.computing():
                loss = model(input_ids=self.ids, labels=self.ids, use_cache=False).loss
            loss.backward()
            for parameter in model.parameters():
                parameter.grad = None

        return call

    def prefill(self, model: Any) -> Callable[[], None]:
        def call() -> None:
            with torch.no_grad(), self.computing():
                model(input_ids=self.ids[:1], use_cache=False)

        return call

    def decode(self, model: Any) -> Callable[[], None]:
        """Eight sequences, 16 tokens each after a short prompt, with the KV cache."""
        prompt = self.ids[:8, :8]
        how: dict[str, Any] = {"max_new_tokens": 16, "do_sample": False, "use_cache": True, "pad_token_id": 0}
        given = {"input_ids": prompt} if not isinstance(model, AdaptersMixture) else {"inputs": prompt}

        def call() -> None:
            with self.computing():
                model.generate(**given, attention_mask=torch.ones_like(prompt), **how)

        return call


def ratios(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median over rounds of each call's time over that of ``peft``, which must be among them."""
    for call in calls.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        times = {}
        for name, call in calls.items():
            begin = time.process_time()
            call()
            times[name] = time.process_time() - begin
        for name in calls:
            found[name].append(times[name] / times["peft"])
    return {name: round(statistics.median(values), 3) for name, values in found.items()}


def counted(calls: dict[str, Callable[[], None]]) -> dict[str, dict[str, float]]:
    one = {"operators": operators(calls["peft"]), "flops": flops(calls["peft"])}
    return {
        name: {"operators": round(operators(call) / one["operators"], 3), "flops": round(flops(call) / one["flops"], 3)}
        for name, call in calls.items()
        if not name.startswith("peft")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("width", 512), ("layers", 4), ("rounds", 7), ("rank", 16), ("rows", 8), ("length", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    asked = parser.parse_args()
    bench = Bench(asked.width, asked.layers, asked.rank, asked.rows, asked.length, asked.precision)
    result: dict[str, Any] = {"times": {}, "counted": {}}
    kinds = {"k8": (8, None), "k32": (32, None), "k32 top-2": (32, 2), "k8 top-1": (8, 1)}
    for what in ("step", "prefill", "decode"):
        # two models at a time: memory stays small, and PEFT is beside every one of them
        for name, (experts, top_k) in kinds.items():
            if what == "step" and top_k is not None:
                continue
            theirs, ours = bench.peft(), bench.mixture(experts, top_k)
            if what == "step":
                ours.trainable(None, router=True)
            make = getattr(bench, what)
            calls = {"peft": make(theirs), "peft again": make(theirs), name: make(ours)}
            times = ratios(calls, asked.rounds)
            result["times"].setdefault(what, {})[name] = times[name]
            result["times"][what][f"control of {name}"] = times["peft again"]
            result["counted"].setdefault(what, {}).update(counted(calls))
            print(f"{what:8} {name:10} {times[name]:.3f} of PEFT's time (control {times['peft again']:.3f})", flush=True)
    result |= {
        "benchmark": "adapters_speed",
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
    }
    result |= {"torch": torch.__version__, "settings": vars(asked)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
