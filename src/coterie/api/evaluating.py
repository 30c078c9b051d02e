"""`coterie.evaluate`: losses of models at hand on texts at hand, as a recipe's `evaluation:` measures them.

Experts are scored once, and mixtures at the outputs from those scores. What a mixture's store cannot know, because the
mixture was opened from a directory or has changed in memory, is run.

Shapes: N blocks, T positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch

from coterie.api.given_models import same_weights, seat, weights
from coterie.api.remaking import Remaking
from coterie.api.session import Session
from coterie.api.workplace import Workplace
from coterie.corpora.blocks import Blocks
from coterie.corpora.given_texts import Texts, given
from coterie.errors import RequestError
from coterie.evaluation.compare import Entry, Tables, tables
from coterie.evaluation.losses import TokenLosses, evaluate_losses
from coterie.mixtures.mixture import Mixture, Model
from coterie.mixtures.mixture_files import require_same_tokenizer, require_same_vocabulary
from coterie.mixtures.outputs.outputs_mixture import OutputsMixture
from coterie.mixtures.seats import Seat
from coterie.models.parameters import fingerprints
from coterie.spec.digest import digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from coterie.store import Artifact

TOKENS_AT_ONCE = 4096
"""Positions in one forward pass."""


def evaluate(
    models: Mapping[str, Model],
    texts: Texts | Mapping[str, Texts],
    *,
    by: str | None = None,
    base: Model | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    sequence_length: int | None = None,
    store: str | Path | None = None,
) -> pl.DataFrame:
    """Losses of every model in every group of texts.

    Args:
        models: experts and mixtures, by name.
        texts: by group, or one group; all of them, but of `coterie.Documents` the test split. Nobody checks here, as recipes
            do, that none of them was trained on.
        by: group by this column (or ``year`` of the time) instead.
        base: what adapters rest on, where they do not say.
        bootstrap: resamples of the documents for the 95 % intervals.
        store: folder of finished work, which is kept and used again; by default a temporary one.

    Returns:
        a row for each model and group, and for all groups together (``all``): ``tokens``, ``nll`` (nats a token),
        ``perplexity``, ``low`` and ``high`` (the interval of nll), and ``difference`` from the best expert with its own
        interval, paired over documents; the best expert itself has none.

    Raises:
        RequestError: a model or a text is wrong, or models have different tokenizers.
    """
    if not models:
        raise RequestError("there are no models", where="models", found="none")
    workplace = Workplace(store)
    rests = weights(workplace, base, "base") if base is not None else None
    mixtures = {name: m for name, m in models.items() if isinstance(m, Mixture) and not _is_expert(m)}
    seats = {n: seat(workplace, n, m, rests) for n, m in models.items() if n not in mixtures}
    _require_one_language(seats, mixtures)
    groups = texts if isinstance(texts, Mapping) else {"texts": texts}
    if "all" in groups or not groups:
        raise RequestError("a group needs a name, and 'all' is that of all groups", where="texts", found=", ".join(groups))
    found = {name: given(some, workplace.folder, where=f"texts[{name!r}]", by=by) for name, some in groups.items()}
    reader = tokenizer or next((m.tokenizer for m in mixtures.values() if m.tokenizer is not None), None)
    session = Session(workplace, seats, rests, reader, found, sequence_length, seed)
    blocks = {name: session.blocks(name, "test") for name in found}
    losses: dict[str, dict[str, TokenLosses]] = {
        name: {g: TokenLosses.of(seat.artifact, session.score(seat, b)) for g, b in blocks.items()}
        for name, seat in seats.items()
    }
    for name, mixture in mixtures.items():
        if _goes_by_dates(mixture) and (undated := [g for g, one in found.items() if one.corpus.time is None]):
            raise RequestError(
                f"the mixture {name!r} answers as of a date, and the texts have none",
                where=f"texts[{undated[0]!r}]",
                do='give rows {"text": ..., "time": "2016-05-01"}',
            )
        losses[name] = _of_mixture(mixture, blocks)
    made = evaluate_losses(
        workplace.store,
        name="losses",
        by=by,
        resamples=bootstrap,
        corpora=blocks,
        models={name: losses[name] for name in models},
        experts=list(seats),
        seed=seed,
        label="evaluation",
    )
    return _frame(tables(made, list(models), list(blocks)), list(models))


def _is_expert(mixture: Mixture) -> bool:
    return isinstance(mixture, OutputsMixture) and len(mixture.config.experts) == 1


def _goes_by_dates(mixture: Mixture) -> bool:
    """Whether it must be told one."""
    return mixture.eligibility.rule != "all" and mixture.eligibility.default is None


def _require_one_language(seats: Mapping[str, Seat], mixtures: Mapping[str, Mixture]) -> None:
    """One tokenizer cuts the texts for all."""
    folders = [(name, seat.artifact.path) for name, seat in seats.items()]
    folders += [(name, m.source.folder) for name, m in mixtures.items() if m.source is not None]
    require_same_tokenizer(folders)
    sizes = {name: m.config.get_text_config().vocab_size for name, m in mixtures.items()}
    require_same_vocabulary({name: seat.vocab_size for name, seat in seats.items()} | sizes)


def _of_mixture(mixture: Mixture, blocks: Mapping[str, Artifact]) -> dict[str, TokenLosses]:
    made = mixture.source.made if isinstance(mixture.source, Remaking) else None
    if made is not None and same_weights(mixture, made.folder):
        whole = made.session.made(made.current)
        return {name: TokenLosses.of(whole, made.current.scores(made.session, b)) for name, b in blocks.items()}
    now = digest([mixture.config.to_json_string(use_diff=False), fingerprints(mixture)])
    return {name: TokenLosses(now, digest([now, b.digest]), partial(_run, mixture, b)) for name, b in blocks.items()}


@torch.no_grad()
def _run(mixture: Mixture, blocks: Artifact) -> tuple[np.ndarray, np.ndarray | None]:
    """Losses [N, T-1] of a mixture that is in memory and, where it goes by dates, at which tokens it has an answer."""
    source, where, dated = Blocks.open(blocks), mixture.device, mixture.eligibility.rule != "all"
    ids_NT, position_NT = (torch.from_numpy(np.array(a)).long() for a in (source.ids, source.position))
    document_NT = np.array(source.document)
    times_D = source.documents.sort("row")["time"].to_list()
    nll_NT1 = np.zeros((len(source), ids_NT.shape[1] - 1), np.float32)
    answered_NT1 = np.ones(nll_NT1.shape, dtype=bool)
    for time in dict.fromkeys(times_D) if dated else [None]:
        mine_NT1 = np.isin(document_NT, [d for d, t in enumerate(times_D) if t == time])[:, 1:] if dated else answered_NT1
        rows = torch.from_numpy(np.flatnonzero(mine_NT1.any(1)))
        day = None if time is None else time.toordinal()
        if dated and not mixture.eligibility.mask([day], none_is_error=False).any():
            answered_NT1 &= ~mine_NT1
            continue
        for some in rows.split(max(TOKENS_AT_ONCE // ids_NT.shape[1], 1)):
            nll = mixture.nll(ids_NT[some].to(where), time=time, position_ids=position_NT[some].to(where)).cpu().numpy()
            nll_NT1[some] = np.where(mine_NT1[some], nll, nll_NT1[some])
    return nll_NT1, answered_NT1 if dated else None


def _frame(found: Tables, models: Sequence[str]) -> pl.DataFrame:
    rows = []
    for model in models:
        differences = found["differences"].get(model, {}).get("best_expert", {})
        for group, figure in found["evaluation"][model].items():
            apart = differences.get(group, {})
            row = [model, group, figure["tokens"], figure["nll"], figure["perplexity"], *_ends(figure)]
            rows.append([*row, apart.get("nll"), *_ends(apart)])
    names = ("nll", "perplexity", "low", "high", "difference", "difference_low", "difference_high")
    schema = {"model": pl.String, "group": pl.String, "tokens": pl.Int64, **dict.fromkeys(names, pl.Float64)}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _ends(figure: Entry) -> list[object]:
    """Of its interval, if it has one."""
    ends = figure.get("ci95")
    return list(ends) if isinstance(ends, Sequence) else [None, None]
