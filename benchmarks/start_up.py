"""How long a person waits for nothing: `coterie --help`, and a run that finds everything.

Seconds of wall time in fresh processes, medians; the control is an empty Python process. Targets: `--help` under 0.5 s and
without torch, a fully cached run of a recipe with six experts under 5 s.

    python benchmarks/start_up.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COTERIE = [sys.executable, "-c", "import sys; from coterie.cli import main; sys.argv[0] = 'coterie'; main()"]


def write_recipe(folder: Path) -> Path:
    """Six experts on six small corpora, three mixtures, `single`."""
    draw = random.Random(0)
    names = [f"c{i}" for i in range(6)]
    for name in names:
        words = ["".join(draw.choices("abcdefghij", k=5)) for _ in range(40)]
        rows = [json.dumps({"text": " ".join(draw.choices(words, k=40))}) for _ in range(400)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    recipe = {
        "name": "six",
        "sequence_length": 64,
        "base": {
            "init": "llama",
            "hidden_size": 32,
            "layers": 1,
            "heads": 2,
            "tokenizer": {"train": "bpe", "vocab_size": 400},
            "pretrain": {"corpora": names, "tokens": 5_000},
        },
        "corpora": {n: {"path": f"{n}.jsonl", "text": "text"} for n in names},
        "train": {"tokens": 5_000},
        "experts": [{"name": n, "corpus": n} for n in names],
        "single": True,
        "mixtures": [{"name": r, "at": "outputs", "slots": names, "router": r} for r in ("uniform", "posterior")]
        + [{"name": "linear", "at": "outputs", "slots": names, "router": {"kind": "linear"}}],
        "evaluation": [{"name": "losses", "corpora": names}],
    }
    path = folder / "six.json"
    path.write_text(json.dumps(recipe))
    return path


def seconds(command: list[str], folder: Path) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        run = [*COTERIE, "run", write_recipe(folder).name, "--store", "store"]
        first = seconds(run, folder)
        commands = {"control": [sys.executable, "-c", "pass"], "help": [*COTERIE, "--help"], "cached_run": run}
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(repeats):
            for name, command in commands.items():
                taken[name].append(seconds(command, folder))
    medians = {name: round(statistics.median(values), 3) for name, values in taken.items()}
    for name, value in medians.items():
        print(f"{name:<12} {value:.3f} s")
    print(
        json.dumps(
            {
                "benchmark": "start_up",
                "first_run_s": round(first, 1),
                "median_s": medians,
                "repeats": repeats,
                "met": medians["help"] < 0.5 and medians["cached_run"] < 5,
            }
        )
    )


if __name__ == "__main__":
    main()
