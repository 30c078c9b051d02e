"""Profiling the same files as one job and as two: wall time until all parts are in the store, which is what jobs share.

The files of `select_profile.py`, 20,000 documents and 73 MB each, so every file is a part. Every run starts from an empty store, on
one thread a job; one job and two take turns, and the best time of each way counts. Control: the largest ratio of two runs of
one way. The fit of the topics and the merged pool are one process's work either way; the pool must be the same.

    python benchmarks/select_jobs.py [--documents 80000] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from datetime import date
from pathlib import Path

from select_profile import write

from coterie import launch
from coterie.launch.job_queue import THREADS
from coterie.recipe import read
from coterie.run import jobs as parallel
from coterie.select.profiled_corpus import profile_corpus
from coterie.store import Store


def timed(recipe: Path, jobs: int) -> tuple[float, str]:
    """Seconds for the parts, and the digest of the pool."""
    corpus = read(recipe, selecting=True).corpora["data"]
    with tempfile.TemporaryDirectory(dir=recipe.parent) as root:
        store, place = Store(root), launch.place(jobs, None)
        start = time.monotonic()
        parallel.profile(store, corpus, place, "data", [str(recipe)])
        seconds = time.monotonic() - start
        pool = profile_corpus(store, corpus, label="data").artifact.digest
        store.leave()
        return seconds, pool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=80_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("COTERIE_DATA", "../shared/data")))
    args = parser.parse_args()
    os.environ |= dict.fromkeys(THREADS, "1")  # of the jobs; else the only one of one would have all cores
    taken: dict[int, list[float]] = {1: [], 2: []}
    pools = set()
    with tempfile.TemporaryDirectory() as folder:
        paths = write(Path(folder), args.documents, args.data)
        select = {"budget": {"docs": 1000}, "seed": 0, "axes": {"cluster": {"k": 19}, "format": {}}}
        recipe = Path(folder) / "recipe.json"
        recipe.write_text(json.dumps({"corpora": {"data": {"path": paths, "id": "id", "select": select}}}))
        for repeat in range(args.repeats):
            for jobs in taken:
                seconds, pool = timed(recipe, jobs)
                taken[jobs].append(seconds)
                pools.add(pool)
                print(f"{jobs} at once, run {repeat + 1}: {seconds:.1f} s", flush=True)
    ratio = min(taken[1]) / min(taken[2])
    print(
        json.dumps(
            {
                "benchmark": "select_jobs",
                "date": date.today().isoformat(),
                "cpu": platform.machine(),
                "cores": os.cpu_count(),
                "load": round(os.getloadavg()[0], 1),
                "documents": args.documents,
                "parts": len(paths),
                "seconds": {jobs: [round(s, 2) for s in them] for jobs, them in taken.items()},
                "ratio": round(ratio, 3),
                "noise": round(max(max(them) / min(them) for them in taken.values()), 3),
                "same_pool": len(pools) == 1,
                "passed": len(pools) == 1 and ratio >= 1.7,
            }
        )
    )


if __name__ == "__main__":
    main()
