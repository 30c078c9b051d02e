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

from price_of_modularity import interval, processor, publish

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
        {
            "name": "everything",
            "corpus": "dated",
            "window": window(2013, 2025),
            "from": "fresh",
            "train": {"tokens": tokens * len(STARTS)},
        }
    )
    return {
        "name": f"time-{seed}",
        "seed": seed,
        "base": {
            "init": "llama",
            "hidden_size": 96,
            "layers": 3,
            "heads": 4,
            "tokenizer": {"train": "bpe", "vocab_size": 2048, "corpora": ["first"]},
        },
        "corpora": {
            "dated": {**common, "time": "date"},
            # The one thing that all experts share has seen the first window alone.
            "first": {**common, "where": {"slice": "2013-2014"}},
        },
        "train": {"tokens": tokens, "learning_rate": 3e-3, "schedule": "wsd", "decay": 0.2, "save_every": 10**9},
        "experts": experts,
    }


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
        for words, before in (("newest", True), ("own", False)):
            own = {y: table[expert_of(family, int(y), before)].get(y, {}).get(figure) for y in years}
            found[f"{name}-{words}"] = {y: value for y, value in own.items() if value is not None}
    return found


CLAIMS = {
    "Windows that go on from the one before beat fresh ones (average)": "previous-average - fresh-average",
    "Windows that go on from the one before beat those of a common base (average)": "previous-average - base-average",
    **{
        words.format(f): key.format(f=f)
        for f in FAMILIES
        for words, key in {
            "A learned average beats equal weights ({})": "{f}-learned - {f}-average",
            "Co-adaptation beats the learned average ({})": "{f}-coadapted - {f}-learned",
            "Co-adapted, the mixture beats the newest expert that may answer ({})": "{f}-coadapted - {f}-newest",
            "Co-adapted, the mixture beats the rival ({})": "{f}-coadapted - replay-newest",
            "The mask lowers answers from the future, average ({})": "future share, {f} average: masked - unmasked",
            "The mask lowers answers from the future, learned ({})": "future share, {f} learned: masked - unmasked",
        }.items()
    },
}
"""What one may hope for, and the difference that is then below 0."""
NAMES = {
    "{f}-newest": "the newest expert that may answer",
    "{f}-average": "average",
    "{f}-posterior": "posterior",
    "{f}-learned": "learned",
    "{f}-coadapted": "co-adapted",
    "{f}-unmasked-average": "average without the mask (has seen the future)",
    "{f}-unmasked-learned": "learned without the mask (has seen the future)",
    "{f}-own": "the year's own expert (has seen the future)",
}
RIVALS = {
    "replay-newest": "**rival**: one model on all text up to the date",
    "everything": "one model on everything (has seen the future)",
    "oracle": "oracle over all experts (has seen the future)",
}


def names_of(family: str) -> dict[str, str]:
    """What is shown of a family, and what it is called."""
    return {key.format(f=family): words for key, words in NAMES.items()} | RIVALS


def overall(shares: list[float], number: dict[str, int]) -> float:
    """A share over all years from those of each, in the order of ``number``."""
    return sum(s * n for s, n in zip(shares, number.values(), strict=True)) / sum(number.values())


def shown(values: list[float], sign: bool = False, digits: int = 3) -> str:
    mean, half = interval(values)
    said = f"{mean:{'+' if sign else ''}.{digits}f}"
    return f"{said} ± {half:.{digits}f}" if len(values) > 1 else said


def experts_table(runs: list[dict[str, dict[str, float]]]) -> list[str]:
    """Each expert alone; years that it has read of, or that lie before what it has read, are in brackets."""
    years = sorted(set.intersection(*(set(r["everything"]) for r in runs)))
    lines = ["| expert | has read until | " + " | ".join(years) + " |", "|---|---|" + "---|" * len(years)]
    for name in dict.fromkeys(n for family in (*FAMILIES.values(), REPLAY) for n in family):
        last = int(name[1:]) + 1
        cells = [f"{statistics.fmean(r[name][y] for r in runs):.2f}" for y in years]
        cells = [cell if int(y) > last else f"({cell})" for cell, y in zip(cells, years, strict=True)]
        lines.append(f"| {name} | {last} | " + " | ".join(cells) + " |")
    return lines


def table(runs: list[dict[str, dict[str, float]]], names: dict[str, str]) -> list[str]:
    years = sorted(set.intersection(*(set(r["everything"]) for r in runs)))
    lines = ["| | " + " | ".join(years) + " | mean over years |", "|---|" + "---|" * (len(years) + 1)]
    for key, words in names.items():
        cells = [statistics.fmean(r[key][y] for r in runs) for y in years]
        means = [statistics.fmean(r[key][y] for y in years) for r in runs]
        lines.append(f"| {words} | " + " | ".join(f"{c:.2f}" for c in cells) + f" | {shown(means)} |")
    return lines


def page(summaries: list[dict[str, Any]], args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    parameters = next(iter(summaries[0]["experts"].values()))["parameters"]
    text = [
        "# Mixtures over time",
        "",
        f"Made by `python benchmarks/time_study.py --tokens {args.tokens} --test-tokens {args.test_tokens} --seeds {args.seeds}` on "
        f"{date.today().isoformat()}, {processor()}, CPU only. {args.tokens:,} tokens for each of six two-year windows, {parameters:,} "
        f"parameters, {args.seeds} seeds; ± is the 95 % interval over seeds (Student's t). Nats a token on held-out documents, each "
        "asked about as of its own date, 2015 to 2024 (before 2015 no expert may answer); shares of answers in percentage points. The "
        "tokenizer has seen the first window alone.",
        "",
    ]
    figures: dict[str, Any] = {}
    text += _losses([rows(s, "losses", "nll") for s in summaries], figures)
    text += _questions(
        [{key: rows(s, "releases", key) for key in ("accuracy", "past", "future", "n")} for s in summaries], figures
    )
    found = [
        "## What holds at this size",
        "",
        "Yes or no where the 95 % interval over seeds leaves out 0.",
        "",
        "| | | difference |",
        "|---|---|---|",
    ]
    for claim, key in CLAIMS.items():
        mean, half = figures[key]
        verdict = "not shown" if not abs(mean) > half else ("yes" if mean < 0 else "no, the opposite")
        found.append(f"| {claim} | {verdict} | {mean:+.3f} ± {half:.3f} |")
    return "\n".join([*text[:4], *found, "", *text[4:]]), figures


def _losses(losses: list[dict[str, dict[str, float]]], figures: dict[str, Any]) -> list[str]:
    text = []
    for family in FAMILIES:
        text += [f"## Windows branch from: {family}", "", *table(losses, names_of(family)), ""]
    text += [
        "## Each expert alone",
        "",
        "f: fresh, b: from the first window, p: from the one before, u: the rival, which has read all windows so far. In brackets: "
        "it has read text of that year or later.",
        "",
        *experts_table(losses),
        "",
        "## Differences, paired by seed, mean over years",
        "",
        "| | nats |",
        "|---|---|",
    ]
    years = sorted(set.intersection(*(set(r["everything"]) for r in losses)))
    mean = [{name: statistics.fmean(r[name][y] for y in years) for name in r if set(years) <= set(r[name])} for r in losses]
    pairs = [("learned", "average"), ("coadapted", "learned"), ("average", "newest"), ("coadapted", "newest")]
    compared = [(f"{f}-{a}", f"{f}-{b}") for f in FAMILIES for a, b in pairs]
    compared += [(f"{f}-coadapted", "replay-newest") for f in FAMILIES]
    compared += [("previous-average", f"{other}-average") for other in ("fresh", "base")]
    for one, other in compared:
        values = [m[one] - m[other] for m in mean]
        figures[f"{one} - {other}"] = interval(values)
        text.append(f"| {one} - {other.replace('replay-newest', 'the rival')} | {shown(values, sign=True)} |")
    return text


def _questions(asked: list[dict[str, dict[str, dict[str, float]]]], figures: dict[str, Any]) -> list[str]:
    years = sorted(set.intersection(*(set(a["n"]["everything"]) for a in asked)))
    number = {y: int(asked[0]["n"]["everything"][y]) for y in years}
    text = [
        "",
        "## Dated questions: the latest release as of a date",
        "",
        f"{sum(number.values())} questions of 2015 and later, which all models answer; mean share over seeds in percent: correct / "
        "past / future.",
        "",
    ]
    for family in FAMILIES:
        text += [f"### Windows branch from: {family}", ""]
        text += ["| | " + " | ".join(f"{y} ({number[y]})" for y in years) + " | all | future, ± over seeds |"]
        text += ["|---|" + "---|" * (len(years) + 2)]
        for name, words in names_of(family).items():
            if name == "oracle":
                continue
            cells = [[[a[key][name][y] for y in years] for a in asked] for key in ("accuracy", "past", "future")]
            whole = [[overall(of_seed, number) for of_seed in kind] for kind in cells]
            line = [" / ".join(f"{100 * statistics.fmean(x[i] for x in k):.0f}" for k in cells) for i in range(len(years))]
            line += [" / ".join(f"{100 * statistics.fmean(w):.0f}" for w in whole)]
            line += [shown([100 * share for share in whole[2]], digits=1)]
            text.append("| " + " | ".join([words, *line]) + " |")
        text += [""]
    text += [
        "### Masked minus unmasked",
        "",
        "Share of answers that are of the future, in percentage points, the same questions, paired by seed.",
        "",
    ]
    for family in FAMILIES:
        for kind in ("average", "learned"):
            values = []
            for a in asked:
                masked, free = (a["future"][f"{family}-{m}{kind}"] for m in ("", "unmasked-"))
                values.append(100 * overall([masked[y] - free[y] for y in years], number))
            figures[f"future share, {family} {kind}: masked - unmasked"] = interval(values)
            text.append(f"- {family}, {kind}: {shown(values, sign=True, digits=1)}")
    return [*text, ""]


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
    publish(args.page, text)
    said = {"benchmark": "time_study", "date": str(date.today()), "tokens": args.tokens, "seeds": args.seeds}
    print(json.dumps(said | {"mean ± half": figures}))


if __name__ == "__main__":
    main()
