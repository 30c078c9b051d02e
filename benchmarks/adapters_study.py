"""What routing LoRA experts is worth, at equal trained parameters and tokens, over seeds; and what growth forgets.

Four domains, one base pre-trained on all of them, four experts of rank r with N tokens each. Against them one LoRA of rank 4 r with
4 N tokens (the same trained parameters and tokens), joint training of four experts with 4 N tokens, and PEFT's own Arrow and
X-LoRA over the same adapters. Then a continual sequence: a mixture of the first domain's expert takes in the others one by one.

    python benchmarks/adapters_study.py --data ../shared/data --work DIR [--seeds 3] [--tokens 500000] [--tiny]

Prints Markdown tables (mean over seeds, 95 % interval by Student's t) and ends with one JSON object. Everything is kept in
``--work``: a second call goes on. `learned` and X-LoRA read ``--router-tokens`` more, of the valid splits; the others read no more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import coterie
from coterie import progress
from coterie.corpora.blocks import Blocks
from coterie.corpora.order import Order
from coterie.errors import CoterieError
from coterie.experts.scores import mean_nll
from coterie.experts.train_settings import Train
from coterie.experts.training import Job, prepared, train_job
from coterie.experts.training_rows import Rows
from coterie.models.open import open_model
from coterie.recipe import read
from coterie.run.grow import Grown
from coterie.run.parts import Parts
from coterie.store import Store

sys.path.insert(0, str(Path(__file__).parent))
from price_of_modularity import interval


def corpora(data: Path, rows: int | None) -> dict[str, Any]:
    held = {"valid": 0.1, "test": 0.1}
    found = {
        "meetings": {"path": "qmsum/qmsum_compact.jsonl", "prompt": "{relevant_text}\n{query}\n", "response": "answer"},
        "alpaca": {"path": "codealpaca/code_alpaca_20k.jsonl", "prompt": "{instruction}\n{input}\n", "response": "{output}"},
        "mbpp": {"path": "mbpp/mbpp.jsonl", "prompt": "{text}\n", "response": "{code}"},
        "questions": {"path": "truthfulqa/truthfulqa.jsonl"},
    }
    first = json.loads((data / found["questions"]["path"]).open().readline())
    found["questions"] |= {"prompt": "{" + ("question" if "question" in first else "Question") + "}\n"}
    found["questions"] |= {"response": "{" + next(k for k in ("best_answer", "Best Answer", "answer") if k in first) + "}"}
    limit = {"limit": {"rows": rows}} if rows else {}
    return {
        name: {**said, "path": str((data / said["path"]).absolute()), "split": held, **limit} for name, said in found.items()
    }


def recipe(asked: argparse.Namespace, seed: int) -> dict[str, Any]:
    domains = corpora(Path(asked.data), 400 if asked.tiny else None)
    names, r, tokens = list(domains), asked.rank, asked.tokens
    lora = {"alpha": 2 * r, "targets": "all-linear"}
    fitted = {"kind": "learned", "scope": "layer", "tokens": asked.router_tokens}
    train = {"learning_rate": asked.learning_rate, "precision": "fp32"}
    together = {"corpora": dict.fromkeys(names, 1.0), "tokens": len(names) * tokens, "train": train}
    return {
        "name": "adapters-study",
        "seed": seed,
        "sequence_length": 128 if asked.tiny else 256,
        "base": {
            "init": "llama",
            "hidden_size": asked.width,
            "layers": 1 if asked.tiny else 4,
            "heads": 4,
            "tokenizer": {"train": "bpe", "vocab_size": 1024 if asked.tiny else 4096, "corpora": names},
            "pretrain": {"corpora": names, "tokens": asked.base_tokens, "train": {"learning_rate": 2e-3}},
        },
        "corpora": domains,
        "train": train,
        "experts": [
            {"name": n, "corpus": n, "kind": "lora", "lora": {**lora, "r": r}, "train": {"tokens": tokens}} for n in names
        ],
        "mixtures": [
            {"name": "uniform", "at": "adapters", "slots": names},
            {"name": "arrow", "at": "adapters", "slots": names, "router": {"kind": "arrow", "top_k": 1}},
            {"name": "ridge", "at": "adapters", "slots": names, "router": "ridge"},
            {
                "name": "ridge-prefix",
                "at": "adapters",
                "slots": names,
                "router": {"kind": "ridge", "scope": "model", "reads": "prefix"},
            },
            {"name": "learned", "at": "adapters", "slots": names, "router": {**fitted, "reads": "prefix"}},
            {"name": "learned-top-1", "at": "adapters", "slots": names, "router": {**fitted, "top_k": 1}},
            {
                "name": "one-lora",
                "at": "adapters",
                "joint": {**together, "experts": 1, "lora": {**lora, "r": len(names) * r, "alpha": 2 * len(names) * r}},
            },
            {
                "name": "joint-dense",
                "at": "adapters",
                "joint": {**together, "experts": len(names), "lora": {**lora, "r": r}},
                "router": "learned",
            },
            {
                "name": "joint-top-1",
                "at": "adapters",
                "joint": {**together, "experts": len(names), "lora": {**lora, "r": r}},
                "router": {"kind": "learned", "top_k": 1, "balance": 0.01},
            },
        ],
        "evaluation": [{"name": "losses", "corpora": names, "bootstrap": 100, "tokens": asked.test_tokens}],
    }


def tested(c: Parts) -> dict[str, Blocks]:
    spec: Any = c.recipe.evaluation[0]
    return {name: Blocks.open(c.blocks(name, spec.split, tokens=spec.tokens)) for name in spec.corpora}


def by_domain(model: Any, blocks: dict[str, Blocks]) -> dict[str, float]:
    return {name: mean_nll(model, b) for name, b in blocks.items()}


def peft_arrow(c: Parts, out: Path, blocks: dict[str, Blocks]) -> dict[str, float]:
    """PEFT's own Arrow over the same adapters, top-1."""
    from peft import ArrowConfig, create_arrow_model

    paths = [str(out / "experts" / e.name) for e in c.recipe.experts]
    return by_domain(create_arrow_model(open_model(c.base), paths, ArrowConfig(top_k=1)).eval(), blocks)


def peft_xlora(c: Parts, out: Path, blocks: dict[str, Blocks], tokens: int) -> dict[str, float]:
    """PEFT's own X-LoRA: its classifier is trained on the valid splits, like a learned router."""
    from peft import XLoraConfig, get_peft_model

    names = [e.name for e in c.recipe.experts]
    with prepared(0, c.recipe.seed):
        base: Any = open_model(c.base)
        config = XLoraConfig(
            task_type="CAUSAL_LM",
            hidden_size=base.config.hidden_size,
            xlora_depth=1,
            adapters={str(i): str(out / "experts" / n) for i, n in enumerate(names)},  # it renames them so, and forgets
        )
        model = get_peft_model(base, config)
        sources = [Blocks.open(c.blocks(n, "valid")) for n in names]
        order = Order([s.tokens_per_block for s in sources], [1.0] * len(sources), c.recipe.seed, tokens=tokens)
        home = out / "xlora"
        home.mkdir(exist_ok=True)
        train_job(
            Job(
                home,
                home,
                model,
                Rows(sources, order, mask=False),
                Train(tokens=tokens, learning_rate=1e-3),
                "cpu",
                "fp32",
                c.recipe.seed,
                "X-LoRA's classifier",
            )
        )
        return by_domain(model.eval(), blocks)


def attempt(name: str, call: Callable[[], dict[str, float]], notes: list[str]) -> dict[str, float] | None:
    """A peer's figures, or a note of why there are none."""
    try:
        return call()
    except CoterieError:
        raise
    except Exception as error:
        notes.append(f"{name} does not run here: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return None


def one_seed(asked: argparse.Namespace, seed: int, notes: list[str]) -> dict[str, dict[str, float]]:
    said, work = recipe(asked, seed), Path(asked.work)
    out = work / f"seed-{seed}"
    run = coterie.run(said, store=work / "store", out=out)
    table = run.summary["evaluation"]["losses"]
    names = list(said["corpora"])
    losses = {model: {n: groups[n]["nll"] for n in names} for model, groups in table.items() if model not in names}
    losses["oracle"] = {n: table[n][n]["nll"] for n in names}  # each domain by its own expert
    c = Parts(read(said), Store(work / "store"))
    blocks = tested(c)
    losses["base"] = by_domain(open_model(c.base), blocks)
    for name, call in (("peft-arrow", peft_arrow), ("peft-xlora", lambda *a: peft_xlora(*a, asked.router_tokens))):
        found = attempt(name, lambda call=call: call(c, out, blocks), notes)
        if found is not None:
            losses[name] = found
    return losses


def mean(losses: dict[str, float]) -> float:
    return statistics.mean(losses.values())


def kept(losses: dict[str, dict[str, float]], model: str) -> float:
    """Share of what the domains' own experts gain over the base that a model keeps; of means, as one domain gains little."""
    base = mean(losses["base"])
    return (base - mean(losses[model])) / (base - mean(losses["oracle"]))


def shown(values: list[float]) -> str:
    middle, half = interval(values)
    return f"{middle:.3f} ± {half:.3f}" if len(values) > 1 else f"{middle:.3f}"


def quality(seeds: list[dict[str, dict[str, float]]]) -> str:
    """The table of losses. Differences are paired by seed: the seeds' bases and test documents differ more than models do."""
    names = list(seeds[0]["base"])
    models = [m for m in seeds[0] if all(m in s for s in seeds)]
    lines = [
        "| nats a token | " + " | ".join(names) + " | mean | minus the base | minus `uniform` | of the oracle's gain |",
        "|---" * (len(names) + 5) + "|",
    ]
    for model in sorted(models, key=lambda m: statistics.mean(mean(s[m]) for s in seeds)):
        cells = [f"{statistics.mean(s[model][n] for s in seeds):.3f}" for n in names]
        cells.append(shown([mean(s[model]) for s in seeds]))
        cells += [shown([mean(s[model]) - mean(s[other]) for s in seeds]) for other in ("base", "uniform")]
        lines.append(f"| {model} | " + " | ".join([*cells, shown([kept(s, model) for s in seeds])]) + " |")
    return "\n".join(["", *lines])


def continual(asked: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """The first domain's expert alone, then the others as they come."""
    said, work = recipe(asked, seed), Path(asked.work)
    names = list(said["corpora"])
    said |= {"name": "continual", "experts": said["experts"][:1]}
    said["mixtures"] = [
        {
            "name": "grown",
            "at": "adapters",
            "slots": names[:1],
            "router": {"kind": "ridge", "scope": "model", "reads": "prefix"},
        }
    ]
    out = work / f"continual-{seed}"
    if not (out / "growth.json").exists():
        coterie.run(said, store=work / "store", out=out)
        for name in names[1:]:
            Grown(out, work / "store").corpus(name, said["corpora"][name]["path"])
    return json.loads((out / "growth.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--work", default="runs/adapters-study")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--tokens", type=int, default=500_000, help="of each expert")
    parser.add_argument("--base-tokens", type=int, default=3_000_000)
    parser.add_argument("--router-tokens", type=int, default=200_000)
    parser.add_argument("--test-tokens", type=int, default=100_000, help="of each domain, at most")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--tiny", action="store_true", help="a few seconds, to see that it runs")
    asked = parser.parse_args()
    if asked.tiny:
        asked.seeds, asked.tokens, asked.base_tokens, asked.router_tokens = min(asked.seeds, 2), 4_000, 8_000, 4_000
        asked.width, asked.test_tokens = 32, 5_000
    torch.set_num_threads(1)
    progress.QUIET = asked.tiny
    notes: list[str] = []
    seeds = [one_seed(asked, seed, notes) for seed in range(asked.seeds)]
    print(quality(seeds))
    names = list(seeds[0]["base"])
    stages = {seed: continual(asked, seed) for seed in range(asked.seeds)}
    print("\n| after | " + " | ".join(names) + " |" + "\n|---" + "|---" * len(names) + "|")
    for number, stage in enumerate(stages[0]):
        cells = [[s[number]["losses"]["grown"].get(n) for s in stages.values()] for n in names]
        after = stage.get("corpus", names[0]) + ("" if stage["change"] in ("start", "added") else f" ({stage['change']})")
        print(f"| {after} | " + " | ".join(shown(c) if all(x is not None for x in c) else "" for c in cells) + " |")
    alone = {
        seed: max(
            (
                abs(b["losses"][e][n] - a["losses"][e][n])
                for a, b in pairwise(s)
                for e in a["losses"].keys() & b["losses"].keys() - {"grown"}
                for n in a["losses"][e]
            ),
            default=0.0,
        )
        for seed, s in stages.items()
    }
    print(f"\nlargest change of any expert alone: {max(alone.values())}")
    for note in dict.fromkeys(notes):
        print(note)
    result = {"benchmark": "adapters_study", "date": date.today().isoformat(), "settings": vars(asked), "losses": seeds}
    print(json.dumps(result | {"continual": stages, "alone": alone, "notes": sorted(set(notes))}, default=str))


if __name__ == "__main__":
    sys.exit(main())
