"""The whole profile without embeddings, from JSONL files to the pool: documents a CPU second, at several sizes, and peak memory.

Documents of about 800 tokens (3,660 characters) are put together from sentences of real prose (or, without it, of Python's own
library), 4 % of them edited copies. Reading, measuring, hashing, topics, assignment, near-duplicates with verification, merging:
all of it counts. Each size runs in a process of its own with an empty store. Control: the smallest size is run twice.

    python benchmarks/select_profile.py [--documents 10000 100000 300000] [--batch-bytes 524288]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from datetime import date
from pathlib import Path

CHARACTERS, FILES_OF = 3660, 20_000


def sentences(data: Path) -> list[list[str]]:
    """Sentences by source, at least some words each."""
    prose = data / "labelled_prose/labelled_prose.jsonl"
    by_topic: dict[str, list[str]] = {}
    if prose.exists():
        for line in prose.open():
            row = json.loads(line)
            by_topic.setdefault(row["topic"] or row["domain"], []).extend(re.split(r"(?<=[.!?])\s+", row["text"]))
    else:
        for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
            by_topic[path.stem[:1]] = by_topic.get(path.stem[:1], []) + path.read_text(errors="replace").split("\n\n")
    kept = [[s for s in found if 20 < len(s) < 400] for found in by_topic.values()]
    return [found for found in kept if len(found) > 200]


def write(folder: Path, count: int, data: Path) -> list[str]:
    """Files of JSONL."""
    pool, draw = sentences(data), random.Random(0)
    paths, file = [], None
    last: list[str] = []
    for i in range(count):
        if i % FILES_OF == 0:
            if file:
                file.close()
            paths.append(str(folder / f"part-{i // FILES_OF:03}.jsonl"))
            file = open(paths[-1], "w")  # noqa: SIM115
        if last and draw.random() < 0.04:
            said = [s if draw.random() > 0.03 else s.upper()[::-1] for s in last]
        else:
            topic, size, said = draw.choice(pool), 0, []
            while size < CHARACTERS:
                said.append(draw.choice(topic))
                size += len(said[-1]) + 1
        last = said
        file.write(json.dumps({"id": f"d{i}", "text": " ".join(said), "format": f"f{i % 7}"}) + "\n")
    file.close()
    return paths


def one(folder: Path, batch_bytes: int) -> dict:
    """In this process: profile everything."""
    import scipy.sparse  # noqa: F401  start-up, not per document

    from coterie.select.profile_shards import profile_parts
    from coterie.select.profiled_corpus import profile_corpus
    from coterie.select.select_settings import Corpus
    from coterie.store import Store

    corpus = Corpus.model_validate(
        {
            "path": str(folder / "*.jsonl"),
            "id": "id",
            "split": {"valid": 0, "test": 0},
            "select": {
                "budget": {"docs": 1000},
                "seed": 0,
                "axes": {"cluster": {"k": 19}, "format": {}},
                "batch_bytes": batch_bytes,
            },
        }
    )
    store = Store(folder / "store")
    start = time.process_time()
    profile_parts(store, corpus, label="bench")
    parts = time.process_time()
    it = profile_corpus(store, corpus, label="bench")
    end = time.process_time()
    funnel = it.artifact.facts["funnel"]
    return {
        "documents": funnel["read"],
        "cpu_seconds": round(end - start, 2),
        "per_cpu_second": round(funnel["read"] / (end - start)),
        "parts_seconds": round(parts - start, 2),
        "merge_seconds": round(end - parts, 2),
        "near_duplicates": funnel["dropped"].get("near-duplicate", {}).get("documents", 0),
        "mean_tokens": round(funnel["tokens"] / funnel["read"]),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "pool": it.artifact.content("pool.parquet"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="*", default=[10_000, 100_000, 300_000])
    parser.add_argument("--batch-bytes", type=int, default=1 << 19)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("COTERIE_DATA", "../shared/data")))
    parser.add_argument("--one", nargs=2)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(Path(args.one[0]), int(args.one[1]))))
        return
    env = {**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "ARROW_NUM_THREADS": "1"}

    def apart(folder: str) -> dict:
        call = [sys.executable, __file__, "--one", folder, str(args.batch_bytes)]
        done = subprocess.run(call, capture_output=True, text=True, env=env, check=False)
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout.splitlines()[-1])
        print(made)
        return made

    found, noise = [], None
    for count in sorted(args.documents):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), count, args.data)
            found.append(apart(folder))
        if noise is None:
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder), count, args.data)
                noise = apart(folder)["per_cpu_second"] / found[0]["per_cpu_second"]
    flat = min(m["per_cpu_second"] for m in found[1:] or found) / found[0]["per_cpu_second"]
    print(
        json.dumps(
            {
                "benchmark": "select_profile",
                "date": date.today().isoformat(),
                "cpu": platform.machine(),
                "cores": os.cpu_count(),
                "sizes": found,
                "flat": round(flat, 3),
                "noise": round(noise or 0, 3),
                "batch_bytes": args.batch_bytes,
                "passed": min(m["per_cpu_second"] for m in found) >= 1500 and flat > 0.8,
            }
        )
    )


if __name__ == "__main__":
    main()
