"""Mixtures inside the layers: attention, norms and embeddings of one base, feed-forward blocks of several experts.

The base's own model does all the work, with a `Block` in the place of each feed-forward module; so whatever Hugging Face can
do with that architecture (caches, sampling, attention kernels, checkpointing) it can do with the mixture.

Shapes: B rows, T positions, S slots, V vocabulary, U distinct experts, L layers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from coterie.errors import RequestError
from coterie.mixtures.layers.gated_block import Block, feed_forward, put
from coterie.mixtures.layers.layers_config import LayersConfig
from coterie.mixtures.mixture import ANYONE, Inside
from coterie.mixtures.query import Query, Times
from coterie.routing.gates import Gate, Gated


class LayersMixture(Inside):
    """A mixture of feed-forward experts with one gate a layer."""

    config_class = LayersConfig
    base_model_prefix = "model"
    config: LayersConfig

    def __init__(self, config: LayersConfig) -> None:
        super().__init__(config)
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config.text_config)]
        self.model = kind(config.text_config)
        self.tokenizer: Any = None
        gate, hidden = config.gate, config.text_config.hidden_size
        for name in feed_forward(self.model):
            one = self.model.get_submodule(name)
            experts = [one, *(copy.deepcopy(one) for _ in config.experts[1:])]
            put(self.model, name, Block(Gate(hidden, len(config.slots), **_shape(gate)), experts, config.slot_to_expert))
        self.post_init()
        self.eval()

    @property
    def inner(self) -> Any:
        return self.model

    @property
    def experts(self) -> list[dict[str, Any]]:
        """``{"name", "digest"}`` of each distinct expert."""
        return self.config.experts

    @property
    def blocks(self) -> list[Block]:
        """The mixing block of each layer."""
        return [module for module in self.modules() if isinstance(module, Block)]

    @property
    def router(self) -> list[Gate]:
        """The gate of each layer."""
        return [block.gate for block in self.blocks]

    @contextmanager
    def listening(self) -> Iterator[list[list[Gated]]]:
        """Inside, what each gate says of each input it sees is kept: a list for each layer."""
        heard: list[list[Gated]] = []
        for block in self.blocks:
            block.heard = []
            heard.append(block.heard)
        try:
            yield heard
        finally:
            for block in self.blocks:
                block.heard = None

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
        past_key_values: Any = None,
        labels: Tensor | None = None,
        time: Times = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As Hugging Face's causal models. ``time`` changes nothing: no expert is ruled out by a date."""
        return self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            **kwargs,
        )

    @torch.no_grad()
    def weights(
        self,
        ids_BT: Int[Tensor, "B T"],
        time: Times = None,
        attention_mask: Int[Tensor, "B T"] | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T S"]:
        """Weights over slots at each position, mean over gates."""
        query = Query.of(ids_BT, attention_mask, position_ids, 0, time, ANYONE)
        with self.listening() as heard:
            self.model(**query.inputs(self.model), logits_to_keep=1)
        return torch.stack([gates[0].weight_NS for gates in heard]).mean(0)

    def set_input_embeddings(self, value: Any) -> None:
        self.model.set_input_embeddings(value)

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        self.model.set_output_embeddings(new_embeddings)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """Write a mixture directory: each distinct expert once; opens with `from_pretrained` and `coterie.load`."""
        super().save_pretrained(save_directory, **kwargs)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, folder: str | Path, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """Open a mixture directory, strictly: nothing missing, nothing unexpected."""
        opened: Any = super().from_pretrained(folder, *args, output_loading_info=True, **kwargs)
        model, report = opened
        for problem in ("missing_keys", "unexpected_keys"):
            if report[problem]:
                raise RequestError(
                    f"the weights are not those of the mixture: {problem.removesuffix('_keys')} tensors",
                    where=str(folder),
                    found=", ".join(sorted(report[problem])[:3]),
                    do="export the mixture again",
                )
        if (Path(folder) / "tokenizer_config.json").is_file():
            model.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return (model, report) if output_loading_info else model


def _shape(gate: Mapping[str, Any]) -> dict[str, Any]:
    return {"top_k": gate["top_k"], "bias": gate["bias"]}


def merged(
    base: PreTrainedModel,
    experts: Mapping[str, PreTrainedModel],
    slots: Sequence[str] | None = None,
    gates: Sequence[Tensor] | None = None,
    *,
    top_k: int | None = None,
    tokenizer: Any = None,
) -> LayersMixture:
    """Models in memory as one mixture: all but the feed-forward blocks is the base's. Weights are copied.

    Args:
        experts: models of the base's architecture and shapes, by name.
        slots: names, repeats allowed; one slot each by default.
        gates: weights [S, H] of each layer's gate; zeros (equal weights) by default.
        top_k: slots kept; all by default.
    """
    names = list(experts)
    special: dict[str, Any] = {
        f"{kind}_token_id": getattr(base.config, f"{kind}_token_id", None) for kind in ("bos", "eos", "pad")
    }
    config = LayersConfig(
        text_config=copy.deepcopy(base.config),
        slots=[{"name": s, "expert": names.index(s)} for s in slots or names],
        experts=[{"name": n, "digest": None} for n in names],
        gate={"kind": "given", "top_k": top_k, "bias": False},
        tie_word_embeddings=base.config.tie_word_embeddings,
        **special,
    )
    mixture: Any = LayersMixture(config)
    mixture.to(base.dtype)
    state = base.state_dict()
    for layer, name in enumerate(feed_forward(base)):
        for key in [k for k in state if k.startswith(f"{name}.")]:
            del state[key]
        state[f"{name}.gate.weight"] = torch.zeros_like(mixture.router[layer].weight) if gates is None else gates[layer]
        for u, expert in enumerate(experts.values()):
            state |= {f"{name}.experts.{u}.{k}": v for k, v in expert.get_submodule(name).state_dict().items()}
    mixture.model.load_state_dict(state, strict=True)
    mixture.tokenizer = tokenizer
    mixture.generation_config.update(**special)
    return mixture.eval()


AutoModelForCausalLM.register(LayersConfig, LayersMixture, exist_ok=True)
