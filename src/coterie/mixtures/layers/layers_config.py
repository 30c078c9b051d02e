"""The configuration of a mixture inside the layers: all that `config.json` of such a mixture says.

The base's own configuration stands inside under ``text_config``, the name under which Hugging Face looks for the part of a
composite model that reads and writes text, so caches, heads and sizes are found without code of ours.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig

from coterie.mixtures.mixture_files import MixtureConfig


class LayersConfig(MixtureConfig):
    """Slots over feed-forward experts with one gate a layer.

    Of an expert also its ``"digest"``. ``gate``: ``{"kind", "top_k", "bias"}``; ``top_k`` counts slots, as in standard
    checkpoints, and None keeps all.
    """

    model_type = "coterie_layers"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 (the library's own form)

    text_config: Any = None
    gate: dict[str, Any] = field(default_factory=dict)
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.text_config, dict):
            self.text_config = CONFIG_MAPPING[self.text_config["model_type"]](**self.text_config)
        super().__post_init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        return self.text_config.vocab_size

    @property
    def max_position_embeddings(self) -> int:
        return self.text_config.max_position_embeddings


AutoConfig.register(LayersConfig.model_type, LayersConfig, exist_ok=True)
