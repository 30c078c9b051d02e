"""Corpora: where documents come from and how a row becomes a document."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from coterie.corpora.formats import AUTO, FORMATS
from coterie.corpora.windows import Windows
from coterie.spec.settings import Count, Share, Spec, Whole


class Split(Spec):
    """Shares of a corpus that are kept away from training. The rest is the training split."""

    valid: Share = 0.05
    """Share of documents for early stopping and for fitting routers."""
    test: Share = 0.05
    """Share of documents for evaluation."""
    group: str | None = None
    """Column whose equal values stay in one split (a meeting, a file, an author). Without it, documents are split
    by the hash of their content, so that exact duplicates stay together."""

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> Split:
        if self.valid + self.test >= 1:
            raise ValueError("valid + test must be below 1: nothing would be left to train on")
        return self


class Limit(Spec):
    """A part of a corpus, for a quick trial. Documents are taken in the order of their content's hash."""

    share: Share | None = None
    """Share of the documents."""
    rows: Count | None = None
    """Number of documents."""
    tokens: Count | None = None
    """Number of tokens, over all splits, counted by the recipe's tokenizer."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"share": value} if isinstance(value, int | float) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _exactly_one(self) -> Limit:
        if sum(v is not None for v in (self.share, self.rows, self.tokens)) != 1:
            raise ValueError("say exactly one of share, rows, tokens")
        return self


class Stream(Spec):
    """Read a hub dataset as a stream, once, until each window has its tokens; the rest is never fetched."""

    windows: Windows
    """Windows to fill; documents outside of them, or without a date, are passed over."""
    tokens: Count
    """Tokens of each window, all splits together. They are counted at six bytes a token, so that no window falls short
    whatever the tokenizer; `train.tokens` then takes as many as it says."""
    rows: Count | None = None
    """Stop after so many rows, even if a window is not full."""


class BadRows(Spec):
    """How many rows that cannot be read are set aside in `quarantine.jsonl` before the run stops."""

    share: Share = 0.001
    """Largest share of the rows."""
    most: Whole = 100
    """Largest number of rows, whatever the share."""


class Documents(Spec):
    """Documents with an id, text (or prompt and response) and optional columns."""

    path: str | tuple[str, ...] | None = None
    """File, glob, folder of text files or of a saved Hugging Face dataset; several as a list. Relative to the recipe.
    Without it, the corpus must be one of the named ones, or `hub` must be given."""
    hub: str | None = None
    """Hugging Face dataset id, with `config` and `revision` as needed."""
    config: str | None = None
    """Configuration (subset) of the hub dataset."""
    revision: str | None = None
    """Commit or tag of the hub dataset."""
    split_name: str | None = None
    """Split of the hub or saved dataset to read; all of them by default."""
    format: Annotated[str, AfterValidator(FORMATS.check)] = Field(
        AUTO,
        description=f"File format: {', '.join(f'`{tag}`' for tag in FORMATS)}; `auto` goes by the file's ending. `.gz` and "
        "`.zst` are opened as they are.",
    )
    encoding: str = "utf-8"
    """Text encoding of JSONL, CSV and text files."""
    text: str | None = None
    """A column, or a template over columns such as `"{text}\\n{code}"`. Braces are doubled to stand for themselves."""
    prompt: str | None = None
    """A column or template for the part that is given: masked in the loss, truncated from its left."""
    response: str | None = None
    """A column or template for the part that is learned; goes with `prompt`."""
    messages: str | None = None
    """A column of conversations: a list of `{role, content}` (or ShareGPT's `{from, value}`), rendered with the base's chat
    template. What the assistant says is learned. Without `text`, `prompt` and `messages`, the layouts of supervised
    fine-tuning are known by their columns."""
    chat: bool = False
    """Render `prompt` and `response` with the base's chat template, as a turn of the user and one of the assistant."""
    id: str | None = None
    """Column with the document's id; file and row number by default."""
    time: str | None = None
    """Column with the document's date (`2016-05-01`, `2016-05` or `2016`). A month or a year stands for its last day."""
    time_pattern: str | None = None
    """Regular expression over the `time` column; its first group is the date, as `CC-MAIN-(\\d{4})` over a dump's name."""
    undated: str | None = None
    """Name for documents without a date, which are an error otherwise. An expert takes them with `where: {undated: NAME}`;
    no window holds them."""
    stream: Stream | None = None
    """Fetch of the hub dataset only what fills windows of time."""
    columns: tuple[str, ...] = ()
    """Further columns to keep, for `by:` in evaluations and for slices."""
    where: dict[str, Any] = Field(default_factory=dict)
    """Keep rows whose column equals the value, or one of a list of values. The others are counted as filtered."""
    split: Split = Split()
    """Train, valid and test."""
    limit: Limit | None = None
    """Use only a part: a share (`0.1`), `{rows: N}` or `{tokens: N}`."""
    bad_rows: BadRows = BadRows()
    """When to stop because of rows that cannot be read."""

    @property
    def is_chat(self) -> bool:
        """Whether documents are conversations."""
        return self.chat or self.messages is not None

    @model_validator(mode="after")
    def _one_way_to_a_document(self) -> Documents:
        if self.text and (self.prompt or self.response):
            raise ValueError("give either text, or prompt and response")
        if self.messages and (self.text or self.prompt or self.response):
            raise ValueError("give messages alone, without text, prompt and response")
        if self.chat and not self.prompt:
            raise ValueError("chat is for prompt and response; a column of conversations is named by messages")
        if bool(self.prompt) != bool(self.response):
            raise ValueError("prompt and response go together")
        if self.stream is not None and not (self.hub and self.revision and self.time):
            raise ValueError("stream needs hub, revision (so that the data cannot change) and time")
        if (self.undated or self.time_pattern) and not self.time:
            raise ValueError("undated and time_pattern are ignored without time")
        if self.time_pattern is not None:
            try:
                groups = re.compile(self.time_pattern).groups
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(f"time_pattern: {error}") from None
            if groups < 1:
                raise ValueError("time_pattern needs a group in brackets around the date")
        if self.path and self.hub:
            raise ValueError("give either path or hub")
        return self
