"""32 slots on 2 experts against 2 slots: disk, memory and time of `nll`.

Two mixtures of the same two experts, saved, opened and asked in turns in one process. Memory is the resident memory of a
process that has opened the mixture and asked it once. Control: the mixture of 2 slots takes a second turn in every round.

    python benchmarks/slots.py [--rounds 25]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

V, B, T = 2048, 8, 256


def resident() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def write(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from coterie.mixtures.load import combine
    from coterie.routing.output_routers import Linear

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=T,
        tie_word_embeddings=True,
    )
    experts = {name: LlamaForCausalLM(config).eval() for name in ("a", "b")}
    for slots in (2, 32):
        combine(experts, ["a", "b"] * (slots // 2), Linear(kind="linear")).save_pretrained(folder / str(slots))


def ids():
    import torch

    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(0))


def memory(folder: Path) -> int:
    from coterie.mixtures.load import load

    load(folder).nll(ids())
    return resident()


def seconds(m) -> float:
    start = time.perf_counter()
    m.nll(ids())
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--memory", type=Path, help="print the memory of one mixture (used by the script itself)")
    args = parser.parse_args()
    if args.memory:
        print(memory(args.memory))
        return
    from coterie.mixtures.load import load

    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        write(folder)
        disk = {n: sum(p.stat().st_size for p in (folder / n).rglob("*") if p.is_file()) for n in ("2", "32")}

        def process(n: str) -> int:
            command = [sys.executable, __file__, "--memory", str(folder / n)]
            return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])

        held = {n: statistics.median(process(n) for _ in range(3)) for n in ("2", "32")}
        opened = {n: load(folder / n) for n in ("2", "32")}
        apart = (opened["2"].nll(ids()) - opened["32"].nll(ids())).abs().max().item()
        turns = [(seconds(opened["2"]), seconds(opened["32"]), seconds(opened["2"])) for _ in range(args.rounds)]
    ratios = {
        "disk": disk["32"] / disk["2"],
        "memory": held["32"] / held["2"],
        "time": statistics.median(many / ((few + again) / 2) for few, many, again in turns),
    }
    print(f"32 slots over 2, ratios: {ratios}; largest difference in nll {apart:.1e}")
    print(
        json.dumps(
            {
                "benchmark": "slots",
                "date": date.today().isoformat(),
                "cpu": platform.machine(),
                "cores": os.cpu_count(),
                "slots": [2, 32],
                "experts": 2,
                "tokens": [B, T],
                **{k: round(v, 4) for k, v in ratios.items()},
                "noise": round(statistics.median(again / few for few, _, again in turns), 4),
                "passed": ratios["disk"] <= 1.02 and ratios["memory"] <= 1.02 and ratios["time"] <= 1.05 and apart <= 1e-5,
            }
        )
    )


if __name__ == "__main__":
    main()
