"""A selection as a corpus to train on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from coterie.corpora.reading import SplitFacts
from coterie.corpora.row_plan import OWN, beside_own, stored
from coterie.corpora.splits import SPLITS
from coterie.select.filters import HELD_OUT, REASONS
from coterie.select.plan_settings import CLUSTER, GROUP
from coterie.select.profile import by_part
from coterie.select.profiled_corpus import Profiled, profile_corpus
from coterie.select.select_settings import Corpus
from coterie.select.selection import selection
from coterie.spec.json_types import Figures
from coterie.store import Action, Artifact, Store


def selected_documents(store: Store, corpus: Corpus, *, label: str) -> Artifact:
    """The corpus to train on: of the training split what was chosen, in the order in which it is given out; the valid and
    test splits whole. Every document has its cluster and its group of clusters, chosen or not.

    Returns:
        a ``corpora`` artifact like that of `documents`.
    """
    data = profile_corpus(store, corpus, label=label)
    chosen = selection(data)
    topics = (CLUSTER, GROUP) if data.topics is not None else ()
    columns = beside_own(corpus, (*data.corpus.columns, *topics))
    spec = {"selected": True, "columns": columns, "has_id": corpus.id is not None}
    inputs = {"selection": chosen.digest, "pool": data.artifact.digest}
    inputs |= {f"documents.{i}": documents.digest for i, (documents, _) in enumerate(data.parts)}

    def build(folder: Path) -> None:
        whole = _documents(data, pl.read_parquet(chosen.file("selected.parquet"), glob=False)["row"].to_numpy(), columns)
        pq.write_table(whole, folder / "documents.parquet", compression="zstd", row_group_size=8192)
        with (folder / "quarantine.jsonl").open("wb") as out:
            for shard in data.pool.shards:
                out.write(shard.documents.file("quarantine.jsonl").read_bytes())
        (folder / "facts.json").write_text(json.dumps(_facts(data, whole), indent=1, sort_keys=True))

    return store.make(Action("corpora", spec, inputs), build, label=f"corpus {label} (selected)")


def _documents(data: Profiled, rows: np.ndarray, columns: list[str]) -> pa.Table:
    """The chosen rows of the pool and those held out, in order, whole."""
    table = data.pool.table
    rows = np.concatenate([rows, np.flatnonzero(table["split"].to_numpy() != 0)])
    turn = np.full(len(table), -1, dtype=np.int64)
    turn[rows] = np.arange(len(rows))
    rows = np.flatnonzero(turn >= 0)
    topics = [c for c in columns if c in (CLUSTER, GROUP)] if data.topics is not None else []
    read = {*OWN, *(stored(c) for c in columns if c not in topics)}
    where = data.pool.places[rows]
    found: list[pa.Table] = []
    for number, mine in by_part(where):
        mine = mine[np.argsort(where[mine, 1], kind="stable")]
        at, low = where[mine, 1], 0
        file = pq.ParquetFile(data.pool.shards[number].documents.file("documents.parquet"))
        names = [name for name in file.schema_arrow.names if name in read]
        for batch in file.iter_batches(4096, columns=names):
            inside = slice(*np.searchsorted(at, (low, low + len(batch))))
            part, of_pool = pa.table(batch).select(names).take(pa.array(at[inside] - low)), rows[mine[inside]]
            for name in topics:
                part = part.append_column(name, pa.array(table[name][of_pool].cast(pl.String).to_list(), pa.string()))
            if data.corpus.id is None:
                ids = [c[:16] for c in part["content"].to_pylist()]
                part = part.set_column(part.schema.get_field_index("id"), "id", pa.array(ids, pa.string()))
            found.append(part.append_column("row", pa.array(turn[of_pool])))
            low += len(batch)
    return pa.concat_tables(found).sort_by("row").drop_columns("row")


def _facts(data: Profiled, whole: pa.Table) -> Figures:
    funnel = data.artifact.facts["funnel"]
    counted = {name: SplitFacts() for name in SPLITS}
    for name, entry in counted.items():
        entry.add(whole.filter(pc.equal(whole["split"], name)))
    splits = {name: entry.figures() for name, entry in counted.items()}
    left = {why: entry["documents"] for why, entry in funnel["dropped"].items() if why != REASONS[HELD_OUT]}
    left["not chosen"] = funnel["kept"]["documents"] - splits["train"]["documents"]
    filtered = funnel["filtered"] + sum(left.values())
    assert funnel["read"] == len(whole) + filtered + funnel["quarantined"]
    return {
        "read": funnel["read"],
        "kept": len(whole),
        "filtered": filtered,
        "quarantined": funnel["quarantined"],
        "duplicates": len(whole) - len(set(whole["content"].to_pylist())),
        "reasons": funnel["filtered_why"] | {f"select: {why}": n for why, n in left.items()},
        "splits": splits,
    }
