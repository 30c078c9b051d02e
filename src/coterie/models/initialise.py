"""Fresh weights of a small architecture, from a seed.

Weights are drawn on the CPU in fp32 whatever the machine has, so one seed means one set of weights everywhere.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from coterie.models.architecture import Architecture
from coterie.models.checkpoint import TOKENIZER_FILES, contents
from coterie.spec.json_types import Settings
from coterie.store import Action, Artifact, Store

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def initialise(
    store: Store, base: Architecture, tokenizer: Artifact, *, seed: int, sequence_length: int, label: str = "fresh weights"
) -> Artifact:
    """A Hugging Face model directory of fresh weights with the tokenizer's files beside it.

    Args:
        base: architecture and sizes. Its own seed, if it has one, goes before ``seed``.
        tokenizer: a tokenizer directory; gives the size of the vocabulary and the special tokens.
        sequence_length: tokens in a packed sequence; the context is 4 times that unless ``base.context`` says otherwise.
    """
    shape = base.model_dump(mode="json", include=set(Architecture.model_fields) - {"seed"})
    spec = {**shape, "context": base.context or 4 * sequence_length, "seed": seed if base.seed is None else base.seed}
    action = Action("weights", spec=spec, inputs={"tokenizer": contents(tokenizer)}, libraries=("torch", "transformers"))

    def build(folder: Path) -> None:
        _write(_config(base, spec["context"], tokenizer.path), spec["seed"], tokenizer, folder)

    return store.make(action, build, label=label)


def reinitialise(store: Store, model: Artifact, *, seed: int, label: str = "fresh weights") -> Artifact:
    """Fresh weights of a checkpoint's architecture, with its tokenizer."""
    action = Action("weights", {"seed": seed}, {"architecture": contents(model)}, libraries=("torch", "transformers"))

    def build(folder: Path) -> None:
        from transformers import AutoConfig

        _write(AutoConfig.from_pretrained(model.path, local_files_only=True, trust_remote_code=False), seed, model, folder)

    return store.make(action, build, label=label)


def _write(config: PreTrainedConfig, seed: int, tokenizer: Artifact, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    from coterie.models.quiet import quiet, seeded

    with quiet(), seeded(seed):
        AutoModelForCausalLM.from_config(config, trust_remote_code=False).float().save_pretrained(folder)
    copy_tokenizer(tokenizer.path, folder)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Put the tokenizer's files of one model directory beside another's weights."""
    for path in sorted(source.iterdir()):
        if path.name in TOKENIZER_FILES and path.is_file():
            shutil.copyfile(path, target / path.name)


def _config(base: Architecture, context: int, tokenizer: Path) -> PreTrainedConfig:
    from transformers import AutoConfig, AutoTokenizer

    words = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True, trust_remote_code=False)
    if base.init == "gpt2":
        own: Settings = {"n_inner": base.intermediate_size, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    else:
        own = {
            "num_key_value_heads": base.kv_heads or base.heads,
            "head_dim": base.hidden_size // base.heads,
            "intermediate_size": base.intermediate_size or -(-8 * base.hidden_size // 96) * 32,
        }
    return AutoConfig.for_model(
        base.init,
        vocab_size=len(words),
        bos_token_id=words.bos_token_id if words.bos_token_id is not None else words.eos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        tie_word_embeddings=base.tie_embeddings,
        hidden_size=base.hidden_size,
        num_hidden_layers=base.layers,
        num_attention_heads=base.heads,
        max_position_embeddings=context,
        **own,
    )
