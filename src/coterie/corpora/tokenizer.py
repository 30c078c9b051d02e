"""The tokenizer verb: train a byte-level BPE on the corpora, or take one that exists.

The result is always a directory that stock `AutoTokenizer` opens, with a `tokenizer.json` that the Rust library reads on
its own. Byte-level: every text has tokens, and decoding gives the text back.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from coterie.errors import RequestError
from coterie.progress import Bar, bar
from coterie.spec.digest import digest
from coterie.spec.json_types import Figures
from coterie.spec.settings import Count, Spec
from coterie.store import Action, Artifact, Store, sha256
from coterie.store.admit import admit

END = "<|endoftext|>"
"""Begins, ends and pads documents in tokenizers trained here."""
LONGEST_WORD = 10_000
"""Characters without a space between that a tokenizer learns from as one."""
_FILES = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json merges.txt tokenizer.model "
    "chat_template.jinja config.json"
).split()


class TrainedTokenizer(Spec):
    """A byte-level BPE tokenizer trained on the recipe's corpora (their training splits)."""

    train: Literal["bpe"]
    """The algorithm."""
    vocab_size: Count = 2048
    """Number of tokens, the 256 bytes and the special tokens included."""
    corpora: tuple[str, ...] | None = None
    """Corpora to train on; by default all that the recipe trains on."""


def make_tokenizer(store: Store, spec: TrainedTokenizer | str, documents: list[Artifact], *, label: str) -> Artifact:
    """Train a tokenizer, or store a copy of one.

    Args:
        spec: what to train; or a local directory or hub id, and then ``documents`` is not used.
        documents: corpora; their training splits are read.

    Returns:
        a ``tokenizers`` artifact; its facts hold ``vocab_size``, ``bos_id`` and ``eos_id``.

    Raises:
        RequestError: no documents, a vocabulary below the 256 bytes, no such tokenizer, one that would run code.
    """
    if isinstance(spec, str):
        return _copied(store, spec, label)
    if spec.vocab_size < 257:
        raise RequestError(
            "the vocabulary is too small",
            where="base.tokenizer.vocab_size",
            expected="at least 257: the 256 bytes and one special token",
            found=str(spec.vocab_size),
        )
    inputs = {f"documents.{i}": d for i, d in enumerate(sorted(d.content("documents.parquet") for d in documents))}
    action = Action("tokenizers", {"train": spec.train, "vocab_size": spec.vocab_size}, inputs, libraries=("tokenizers",))
    return store.make(action, lambda folder: _train(folder, spec, documents, label), label=label)


def _train(folder: Path, spec: TrainedTokenizer, documents: list[Artifact], label: str) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    total = sum(d.facts["splits"]["train"]["documents"] for d in documents)
    if not total:
        raise RequestError(f"{label}: no documents to train on", where="base.tokenizer.corpora")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    with bar(f"train {label}", total, "documents") as progress:
        bpe.train_from_iterator(_texts(sorted(documents, key=lambda d: d.content("documents.parquet")), progress), trainer)
    bpe.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, sort_keys=True))
    _facts(folder, {"vocab_size": bpe.get_vocab_size(), "bos_id": 0, "eos_id": 0, "documents": total})


def _texts(documents: list[Artifact], progress: Bar) -> Iterator[str]:
    import pyarrow.parquet as pq

    done = 0
    for artifact in documents:
        file = pq.ParquetFile(artifact.file("documents.parquet"))
        for batch in file.iter_batches(1024, columns=["prompt", "text", "split"]):
            for row in batch.to_pylist():
                if row["split"] == "train":
                    for text in filter(None, (row["prompt"], row["text"])):
                        yield from _in_parts(text)
                    done += 1
            progress.to(done)


def _in_parts(text: str) -> list[str]:
    """The text, cut where a word has no end, since learning merges from one takes the square of its length."""
    if len(text) <= LONGEST_WORD or max(map(len, text.split()), default=0) <= LONGEST_WORD:
        return [text]
    return [text[i : i + LONGEST_WORD] for i in range(0, len(text), LONGEST_WORD)]


def _facts(folder: Path, facts: Figures) -> None:
    (folder / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True))


def _copied(store: Store, spec: str, label: str) -> Artifact:
    source = Path(spec) if Path(spec).is_dir() else _from_hub(spec, download=not store.dry)
    admit(source)
    present = {name: source / name for name in _FILES if (source / name).is_file()}
    if "tokenizer.json" not in present:
        raise RequestError(
            f"{label}: no tokenizer.json",
            where="base.tokenizer",
            found=str(source),
            do="open it with transformers' AutoTokenizer and save_pretrained it into a folder",
        )
    files = {name: sha256(path) for name, path in present.items()}
    action = Action("tokenizers", {"copy": True}, {"files": digest(files)}, libraries=("tokenizers", "transformers"))
    return store.make(action, lambda folder: _copy(folder, source, present, label), label=label)


def _copy(folder: Path, source: Path, present: dict[str, Path], label: str) -> None:
    """Copy the files and complete the configuration, so that the copy opens without the model's own configuration."""
    from transformers import AutoTokenizer

    config_path = present.get("tokenizer_config.json")
    config = json.loads(config_path.read_text()) if config_path else {}
    try:
        opened: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise RequestError(f"{label}: the tokenizer cannot be opened", where=str(source), found=str(error)) from None
    if opened.eos_token_id is None:
        what = f"{label}: the tokenizer has no end-of-text token"
        raise RequestError(what, where=str(source), do="set eos_token in its tokenizer_config.json")
    for name, path in present.items():
        if name != "config.json":
            shutil.copyfile(path, folder / name)
    for role in ("bos_token", "eos_token", "pad_token", "unk_token"):
        if getattr(opened, role) is not None:
            config.setdefault(role, str(getattr(opened, role)))
    config.setdefault("tokenizer_class", type(opened).__name__)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, sort_keys=True, ensure_ascii=False))
    bos = opened.bos_token_id if opened.bos_token_id is not None else opened.eos_token_id
    _facts(folder, {"vocab_size": len(opened), "bos_id": bos, "eos_id": opened.eos_token_id, "documents": 0})
    probe = "Read, 2016: def f(x):\n\treturn x  # naïve 東京 🙂"
    again: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    assert again(probe)["input_ids"] == opened(probe)["input_ids"], "the copied tokenizer differs from its source"


def _from_hub(name: str, *, download: bool) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=_FILES, local_files_only=not download))
    except Exception as error:
        raise RequestError(
            f"the tokenizer {name!r} is neither a folder nor can it be fetched",
            where="base.tokenizer",
            found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}",
            do="without a network, set base.tokenizer (or base.path) to a folder",
        ) from None
