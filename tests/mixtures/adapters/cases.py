"""Small random mixtures of adapters, and the obvious way to compute one: an expert after the other, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tests.models.architectures import make
from torch import Tensor, nn

from coterie.mixtures.adapters.adapter_routers import AdapterGate
from coterie.mixtures.adapters.adapters_files import AdaptersConfig
from coterie.mixtures.adapters.adapters_mixture import AdaptersMixture
from coterie.models import lora_files as files
from coterie.models.lora_files import Adapter
from coterie.models.stack_blocks import Factors

V = 61
ARCHITECTURES = ["llama", "mistral", "qwen2", "qwen3", "olmo2", "gpt2", "gemma", "gemma2", "gemma3_text"]
KINDS = [{"kind": kind} for kind in AdapterGate.registry]
"""Every router that there is."""
ATTENTION = {"q_proj", "v_proj", "c_attn"}


def base(architecture: str = "llama", seed: int = 0, calm: bool = False) -> Any:
    torch.manual_seed(seed)
    model = make(architecture)
    with torch.no_grad():
        for parameter in model.parameters() if calm else ():
            parameter.div_(3)
    return model


def adapter(model: Any, r: int, alpha: float = 2.0, only: set[str] | None = None, seed: int = 0) -> Adapter:
    """A random expert; both factors are far from zero."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: Factors(
            torch.randn(r, inputs, generator=draw) / inputs**0.5, torch.randn(outputs, r, generator=draw) / r**0.5, alpha / r
        )
        for name, (inputs, outputs) in files.linears(model).items()
        if only is None or name.rpartition(".")[2] in only
    }


def config(
    experts: int, slots: Sequence[int] | None = None, maturity: Sequence[str] | None = None, **router: Any
) -> AdaptersConfig:
    said = {"kind": "learned", "scope": "layer", "reads": "token", "top_k": None, "top_p": None, "temperature": 1.0} | router
    return AdaptersConfig(
        slots=[{"name": f"e{u}", "expert": u} for u in (slots or range(experts))],
        experts=[
            {"name": f"e{u}", "dir": f"experts/e{u}", "digest": None, "maturity": (maturity or ["mature"] * experts)[u]}
            for u in range(experts)
        ],
        base={"dir": "base", "digest": None},
        router=said,
        vocab_size=V,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=2,
    )


def mixture(
    architecture: str = "llama",
    ranks: Sequence[int] = (4, 4, 4),
    targets: Sequence[set[str] | None] | None = None,
    alphas: Sequence[float] | None = None,
    seed: int = 0,
    calm: bool = False,
    **options: Any,
) -> AdaptersMixture:
    """Random adapters and gates on a random base."""
    model = base(architecture, seed, calm)
    adapters = [
        adapter(model, r, (alphas or [2.0] * len(ranks))[i], (targets or [None] * len(ranks))[i], 10 * seed + i)
        for i, r in enumerate(ranks)
    ]
    made = AdaptersMixture(config(len(ranks), **options), model, adapters)
    draw = torch.Generator().manual_seed(seed)
    made.set_gates({n: torch.randn(len(ranks), h, generator=draw) * (3 / h**0.5) for n, h in made.layout.sizes.items()})
    return made


def ids(B: int = 2, T: int = 9) -> Tensor:
    return torch.randint(3, V, (B, T))


class Obvious:
    """A base with hooks that add each expert's update by itself, weighted token by token."""

    def __init__(
        self, architecture: str, seed: int, like: AdaptersMixture, adapters: Sequence[Adapter], calm: bool = False
    ) -> None:
        self.model, self.like, self.adapters = base(architecture, seed, calm), like, adapters
        self.router, self.gates, self.weight = like.config.router, like.gates(), {}
        self.order = [inlet.linears for inlet in like.layout.inlets]
        for name in [n for group in self.order for n in group]:
            self.model.get_submodule(name).register_forward_hook(lambda _, args, y, name=name: self._add(name, args[0], y))

    def _gate(self, name: str) -> str:
        if self.router["scope"] == "model":
            return "model"
        return name if self.router["scope"] == "linear" else ".".join(name.split(".")[:3])

    def _add(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        gate = self._gate(name)
        if gate not in self.weight:
            self.weight[gate] = self._weights(gate, x)
        w = self.weight[gate]
        for u, adapter in enumerate(self.adapters):
            if name in adapter:
                A, B, scale = adapter[name]
                y = y + w[..., u, None] * scale * (x @ A.T @ B.T)
        return y

    def _weights(self, gate: str, x: Tensor) -> Tensor:
        counts = torch.tensor(self.like.config.counts, dtype=x.dtype)
        U = len(counts)
        out = x.new_zeros(*x.shape[:2], U)
        running = self.like.running
        for b in range(x.shape[0]):
            for t in range(x.shape[1]):
                if self.router["kind"] == "uniform":
                    logit = x.new_zeros(U)
                else:
                    read = x[b, : t + 1].mean(0) if self.router["reads"] == "prefix" else x[b, t]
                    logit = self.gates[gate] @ read
                    logit = logit.abs() if self.router["kind"] == "arrow" else logit
                p = x.new_zeros(U)
                p[running] = (((logit - logit[running].max()) / self.router["temperature"]).exp() * counts)[running]
                p = p / p.sum()
                dense = any(self.like.config.experts[u]["maturity"] == "training" for u in running)
                if not dense:
                    best = sorted(range(U), key=lambda u: (-p[u].item(), u))
                    kept, mass = [], 0.0
                    for u in best:
                        enough = self.router["top_p"] is not None and mass >= self.router["top_p"]
                        if enough or (self.router["top_k"] is not None and len(kept) >= self.router["top_k"]):
                            break
                        kept.append(u)
                        mass += p[u].item()
                    p = torch.tensor([p[u].item() if u in kept else 0.0 for u in range(U)], dtype=x.dtype)
                out[b, t] = p / p.sum()
        return out

    @torch.no_grad()
    def logits(self, ids_BT: Tensor) -> Tensor:
        self.weight = {}
        if self.router["scope"] == "model" and self.router["kind"] != "uniform":
            self.weight["model"] = self._weights("model", self.model.get_input_embeddings()(ids_BT))
        return self.model(input_ids=ids_BT, use_cache=False).logits


def close(one: Tensor, two: Tensor, most: float = 1e-5) -> bool:
    """Largest difference, in units of the largest value."""
    return ((one - two).abs().max() <= most * two.abs().max().clamp_min(1)).item()


def plain(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
