"""`coterie.train`: one expert on texts at hand, as a recipe's `experts:` trains it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

from pydantic import ValidationError

from coterie.api.given_models import checked_name, located, seat, weights
from coterie.api.remaking import Remaking
from coterie.api.session import Session
from coterie.api.spans import window as window_of
from coterie.api.workplace import Workplace
from coterie.corpora.given_texts import Texts, given
from coterie.errors import RequestError
from coterie.experts.expert_actions import train_expert
from coterie.experts.train_settings import EarlyStopping, Train
from coterie.experts.training_request import Request
from coterie.mixtures.load import load
from coterie.mixtures.mixture import Mixture, Model, Span
from coterie.mixtures.seats import Seat
from coterie.models.lora_settings import Lora
from coterie.recipe.read_recipe import readable
from coterie.store import link_tree

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TrainSettings(TypedDict, total=False):
    """Every setting of `coterie.experts.train_settings.Train`, which says what each means."""

    batch_size: int
    accumulation: int
    learning_rate: float
    schedule: Literal["cosine", "linear", "constant", "wsd"]
    warmup: float
    decay: float
    floor: float
    weight_decay: float
    beta1: float
    beta2: float
    clip: float
    precision: Literal["auto", "fp32", "bf16"]
    gradient_checkpointing: bool
    early_stopping: EarlyStopping | None
    snapshots: int | float | None
    save_every: int
    log_every: int
    report_to: tuple[str, ...]
    threads: int
    parallel: Literal["ddp"] | None
    processes: int | None


def train(
    base: Model,
    data: Texts,
    *,
    kind: Literal["full", "ffn", "lora"] = "full",
    tokens: int | None = None,
    epochs: float | None = None,
    lora: Lora | None = None,
    valid: Texts | None = None,
    text: str | None = None,
    time: str | None = None,
    window: Span | None = None,
    name: str = "expert",
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    sequence_length: int | None = None,
    seed: int = 0,
    store: str | Path | None = None,
    out: str | Path | None = None,
    **settings: Unpack[TrainSettings],
) -> Mixture:
    """Train an expert. Every setting means what it means in a recipe; see `docs/how-to/python.md`.

    Args:
        base: what it starts from; with kind ``lora`` also an adapter, which it goes on from.
        data: texts; all of them, but of `coterie.Documents` the training split.
        kind: train all weights, the feed-forward ones, or a LoRA adapter of settings ``lora``.
        tokens: budget; or ``epochs``, one by default.
        valid: held-out texts for ``early_stopping``.
        text, time: columns of the text and of the date.
        window: first day, and first day after, of the texts to train on.
        name: what it is called.
        store: folder of finished work, which is kept and used again; by default a temporary one.
        out: folder for the expert, as a stock library opens it.
        settings: of the training, such as ``learning_rate=1e-4``.

    Returns:
        the expert as `coterie.load` gives it.

    Raises:
        RequestError: the request is wrong; says what, and the remedy.
        WorkError: the run diverged, or a parameter did not do what it was declared to.
    """
    workplace, label = Workplace(store), checked_name(name)
    if lora is not None and kind != "lora":
        raise RequestError(
            "lora settings are ignored by this kind", where="lora", found=f"kind {kind}", do="set kind='lora'"
        )
    try:
        how = Train.model_validate({"tokens": tokens, "epochs": epochs, **settings})
    except ValidationError as error:
        raise readable(error) from None
    start = _start(workplace, base)
    session = Session(workplace, {name: start}, start.base, tokenizer, length=sequence_length, seed=seed)
    held_out = None
    texts = {name: given(data, workplace.folder, where="data", text=text, time=time)}
    if valid is not None:
        texts |= {"valid texts": given(valid, workplace.folder, where="valid", text=text, time=time)}
    session = Session(workplace, {name: start}, start.base, tokenizer, texts, sequence_length, seed)
    span = window_of(window) if window is not None else None
    if span is not None and texts[name].corpus.time is None:
        raise RequestError("a window needs texts with dates", where="window", do="name the column of the date: time=")
    if how.early_stopping is not None:
        if valid is None and texts[name].split is not None:
            raise RequestError("early stopping needs held-out texts", where="early_stopping", do="give valid=")
        held_out = session.blocks("valid texts" if valid is not None else name, "valid", span)
    made = train_expert(
        Request(
            workplace.store,
            start=start.artifact,
            base=start.base,
            blocks=[session.blocks(name, "train", span)],
            valid=held_out,
            kind=kind,
            train=how,
            lora=lora,
            seed=seed,
            label=f"expert {label}",
        )
    )
    folder = Path(out) if out is not None else workplace.folder / label
    if out is not None:
        workplace.store.keep(folder, finished=True)
    rests = start.base or start.artifact
    link_tree(made, folder, {"base": rests} if kind == "lora" else {})
    expert = load(folder)
    expert.source = Remaking(folder, workplace=workplace)
    return expert


def _start(workplace: Workplace, model: Model) -> Seat:
    """What training starts from: a whole model where it lies, or an adapter with what it rests on."""
    folder = located(workplace, model, "base")
    if (Path(folder) / "adapter_config.json").is_file():
        return seat(workplace, "base", folder)
    return Seat("base", weights(workplace, folder, "base"))
