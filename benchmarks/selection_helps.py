"""Does selection speed up training? Equal tokens, paired seeds, a mixture of experts trained on each arm, and a placebo.

Pool: the labelled prose (topics and formats may be used by the plan; `domain` is withheld). Arms: `random`, `proportional`
(strata of the pool's shares), `clusters only` (equal shares of topics), `quality only` (Gumbel), `balanced` (the full plan) and
`placebo` (the full plan with its labels permuted). Each pair of a seed fixes the first weights, the order and the random draw. One
epoch at a constant rate, so that loss over tokens can be read; `random` is also trained on half the tokens, which gives the slope.

Model: Mixtral's architecture, 8 experts, 2 for each token, balancing loss over the whole batch. Declared before the first run:
three evaluations (natural held-out text, uniform over the withheld domains, off-pool posts); the statistic S, the factor of
tokens that `random` needs to reach an arm's loss, as a geometric mean over seeds with a BCa 95 % interval; "faster" only if the
interval's lower end is above 1 on natural text and the placebo's interval holds 1; "15 % faster" only if the lower end is above
1.15; Holm's correction over the arms.

Writes the part of docs/results/selection.md between its `study` markers; the last line of stdout is one JSON object.

    OMP_NUM_THREADS=2 python benchmarks/selection_helps.py [--tokens 1000000] [--seeds 5] [--hidden 96] [--page FILE]

Everything is an artifact: interrupted, the same command goes on. On a GPU the same script takes larger sizes.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
from datetime import date
from pathlib import Path

import numpy as np
from scipy import stats

import coterie
from coterie.corpora.blocks import pack_blocks
from coterie.corpora.documents import read_corpus
from coterie.corpora.tokenizer import TrainedTokenizer, make_tokenizer
from coterie.select.select_settings import Corpus
from coterie.store import Store

ARMS = ("random", "proportional", "clusters only", "quality only", "balanced", "placebo")
BASELINE = "random"
EXPERTS, TOP = 8, 2
SPLIT = {"valid": 0.02, "test": 0.12, "group": "doc_id"}
START, END = "<!-- study: start -->", "<!-- study: end -->"


def select(arm: str, tokens: int, seed: int, tokenizer: Path) -> dict:
    """The request of an arm. All read the same profile."""
    cluster, form = {"k": 12, "mix": 0.4}, {"mix": 0.3}
    request: dict = {
        "budget": {"tokens": tokens},
        "seed": seed,
        "relax": True,
        "tokens": {"tokenizer": str(tokenizer), "sample": None},
        "axes": {"cluster": cluster, "format": form},
        "rank": {"within": "format"},
    }
    if arm in ("random", "proportional"):
        request["strategy"] = arm
    elif arm == "clusters only":
        request |= {"axes": {"cluster": {**cluster, "mix": 1.0}}, "rank": {"quality": 0, "length": 0, "temperature": 1}}
    elif arm == "quality only":
        request |= {"strategy": "quality"}
    elif arm == "placebo":
        request["placebo"] = True
    return request


def pool(data: Path) -> dict:
    return {
        "path": str(data / "labelled_prose/labelled_prose.jsonl"),
        "text": "text",
        "id": "id",
        "split": SPLIT,
        "columns": ["domain"],
    }


def first_weights(folder: Path, tokenizer: Path, seed: int, hidden: int, length: int) -> Path:
    """A mixture of experts that has learned nothing, in a folder of its own."""
    import torch
    from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

    path = folder / f"mixtral-{hidden}-{seed}"
    if not (path / "config.json").exists():
        torch.manual_seed(seed)
        stock = AutoTokenizer.from_pretrained(tokenizer)
        config = MixtralConfig(
            vocab_size=len(stock),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            num_local_experts=EXPERTS,
            num_experts_per_tok=TOP,
            max_position_embeddings=4 * length,
            output_router_logits=True,
            router_aux_loss_coef=0.02,
            tie_word_embeddings=True,
            sliding_window=None,
            bos_token_id=stock.bos_token_id,
            eos_token_id=stock.eos_token_id,
            pad_token_id=stock.pad_token_id,
        )
        MixtralForCausalLM(config).save_pretrained(path)
        stock.save_pretrained(path)
    return path


def measure(arm: str, seed: int, share: float, args: argparse.Namespace) -> dict:
    """Train one arm and evaluate it."""
    tokens = round(args.tokens * share)
    recipe = {
        "name": "selection-helps",
        "seed": seed,
        "sequence_length": args.length,
        "base": {"path": str(first_weights(args.work, args.tokenizer, seed, args.hidden, args.length))},
        "corpora": {
            "prose": {**pool(args.data), "select": select(arm, round(args.tokens * 1.05), seed, args.tokenizer)},
            "posts": {
                "path": str(args.data / "dated/dated.jsonl"),
                "text": "text",
                "id": "id",
                "split": {"valid": 0, "test": 0.1},
            },
        },
        "experts": [
            {
                "name": "model",
                "corpus": "prose",
                "train": {
                    "tokens": tokens,
                    "learning_rate": args.rate,
                    "schedule": "constant",
                    "batch_size": args.batch,
                    "save_every": 10**9,
                },
            }
        ],
        "evaluation": [
            {"name": "natural", "corpora": ["prose"], "by": "domain", "tokens": args.test_tokens, "bootstrap": 0},
            {"name": "off", "corpora": ["posts"], "tokens": args.test_tokens, "bootstrap": 0},
        ],
    }
    out = args.work / f"{arm.replace(' ', '-')}-{seed}-{share}"
    summary = coterie.run(recipe, store=args.store, out=out).summary
    groups = {k: v["nll"] for k, v in summary["evaluation"]["natural"]["model"].items()}
    natural = groups.pop("all")
    return {
        "natural": natural,
        "uniform": float(np.mean(list(groups.values()))),
        "worst": max(groups.values()),
        "off": summary["evaluation"]["off"]["model"]["all"]["nll"],
        **routing(out / "experts/model", args),
    }


def routing(folder: Path, args: argparse.Namespace) -> dict:
    """Load of the experts on held-out text, mean over layers: Gini, utilisation (experts with at least a tenth of their fair
    share), confidence (mean of the largest router probability)."""
    import torch
    from transformers import AutoModelForCausalLM

    from coterie.corpora.blocks import Blocks

    store = Store(args.store)
    documents = read_corpus(store, Corpus.model_validate(pool(args.data)), label="prose")
    held = pack_blocks(
        store,
        documents,
        args.tokenizer_artifact,
        split="test",
        length=args.length,
        label="held out",
        limit_tokens=args.test_tokens,
    )
    blocks = Blocks.open(held)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    load, confidence, count = None, 0.0, 0
    with torch.no_grad():
        for start in range(0, len(blocks), 16):
            ids = torch.tensor(np.asarray(blocks.ids[start : start + 16]), dtype=torch.long)
            seen = torch.tensor(np.asarray(blocks.document[start : start + 16]) >= 0).reshape(-1)
            made = model(ids, output_router_logits=True, use_cache=False).router_logits
            probability = torch.stack([layer.reshape(-1, EXPERTS)[seen].float().softmax(-1) for layer in made])
            chosen = torch.nn.functional.one_hot(probability.topk(TOP, -1).indices, EXPERTS).sum((1, 2)).double()
            load = chosen if load is None else load + chosen
            confidence += float(probability.max(-1).values.mean(0).sum())
            count += int(seen.sum())
    assert load is not None
    share = (load / load.sum(-1, keepdim=True)).numpy()
    ranked = np.sort(share, -1)
    gini = ((2 * np.arange(1, EXPERTS + 1) - EXPERTS - 1) * ranked).sum(-1) / EXPERTS
    return {
        "gini": float(gini.mean()),
        "utilisation": float((share * EXPERTS >= 0.1).mean()),
        "confidence": confidence / count,
    }


def interval(values: list[float], seed: int = 0) -> tuple[float, float, float]:
    """Mean and BCa 95 % interval over seeds."""
    mean = float(np.mean(values))
    if len(values) < 3 or np.ptp(values) == 0:
        return mean, math.nan, math.nan
    found = stats.bootstrap((np.array(values),), np.mean, method="BCa", n_resamples=9999, rng=np.random.default_rng(seed))
    return mean, float(found.confidence_interval.low), float(found.confidence_interval.high)


def analyse(runs: dict) -> dict:
    """Speed-ups, differences, routing; per arm."""
    seeds = sorted(runs)
    slope = {
        e: float(np.mean([(runs[s]["half"][e] - runs[s][BASELINE][e]) / math.log(2) for s in seeds]))
        for e in ("natural", "uniform", "off")
    }
    out: dict = {"slope": slope, "arms": {}}
    for arm in ARMS:
        entry: dict = {}
        for e in ("natural", "uniform", "off"):
            logs = [(runs[s][BASELINE][e] - runs[s][arm][e]) / slope[e] for s in seeds]
            mean, low, high = interval(logs)
            entry[e] = {
                "loss": float(np.mean([runs[s][arm][e] for s in seeds])),
                "speed_up": math.exp(mean),
                "ci95": [math.exp(low), math.exp(high)],
            }
            if arm != BASELINE and len(seeds) > 1:
                entry[e]["p"] = float(stats.ttest_1samp(logs, 0).pvalue)
        for figure in ("gini", "utilisation", "confidence", "worst"):
            entry[figure] = interval([runs[s][arm][figure] for s in seeds])
            entry[f"{figure}_difference"] = interval([runs[s][arm][figure] - runs[s][BASELINE][figure] for s in seeds])
        out["arms"][arm] = entry
    tested = sorted((a for a in ARMS if a not in (BASELINE, "placebo")), key=lambda a: out["arms"][a]["natural"].get("p", 1))
    worst = 0.0
    for i, arm in enumerate(tested):  # Holm
        worst = max(worst, min(1.0, out["arms"][arm]["natural"].get("p", 1) * (len(tested) - i)))
        out["arms"][arm]["natural"]["p_holm"] = worst
    low, high = out["arms"]["placebo"]["natural"]["ci95"]
    clean = low <= 1 <= high
    for arm in tested:
        natural = out["arms"][arm]["natural"]
        faster = natural["ci95"][0] > 1 and clean and natural["p_holm"] < 0.05
        out["arms"][arm]["verdict"] = (
            "15 % faster" if faster and natural["ci95"][0] > 1.15 else "faster" if faster else "not shown to be faster"
        )
    return out


def page(found: dict, args: argparse.Namespace) -> str:
    def speed(entry: dict) -> str:
        return f"{entry['speed_up']:.2f} [{entry['ci95'][0]:.2f}, {entry['ci95'][1]:.2f}]"

    def figure(values: list | tuple) -> str:
        return f"{values[0]:.3f} [{values[1]:.3f}, {values[2]:.3f}]"

    lines = [
        START,
        "",
        f"Made by `python benchmarks/selection_helps.py --tokens {args.tokens} --seeds {args.seeds} --hidden {args.hidden}` on "
        f"{date.today().isoformat()}, {platform.machine()}; {args.parameters:,} parameters, {EXPERTS} experts, {TOP} a token.",
        "",
        "| arm | natural: loss | tokens saved, as a factor [95 %] | uniform over domains | off-pool posts | worst domain: loss | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, e in found["arms"].items():
        shown = [speed(e[k]) if arm != BASELINE else "1" for k in ("natural", "uniform", "off")]
        lines.append(
            f"| {arm} | {e['natural']['loss']:.4f} | {shown[0]} | {shown[1]} | {shown[2]} | {e['worst'][0]:.3f} | {e.get('verdict', '')} |"
        )
    lines += [
        "",
        "| arm | Gini of the experts' load | utilisation | routing confidence | Gini minus random's |",
        "|---|---|---|---|---|",
    ]
    for arm, e in found["arms"].items():
        lines.append(
            f"| {arm} | {figure(e['gini'])} | {figure(e['utilisation'])} | {figure(e['confidence'])} | {figure(e['gini_difference'])} |"
        )
    full = found["arms"]["balanced"]
    lines += [
        "",
        "The claims, each answered: "
        f"*15-20 % faster*: {full['natural']['speed_up']:.2f} times, {full.get('verdict')}. "
        f"*Utilisation over 90 %*: {100 * full['utilisation'][0]:.0f} % (random {100 * found['arms'][BASELINE]['utilisation'][0]:.0f} %). "
        f"*Routing confidence over 0.8*: {full['confidence'][0]:.2f} (random {found['arms'][BASELINE]['confidence'][0]:.2f}). "
        f"*Gini under 0.3*: {full['gini'][0]:.2f} (random {found['arms'][BASELINE]['gini'][0]:.2f}).",
        "",
        f"Slope of `random`: {found['slope']['natural']:.3f} nats for each factor e of tokens.",
        END,
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=96)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--test-tokens", type=int, default=150_000)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/selection-helps"))
    parser.add_argument("--store", type=Path, default=Path("runs/selection-helps/store"))
    parser.add_argument("--page", type=Path, default=Path("docs/results/selection.md"))
    args = parser.parse_args()
    args.data, args.work = args.data.resolve(), args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    store = Store(args.store)
    documents = read_corpus(store, Corpus.model_validate(pool(args.data)), label="prose")
    args.tokenizer_artifact = make_tokenizer(
        store, TrainedTokenizer(train="bpe", vocab_size=args.vocabulary), [documents], label="tokenizer"
    )
    args.tokenizer = args.tokenizer_artifact.path
    runs: dict = {}
    for seed in range(args.seeds):
        runs[seed] = {"half": measure(BASELINE, seed, 0.5, args)}
        for arm in ARMS:
            runs[seed][arm] = measure(arm, seed, 1.0, args)
            print(seed, arm, json.dumps({k: round(v, 4) for k, v in runs[seed][arm].items()}), flush=True)
    (args.work / "runs.json").write_text(json.dumps(runs, indent=1))
    index = json.loads((args.work / "random-0-1.0/summary.json").read_text())
    args.parameters = next(iter(index["experts"].values()))["parameters"]
    found = analyse(runs)
    text = args.page.read_text() if args.page.exists() else f"{START}\n{END}\n"
    args.page.write_text(re.sub(f"{START}.*?{END}", lambda _: page(found, args), text, flags=re.S))
    print(
        json.dumps(
            {
                "benchmark": "selection_helps",
                "date": date.today().isoformat(),
                "tokens": args.tokens,
                "seeds": args.seeds,
                **json.loads(json.dumps(found), parse_constant=lambda _: None),
            }
        )
    )


if __name__ == "__main__":
    main()
