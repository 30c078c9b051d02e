"""Tiny random models, a tiny tokenizer, and artifacts in the shape that corpora and experts give them."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors.numpy import save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from coterie.models.logprob import target_logp
from coterie.models.open import open_model
from coterie.store import Action, Artifact, Store

torch.set_num_threads(1)
V = 96
"""Vocabulary of every tiny model."""

TEXT = ["the cat sat on the mat", "def f(x): return x + 1", "On 3 May 2016 the mayor opened a bridge."] * 3


def llama(seed: int = 0, vocab_size: int = V, context: int = 64) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def gpt2(seed: int = 0, vocab_size: int = V, context: int = 64) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=context,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.3,
    )
    return GPT2LMHeadModel(config).eval()


@functools.cache
def pool() -> tuple[PreTrainedModel, ...]:
    """Four different models that no test may change."""
    return llama(1), gpt2(2), llama(3), llama(4)


def write_tokenizer(folder: Path, extra: Sequence[str] = ()) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    printable = [chr(c) for c in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=V, special_tokens=["<eos>", *extra], initial_alphabet=printable[: V - 3], show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
    return folder


def artifact(store: Store, kind: str, name: str, build: object) -> Artifact:
    """Something that another room would have made."""
    return store.make(Action(kind, {"test": name}), build, label=name)  # type: ignore[arg-type]


def tokenizer_artifact(store: Store, tokenizer: Path) -> Artifact:
    def build(folder: Path) -> None:
        shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
        (folder / "facts.json").write_text(json.dumps({"vocab_size": V}))

    return artifact(store, "tokenizers", "tokenizer", build)


def expert_artifact(store: Store, name: str, model: PreTrainedModel, tokenizer: Path) -> Artifact:
    def build(folder: Path) -> None:
        model.save_pretrained(folder)
        for file in tokenizer.iterdir():
            shutil.copyfile(file, folder / file.name)
        (folder / "facts.json").write_text(json.dumps({"kind": "full"}))

    return artifact(store, "experts", name, build)


def blocks_artifact(
    store: Store, name: str, documents: Sequence[Sequence[int]], length: int = 24, times: Sequence | None = None
) -> Artifact:
    """Documents packed one after the other, a new row where one does not fit; every token but a document's first counts."""
    rows: list[list[int]] = [[]]
    for d, ids in enumerate(documents):
        assert len(ids) <= length
        if len(rows[-1]) + len(ids) > length:
            rows.append([])
        rows[-1] += [d] * len(ids)
    shape = (len(rows), length)
    arrays = {"ids": np.zeros(shape, np.int32), "position": np.zeros(shape, np.int32)}
    arrays |= {"target": np.zeros(shape, np.uint8), "document": np.full(shape, -1, np.int32)}
    for n, row in enumerate(rows):
        for d in dict.fromkeys(row):
            at = row.index(d)
            span = slice(at, at + len(documents[d]))
            arrays["ids"][n, span] = documents[d]
            arrays["position"][n, span] = np.arange(len(documents[d]))
            arrays["target"][n, span] = np.arange(len(documents[d])) > 0
            arrays["document"][n, span] = d
    D = len(documents)
    table = {
        "row": range(D),
        "id": [f"{name}-{d}" for d in range(D)],
        "content": [f"{name}-{d}-{list(ids)}" for d, ids in enumerate(documents)],
        "time": pl.Series(times or [None] * D, dtype=pl.Date),
        "tokens": [len(ids) - 1 for ids in documents],
    }

    def build(folder: Path) -> None:
        save_file(arrays, folder / "blocks.safetensors")
        pl.DataFrame(table).write_parquet(folder / "documents.parquet")
        targets = int(arrays["target"].sum())
        (folder / "facts.json").write_text(json.dumps({"blocks": len(rows), "length": length, "targets": targets}))

    return artifact(store, "blocks", name, build)


def scores_artifact(store: Store, name: str, expert: Artifact, blocks: Artifact) -> Artifact:
    def build(folder: Path) -> None:
        from safetensors.torch import load_file

        files = load_file(blocks.file("blocks.safetensors"))
        with torch.no_grad():
            logp = target_logp(open_model(expert), files["ids"].long(), files["position"].long())
        save_file({"logp": logp.numpy()}, folder / "scores.safetensors")
        (folder / "facts.json").write_text("{}")

    return artifact(store, "scores", name, build)


def write_checkpoint(folder: Path, seed: int = 0, dtype: torch.dtype = torch.bfloat16, **changes: object) -> Path:
    """A tiny Llama with its tokenizer, in the precision in which checkpoints are published."""
    model = llama(seed, **changes).to(dtype)  # type: ignore[arg-type]
    model.save_pretrained(folder)
    return write_tokenizer(folder)
