"""Standard mixture-of-experts checkpoints: which base becomes which, under what names, with which configuration.

Names are those with one tensor an expert, which every reader knows, never the fused ones that some versions write; keys that
moved between versions are written in both spellings. So transformers 4.57 and 5, vLLM and llama.cpp's converter read them.

Shapes: H hidden, I intermediate, E experts as written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from coterie.errors import RequestError
from coterie.spec.json_types import Settings


@dataclass(frozen=True)
class Format:
    """One standard format."""

    name: str
    architecture: str
    families: tuple[str, ...]
    """Kinds of base that it can hold."""
    block: str
    """What stands in the place of ``mlp`` in tensor names."""
    parts: Mapping[str, str]
    """Name of each of an expert's matrices, by the dense model's name."""
    settings: Callable[[Settings, int], Settings]
    """What its configuration says beyond the base's, from the base's and the number of experts."""
    needs: Mapping[str, Any] = field(default_factory=dict)
    """Settings that a base must have; the format cannot hold other values."""
    zeros: Callable[[Settings], dict[str, tuple[int, ...]]] = lambda base: {}
    """Tensors of each layer that the dense model does not have and that change nothing, by name after the layer's."""

    def expert(self, layer: str, expert: int, matrix: str) -> str:
        """Name of an expert's matrix; ``layer`` is such as ``model.layers.3``."""
        return f"{layer}.{self.block}.experts.{expert}.{self.parts[matrix]}.weight"

    def gate(self, layer: str) -> str:
        return f"{layer}.{self.block}.gate.weight"

    def require(self, base: Settings) -> None:
        """RequestError if the format cannot hold a base."""
        if base["model_type"] not in self.families:
            raise RequestError(
                f"{self.name} cannot hold a {base['model_type']} model",
                where="--format",
                expected=" or ".join(name for name, f in FORMATS.items() if base["model_type"] in f.families) or "coterie",
                found=self.name,
            )
        for key, value in self.needs.items():
            if (base.get(key) or value) != value:
                raise RequestError(
                    f"{self.name} cannot hold a base with {key}",
                    where="--format",
                    expected=str(value),
                    found=str(base[key]),
                    do="export as coterie, which can",
                )

    def config(self, base: Settings, experts: int, top_k: int, dtype: str) -> Settings:
        """The text of `config.json`."""
        return {
            **{k: v for k, v in base.items() if k not in _LEFT_OUT},
            **_rope(base),
            **self.settings(base, experts),
            "architectures": [self.architecture],
            "model_type": self.name,
            "num_experts": experts,
            "num_local_experts": experts,
            "num_experts_per_tok": top_k,
            "norm_topk_prob": True,  # without it, a merge of equal experts shrinks what they say
            "output_router_logits": False,
            "router_aux_loss_coef": 0.001,
            "dtype": dtype,
            "torch_dtype": dtype,
            "use_cache": True,
        }


_LEFT_OUT = {"_name_or_path", "transformers_version", "rope_scaling", "rope_theta", "rope_parameters", "pretraining_tp"}


def _rope(base: Settings) -> Settings:
    """Rotary positions as transformers 5 says them (``rope_parameters``) and as 4 does."""
    now = dict(base.get("rope_parameters") or base.get("rope_scaling") or {})
    theta = now.get("rope_theta", base.get("rope_theta", 10_000.0))
    kind = now.get("rope_type", now.get("type", "default"))
    rest = {k: v for k, v in now.items() if k not in ("rope_theta", "rope_type", "type")}
    scaling = None if kind == "default" else {"rope_type": kind, **rest}
    return {
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_type": kind, "rope_theta": theta, **rest},
    }


def _qwen_sizes(base: Settings) -> Settings:
    return {"moe_intermediate_size": base["intermediate_size"], "decoder_sparse_step": 1, "mlp_only_layers": []}


SHARED = 64
"""Width of Qwen2-MoE's shared expert, which it cannot do without; it is all zeros."""


def _qwen2(base: Settings, experts: int) -> Settings:
    return {**_qwen_sizes(base), "shared_expert_intermediate_size": SHARED, "qkv_bias": True}


def _qwen2_zeros(base: Settings) -> dict[str, tuple[int, ...]]:
    H = base["hidden_size"]
    found: dict[str, tuple[int, ...]] = {
        "mlp.shared_expert.gate_proj.weight": (SHARED, H),
        "mlp.shared_expert.up_proj.weight": (SHARED, H),
        "mlp.shared_expert.down_proj.weight": (H, SHARED),
        "mlp.shared_expert_gate.weight": (1, H),
    }
    if base["model_type"] != "qwen2":
        head = base.get("head_dim") or H // base["num_attention_heads"]
        for name, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads"), ("v", "num_key_value_heads")):
            found[f"self_attn.{name}_proj.bias"] = (base[heads] * head,)
    return found


_SAME = {name: name for name in ("gate_proj", "up_proj", "down_proj")}
_UNBIASED = {"attention_bias": False, "mlp_bias": False}

FORMATS = {
    f.name: f
    for f in (
        Format(
            "mixtral",
            "MixtralForCausalLM",
            ("llama", "mistral"),
            "block_sparse_moe",
            {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
            lambda base, experts: {"sliding_window": base.get("sliding_window"), "router_jitter_noise": 0.0},
            _UNBIASED,
        ),
        Format("qwen2_moe", "Qwen2MoeForCausalLM", ("qwen2", "llama"), "mlp", _SAME, _qwen2, _UNBIASED, _qwen2_zeros),
        Format("qwen3_moe", "Qwen3MoeForCausalLM", ("qwen3",), "mlp", _SAME, lambda base, experts: _qwen_sizes(base)),
        Format("flex_olmo", "FlexOlmoForCausalLM", ("olmo2",), "mlp", _SAME, lambda base, experts: {}),
    )
}


NAMES = (*FORMATS, "coterie", "gguf")
"""Every format: the standard ones, a directory of our own, and llama.cpp's file."""


def standard(base: Settings, name: str | None) -> Format:
    """The format asked for, or the one that a base's kind has.

    Raises:
        RequestError: there is none, or it cannot hold the base.
    """
    kind = base["model_type"]
    if name is None:
        name = next((n for n, f in FORMATS.items() if kind in f.families), None)
    if name is None or (kind == "gpt2" and name != "coterie"):
        raise RequestError(
            f"no standard mixture-of-experts format can hold a {kind} model",
            where="--format",
            expected="coterie",
            found=name or "none",
            do="export as coterie, or let its experts meet at outputs"
            + (
                ": layer norms with biases, learned positions and ungated feed-forward blocks have no such format"
                if kind == "gpt2"
                else ""
            ),
        )
    FORMATS[name].require(base)
    return FORMATS[name]
