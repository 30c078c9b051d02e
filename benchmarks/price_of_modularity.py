"""How much should the base learn before experts branch? The price of modularity on four domains at equal total tokens.

For each share of the tokens spent in the shared base, and for each seed: a base on all four domains, four experts that branch
from it, one single model from the same start with the same total; then every router. Writes docs/results/outputs.md; the last
line of stdout is one JSON object.

    python benchmarks/price_of_modularity.py [--tokens 500000] [--seeds 3] [--data ../shared/data] [--store DIR]

Everything is an artifact: interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from datetime import date
from pathlib import Path

import coterie

SHARES = (0.0, 0.25, 0.5, 0.75, 0.9)
ROUTERS = {
    "uniform": {"kind": "uniform"},
    "posterior": {"kind": "posterior"},
    "linear": {"kind": "linear"},
    "linear+posterior": {"kind": "linear", "features": ["tokens", "posterior"]},
    "mlp+posterior": {"kind": "mlp", "features": ["tokens", "posterior"]},
}
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Two-sided 95 % quantile of Student's t with n - 1 degrees of freedom."""


def corpora(data: Path) -> dict:
    split = {"valid": 0.08, "test": 0.08}
    return {
        "meetings": {
            "path": str(data / "qmsum/qmsum_compact.jsonl"),
            "text": "{query}\n{relevant_text}\n{answer}",
            "id": "id",
            "split": {**split, "group": "meeting_id"},
        },
        "code": {
            "path": [str(data / "codealpaca/code_alpaca_20k.jsonl"), str(data / "codealpaca/new_codealpaca.jsonl")],
            "text": "{instruction}\n{input}\n{output}",
            "id": "id",
            "split": split,
        },
        "prose": {
            "path": str(data / "labelled_prose/labelled_prose.jsonl"),
            "text": "text",
            "id": "id",
            "split": {**split, "group": "doc_id"},
        },
        "projects": {"path": str(data / "dated/dated.jsonl"), "text": "text", "id": "id", "split": split},
    }


def recipe(data: Path, share: float, seed: int, tokens: int, test_tokens: int) -> dict:
    domains = corpora(data)
    base: dict = {
        "init": "llama",
        "hidden_size": 96,
        "layers": 3,
        "heads": 4,
        "tokenizer": {"train": "bpe", "vocab_size": 2048, "corpora": list(domains)},
    }
    if share:
        base["pretrain"] = {"corpora": list(domains), "tokens": round(tokens * share)}
    each = round(tokens * (1 - share) / len(domains))
    return {
        "name": "price-of-modularity",
        "seed": seed,
        "base": base,
        "corpora": domains,
        "train": {"tokens": each, "learning_rate": 3e-3, "save_every": 10**9},
        "experts": [{"name": name, "corpus": name} for name in domains],
        "single": True,
        "mixtures": [
            {
                "name": f"m-{i}",
                "at": "outputs",
                "slots": list(domains),
                "router": {"tokens": 60_000, **router} if router["kind"] != "uniform" else router,
            }
            for i, router in enumerate(ROUTERS.values())
        ],
        "evaluation": [{"name": "losses", "corpora": list(domains), "tokens": test_tokens}],
    }


def measure(data: Path, share: float, seed: int, args: argparse.Namespace) -> dict[str, float]:
    out = Path(args.out) / f"share-{round(100 * share)}-seed-{seed}"
    done = coterie.run(recipe(data, share, seed, args.tokens, args.test_tokens), store=args.store, out=out)
    table = done.summary["evaluation"]["losses"]
    args.parameters = done.summary["single"]["parameters"]
    nll = {name: table[f"m-{i}"]["all"]["nll"] for i, name in enumerate(ROUTERS)}
    return nll | {name: table[name]["all"]["nll"] for name in ("best_expert", "oracle", "single")}


END = "<!-- study: end -->\n"
"""Ends what a study writes; what a person wrote below it stays."""


def publish(path: Path, text: str) -> None:
    """Write what a study found, and keep the reading of it that stands below."""
    below = path.read_text().partition(END)[2] if path.exists() else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text.rstrip()}\n{END}{below}")


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval over seeds (Student's t)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, float("nan")
    return mean, T_95[len(values)] * statistics.stdev(values) / len(values) ** 0.5


def processor() -> str:
    """Name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def page(results: dict[float, list[dict[str, float]]], args: argparse.Namespace) -> str:
    names = [*ROUTERS, "oracle", "best_expert"]
    price = {share: {n: interval([r[n] - r["single"] for r in runs]) for n in names} for share, runs in results.items()}
    best = {share: min(ROUTERS, key=lambda n: price[share][n][0]) for share in price}
    cheapest = min(price, key=lambda s: price[s][best[s]][0])
    single = interval([r["single"] for r in results[SHARES[0]]])

    def cell(value: tuple[float, float]) -> str:
        return f"{value[0]:+.3f} ± {value[1]:.3f}"

    lines = [
        "# What modularity costs at the outputs",
        "",
        f"Made by `OMP_NUM_THREADS=1 python benchmarks/price_of_modularity.py --tokens {args.tokens} --seeds {args.seeds}` on "
        f"{date.today().isoformat()}, {processor()}, CPU only, bf16 autocast where the CPU has AMX.",
        "",
        f"Four domains (meetings, code, prose, posts of software projects), Llama architecture of {args.parameters:,} parameters "
        f"(the quickstart's), BPE of 2,048 "
        f"tokens, {args.tokens:,} training tokens in total in every column, {args.seeds} seeds, {args.test_tokens:,} test tokens "
        "of each domain. ± is the 95 % interval over seeds (Student's t), paired: each mixture is compared with the single model "
        "of its own seed.",
        "",
        "## The price: loss of the mixture minus loss of one single model, nats a token",
        "",
        "| share of tokens in the base | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
        *(f"| {round(100 * s)} % | " + " | ".join(cell(price[s][n]) for n in names) + " |" for s in price),
        "",
        f"The single model's own loss: {single[0]:.3f} ± {single[1]:.3f} nats a token. `oracle` takes in each domain the expert "
        "that is best there, knowing the domain; `best_expert` is the one expert that is best over all.",
        "",
        "## How much should the base learn before experts branch?",
        "",
    ]
    means = ", ".join(f"{round(100 * s)} %: {price[s][best[s]][0]:+.3f} ({best[s]})" for s in price)
    lines += [f"Best router at each share: {means}.", ""]
    verdict = price[cheapest][best[cheapest]]
    if verdict[0] - verdict[1] > 0:
        lines += [
            f"**One single model is the better choice here if all data can be put in one place.** Even at the cheapest share "
            f"({round(100 * cheapest)} %) the mixture loses {cell(verdict)} nats a token to it at equal tokens."
        ]
    elif verdict[0] + verdict[1] < 0:
        lines += [
            f"At a share of {round(100 * cheapest)} % the mixture is better than one single model at equal tokens: "
            f"{cell(verdict)} nats a token."
        ]
    else:
        lines += [
            f"At the cheapest share ({round(100 * cheapest)} %) the difference to one single model is {cell(verdict)} nats a "
            "token: not distinguishable from zero with these seeds."
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=500_000)
    parser.add_argument("--test-tokens", type=int, default=15_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--store", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/price-of-modularity"))
    parser.add_argument("--page", type=Path, default=Path("docs/results/outputs.md"))
    args = parser.parse_args()
    if not args.data.is_dir():
        sys.exit(f"no data at {args.data}: give --data")
    results: dict[float, list[dict[str, float]]] = {share: [] for share in SHARES}
    for seed in range(args.seeds):
        for share in SHARES:
            results[share].append(measure(args.data, share, seed, args))
    args.page.write_text(page(results, args))
    print(
        json.dumps(
            {"benchmark": "price_of_modularity", "tokens": args.tokens, "nll": {str(s): r for s, r in results.items()}}
        )
    )


if __name__ == "__main__":
    main()
