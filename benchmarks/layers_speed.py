"""Mixtures at layers: what slots cost, and our forward pass against stock transformers on the same checkpoint.

Part one, a Llama of 4 layers: a dense model; 32 slots on it; 32 slots on 4 experts; and 32 copies, which is what public
pipelines write. Disk, resident memory of a process that opened it and asked once, and time of `nll` in turns; then rows that
experts read, counted. Part two: a mixture of 4 experts, k = 2, and its export, opened by stock transformers, in turns. Control:
the dense model, and ours, take a second turn in every round.

    python benchmarks/layers_speed.py [--rounds 15] [--hidden 512]
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

V, B, T = 2048, 4, 256


def ids():
    import torch

    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(0))


def dense(seed: int, hidden: int):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=T,
    )
    return LlamaForCausalLM(config).eval()


def merged_of(distinct: int, copies: bool, hidden: int = 256):
    """32 slots over so many distinct experts, k = 4, slots of one expert with equal rows; as copies, each slot has its own."""
    import torch
    from in_memory import merged

    experts = {f"e{u}": dense(u, hidden) for u in range(distinct)}
    names = [f"e{s % distinct}" for s in range(32)]
    rows = torch.randn(4, distinct, hidden, generator=torch.Generator().manual_seed(1)) / hidden**0.5
    gates = [layer[torch.arange(32) % distinct] for layer in rows]
    if copies:
        return merged(dense(0, hidden), {f"c{s}": experts[n] for s, n in enumerate(names)}, gates=gates, top_k=4)
    return merged(dense(0, hidden), experts, names, gates, top_k=4)


def write(folder: Path, hidden: int) -> None:
    import torch
    from in_memory import merged

    from coterie.mixtures.export.write_checkpoint import export

    dense(0, hidden).save_pretrained(folder / "dense")
    merged_of(1, False, hidden).save_pretrained(folder / "one")
    merged_of(4, False, hidden).save_pretrained(folder / "four")
    merged_of(4, True, hidden).save_pretrained(folder / "copies")
    four = {f"e{u}": dense(u, hidden) for u in range(4)}
    rows = torch.randn(4, 4, hidden, generator=torch.Generator().manual_seed(1)) / hidden**0.5
    merged(dense(0, hidden), four, gates=list(rows), top_k=2).save_pretrained(folder / "ours")
    export(folder / "ours", folder / "stock")


def opened(folder: Path):
    import torch
    from transformers import AutoModelForCausalLM

    import coterie

    if folder.name == "stock":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return coterie.load(folder)


def resident(folder: Path) -> int:
    opened(folder).nll(ids())
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def resident_of(folder: Path) -> int:
    """The same, in a process of its own."""
    command = [sys.executable, __file__, "--memory", str(folder)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def seconds(ask) -> float:
    start = time.perf_counter()
    ask()
    return time.perf_counter() - start


def rows_read(model) -> int:
    """Tokens that experts read in one pass, over all layers."""
    total = 0

    def count(module, inputs, output) -> None:
        nonlocal total
        total += inputs[0].numel() // inputs[0].shape[-1]

    handles = [e.register_forward_hook(count) for block in model.blocks for e in block.experts]
    model.nll(ids())
    for handle in handles:
        handle.remove()
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--memory", type=Path, help="print the memory of one model (used by the script itself)")
    args = parser.parse_args()
    if args.memory:
        print(resident(args.memory))
        return
    import torch

    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        write(folder, args.hidden)
        names = ("dense", "one", "four", "copies")
        disk = {n: sum(p.stat().st_size for p in (folder / n).rglob("*") if p.is_file()) for n in names}
        held = {n: statistics.median(resident_of(folder / n) for _ in range(3)) for n in names}
        models = {n: opened(folder / n) for n in (*names, "ours", "stock")}
        rows = {n: rows_read(models[n]) for n in ("one", "four", "copies")}
        asks = {n: (lambda m=models[n]: m.nll(ids())) for n in names}
        with torch.no_grad():
            asks["ours"] = lambda: models["ours"].model(ids(), use_cache=False).logits
            asks["stock"] = lambda: models["stock"](ids(), use_cache=False).logits
            apart = (asks["ours"]().log_softmax(-1) - asks["stock"]().log_softmax(-1)).abs().max().item()
            order = ("dense", "one", "four", "copies", "dense", "ours", "stock", "ours")
            taken = [[seconds(asks[n]) for n in order] for _ in range(args.rounds)]

    def ratio(a: int, b: int) -> float:
        return round(statistics.median(turn[a] / turn[b] for turn in taken), 4)

    figures = {
        "benchmark": "layers_speed",
        "date": date.today().isoformat(),
        "cpu": platform.machine(),
        "cores": os.cpu_count(),
        "hidden": args.hidden,
        "tokens": [B, T],
        "disk": {n: round(disk[n] / disk["dense"], 4) for n in names},
        "memory": {n: round(held[n] / held["dense"], 4) for n in names},
        "time": {"one": ratio(1, 0), "four": ratio(2, 0), "copies": ratio(3, 0)},
        "expert_rows_of_four_to_copies": round(rows["four"] / rows["copies"], 4),
        "ours_to_stock": ratio(5, 6),
        "noise_dense": ratio(4, 0),
        "noise_ours": ratio(7, 5),
        "apart": apart,
    }
    passed = (
        figures["disk"]["one"] <= 1.02
        and figures["memory"]["one"] <= 1.02
        and figures["time"]["one"] <= 1.10
        and figures["expert_rows_of_four_to_copies"] <= 0.35
        and figures["ours_to_stock"] <= 1.0 + abs(figures["noise_ours"] - 1)
    )
    print(
        f"32 slots on one expert: {figures['disk']['one']} x disk, {figures['memory']['one']} x memory, {figures['time']['one']} x time"
    )
    print(f"ours {figures['ours_to_stock']} x stock transformers (noise {figures['noise_ours']})")
    print(json.dumps(figures | {"passed": passed}))


if __name__ == "__main__":
    main()
