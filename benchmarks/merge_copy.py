"""Merging against copying: 8 feed-forward experts of a 1 B-parameter Llama shape, random weights in bf16.

The merge reads every expert and writes one mixture, checked and synced; the control copies the very files that it wrote, with
the same syncs; both read from the disk, not from what is left in memory. Each takes turns, in a process of its own, whose peak
memory is counted above what importing costs. With ``--mergekit PYTHON`` (an interpreter that has mergekit installed) its MoE
merge of the same input takes turns too, without its prompts (gate mode `random`).

    python benchmarks/merge_copy.py [--layers 22] [--experts 8] [--rounds 3] [--folder DIR] [--mergekit PYTHON]

The full shape needs about 60 GB of disk; `--layers 2` shows the same ratios with 5 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

SHARD = 10**9
"""Bytes in a file."""


def make(folder: Path, layers: int, experts: int) -> None:
    """A base and experts that differ from it in their feed-forward blocks."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )
    words = Tokenizer(models.WordLevel({"<unk>": 0, "x": 1, "</s>": 2}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="</s>")
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config)
    for name in ("base", *(f"e{i}" for i in range(experts))):
        if name != "base":
            for layer in model.model.layers:
                for parameter in layer.mlp.parameters():
                    torch.nn.init.normal_(parameter, std=0.02)
        model.save_pretrained(folder / name, max_shard_size=SHARD)
        tokenizer.save_pretrained(folder / name)


def merge(folder: Path, target: Path, experts: int) -> None:
    import torch

    from coterie.mixtures.layers.expert_weights import Directory, source
    from coterie.mixtures.layers.layers_files import write_experts, write_rest
    from coterie.mixtures.layers.merge import Merge, describe, gate_names
    from coterie.mixtures.layers.tensor_shards import stored
    from coterie.store.durable import sync

    base = Directory(folder / "base")
    names = [f"e{i}" for i in range(experts)]
    it = Merge(base, [source(folder / name, base, name) for name in names])
    (target / "experts").mkdir(parents=True)
    write_experts(it, target / "experts", SHARD)
    gate = {"kind": "given", "top_k": 2, "bias": False}
    settings = describe(base, names, list(range(experts)), [None] * experts, gate)
    gates = {name: torch.zeros(experts, base.config.hidden_size) for name in gate_names(it.blocks, False)}
    write_rest(settings, base.folder, stored(sorted((target / "experts").glob("*.safetensors"))), gates, target)
    for path in target.rglob("*"):
        sync(path)


def copy(folder: Path, target: Path) -> None:
    from coterie.store.durable import sync

    shutil.copytree(folder, target, copy_function=shutil.copyfile)
    for path in target.rglob("*"):
        sync(path)


def kit(python: Path, folder: Path, target: Path, experts: int) -> None:
    """mergekit's MoE merge, with random gates so that no prompt is run."""
    lines = [f"base_model: {folder / 'base'}", "gate_mode: random", "dtype: bfloat16", "architecture: mixtral", "experts:"]
    for i in range(experts):
        lines += [f"  - source_model: {folder / f'e{i}'}", '    positive_prompts: ["x"]']
    (folder / "kit.yaml").write_text("\n".join(lines) + "\n")
    command = [str(python.parent / "mergekit-moe"), str(folder / "kit.yaml"), str(target), "--out-shard-size", "1B"]
    command += ["--i-understand-this-is-not-useful-without-training"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    for path in target.rglob("*"):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def cold(folder: Path) -> None:
    """Have the files of a folder read from the disk again: what was written last would else come from memory."""
    for path in folder.rglob("*.safetensors"):
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def timed(what: str, folder: Path, target: Path, experts: int, python: str) -> dict[str, float]:
    """One turn in a process of its own: seconds, and bytes of memory above what it began with."""
    cold(folder)
    command = [sys.executable, __file__, "--turn", what, "--folder", str(folder), "--target", str(target)]
    command += ["--experts", str(experts), *(["--mergekit", python] if python else [])]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return {"process": time.perf_counter() - start, **json.loads(done.stdout.splitlines()[-1])}


def turn(args: argparse.Namespace) -> None:
    if args.turn == "merge":
        pass
    status = Path("/proc/self/status").read_text().splitlines()
    before = int(next(line for line in status if line.startswith("VmRSS")).split()[1])
    start = time.perf_counter()
    if args.turn == "merge":
        merge(args.folder, args.target, args.experts)
    elif args.turn == "copy":
        copy(args.folder, args.target)
    else:
        kit(Path(args.mergekit), args.folder, args.target, args.experts)
    seconds = time.perf_counter() - start
    # Of this process by its own status: getrusage begins with the peak of the process that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    if args.turn == "kit":
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({"seconds": seconds, "memory": (peak - before) * 1024, "whole_memory": peak * 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--mergekit", default="")
    parser.add_argument("--turn", choices=["merge", "copy", "kit"], help="used by the script itself")
    parser.add_argument("--target", type=Path, help="used by the script itself")
    args = parser.parse_args()
    if args.turn:
        turn(args)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as temp:
        folder = Path(temp)
        make(folder, args.layers, args.experts)
        taken: dict[str, list[dict[str, float]]] = {"merge": [], "copy": [], "again": [], "kit": []}
        size = 0
        for _ in range(args.rounds):
            merged = folder / "merged"
            taken["merge"].append(timed("merge", folder, merged, args.experts, ""))
            size = sum(p.stat().st_size for p in merged.rglob("*") if p.is_file())
            for name in ("copy", "again"):
                taken[name].append(timed("copy", merged, folder / name, args.experts, ""))
                shutil.rmtree(folder / name)
            shutil.rmtree(merged)
            if args.mergekit:
                taken["kit"].append(timed("kit", folder, folder / "kit", args.experts, args.mergekit))
                shutil.rmtree(folder / "kit")

    def ratio(one: str, two: str, what: str = "seconds") -> float | None:
        return (
            statistics.median(a[what] / b[what] for a, b in zip(taken[one], taken[two], strict=True)) if taken[one] else None
        )

    memory = max(t["memory"] for t in taken["merge"])
    figures = {
        "benchmark": "merge_copy",
        "date": date.today().isoformat(),
        "cpu": platform.machine(),
        "cores": os.cpu_count(),
        "layers": args.layers,
        "experts": args.experts,
        "gigabytes": round(size / 1e9, 3),
        "shard_gigabytes": SHARD / 1e9,
        "seconds": {k: [round(t["seconds"], 2) for t in v] for k, v in taken.items() if v},
        "to_copy": round(ratio("merge", "copy"), 3),
        "noise": round(ratio("again", "copy"), 3),
        "memory_in_shards": round(memory / SHARD, 3),
    }
    passed = figures["to_copy"] <= 1.3 and figures["memory_in_shards"] <= 2
    if args.mergekit:
        # whole processes, start-up included in both
        figures["mergekit_to_ours"] = round(ratio("kit", "merge", "process"), 3)
        figures["mergekit_memory_to_ours"] = round(ratio("kit", "merge", "whole_memory"), 2)
        passed = passed and figures["mergekit_to_ours"] > 1 and figures["mergekit_memory_to_ours"] > 1
    print(f"merge {figures['to_copy']} x copy (noise {figures['noise']}), memory {memory / 1e6:.0f} MB above imports")
    print(json.dumps(figures | {"passed": passed}))


if __name__ == "__main__":
    main()
