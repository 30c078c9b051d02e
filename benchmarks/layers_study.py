"""What merging inside the layers keeps of its experts: every gate, before and after further training, against its references.

For each seed: a base on four domains, a feed-forward expert of each, one single model from the same start with as many tokens
as base and experts together; the same experts at the outputs; averaged, added (task arithmetic), TIES; merged with each gate;
merged and trained further (those saw more tokens, as the table says). Then what 32 slots over 1, 2, 4 and 32 distinct experts
cost, before (32 copies) and after. Writes docs/results/layers.md; the last line of stdout is one JSON object.

    python benchmarks/layers_study.py [--tokens 500000] [--seeds 3] [--data ../shared/data] [--store DIR] [--out FILE]

Everything is an artifact: interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from datetime import date
from pathlib import Path

import coterie

sys.path.insert(0, str(Path(__file__).parent))
from layers_speed import V, ids, merged_of, opened, seconds
from price_of_modularity import T_95, corpora, publish

PROMPTS = {
    "meetings": ("Summarize the discussion about the budget.", "What did the project manager say about the remote control?"),
    "code": ("Write a Python function that sorts a list.", "def add(a, b):\n    return a + b"),
    "prose": ("The history of the region goes back to the early settlers.", "In this chapter we explore how plants grow."),
    "projects": ("Today we announce the release of the new version.", "The bug was fixed in the latest release."),
}
GATES = {
    "equal weights": {"kind": "uniform"},
    "random, k = 2": {"kind": "random", "top_k": 2},
    "prompt": {"kind": "prompt", "prompts": PROMPTS},
    "ridge": {"kind": "ridge"},
    "ridge, k = 2": {"kind": "ridge", "top_k": 2},
    "ridge, own features": {"kind": "ridge", "features": "own"},
}


def tuned(tokens: int) -> dict[str, dict]:
    """Gates that are trained further, and what moves."""
    learned = {"kind": "learned", "balance": 0.01}
    rate = {"learning_rate": 1e-2, "weight_decay": 0.0}
    return {
        "label": {"router": {"kind": "label", "tokens": tokens}},
        "learned gate": {"router": learned, "tune": {"what": "gate", "tokens": tokens, "train": rate}},
        "learned gate, k = 2": {
            "router": {**learned, "top_k": 2},
            "tune": {"what": "gate", "tokens": tokens, "train": rate},
        },
        "ridge, then gate and experts": {"router": "ridge", "tune": {"what": "gate+experts", "tokens": tokens}},
        "ridge, then everything": {"router": "ridge", "tune": {"what": "all", "tokens": tokens}},
    }


def mixtures(domains: list[str], tokens: int) -> dict[str, dict]:
    """By what the table calls them."""
    made: dict[str, dict] = {"outputs, posterior": {"at": "outputs", "router": "posterior"}}
    made |= {f"layers, {name}": {"at": "layers", "router": router} for name, router in GATES.items()}
    made |= {f"layers, {name}": {"at": "layers", **how} for name, how in tuned(tokens).items()}
    return {name: {"name": f"m-{i}", "slots": domains, **how} for i, (name, how) in enumerate(made.items())}


def recipe(data: Path, seed: int, tokens: int, test_tokens: int) -> dict:
    domains = corpora(data)
    names = list(domains)
    return {
        "name": "layers-study",
        "seed": seed,
        "base": {
            "init": "llama",
            "hidden_size": 96,
            "layers": 3,
            "heads": 4,
            "tokenizer": {"train": "bpe", "vocab_size": 2048, "corpora": names},
            "pretrain": {"corpora": names, "tokens": tokens // 2},
        },
        "corpora": domains,
        "train": {"tokens": tokens // 8, "learning_rate": 3e-3, "save_every": 10**9},
        "experts": [{"name": name, "corpus": name, "kind": "ffn"} for name in names],
        "single": True,
        "mixtures": list(mixtures(names, tokens // 8).values()),
        "evaluation": [{"name": "losses", "corpora": names, "tokens": test_tokens}],
    }


def references(made: coterie.Run, data: Path, store: Path, out: Path, seed: int, test_tokens: int) -> dict[str, dict]:
    """Losses of dense combinations of the same experts."""
    from weight_merging import combine

    from coterie.mixtures.layers.expert_weights import Directory, source

    base = Directory(made.out / "base")
    sources = [source(made.out / "experts" / name, base, name) for name in made.summary["routing"]["m-1"]["experts"]]
    methods = {"average": "average", "task arithmetic": "task_arithmetic", "TIES": "ties"}
    for method in methods.values():
        shutil.rmtree(out / method, ignore_errors=True)
        combine(base, sources, out / method, method)
    domains = corpora(data)
    asked = {
        "name": "layers-references",
        "seed": seed,
        "base": {"path": str(made.out / "base")},
        "corpora": domains,
        "experts": [{"name": m.replace("_", "-"), "model": str(out / m)} for m in methods.values()],
        "evaluation": [{"name": "losses", "corpora": list(domains), "tokens": test_tokens}],
    }
    table = coterie.run(asked, store=store, out=out / "references").summary["evaluation"]["losses"]
    return {name: table[m.replace("_", "-")] for name, m in methods.items()}


def reuse(data: Path, folder: Path, rounds: int) -> list[dict]:
    """32 slots over a few distinct experts, before (a copy in each slot) and after."""
    rows = []
    for distinct in (1, 2, 4, 32):
        asked = recipe(data, 0, 1_000_000, 1000)
        names = list(asked["corpora"])
        asked["experts"] = [
            {"name": f"e{u}", "corpus": names[u % 4], "kind": "ffn", "seed": u // 4} for u in range(distinct)
        ]
        slots = [f"e{s % distinct}" for s in range(32)]
        asked |= {"mixtures": [{"name": "m", "at": "layers", "slots": slots}], "evaluation": [], "single": False}
        plan = coterie.run(asked, store=folder / "none", out=folder / "planned", dry_run=True, until="mixtures").plan
        row = {
            "distinct": distinct,
            "trained": sum(s.kind == "experts" and s.label.startswith("expert ") for s in plan),
            "loads": len({s.label for s in plan if s.kind == "blocks" and "train" in s.label}),
        }
        for name, copies in (("before", True), ("after", False)):
            place = folder / f"{name}-{distinct}"
            merged_of(distinct, copies).save_pretrained(place)
            row[f"{name}_disk"] = sum(p.stat().st_size for p in place.rglob("*") if p.is_file())
            model = opened(place)
            row[f"{name}_memory"] = sum(p.nbytes for p in model.parameters())
            row[f"{name}_seconds"] = statistics.median(seconds(lambda m=model: m.nll(ids())) for _ in range(rounds))
            shutil.rmtree(place)
        rows.append(row)
    return rows


def interval(values: list[float]) -> str:
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.3f}"
    return f"{mean:+.3f} ± {T_95.get(len(values), 2.0) * statistics.stdev(values) / len(values) ** 0.5:.3f}"


def page(args: argparse.Namespace, losses: list[dict], routing: list[dict], rows: list[dict], labels: dict[str, str]) -> str:
    names, domains = list(losses[0]), [g for g in losses[0]["oracle"] if g != "all"]
    extra = {f"layers, {name}": args.tokens // 8 for name in tuned(1)}
    lines = [
        "# What merging inside the layers keeps",
        "",
        f"Made by `OMP_NUM_THREADS=1 python benchmarks/layers_study.py --tokens {args.tokens} --seeds {args.seeds}` on "
        f"{date.today().isoformat()}, {platform.machine()}, CPU only. Four domains, Llama architecture of 3 layers (width 96), "
        f"{args.tokens:,} training tokens in all (half in the base, an eighth in each feed-forward expert), {args.seeds} "
        f"seeds, {args.test_tokens:,} test tokens of each domain. ± is the 95 % interval over seeds (Student's t).",
        "",
        "## Loss minus that of the single model of the same seed, nats a token",
        "",
        "`minus ridge` is the difference to ridge gates inside the layers, paired by seed. `of oracle` is the share of the way from the "
        "base's best single expert (0 %) to the best expert of each domain (100 %).",
        "",
        "| model | all | minus `ridge` | of oracle | more tokens | " + " | ".join(domains) + " |",
        "|---|---|---|---|---|" + "---|" * len(domains),
    ]

    def all_of(seed: dict, name: str, group: str = "all") -> float:
        return seed[name][group]["nll"]

    for name in sorted(names, key=lambda n: statistics.mean(all_of(s, n) for s in losses)):
        kept = [
            (all_of(s, "best_expert") - all_of(s, name)) / max(all_of(s, "best_expert") - all_of(s, "oracle"), 1e-9)
            for s in losses
        ]
        cells = [interval([all_of(s, name, g) - all_of(s, "single", g) for s in losses]) for g in ("all", *domains)]
        more = f"{extra[name]:,}" if name in extra else ""
        paired = interval([all_of(s, name) - all_of(s, "layers, ridge") for s in losses])
        lines.append(
            f"| {name} | {cells[0]} | {paired} | {statistics.mean(kept):.0%} | {more} | " + " | ".join(cells[1:]) + " |"
        )
    lines += ["", "## Gate accuracy, share of held-out tokens", "", "| gate | " + " | ".join(domains) + " |"]
    lines += ["|---|" + "---|" * len(domains)]
    for label, name in labels.items():
        right = [seed[name].get("gate_accuracy", {}) for seed in routing]
        if right[0] and label != "layers, equal weights":
            shares = (f"{statistics.mean(r[g] for r in right):.0%}" for g in domains)
            lines.append(f"| {label} | " + " | ".join(shares) + " |")
    lines += [
        "",
        "## Expert use by domain and layer (seed 0, `ridge`)",
        "",
        "| domain | layer | " + " | ".join(domains) + " |",
    ]
    lines += ["|---|---|" + "---|" * len(domains)]
    by_layer = routing[0][labels["layers, ridge"]]["by_layer"]
    for domain, layers in by_layer.items():
        for layer, use in enumerate(layers):
            lines.append(f"| {domain} | {layer} | " + " | ".join(f"{w:.2f}" for w in use) + " |")
    lines += [
        "",
        "## 32 slots over few experts, before (a copy in each slot) and after",
        "",
        "| distinct | experts trained | data loads, with the base's | disk, MB | weights in memory, MB | forward, ms |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        pair = [
            f"{row[f'before_{k}'] * by:,.0f} → {row[f'after_{k}'] * by:,.0f}"
            for k, by in (("disk", 1e-6), ("memory", 1e-6), ("seconds", 1e3))
        ]
        trained = f"32 → {row['trained']}"
        lines.append(f"| {row['distinct']} | {trained} | 32 → {row['loads']} | " + " | ".join(pair) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=500_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--test-tokens", type=int, default=15_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--store", type=Path, default=Path(tempfile.gettempdir()) / "coterie-layers-study")
    parser.add_argument("--out", type=Path, default=Path("docs/results/layers.md"))
    args = parser.parse_args()
    data = args.data.resolve()
    losses, routing = [], []
    labels = {label: m["name"] for label, m in mixtures(list(corpora(data)), 1).items()}
    for seed in range(args.seeds):
        out = args.store / "runs" / f"seed-{seed}"
        made = coterie.run(recipe(data, seed, args.tokens, args.test_tokens), store=args.store, out=out)
        table = made.summary["evaluation"]["losses"]
        found = {label: table[name] for label, name in labels.items()}
        found |= {name: table[name] for name in ("single", "best_expert", "oracle")}
        found |= references(made, data, args.store, args.store / "runs" / f"references-{seed}", seed, args.test_tokens)
        losses.append(found)
        routing.append(made.summary["routing"])
    with tempfile.TemporaryDirectory() as temp:
        rows = reuse(data, Path(temp), args.rounds)
    publish(args.out, page(args, losses, routing, rows, labels))
    mean = {name: round(statistics.mean(s[name]["all"]["nll"] for s in losses), 4) for name in losses[0]}
    figures = {
        "benchmark": "layers_study",
        "date": date.today().isoformat(),
        "cpu": platform.machine(),
        "cores": os.cpu_count(),
        "tokens": args.tokens,
        "seeds": args.seeds,
        "vocabulary": V,
        "nll": mean,
        "reuse": rows,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
