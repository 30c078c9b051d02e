"""Plan and pick on 1 and 10 million rows: CPU seconds and peak memory, from the pool's file to the ids' rows in order.

266 cells (19 clusters x 14 formats), lengths and qualities drawn like the published pool's. Each size runs in a process of its
own. Control: the smaller size is run twice; the ratio of the two is the noise. The set of keys chosen must be the same after
the rows were shuffled.

    python benchmarks/select_plan_pick.py [--rows 1000000 10000000]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl

LIMITS = {1_000_000: (1.0, 2500), 10_000_000: (10.0, 2500)}
"""CPU seconds and megabytes."""
FORMATS = [
    "textbook_academic_tone",
    "educational_piece",
    "textbook_narrative",
    "blogpost",
    "wikihow",
    "story_children",
    "story_reddit",
    "story_life",
    "story_problem",
    "story_forum",
    "textbook_unconditioned",
    "scientific_article",
    "knapsack",
    "hq_piece",
]


def write(path: Path, rows: int, shuffled: bool) -> None:
    """A pool as the profile leaves it."""
    draw = np.random.default_rng(0)
    part = []
    for start in range(0, rows, 1_000_000):
        n = min(1_000_000, rows - start)
        part.append(
            pl.DataFrame(
                {
                    "key": draw.integers(0, 2**64, n, dtype=np.uint64),
                    "tokens": np.maximum(draw.normal(820, 260, n), 60).astype(np.int64),
                    "quality": draw.random(n).astype(np.float32),
                    "cluster": np.array([f"c{i:02}" for i in range(19)])[(draw.random(n) ** 1.7 * 19).astype(int)],
                    "format": np.array(FORMATS)[(draw.random(n) ** 2 * 14).astype(int)],
                    "dropped": (draw.random(n) < 0.03).astype(np.uint8) * 5,
                }
            ).with_columns(pl.col("cluster", "format").cast(pl.Categorical))
        )
    table = pl.concat(part)
    (table.sample(fraction=1, shuffle=True, seed=1) if shuffled else table).write_parquet(path, statistics=False)


def one(path: Path, budget: int) -> dict:
    """In this process: read, plan, pick."""
    from coterie.select.candidates import Candidates
    from coterie.select.choose import choose
    from coterie.select.select_settings import Select

    select = Select.model_validate(
        {
            "budget": {"tokens": budget},
            "axes": {
                "cluster": {"column": "cluster", "mix": 0.4},
                "format": {
                    "target": {
                        "textbook_academic_tone": 0.35,
                        "educational_piece": 0.2,
                        "textbook_narrative": 0.15,
                        "blogpost|wikihow": 0.2,
                        "story_*": 0.1,
                    }
                },
            },
            "rank": {"within": "format"},
        }
    )
    before = time.process_time()
    columns = ["key", "tokens", "quality", "cluster", "format", "dropped"]
    pool = Candidates.of(pl.read_parquet(path, columns=columns), {name: name for name in select.axes})
    read = time.process_time()
    chosen = choose(pool, select, seed=7, label="bench")
    done = time.process_time()
    keys = np.sort(pool.key_N[chosen.at])
    return {
        "read": round(read - before, 3),
        "plan_and_pick": round(done - read, 3),
        "cpu_seconds": round(done - before, 3),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "documents": len(keys),
        "feasible": chosen.plan is not None and chosen.plan.feasible,
        "keys": hash(keys.tobytes()) if len(keys) else 0,
        "off_tokens": chosen.tokens - budget,
    }


def apart(path: Path, budget: int) -> dict:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        [sys.executable, __file__, "--one", str(path), str(budget)], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument("--one", nargs=2)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(Path(args.one[0]), int(args.one[1]))))
        return
    found, passed = {}, True
    with tempfile.TemporaryDirectory() as folder:
        for rows in args.rows:
            path = Path(folder) / "pool.parquet"
            write(path, rows, shuffled=False)
            made = apart(path, rows * 40)
            if rows == min(args.rows):
                noise = apart(path, rows * 40)["cpu_seconds"] / made["cpu_seconds"]
            write(path, rows, shuffled=True)
            again = apart(path, rows * 40)
            made["same_after_shuffle"] = again.pop("keys") == made.pop("keys")
            seconds, megabytes = LIMITS.get(rows, (np.inf, np.inf))
            passed &= bool(made["cpu_seconds"] < seconds and made["peak_mb"] < megabytes and made["same_after_shuffle"])
            found[str(rows)] = made
            print(rows, made)
    print(
        json.dumps(
            {
                "benchmark": "select_plan_pick",
                "date": date.today().isoformat(),
                "cpu": platform.machine(),
                "cores": os.cpu_count(),
                "rows": found,
                "noise": round(noise, 3),
                "passed": passed,
            }
        )
    )


if __name__ == "__main__":
    main()
