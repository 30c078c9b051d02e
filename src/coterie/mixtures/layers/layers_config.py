"""The configuration of a mixture inside the layers: all that `config.json` of such a mixture says.

The base's own configuration stands inside under ``text_config``, the name under which Hugging Face looks for the part of a
composite model that reads and writes text, so caches, heads and sizes are found without code of ours.
"""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig


class LayersConfig(PretrainedConfig):
    """Slots over feed-forward experts with one gate a layer.

    ``slots``: ``[{"name", "expert": index}]``. ``experts``: one entry for each distinct expert, ``[{"name", "digest"}]``.
    ``gate``: ``{"kind", "top_k", "bias"}``; ``top_k`` counts slots, as in standard checkpoints, and None keeps all.
    """

    model_type = "coterie_layers"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (the library's own form)
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 (the library's own form)

    text_config: Any = None
    slots: Any = None
    experts: Any = None
    gate: Any = None
    tie_word_embeddings: bool = False
    bos_token_id: Any = None
    eos_token_id: Any = None
    pad_token_id: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.text_config, dict):
            self.text_config = CONFIG_MAPPING[self.text_config["model_type"]](**self.text_config)
        super().__post_init__(**kwargs)

    @property
    def slot_to_expert(self) -> list[int]:
        """The expert in each slot."""
        return [slot["expert"] for slot in self.slots]

    @property
    def vocab_size(self) -> int:
        return self.text_config.vocab_size

    @property
    def max_position_embeddings(self) -> int:
        return self.text_config.max_position_embeddings


AutoConfig.register(LayersConfig.model_type, LayersConfig, exist_ok=True)
