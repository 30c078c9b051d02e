"""Mixtures inside the layers: attention, norms and embeddings of one base, feed-forward blocks of several experts.

The base's own model does all the work, with a `Block` in the place of each feed-forward module; so whatever Hugging Face can
do with that architecture (caches, sampling, attention kernels, checkpointing) it can do with the mixture.

Shapes: B rows, T positions, S slots, V vocabulary, U distinct experts, L layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from coterie.errors import RequestError
from coterie.mixtures.layers.gated_block import Block, feed_forward, put
from coterie.mixtures.mixture import Mixture
from coterie.mixtures.mixture_files import MixtureConfig
from coterie.mixtures.query import Times, refuse_date
from coterie.mixtures.shared_base import SharedBaseMixture
from coterie.models.bounded import bounded, require_finite
from coterie.routing.gates import Gate, Gated, by_expert


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


class LayersMixture(SharedBaseMixture):
    """A mixture of feed-forward experts with one gate a layer."""

    config_class = LayersConfig
    base_model_prefix = "model"
    _keep_in_fp32_modules_strict = [r"\.gate\."]  # noqa: RUF012 - as the library declares it: patterns of names
    config: LayersConfig

    def __init__(self, config: LayersConfig) -> None:
        super().__init__(config)
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config.text_config)]
        self.model = kind(config.text_config)
        gate, hidden = config.gate, config.text_config.hidden_size
        for name in feed_forward(self.model):
            one = self.model.get_submodule(name)
            experts = [one, *(copy.deepcopy(one) for _ in config.experts[1:])]
            of_layer = Gate(hidden, len(config.slots), gate["top_k"], gate["bias"])
            put(self.model, name, Block(of_layer, experts, config.slot_to_expert))
        self.post_init()
        self.eval()

    @property
    def inner(self) -> PreTrainedModel:
        return self.model

    @property
    def experts(self) -> list[nn.ModuleList]:
        """The feed-forward block of each layer, of each distinct expert."""
        return [nn.ModuleList(block.experts[u] for block in self.blocks) for u in range(len(self.names))]

    @property
    def blocks(self) -> list[Block]:
        """The mixing block of each layer."""
        return [module for module in self.modules() if isinstance(module, Block)]

    @property
    def router(self) -> list[Gate]:
        """The gate of each layer."""
        return [block.gate for block in self.blocks]

    @contextmanager
    def traced(self) -> Iterator[Callable[[], dict[str, Gated]]]:
        blocks = {name: module for name, module in self.model.named_modules() if isinstance(module, Block)}
        for block in blocks.values():
            block.tracing = True
        try:
            yield lambda: {name: block.gated for name, block in blocks.items() if block.gated is not None}
        finally:
            for block in blocks.values():
                block.tracing, block.gated = False, None

    def over_experts(self, weight: Float[Tensor, "*N S"]) -> Float[Tensor, "*N U"]:
        return by_expert(weight, torch.tensor(self.config.slot_to_expert, device=weight.device), len(self.names))

    @contextmanager
    def only(self, expert: int) -> Iterator[None]:
        """Inside, one expert answers everything, as with one-hot gates."""
        for block in self.blocks:
            block.only = expert
        try:
            yield
        finally:
            for block in self.blocks:
                block.only = None

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        time: Times = None,
        **kwargs: object,
    ) -> CausalLMOutputWithPast:
        """As Hugging Face's causal models. A ``time`` is an error: no expert is ruled out by a date."""
        refuse_date(time, 1 if input_ids is None else len(input_ids))
        return self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            **kwargs,
        )

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.model.set_output_embeddings(new_embeddings)

    @classmethod
    def _open(cls, folder: Path, config: MixtureConfig | None, options: Mapping[str, Any]) -> Self:
        """The library's own way, which follows the index of the weights."""
        with bounded(folder, [*folder.glob("*.safetensors"), *folder.glob("experts/*.safetensors")]):
            opened: Any = super(Mixture, cls).from_pretrained(folder, config=config, output_loading_info=True, **options)
        model, report = opened
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report[problem]:
                raise RequestError(
                    f"the weights are not those of the mixture: {problem.removesuffix('_keys')} tensors",
                    where=str(folder),
                    found=", ".join(sorted(map(str, report[problem]))[:3]),
                    do="export the mixture again",
                )
        require_finite(model.named_parameters(), folder)
        return model

    def _save(self, folder: Path, options: Mapping[str, Any]) -> PretrainedConfig:
        super(Mixture, self).save_pretrained(folder, **options)
        return self.config


def expert_of(mixture: LayersMixture, number: int) -> PreTrainedModel:
    """The shared part with the feed-forward blocks of one distinct expert, as a model of the base's own architecture.
    Nothing is copied."""
    blocks = [name for name, module in mixture.model.named_modules() if isinstance(module, Block)]
    state = {}
    for name, tensor in mixture.model.state_dict().items():
        block = next((b for b in blocks if name.startswith(f"{b}.")), None)
        if block is None:
            state[name] = tensor
        elif name.startswith(own := f"{block}.experts.{number}."):
            state[f"{block}.{name.removeprefix(own)}"] = tensor
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            mixture.config.text_config, dtype=mixture.dtype, trust_remote_code=False
        )
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    return model


AutoModelForCausalLM.register(LayersConfig, LayersMixture, exist_ok=True)
