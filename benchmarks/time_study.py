"""What windows of time cost and what the mask is worth: docs/results/time.md, by one command.

For each seed: experts of six two-year windows that branch from fresh weights, from the first window, or each from the one before;
their mixtures (average, posterior, learned, co-adapted; masked, and without the mask); one model trained on everything with the
same tokens, which has seen the future; and the honest rival, one model that goes on, at each window's end, on all text so far.
Every document is asked about as of its own date; models that have read later text are named so.

    python benchmarks/time_study.py [--tokens 600000] [--seeds 3] [--data ../shared/data] [--work runs/time-study]

Everything is an artifact: interrupted, the same command goes on. `--only SEED` trains and measures one seed, so that seeds can
be made side by side; the page is written by the call without it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from datetime import date
from pathlib import Path
from typing import Any

from price_of_modularity import interval, processor

import coterie

STARTS = (2013, 2015, 2017, 2019, 2021, 2023)
FAMILIES = {
    "fresh": ["f2013", "f2015", "f2017", "f2019", "f2021", "f2023"],
    "base": ["f2013", "b2015", "b2017", "b2019", "b2021", "b2023"],
    "previous": ["f2013", "p2015", "p2017", "p2019", "p2021", "p2023"],
}
"""Where windows branch: each from fresh weights, all from the first window's expert, each from the one before."""
REPLAY = ["f2013", "u2015", "u2017", "u2019", "u2021", "u2023"]
"""The honest rival: one model that goes on, at each window's end, on all text so far; its last one has read everything."""


def window(start: int, end: int) -> dict[str, str]:
    return {"start": f"{start}-01-01", "end": f"{end}-01-01"}


def experts_of(data: Path, seed: int, tokens: int) -> dict[str, Any]:
    """Experts of all families, without mixtures.

    Args:
        tokens: for each window.
    """
    path = str(data / "dated" / "dated.jsonl")
    common = {"path": path, "text": "text", "id": "id", "split": {"valid": 0.06, "test": 0.06}}
    later = {"start": "2015-01-01", "end": "2025-01-01", "every": "2y"}
    experts: list[dict[str, Any]] = [
        {"name": "f{start}", "corpus": "dated", "windows": {**later, "start": "2013-01-01"}, "from": "fresh"},
        {"name": "b{start}", "corpus": "dated", "windows": later, "from": "f2013"},
    ]
    for kind, before, first in (("p", 0, None), ("u", 0, 2013)):
        before = "f2013"
        for start in STARTS[1:]:
            name = f"{kind}{start}"
            experts.append({"name": name, "corpus": "dated", "window": window(first or start, start + 2), "from": before})
            before = name
    experts.append(
        {"name": "everything", "corpus": "dated", "window": window(2013, 2025), "from": "fresh",
         "train": {"tokens": tokens * len(STARTS)}}
    )  # fmt: skip
    return {
        "name": f"time-{seed}",
        "seed": seed,
        "base": {"init": "llama", "hidden_size": 96, "layers": 3, "heads": 4,
                 "tokenizer": {"train": "bpe", "vocab_size": 2048, "corpora": ["first"]}},
        "corpora": {
            "dated": {**common, "time": "date"},
            # The one thing that all experts share has seen the first window alone.
            "first": {**common, "where": {"slice": "2013-2014"}},
        },
        "train": {"tokens": tokens, "learning_rate": 3e-3, "schedule": "wsd", "decay": 0.2, "save_every": 10**9},
        "experts": experts,
    }  # fmt: skip


ROUTERS: dict[str, Any] = {"average": "uniform", "posterior": {"kind": "posterior"}, "learned": {"kind": "linear"}}


def mixtures(tokens: int) -> list[dict[str, Any]]:
    """All mixtures of a family, masked and (average, learned) not."""
    found = []
    for family, experts in FAMILIES.items():
        for kind, router in ROUTERS.items():
            fitted = router if kind == "average" else {**router, "tokens": 100_000}
            common = {"at": "outputs", "slots": experts, "router": fitted}
            found.append({"name": f"{family}-{kind}", "eligible": "strict", **common})
            if kind != "posterior":
                found.append({"name": f"{family}-unmasked-{kind}", "eligible": "all", **common})
        adapt = {"start": f"{family}-learned", "tokens": tokens // 2, "learning_rate": 3e-4, "batch_size": 4}
        linear = {"kind": "linear"}
        found.append(
            {
                "name": f"{family}-coadapted",
                "at": "outputs",
                "slots": experts,
                "eligible": "strict",
                "router": linear,
                "adapt": adapt,
            }
        )
    return found


def measured(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    asked = experts_of(args.data, seed, args.tokens)
    asked["mixtures"] = mixtures(args.tokens)
    asked["evaluation"] = [
        {"name": "losses", "corpora": ["dated"], "by": "year", "tokens": args.test_tokens},
        {"name": "releases", "choices": str(args.data / "release_qa" / "release_qa.jsonl"), "time": "date", "by": "year"},
    ]
    return coterie.run(asked, store=args.store, out=args.work / f"seed-{seed}").summary


def expert_of(family: list[str], year: int, before: bool) -> str:
    """The expert of a window: the year's own, or (``before``) the newest that has read nothing of the year."""
    place = (year - STARTS[0]) // 2 - (1 if before else 0)
    return family[place]


def rows(summary: dict[str, Any], kind: str, figure: str) -> dict[str, dict[str, float]]:
    """A figure of each model, by year; a family's newest admissible expert and the rival are put together from experts."""
    table = summary["evaluation"][kind]
    years = [y for y in table["everything"] if y != "all" and int(y) >= 2015]
    found = {name: {y: t[y][figure] for y in years if t.get(y, {}).get(figure) is not None} for name, t in table.items()}
    for name, family in (*FAMILIES.items(), ("replay", REPLAY)):
        found[f"{name}-newest"] = {y: table[expert_of(family, int(y), True)][y][figure] for y in years}
        found[f"{name}-own"] = {y: table[expert_of(family, int(y), False)][y][figure] for y in years}
    return found


NAMES = {
    "{f}-newest": "the newest expert that may answer", "{f}-average": "average", "{f}-posterior": "posterior",
    "{f}-learned": "learned", "{f}-coadapted": "co-adapted", "{f}-unmasked-average": "average without the mask (has seen the future)",
    "{f}-unmasked-learned": "learned without the mask (has seen the future)", "{f}-own": "the year's own expert (has seen the future)",
}  # fmt: skip
RIVALS = {
    "replay-newest": "**rival**: one model on all text up to the date", "everything": "one model on everything (has seen the future)",
    "oracle": "oracle over all experts (has seen the future)",
}  # fmt: skip


def shown(values: list[float], sign: bool = False) -> str:
    mean, half = interval(values)
    return f"{mean:{'+' if sign else ''}.3f} ± {half:.3f}" if len(values) > 1 else f"{mean:{'+' if sign else ''}.3f}"


def table(runs: list[dict[str, dict[str, float]]], names: dict[str, str]) -> list[str]:
    years = sorted(set.intersection(*(set(r["everything"]) for r in runs)))
    lines = ["| | " + " | ".join(years) + " | mean over years |", "|---|" + "---|" * (len(years) + 1)]
    for key, words in names.items():
        cells = [statistics.fmean(r[key][y] for r in runs) for y in years]
        means = [statistics.fmean(r[key][y] for y in years) for r in runs]
        lines.append(f"| {words} | " + " | ".join(f"{c:.2f}" for c in cells) + f" | {shown(means)} |")
    return lines


def page(summaries: list[dict[str, Any]], args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    losses = [rows(s, "losses", "nll") for s in summaries]
    years = sorted(set.intersection(*(set(r["everything"]) for r in losses)))
    mean = [{name: statistics.fmean(r[name][y] for y in years) for name in r if set(years) <= set(r[name])} for r in losses]
    parameters = next(iter(summaries[0]["experts"].values()))["parameters"]
    text = [
        "# Mixtures over time", "",
        f"Made by `python benchmarks/time_study.py --tokens {args.tokens} --seeds {args.seeds}` on {date.today().isoformat()}, "
        f"{processor()}, CPU only. {args.tokens:,} tokens for each of six two-year windows, {parameters:,} parameters, "
        f"{args.seeds} seeds; ± is the 95 % interval over seeds (Student's t). Nats a token on held-out documents, each asked about "
        "as of its own date, 2015 to 2024 (before 2015 no expert may answer). The tokenizer has seen the first window alone.", "",
    ]  # fmt: skip
    for family in FAMILIES:
        names = {key.format(f=family): words for key, words in NAMES.items()} | RIVALS
        text += [f"## Windows branch from: {family}", "", *table(losses, names), ""]
    figures: dict[str, Any] = {}
    text += ["## Differences, paired by seed, mean over years", "", "| | nats |", "|---|---|"]
    for family in FAMILIES:
        for a, b in (("coadapted", "learned"), ("learned", "average"), ("average", "newest"), ("coadapted", "newest")):
            values = [m[f"{family}-{a}"] - m[f"{family}-{b}"] for m in mean]
            figures[f"{family}: {a} - {b}"] = interval(values)
            text.append(f"| {family}: {a} - {b} | {shown(values, sign=True)} |")
        values = [m[f"{family}-coadapted"] - m["replay-newest"] for m in mean]
        figures[f"{family}: coadapted - rival"] = interval(values)
        text.append(f"| {family}: co-adapted - the rival | {shown(values, sign=True)} |")
    for other in ("fresh", "base"):
        values = [m["previous-average"] - m[f"{other}-average"] for m in mean]
        figures[f"average: previous - {other}"] = interval(values)
        text.append(f"| average: previous - {other} | {shown(values, sign=True)} |")
    text += ["", "## Dated questions: the latest release as of a date", "",
             "| | correct | past | future |", "|---|---|---|---|"]  # fmt: skip
    choices = [s["evaluation"]["releases"] for s in summaries]
    asked = [
        f"{f}-{k}"
        for f in FAMILIES
        for k in ("average", "posterior", "learned", "coadapted", "unmasked-average", "unmasked-learned")
    ]
    for name in [*asked, "everything", "u2023"]:
        cells = [shown([100 * c[name]["all"][key] for c in choices]) for key in ("accuracy", "past", "future")]
        text.append(f"| {name} | " + " | ".join(cells) + " |")
    text += ["", "Masked minus unmasked, share of answers that are of the future, in percentage points, paired by seed:", ""]
    for family in FAMILIES:
        for kind in ("average", "learned"):
            values = [
                100 * (c[f"{family}-{kind}"]["all"]["future"] - c[f"{family}-unmasked-{kind}"]["all"]["future"])
                for c in choices
            ]
            figures[f"future share, {family} {kind}: masked - unmasked"] = interval(values)
            text.append(f"- {family}, {kind}: {shown(values, sign=True)}")
    text += ["", "Masked models do not answer questions from before 2015; the unmasked ones do.", ""]
    return "\n".join(text), figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=600_000)
    parser.add_argument("--test-tokens", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", type=int)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/time-study"))
    parser.add_argument("--store", type=Path, default=Path("runs/time-study/store"))
    parser.add_argument("--page", type=Path, default=Path("docs/results/time.md"))
    args = parser.parse_args()
    args.data = args.data.resolve()
    if args.only is not None:
        measured(args.only, args)
        return
    text, figures = page([measured(seed, args) for seed in range(args.seeds)], args)
    args.page.write_text(text)
    print(
        json.dumps(
            {
                "benchmark": "time_study",
                "date": str(date.today()),
                "tokens": args.tokens,
                "seeds": args.seeds,
                "mean ± half": figures,
            }
        )
    )


if __name__ == "__main__":
    main()
