"""Near-duplicates end to end from text: shingles, MinHash, bands, candidates, verification; documents a CPU second.

Against the first stage of datatrove (its MinHash signatures alone, 14 x 8, its own tokenizer) on the same documents, run by
another Python that has it: `--datatrove /path/to/python`. Control: ours is run twice on the same documents.

    python benchmarks/select_duplicates.py [--documents 20000] [--theirs 400] [--datatrove PYTHON]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

THEIRS = """
import json, sys, tempfile, time
from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashConfig, MinhashDedupSignature
from datatrove.utils.hashing import HashConfig
documents = [Document(text=json.loads(l)["text"], id=str(i)) for i, l in enumerate(open(sys.argv[1])) if i < int(sys.argv[2])]
config = MinhashConfig(hash_config=HashConfig(precision=64), num_buckets=14, hashes_per_bucket=8, n_grams=5)
with tempfile.TemporaryDirectory() as folder:
    stage = MinhashDedupSignature(output_folder=folder, config=config, language="eng")
    stage.run(iter(documents[:20]), 0, 1)  # the tokenizer is loaded
    start = time.process_time()
    stage.run(iter(documents), 0, 1)
    print(json.dumps({"documents": len(documents), "cpu_seconds": time.process_time() - start}))
"""


def ours(texts: list[str]) -> tuple[float, int, int]:
    """CPU seconds, documents dropped, pairs compared."""
    from coterie.select.duplicates import near_duplicates
    from coterie.select.sketch import bands, shingles, short_values, values
    from coterie.select.words import batches, words

    start = time.process_time()
    made = [values(shingles(words(part))) for part in batches(((t, len(t)) for t in texts), 1 << 19)]
    key = np.concatenate([bands(v) for v in made])
    short = np.concatenate([short_values(v) for v in made])
    found = near_duplicates(
        lambda b: key[:, b], lambda rows: short[rows], lambda rows: [texts[r] for r in rows], len(texts), 0.7
    )
    return time.process_time() - start, len(found.dropped), found.compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--theirs", type=int, default=400)
    parser.add_argument("--datatrove", type=Path)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("COTERIE_DATA", "../shared/data")))
    args = parser.parse_args()
    from select_profile import write

    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), args.documents, args.data)[0]
        texts = [json.loads(line)["text"] for line in Path(path).read_text().splitlines()]
        ours(texts[:500])
        seconds, dropped, compared = ours(texts)
        again, _, _ = ours(texts)
        rate, theirs = len(texts) / seconds, None
        if args.datatrove:
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                [args.datatrove, "-c", THEIRS, path, str(args.theirs)], capture_output=True, text=True, env=env, check=False
            )
            assert done.returncode == 0, done.stderr
            made = json.loads(done.stdout.splitlines()[-1])
            theirs = made["documents"] / made["cpu_seconds"]
    mean = sum(len(t) for t in texts) / len(texts)
    print(
        f"ours {rate:,.0f} documents a CPU second, theirs {theirs or 0:,.0f}; {dropped} dropped, {compared} pairs compared"
    )
    ratio = rate / theirs if theirs else None
    print(
        json.dumps(
            {
                "benchmark": "select_duplicates",
                "date": date.today().isoformat(),
                "cpu": platform.machine(),
                "cores": os.cpu_count(),
                "documents": len(texts),
                "mean_characters": round(mean),
                "per_cpu_second": round(rate),
                "noise": round(seconds / again, 3),
                "dropped": dropped,
                "compared": compared,
                "datatrove_per_cpu_second": theirs and round(theirs, 1),
                "ratio": ratio and round(ratio, 1),
                "passed": rate >= 6000 and (ratio is None or ratio >= 30),
            }
        )
    )


if __name__ == "__main__":
    main()
