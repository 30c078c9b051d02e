"""Conversations in the layouts in which people publish them, and how a base's chat template renders them.

A conversation is kept as JSON, a list of ``[role, content]``; it is rendered and tokenized when blocks are packed, since the
template is the base's. What the assistant says is learned, to the token that ends its turn; all else is given.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from coterie.corpora.template import RowError, string
from coterie.corpora.template_limits import ended_within, require_small
from coterie.errors import RequestError
from coterie.spec.digest import digest
from coterie.store import Artifact

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMN = "conversation"
"""Where a corpus's documents keep theirs."""
ROLES = {"human": "user", "gpt": "assistant", "chatbot": "assistant"}
"""Of ShareGPT; other names stand as they are."""
LAYOUTS: dict[tuple[str, ...], dict[str, object]] = {
    ("messages",): {"messages": "messages"},
    ("conversations",): {"messages": "conversations"},
    ("prompt", "completion"): {"prompt": "prompt", "response": "completion"},
    ("prompt", "response"): {"prompt": "prompt", "response": "response"},
    ("instruction", "input", "output"): {"prompt": "{instruction}\n{input}\n", "response": "output"},
    ("instruction", "output"): {"prompt": "{instruction}\n", "response": "output"},
}
"""Columns of the layouts for supervised fine-tuning (those of TRL, Alpaca and ShareGPT), and the settings that read them."""


def layout(columns: Collection[str]) -> dict[str, object] | None:
    """The settings that read rows with such columns, where they have one of the known layouts and no ``text``."""
    if "text" in columns:
        return None
    return next((dict(settings) for names, settings in LAYOUTS.items() if set(names) <= set(columns)), None)


def conversation(row: Mapping[str, object], column: str) -> list[tuple[str, str]]:
    """Role and content of each turn of a row.

    Raises:
        RowError: it is no list of turns, or the assistant says nothing.
    """
    turns = row.get(column)
    if not isinstance(turns, list) or not turns:
        raise RowError(f'field "{column}" is no list of messages')
    found = []
    for number, turn in enumerate(turns, 1):
        names = ("from", "value") if isinstance(turn, Mapping) and "from" in turn else ("role", "content")
        if not isinstance(turn, Mapping) or not set(names) <= turn.keys():
            raise RowError(f'message {number} of "{column}" has no role and content')
        role, content = (string({(key := f"{column}[{number}].{name}"): turn[name]}, key) for name in names)
        found.append((ROLES.get(role, role), content))
    if not any(role == "assistant" and content.strip() for role, content in found):
        raise RowError(f'no message of "{column}" is an assistant\'s: nothing in it is to be learned')
    return found


def as_json(turns: Sequence[tuple[str, str]]) -> str:
    return json.dumps(turns, ensure_ascii=False)


_SECONDS = 5.0
"""For rendering one conversation."""


class Renderer:
    """A tokenizer's chat template.

    Raises:
        RequestError: the tokenizer has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise no_template()
        require_small(str(tokenizer.chat_template))
        self.tokenizer = tokenizer
        self._special = [str(token) for token in tokenizer.added_tokens_decoder.values()]

    def text(self, turns: Sequence[Sequence[str]], *, ask: bool = False) -> str:
        """Turns as the template writes them; with ``ask`` up to where the assistant begins.

        Raises:
            RequestError: the template cannot render them.
        """
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            with ended_within(_SECONDS):
                return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))
        except Exception as error:  # the template's own raise_exception, or a fault of it
            raise RequestError(
                "the chat template cannot render a conversation",
                where="base: chat_template",
                found=f"{type(error).__name__}: {str(error)[:200]}; roles {', '.join(role for role, _ in turns)}",
                do="correct the roles of the data (many templates want user and assistant in turn)",
            ) from None

    def tokens(self, turns: Sequence[Sequence[str]]) -> tuple[list[int], list[bool]]:
        """Ids of a conversation, as `apply_chat_template` gives them, and which of them the assistant says.

        Where a message holds the spelling of a special token, it stays text: nobody ends a turn by writing so.
        """
        text = self.text(turns)
        ids, starts = self._encoded(text, turns)
        spans = list(self._spans(text, turns))
        return ids, [any(begin <= at < end for begin, end in spans) for at in starts]

    def question(self, text: str) -> list[int]:
        """Ids of what a user says, up to where the assistant begins."""
        turns = [("user", text)]
        return self._encoded(self.text(turns, ask=True), turns)[0]

    def _encoded(self, text: str, turns: Sequence[Sequence[str]]) -> tuple[list[int], list[int]]:
        """Ids, and the character at which each begins."""
        ids: list[int] = []
        starts: list[int] = []
        for begin, part, special in self._parts(text, turns):
            encoded = self.tokenizer(
                part, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=not special, verbose=False
            )
            ids += encoded["input_ids"]
            starts += [begin + start for start, _ in encoded["offset_mapping"]]
        return ids, starts

    def _spans(self, text: str, turns: Sequence[Sequence[str]]) -> Iterator[tuple[int, int]]:
        """Where the assistant speaks: from where it is asked to where its turn ends."""
        for number, (role, _) in enumerate(turns):
            if role == "assistant":
                asked, said = self.text(turns[:number], ask=True), self.text(turns[: number + 1])
                if not said.startswith(asked) or not text.startswith(said.rstrip()):
                    raise RequestError(
                        "the chat template writes a turn otherwise when others follow: what is learned cannot be told",
                        where="base: chat_template",
                        do="give prompt and response with chat: true (one turn a document), or another base",
                    )
                yield len(asked), len(said.rstrip())

    def _parts(self, text: str, turns: Sequence[Sequence[str]]) -> Iterator[tuple[int, str, bool]]:
        """The text in parts: where each begins, and whether special tokens in it are such."""
        at = 0
        for _, content in turns:
            content = content.strip()
            if any(token in content for token in self._special):
                begin = text.find(content, at)
                if begin < 0:
                    raise RequestError("the chat template changes what messages say", where="base: chat_template")
                yield at, text[at:begin], True
                at = begin + len(content)
                yield begin, content, False
        yield at, text[at:], True


def template_digest(tokenizer: Artifact) -> str:
    """Of a tokenizer's chat template.

    Raises:
        RequestError: it has none.
    """
    if tokenizer.planned:
        return tokenizer.content("chat_template.jinja")
    config = tokenizer.path / "tokenizer_config.json"
    own = json.loads(config.read_text()).get("chat_template") if config.is_file() else None
    if (tokenizer.path / "chat_template.jinja").is_file():
        return tokenizer.content("chat_template.jinja")
    if own is None:
        raise no_template()
    return digest(own)


def no_template() -> RequestError:
    return RequestError(
        "the base's tokenizer has no chat template, and this corpus holds conversations",
        where="base",
        do="take a base that was made for chat, or give prompt and response as plain text (without chat: true)",
    )
