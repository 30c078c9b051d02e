"""Peak memory of `nll` beyond the weights: 8 experts against one, vocabulary 32k, 4 x 512 tokens.

Each measurement is a process of its own: it opens the mixture, asks a short question once, resets the kernel's high-water
mark of resident memory, asks for `nll`, and reads the mark. The C library is told to give freed memory back at once, or
what the initialisation left behind would hide the peak. Control: one expert, measured again. For scale, one tensor
[4, 512, 32768] of logits in fp32 is 256 MiB.

    python benchmarks/nll_memory.py [--router linear]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path

V, B, T = 32_768, 4, 512
KINDS = {"uniform": {"kind": "uniform"}, "posterior": {"kind": "posterior"}, "linear": {"kind": "linear"}}


def resident(key: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def measure(experts: int, router: str) -> int:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from coterie.mixtures.load import combine
    from coterie.mixtures.outputs.outputs_place import OutputsPlace

    config = LlamaConfig(
        vocab_size=V,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=T,
        tie_word_embeddings=True,
    )
    spec = OutputsPlace.model_validate({"name": "m", "at": "outputs", "slots": ["e"], "router": KINDS[router]}).router
    m = combine({f"e{u}": LlamaForCausalLM(config).eval() for u in range(experts)}, router=spec)
    ids_BT = torch.randint(0, V, (B, T))
    m.nll(ids_BT[:1, :8])
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    m.nll(ids_BT)
    return resident("VmHWM") - before


def in_a_process(experts: int, router: str) -> int:
    command = [sys.executable, __file__, "--one", str(experts), "--router", router]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**18)}
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--router", choices=KINDS, default="linear")
    parser.add_argument("--one", type=int, help="measure once with so many experts (used by the script itself)")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.one:
        print(measure(args.one, args.router))
        return
    one, control, eight = ([in_a_process(n, args.router) for _ in range(args.repeats)] for n in (1, 1, 8))
    ratio = statistics.median(eight) / statistics.median(one)
    megabytes = {k: [round(b / 2**20) for b in v] for k, v in (("one", one), ("control", control), ("eight", eight))}
    print(f"peak beyond the weights in MiB: {megabytes}")
    print(
        json.dumps(
            {
                "benchmark": "nll_memory",
                "date": date.today().isoformat(),
                "cpu": platform.machine(),
                "cores": os.cpu_count(),
                "router": args.router,
                "vocabulary": V,
                "tokens": [B, T],
                "peak_mib": megabytes,
                "ratio": round(ratio, 3),
                "noise": round(statistics.median(control) / statistics.median(one), 3),
                "passed": ratio <= 1.3,
            }
        )
    )


if __name__ == "__main__":
    main()
