"""Mixtures of LoRA experts on one frozen base: ``y = W x + sum_u w_u(x) B_u A_u x``, in one pass, with causal weights.

The base is an ordinary Hugging Face model whose linears carry the updates (`coterie.models.stack`); attention, cache,
sampling and saving of it stay the library's. It is there once: never copied, never trained.

Shapes: B rows, T positions, U distinct experts, S slots, R running experts, V vocabulary, H inputs of a gate.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoModelForCausalLM, Cache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutputWithPast

from coterie.errors import RequestError
from coterie.mixtures.adapters import adapters_files as files
from coterie.mixtures.adapters.adapter_gates import AdaptersCache, Gates
from coterie.mixtures.adapters.adapter_routers import Maturity
from coterie.mixtures.adapters.adapters_files import AdaptersConfig, Counts
from coterie.mixtures.adapters.layout import Layout
from coterie.mixtures.mixture_files import MixtureConfig, Opening, mixture_at, read_router, write_router
from coterie.mixtures.query import Times, refuse_date
from coterie.mixtures.shared_base import SharedBaseMixture
from coterie.models import lora_files
from coterie.models import packed_inputs as packing
from coterie.models.lora_files import Adapter
from coterie.routing.gates import Gated
from coterie.spec.settings import check_name


class AdaptersMixture(SharedBaseMixture):
    """A mixture of LoRA experts.

    Args:
        base: the frozen model. Its linears are replaced in place.
        adapters: each distinct expert's updates.
        gates: rows [U, H] of each gate, by name; see `Layout.sizes`. None: zeros, to be set.
        dropout: of the input of experts that train.

    Raises:
        RequestError: no linear has an update; top_k is above the number of experts that may be used.
    """

    config_class = AdaptersConfig
    base_model_prefix = ""
    config: AdaptersConfig
    router: Gates

    def __init__(
        self,
        config: AdaptersConfig,
        base: PreTrainedModel | None = None,
        adapters: Sequence[Adapter] = (),
        gates: Mapping[str, Tensor] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(config)
        if base is None:
            raise RequestError("a mixture is made of a base and experts, not of settings", do="use from_pretrained(DIR)")
        self.base, self.tokenizer, self.dropout = base.requires_grad_(False), tokenizer, dropout
        self.layout = Layout(base, config.router, lambda: self.router, adapters, gates, dropout)
        self._moving: frozenset[int] = frozenset()
        self._gates_move = False
        self.compose()
        decoder = getattr(base, base.base_model_prefix)
        decoder.register_forward_pre_hook(lambda m, args, given: self.router.begin(m, args, given), with_kwargs=True)
        decoder.register_forward_hook(lambda *_: self.router.end())
        self.eval()

    def compose(self) -> None:
        """Lay out all tensors for who runs, who trains and who rests; what trains is new parameters each time."""
        if not self.running:
            raise RequestError("no expert may be used", where="experts", expected="one that is not new")
        states = [self.config.experts[u]["maturity"] for u in self.running]
        router = Gates(self.config.router, [self.config.counts[u] for u in self.running], dense="training" in states)
        self.layout.compose(self.running, self._moving, self._gates_move, router)
        like_I = self.layout.inlets[0].like_I
        self.router = router.to(device=like_I.device, dtype=torch.promote_types(like_I.dtype, torch.float32))

    @property
    def running(self) -> list[int]:
        """Experts that may be used, by number: those that are not new."""
        return [u for u, e in enumerate(self.config.experts) if e["maturity"] != "new"]

    def adapters(self) -> dict[str, Adapter]:
        """Every expert's factors as they are now, by name."""
        return dict(zip(self.names, self.experts, strict=True))

    def gates(self) -> dict[str, Tensor]:
        """Rows [U, H] of every gate as they are now, by name."""
        return self.layout.gates()

    def set_gates(self, rows: Mapping[str, Tensor]) -> None:
        """Replace the rows of every gate."""
        self.layout.set_gates(rows)
        self.compose()

    def trainable(self, experts: Sequence[str] | None = (), router: bool = False) -> AdaptersMixture:
        """Say what trains; everything else is frozen, and only what trains has gradients and optimizer states.

        Args:
            experts: by name; None: all.
            router: the gates too.

        Raises:
            RequestError: nothing would train, an unknown name, or a new expert, which is not run.
        """
        chosen = self.names if experts is None else list(experts)
        for name in chosen:
            if self.config.experts[self._number(name)]["maturity"] == "new":
                raise RequestError(f"expert {name!r} is new and is not run, so it would not train", do="raise its maturity")
        has_gates = router and bool(self.layout.sizes)
        if not has_gates and not any(self.adapters()[name] for name in chosen):
            raise RequestError("nothing would train", where="trainable", expected="experts, or a router with parameters")
        self._moving, self._gates_move = frozenset(map(self._number, chosen)), has_gates
        self.compose()
        return self

    def mature(self, name: str, state: Maturity) -> None:
        """Set an expert's maturity: new, training or mature."""
        if state not in get_args(Maturity):
            raise RequestError(f"no maturity is called {state!r}", expected=", ".join(get_args(Maturity)))
        entry = self.config.experts[self._number(name)]
        before, entry["maturity"] = entry["maturity"], state
        try:
            self.compose()
        except RequestError:
            entry["maturity"] = before
            raise

    def add_expert(self, name: str, adapter: Adapter) -> None:
        """Give a new expert a seat. It has no weight until its maturity is raised: no output changes by a bit."""
        check_name(name)
        if name in self.names:
            raise RequestError(f"an expert is called {name!r} already", where="experts")
        stacked = {linear for inlet in self.layout.inlets for linear in inlet.linears}
        if extra := [linear for linear in adapter if linear not in stacked]:
            raise RequestError(
                "the new expert updates a linear that no other does", found=extra[0], do="make the mixture anew with it"
            )
        entry = {"name": name, "dir": f"experts/{name}", "digest": None, "maturity": "new"}
        self.config.slots = [*self.config.slots, {"name": name, "expert": len(self.config.experts)}]
        self.config.experts = [*self.config.experts, entry]
        self.layout.add(adapter)
        self.compose()

    def _number(self, name: str) -> int:
        if name not in self.names:
            raise RequestError(f"no expert is called {name!r}", expected=", ".join(self.names))
        return self.names.index(name)

    @contextmanager
    def only(self, name: str) -> Iterator[None]:
        """Inside, one expert answers everything."""
        self.router.forced = self.running.index(self._number(name))
        try:
            yield
        finally:
            self.router.forced = None

    def counts(self) -> Counts:
        """Parameters by part."""
        experts = {n: sum(f.A_RI.numel() + f.B_OR.numel() for f in a.values()) for n, a in self.adapters().items()}
        ours = {id(p) for inlet in self.layout.inlets for p in inlet.parameters()}
        return {
            "experts": experts,
            "router": sum(rows.numel() for rows in self.gates().values()),
            "base": sum(p.numel() for p in self.base.parameters() if id(p) not in ours),
            "trained": sum(p.numel() for p in self.parameters() if p.requires_grad),
        }

    @property
    def inner(self) -> PreTrainedModel:
        return self.base

    @property
    def experts(self) -> list[Adapter]:
        """Each distinct expert's factors as they are now."""
        return [adapter for _, adapter in sorted(self.layout.adapters().items())]

    @contextmanager
    def traced(self) -> Iterator[Callable[[], dict[str, Gated]]]:
        self.router.trace = {}
        try:
            yield lambda: self.router.trace or {}
        finally:
            self.router.trace = None

    def over_experts(self, weight: Float[Tensor, "*N R"]) -> Float[Tensor, "*N U"]:
        """Those that do not run have 0."""
        whole = weight.new_zeros(*weight.shape[:-1], len(self.names))
        whole[..., self.running] = weight
        return whole

    def over_slots(self, weight: Float[Tensor, "*N R"]) -> Float[Tensor, "*N S"]:
        """An expert's weight is split evenly over its slots."""
        split = self.over_experts(weight) / torch.tensor(self.config.counts, device=weight.device)
        return split[..., self.config.slot_to_expert]

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        time: Times = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | None = None,
        **kwargs: object,
    ) -> CausalLMOutputWithPast:
        """As Hugging Face's causal models; with ``labels``, their mean nll as loss. A ``time`` is an error."""
        refuse_date(time, 1 if input_ids is None else len(input_ids))
        if past_key_values is None and use_cache:
            past_key_values = AdaptersCache(config=self.base.config)
        given: dict[str, Any] = {"attention_mask": attention_mask, "position_ids": position_ids, "use_cache": False}
        if input_ids is None:
            given |= {"inputs_embeds": inputs_embeds}
        elif attention_mask is None and past_key_values is None:
            given = packing.inputs(self.base, input_ids, position_ids)
        elif attention_mask is not None and attention_mask.ndim > 2:
            given |= {"input_ids": input_ids}
        else:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            query = self.query(input_ids, time, past, attention_mask=attention_mask, position_ids=position_ids)
            if past_key_values is None:
                given = query.inputs(self.base)
            else:
                given |= {"input_ids": input_ids, "attention_mask": query.mask_BT, "position_ids": query.position_BT}
        if past_key_values is not None:
            given |= {"past_key_values": past_key_values, "use_cache": True}
        output = self.base(**given, **kwargs)
        loss = None if labels is None else ForCausalLMLoss(output.logits, labels, self.config.vocab_size, num_items_in_batch)
        output = CausalLMOutputWithPast(**{"loss": loss, **output, "past_key_values": past_key_values})
        return output if return_dict is not False else output.to_tuple()  # type: ignore[return-value]

    def _generate(self, inputs: Tensor | None, *args: Any, time: Times, **options: Any) -> Any:
        """A gate over the prefix keeps its running sums in the cache."""
        cached = options.get("use_cache", self.generation_config.use_cache) is not False
        if self.router.prefix and cached and options.get("past_key_values") is None:
            options["past_key_values"] = AdaptersCache(config=self.base.config)
        return super()._generate(inputs, *args, time=time, **options)

    @classmethod
    def _open(cls, folder: Path, config: MixtureConfig | None, options: Mapping[str, Any]) -> Self:
        return cls.from_parts(folder, config, Opening.of(options))

    @classmethod
    def from_parts(
        cls,
        folder: Path,
        config: MixtureConfig | None = None,
        opening: Opening = Opening(),
        elsewhere: Mapping[str, Path] | None = None,
    ) -> Self:
        """A mixture without a tokenizer.

        Args:
            elsewhere: where directories named in the configuration are, if not beside it; their contents have been verified.
        """
        config = config or AdaptersConfig.from_pretrained(mixture_at(folder))
        assert isinstance(config, AdaptersConfig)
        base, adapters = files.open_parts(folder, config, opening, elsewhere)
        return cls(config, base, adapters, read_router(folder))

    def _save(self, folder: Path, options: Mapping[str, Any]) -> AdaptersConfig:
        self.save_parts(folder)
        config = copy.deepcopy(self.config)
        config.base = {"dir": "base", "digest": files.write_base(self.base, self.layout, folder)}
        return config

    def save_parts(self, folder: Path) -> None:
        """Write experts and gates as they are in memory, not the base."""
        for name, adapter in self.adapters().items():
            lora_files.write(adapter, self.layout.places, folder / "experts" / name, self.dropout)
        if gates := self.gates():
            write_router(gates, folder)


AutoModelForCausalLM.register(AdaptersConfig, AdaptersMixture, exist_ok=True)
