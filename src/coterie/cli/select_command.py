"""`coterie select profile | plan | pick | report | why`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli.options import JobsOption, SetOption, SlurmOption, StoreOption, slurm_parameters
from coterie.errors import RequestError

if TYPE_CHECKING:
    from coterie.select.profiled_corpus import Profiled
    from coterie.select.select_settings import Corpus
    from coterie.spec.json_types import Figures

app = typer.Typer(
    help="Choose training documents by plan, with a certificate of what cannot be met, and show what was chosen and why.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Sources = Annotated[
    list[Path],
    typer.Argument(
        metavar="RECIPE | FILE...", help="A recipe with select, or data files (profile only).", show_default=False
    ),
]
CorpusOption = Annotated[str | None, typer.Option("--corpus", help="Which corpus, where several have a selection.")]
RelaxOption = Annotated[bool, typer.Option("--relax", help="Take what comes nearest when the targets cannot be met.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="Folder for the files.")]


@app.command("profile")
def profile(
    sources: Sources,
    store: StoreOption = None,
    out: OutOption = None,
    set: SetOption = None,
    corpus: CorpusOption = None,
    jobs: JobsOption = None,
    slurm: SlurmOption = None,
    part: Annotated[
        str | None,
        typer.Option("--part", metavar="I/N", help="Only the I-th of N shares of the files, for N machines with one store."),
    ] = None,
) -> None:
    """Measure every document: length, readability, duplicates, clusters. Finished work is kept and found again."""
    if part is not None:
        if jobs or slurm:
            raise RequestError("--part is one share, in this process", where="--part", do="leave out --jobs and --slurm")
        _part(sources, store, set, corpus, part)
        return
    data = _profiled(sources, store, set, corpus, jobs, slurm)
    _print_funnel(data)
    if data.topics is not None:
        for name, terms in zip(data.topics.facts["names"], data.topics.facts["terms"], strict=True):
            typer.echo(f"  {name}  {', '.join(terms)}")
    if out is not None:
        from coterie.store.link import link_tree

        out.mkdir(parents=True, exist_ok=True)
        link_tree(data.artifact, out / "profile")
        if data.topics is not None:
            link_tree(data.topics, out / "topics")
        typer.echo(out)


@app.command("plan")
def plan(
    sources: Sources,
    store: StoreOption = None,
    out: OutOption = None,
    set: SetOption = None,
    corpus: CorpusOption = None,
    jobs: JobsOption = None,
    slurm: SlurmOption = None,
    relax: RelaxOption = False,
) -> None:
    """Show how much each value would give, and the certificate of what cannot be met: then exit 2, unless --relax."""
    from coterie.select.choose import refuse_unmet
    from coterie.select.selection import plan_json

    data = _profiled(sources, store, set, corpus, jobs, slurm, relax)
    made = plan_json(data.chosen)
    for axis, rows in made.get("axes", {}).items():
        typer.echo(f"{axis:<28}{'target':>14}{'pool':>14}{'planned':>14}")
        for row in rows:
            typer.echo(f"  {row['value']:<26}{row['target']:>14,.0f}{row['capacity']:>14,.0f}{row['planned']:>14,.0f}")
    if "certificate" in made:
        missed = ", ".join(f"{name} {n:,.0f}" for name, n in made["certificate"].items())
        typer.echo(f"must be missed in any selection ({made['unit']}): {missed}")
    if out is not None:
        _write(out / "plan.json", made)
    refuse_unmet(data.chosen, data.select, data.label)


@app.command("pick")
def pick(
    sources: Sources,
    out: Annotated[Path, typer.Option("--out", help="Folder for selected.jsonl, plan.json and the report.")],
    store: StoreOption = None,
    set: SetOption = None,
    corpus: CorpusOption = None,
    jobs: JobsOption = None,
    slurm: SlurmOption = None,
    relax: RelaxOption = False,
) -> None:
    """Choose: writes selected.jsonl (each row with cell, scores and reason), plan.json, report.json and report.html."""
    from coterie.select.choose import shortfall
    from coterie.select.selection import plan_json, selection, write_selected

    data = _profiled(sources, store, set, corpus, jobs, slurm, relax)
    selection(data)
    out.mkdir(parents=True, exist_ok=True)
    write_selected(out / "selected.jsonl", data, data.chosen)
    _write(out / "plan.json", plan_json(data.chosen))
    _report(data, out, None)
    for line in shortfall(data.chosen, data.select):
        typer.echo(f"short: {line}")
    typer.echo(f"{len(data.chosen.at):,} documents, {data.chosen.tokens:,} tokens")
    typer.echo(out / "report.html")


@app.command("report")
def report(
    sources: Sources,
    out: Annotated[Path, typer.Option("--out", help="Folder for report.json and report.html.")],
    store: StoreOption = None,
    set: SetOption = None,
    corpus: CorpusOption = None,
    jobs: JobsOption = None,
    slurm: SlurmOption = None,
    paired: Annotated[
        Path | None, typer.Option("--paired", help="JSON of a training experiment on equal tokens, to attach.")
    ] = None,
) -> None:
    """All figures of the selection, beside the other strategies and 20 random draws."""
    data = _profiled(sources, store, set, corpus, jobs, slurm, relax=True)
    out.mkdir(parents=True, exist_ok=True)
    made = _report(data, out, paired)
    typer.echo(f"{'strategy':<16}{'documents':>10}{'tokens':>12}{'length':>8}{'quality':>9}  Gini of each label (coverage)")
    for name, f in made["comparison"]["strategies"].items():
        labels = "  ".join(f"{n} {b['gini']:.2f} ({b['coverage']:.2f})" for n, b in f["labels"].items())
        typer.echo(
            f"{name:<16}{f['documents']:>10,}{f['tokens']:>12,}{f['mean_tokens']:>8,.0f}{f['mean_quality']:>9.3f}  {labels}"
        )
    typer.echo(out / "report.html")


@app.command("why")
def why(
    document: Annotated[str, typer.Argument(metavar="DOC", help="Id of a document.", show_default=False)],
    sources: Sources,
    store: StoreOption = None,
    set: SetOption = None,
    corpus: CorpusOption = None,
) -> None:
    """Explain one document: what was measured, why it was dropped, or its place in its cell."""
    from coterie.select.selection import why

    data = _profiled(sources, store, set, corpus, relax=True)
    for line in why(data, data.chosen, document):
        typer.echo(line)


def _recipe(sources: list[Path], settings: list[str] | None, corpus: str | None) -> tuple[str, Corpus]:
    """The corpus with a selection that is meant, and its name."""
    from coterie.recipe import read

    if _is_recipe(sources):
        recipe = read(sources[0], settings or (), selecting=True)
    else:
        raw = {"name": "select", "corpora": {"data": {"path": [str(p.absolute()) for p in sources]}}}
        recipe = read(raw, settings or (), selecting=True)
    there = {name: c for name, c in recipe.corpora.items() if c.select is not None}
    if corpus is None and len(there) == 1:
        corpus = next(iter(there))
    if corpus is None or corpus not in there:
        raise RequestError(
            "which corpus is meant?" if there else "no corpus has a selection",
            where="--corpus" if there else "corpora",
            expected=", ".join(there) or "a corpus with select: {budget: ...}",
            found=corpus,
            do="name one: --corpus NAME" if there else "give one a select",
        )
    return corpus, there[corpus]


def _is_recipe(sources: list[Path]) -> bool:
    """YAML is; a JSON file may be a recipe or data: a recipe has corpora."""
    if len(sources) != 1 or sources[0].suffix.lower() != ".json":
        return len(sources) == 1 and sources[0].suffix.lower() in (".yaml", ".yml")
    try:
        return "corpora" in json.loads(sources[0].read_text())
    except (OSError, ValueError):
        return False


def _profiled(
    sources: list[Path],
    store: Path | None,
    settings: list[str] | None,
    corpus: str | None,
    jobs: int | None = None,
    slurm: list[str] | None = None,
    relax: bool = False,
) -> Profiled:
    from coterie import launch
    from coterie.run import jobs as parallel
    from coterie.select.profiled_corpus import profile_corpus
    from coterie.store import Store
    from coterie.store.store import default_root

    label, chosen_from = _recipe(sources, settings, corpus)
    root = Store(store or default_root())
    if place := launch.place(jobs, slurm_parameters(slurm)):
        words = [
            *map(str, sources),
            *(w for s in settings or () for w in ("--set", s)),
            *(("--corpus", corpus) if corpus else ()),
        ]
        parallel.profile(root, chosen_from, place, label, words)
    if relax and chosen_from.select is not None:
        relaxed = chosen_from.select.model_copy(update={"relax": True})
        chosen_from = chosen_from.model_copy(update={"select": relaxed})
    return profile_corpus(root, chosen_from, label=label)


def _part(sources: list[Path], store: Path | None, settings: list[str] | None, corpus: str | None, part: str) -> None:
    from coterie.select.profile_shards import profile_parts
    from coterie.store import Store
    from coterie.store.store import default_root

    label, chosen_from = _recipe(sources, settings, corpus)
    number, _, of = part.partition("/")
    if not (number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise RequestError("no such part", where="--part", expected="I/N with 1 <= I <= N, such as 2/8", found=part)
    made = profile_parts(Store(store or default_root()), chosen_from, label=label, only=(int(number) - 1, int(of)))
    typer.echo(f"part {part}: {len(made)} profiled")


def _report(data: Profiled, out: Path, paired: Path | None) -> Figures:
    from coterie.select.selection_page import page
    from coterie.select.selection_report import report

    made = report(data, data.chosen, paired=paired)
    _write(out / "report.json", made)
    (out / "report.html").write_text(page(made), encoding="utf-8")
    return made


def _write(path: Path, value: Figures) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, default=float) + "\n", encoding="utf-8")


def _print_funnel(data: Profiled) -> None:
    funnel = data.artifact.facts["funnel"]
    typer.echo(f"{funnel['read']:,} rows: {funnel['filtered']:,} filtered, {funnel['quarantined']:,} quarantined")
    for name, entry in funnel["dropped"].items():
        typer.echo(f"  {entry['documents']:>10,}  {name}")
    typer.echo(f"  {funnel['kept']['documents']:>10,}  to choose from, {funnel['kept']['tokens']:,} tokens")
