"""A selection as a corpus to train on, and as targets for gates that are taught."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from coterie.corpora.row_plan import OWN
from coterie.corpora.splits import SPLITS
from coterie.select.corpus import Corpus
from coterie.select.plan_settings import CLUSTER, GROUP
from coterie.select.pool import CODE, REASONS
from coterie.select.selection import Profiled, profile_corpus, selection
from coterie.store import Action, Artifact, Store


def selected_documents(store: Store, corpus: Corpus, *, label: str) -> Artifact:
    """The corpus to train on: of the training split what was chosen, in the order in which it is given out; the valid and
    test splits whole. Every document has its cluster and its group of clusters, chosen or not.

    Returns:
        a ``corpora`` artifact like that of `documents`.
    """
    it = profile_corpus(store, corpus, label=label)
    made = selection(it)
    columns = [*it.corpus.columns, *([CLUSTER, GROUP] if it.topics is not None else [])]
    columns = list(dict.fromkeys(c for c in columns if c not in OWN))
    spec = {"selected": True, "columns": columns, "has_id": corpus.id is not None}
    inputs = {"selection": made.digest, "pool": it.artifact.digest}
    inputs |= {f"documents.{i}": d.digest for i, (d, _) in enumerate(it.parts)}

    def build(folder: Path) -> None:
        _write(folder, it, pl.read_parquet(made.file("selected.parquet")), columns, corpus.id is not None)

    return store.make(Action("corpora", spec, inputs), build, label=f"corpus {label} (selected)")


def _write(folder: Path, it: Profiled, chosen: pl.DataFrame, columns: list[str], has_id: bool) -> None:
    table = it.pool.table
    turn = np.full(len(table), -1, dtype=np.int64)
    turn[chosen["row"].to_numpy()] = np.arange(len(chosen))
    held = table["split"].to_numpy() != 0
    turn[held] = len(chosen) + np.arange(int(held.sum()))
    want = np.flatnonzero(turn >= 0)
    where = it.pool.places[want]
    added = [c for c in columns if c in (CLUSTER, GROUP)]
    found: list[pa.Table] = []
    for s, shard in enumerate(it.pool.shards):
        mine = want[where[:, 0] == s]
        at = it.pool.places[mine, 1]
        by_row = np.argsort(at, kind="stable")
        mine, at = mine[by_row], at[by_row]
        own = [*OWN, *(c for c in columns if c not in (CLUSTER, GROUP))]
        low = 0
        for batch in pq.ParquetFile(shard.documents.file("documents.parquet")).iter_batches(4096, columns=own):
            a, b = np.searchsorted(at, (low, low + len(batch)))
            part = pa.table(batch).take(pa.array(at[a:b] - low))
            rows = mine[a:b]
            for name in added:
                part = part.append_column(name, pa.array(table[name][rows].cast(pl.String).to_list(), pa.string()))
            if not has_id:
                ids = [c[:16] for c in part["content"].to_pylist()]
                part = part.set_column(part.schema.get_field_index("id"), "id", pa.array(ids, pa.string()))
            found.append(part.append_column("turn", pa.array(turn[rows])))
            low += len(batch)
    whole = pa.concat_tables(found).sort_by("turn").drop_columns("turn")
    pq.write_table(whole, folder / "documents.parquet", compression="zstd", row_group_size=8192)
    with (folder / "quarantine.jsonl").open("wb") as out:
        for shard in it.pool.shards:
            out.write(shard.documents.file("quarantine.jsonl").read_bytes())
    (folder / "facts.json").write_text(json.dumps(_facts(it, whole), indent=1, sort_keys=True))


def _facts(it: Profiled, whole: pa.Table) -> dict[str, Any]:
    funnel = it.artifact.facts["funnel"]
    reasons = dict(funnel["filtered_why"])
    for why, entry in funnel["dropped"].items():
        if why != REASONS[CODE["held out"]]:
            reasons[f"select: {why}"] = entry["documents"]
    splits = {name: _split(whole.filter(pc.equal(whole["split"], name))) for name in SPLITS}
    reasons["select: not chosen"] = funnel["kept"]["documents"] - splits["train"]["documents"]
    filtered = funnel["filtered"] + sum(n for why, n in reasons.items() if why.startswith("select: "))
    assert funnel["read"] == len(whole) + filtered + funnel["quarantined"]
    distinct = len(set(whole["content"].to_pylist()))
    return {
        "read": funnel["read"],
        "kept": len(whole),
        "filtered": filtered,
        "quarantined": funnel["quarantined"],
        "duplicates": len(whole) - distinct,
        "reasons": reasons,
        "splits": splits,
    }


def _split(part: pa.Table) -> dict[str, Any]:
    """What a split holds, in the words of `documents`."""
    rows = zip(part["content"].to_pylist(), part["prompt"].to_pylist(), part["text"].to_pylist(), strict=True)
    content = sorted(bytes.fromhex(c) + hashlib.sha256(f"{p}\0{t}".encode()).digest() for c, p, t in rows)
    characters = sum(pc.sum(pc.utf8_length(part[column])).as_py() or 0 for column in ("prompt", "text"))
    dates = pc.min_max(part["time"]).as_py()
    first, last = (dates[end] and dates[end].isoformat() for end in ("min", "max"))
    return {
        "documents": len(part),
        "digest": hashlib.sha256(b"".join(content)).hexdigest(),
        "characters": characters,
        "first": first,
        "last": last,
    }
