"""What it costs to verify results when they are opened, beside what it costs to open them: a run's folder with two experts.

Each figure is the middle of five, opened with the hashes of this process forgotten; `cold` with the files out of the system's
memory. The control opens twice without verifying: what differs between the two is noise.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import coterie
from coterie.mixtures.load import combine
from coterie.store import Artifact, link_tree, objects, sha256, whole

HIDDEN = int(sys.argv[1]) if len(sys.argv) > 1 else 1024


def folder(root: Path) -> Path:
    """A mixture of two models as a run leaves one."""
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=256,
    )
    combine({name: LlamaForCausalLM(config) for name in ("one", "two")}).save_pretrained(root / "made")
    files = {p.relative_to(root / "made").as_posix(): sha256(p) for p in (root / "made").rglob("*") if p.is_file()}
    return link_tree(Artifact("mixtures", "0" * 64, root / "made", files), root / "out" / "mixtures" / "two")


def seconds(place: Path, cold: bool, verify: bool, times: int = 5) -> float:
    found = []
    for _ in range(times):
        objects._hashed.clear()
        for path in place.rglob("*") if cold else ():
            if path.is_file():
                handle = os.open(path, os.O_RDONLY)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(handle)
        with nullcontext() if verify else mock.patch("coterie.store.admit.require_whole"):
            started = time.perf_counter()
            coterie.load(place)
            found.append(time.perf_counter() - started)
    return statistics.median(found)


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temp:
        place = folder(Path(temp))
        size = sum(p.stat().st_size for p in place.rglob("*") if p.is_file())
        os.sync()
        coterie.load(place)
        figures = {"bytes": size, "cores": os.cpu_count()}
        for kind in ("warm", "cold"):
            plain, again = (seconds(place, kind == "cold", False) for _ in range(2))
            verified = seconds(place, kind == "cold", True)
            figures[kind] = {"open": plain, "control": again, "verified": verified, "cost": (verified - plain) / plain}
        started = time.perf_counter()
        objects._hashed.clear()
        whole.require_whole(place)
        figures["gigabytes_a_second"] = size / 1e9 / (time.perf_counter() - started)
        started = time.perf_counter()
        whole.require_whole(place)
        figures["seconds_when_known"] = time.perf_counter() - started
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
