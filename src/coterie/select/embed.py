"""Vectors of texts from a local sentence-embedding model: the mean of its last hidden states, at length 1."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from coterie.errors import RequestError
from coterie.models.local_files import refuse_remote_code
from coterie.spec.digest import digest
from coterie.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class SentenceModel:
    """A folder with a Hugging Face encoder and its tokenizer. Texts are cut at ``length`` tokens."""

    length, batch = 256, 16

    def __init__(self, path: str) -> None:
        self.path = path

    @staticmethod
    def identity(store: Store, path: str) -> str:
        """Digest of the weights, the configuration and the tokenizer.

        Raises:
            RequestError: no such folder, or one without safetensors.
        """
        folder = Path(path)
        files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")])
        if not any(f.suffix == ".safetensors" for f in files):
            raise RequestError(
                "no sentence-embedding model",
                where="axes.cluster.embed",
                found=path,
                expected="a folder with config.json, model.safetensors and tokenizer.json",
            )
        return digest({f.name: store.digest_file(f) for f in files})

    def embed(self, texts: Sequence[str]) -> Float32[np.ndarray, "N E"]:
        """One vector of length 1 for each text."""
        import torch

        tokenizer, model = _opened(self.path)
        found = []
        for start in range(0, len(texts), self.batch):
            ids = tokenizer(
                list(texts[start : start + self.batch]),
                padding=True,
                truncation=True,
                max_length=self.length,
                return_tensors="pt",
            )
            with torch.no_grad():
                hidden = model(**ids).last_hidden_state.float()
            seen = ids["attention_mask"][..., None].float()
            mean = (hidden * seen).sum(1) / seen.sum(1).clamp(min=1)
            found.append(torch.nn.functional.normalize(mean, dim=-1).numpy())
        return np.concatenate([*found]) if found else np.zeros((0, 1), np.float32)


@cache
def _opened(path: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    from transformers import AutoModel, AutoTokenizer

    refuse_remote_code(Path(path))
    model = AutoModel.from_pretrained(path, trust_remote_code=False, use_safetensors=True)
    return AutoTokenizer.from_pretrained(path, trust_remote_code=False), model.eval()
