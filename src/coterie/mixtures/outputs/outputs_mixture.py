"""Mixtures at the outputs: ``log P(x) = logsumexp_u(log w_u + log P_u(x))``, normalised at every position and date.

Hugging Face does what it does well (generation, sampling, saving); here is the mixing. Three rules keep it right and small:
an expert that no row may use is never called; log-probabilities of ineligible experts are replaced, not added to -inf, so
that not even a NaN of theirs is heard; experts are taken one at a time, so the vocabulary axis exists for one expert and for
the running sum, never for all. The price of the last one: a router that reads the experts' likelihoods needs the weights
before the sum, so without a cache `log_probs` then runs each expert twice (`nll` never does).

Shapes: B rows, T positions, U distinct experts, S slots, V vocabulary, K positions kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutputWithPast

from coterie.errors import RequestError
from coterie.mixtures.mixture import Mixture
from coterie.mixtures.mixture_files import MixtureConfig, Opening, mixture_at, require_same_vocabulary, write_router
from coterie.mixtures.outputs import outputs_files as files
from coterie.mixtures.outputs.mixture_cache import MixtureCache
from coterie.mixtures.outputs.outputs_files import OutputsConfig
from coterie.mixtures.query import Query, Times, ordinals
from coterie.routing.fit import mix
from coterie.routing.output_routers import OutputRouter
from coterie.routing.routers import RouterModule

NOTHING = -1e30
"""Stands for log 0 in running sums: exp gives exactly 0, and no gradient becomes NaN."""


class OutputsMixture(Mixture):
    """A mixture of whole models with one tokenizer."""

    config_class = OutputsConfig
    config: OutputsConfig
    experts: nn.ModuleList
    router: RouterModule
    log_count_U: Tensor
    _is_stateful = True  # the router's running sums cannot be rolled back: no assisted decoding

    def __init__(
        self,
        config: OutputsConfig,
        experts: Sequence[PreTrainedModel] | None = None,
        router: RouterModule | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__(config)
        if experts is None:
            raise RequestError("a mixture is made of experts, not of a configuration", do="use from_pretrained(DIR)")
        require_same_vocabulary({n: e.config.vocab_size for n, e in zip(config.names, experts, strict=True)})
        self.experts = nn.ModuleList(experts)
        self.router = router or OutputRouter.model_validate(config.router).build(len(experts), config.vocab_size)
        self.tokenizer = tokenizer
        self.policy = config.policy
        self.register_buffer("log_count_U", torch.tensor(config.counts, dtype=torch.float32).log(), persistent=False)
        self.eval()

    def _log_probs(self, query: Query) -> Float[Tensor, "B T V"]:
        return self._mixed(query, torch.arange(query.ids_BT.shape[1], device=query.ids_BT.device), None)

    def _nll(self, query: Query) -> Float[Tensor, "B T-1"]:
        logp_BTU = self._token_logp(query)
        logw_BTU = self._log_weights(query, logp_BTU)
        return torch.where(query.counted_BT[:, 1:], -mix(logw_BTU[:, :-1], logp_BTU[:, 1:]), 0.0)

    def _weights(self, query: Query) -> Float[Tensor, "B T S"]:
        """An expert's weight is split evenly over its slots."""
        evidence_BTU = self._token_logp(query) if self.router.needs_evidence else None
        weight_BTU = (self._log_weights(query, evidence_BTU) - self.log_count_U).exp()
        return weight_BTU[..., self.config.slot_to_expert]

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: MixtureCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        time: Times = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | None = None,
        **kwargs: object,
    ) -> CausalLMOutputWithPast:
        """As Hugging Face's causal models, with log-probabilities as logits; with ``labels``, their mean nll as loss.

        Args:
            time: date of the query, or one for each row.
            use_cache: begin or go on with a cache; None: only if one is given.
        """
        for key in ("output_attentions", "output_hidden_states", "inputs_embeds"):
            if kwargs.get(key) is not None and kwargs[key] is not False:
                raise RequestError(f"{key} has no meaning for a mixture of models", do="ask one of m.experts")
        cache = past_key_values
        if cache is None and use_cache:
            cache = MixtureCache()
        past = cache.seen if cache is not None else 0
        query = self.query(input_ids, time, past, attention_mask=attention_mask, position_ids=position_ids)
        T = input_ids.shape[1]
        if isinstance(logits_to_keep, Tensor):
            kept_K = logits_to_keep
        else:
            kept_K = torch.arange(T - (logits_to_keep or T), T, device=input_ids.device)
        logits_BKV = self._mixed(query, kept_K, cache)
        loss = None
        if labels is not None:
            loss = ForCausalLMLoss(logits_BKV, labels, self.config.vocab_size, num_items_in_batch)
        output = CausalLMOutputWithPast(loss=loss, logits=logits_BKV, past_key_values=cache)
        return output if return_dict is not False else output.to_tuple()  # type: ignore[return-value]

    def _log_weights(self, query: Query, evidence_BTU: Tensor | None, cache: MixtureCache | None = None) -> Tensor:
        eligible_B1U = query.eligible_BU[:, None]
        logits_BTU, state = self.router(
            query.ids_BT, query.position_BT, eligible_B1U, evidence_BTU, cache.state if cache is not None else None
        )
        if cache is not None:
            cache.state = state
        return self.policy(logits_BTU, self.log_count_U, eligible_B1U)

    def _token_logp(self, query: Query) -> Float[Tensor, "B T U"]:
        """log P_u of every token given those before; 0 at first tokens, padding, and experts that a row may not use."""
        logp_BTU = torch.zeros(*query.ids_BT.shape, len(self.experts), device=query.ids_BT.device)
        for u in query.running:
            rows_B = query.eligible_BU[:, u]
            logp_BTU[rows_B, :, u] = query.token_logp(self.experts[u], rows_B)
        return logp_BTU

    def _expert(self, u: int, query: Query, kept_K: Tensor, cache: MixtureCache | None) -> Float[Tensor, "B K V"]:
        """Log-probabilities of one expert at the positions kept."""
        expert: Any = self.experts[u]
        if cache is None:
            given: dict[str, Any] = {**query.inputs(expert)}
        else:
            given = {"input_ids": query.ids_BT, "attention_mask": query.attend_BT, "position_ids": query.position_BT}
            given |= {"use_cache": True, "past_key_values": cache.of(u, expert.config)}
        return expert(**given, logits_to_keep=kept_K).logits.float().log_softmax(-1)

    def _mixed(self, query: Query, kept_K: Tensor, cache: MixtureCache | None) -> Float[Tensor, "B K V"]:
        """The mixture's log-probabilities, one expert after the other."""
        # Every row has someone to answer, so one alone has all the weight. Where gradients are wanted the router is asked
        # all the same: its parameters get theirs, zeros.
        if len(query.running) == 1 and not torch.is_grad_enabled():
            logp_BKV = self._expert(query.running[0], query, kept_K, cache)
        else:
            logp_BKV = self._weighed(query, kept_K, cache)
        if cache is not None:
            cache.seen += query.ids_BT.shape[1]
        return logp_BKV

    def _weighed(self, query: Query, kept_K: Tensor, cache: MixtureCache | None) -> Float[Tensor, "B K V"]:
        logp_BKV: dict[int, Tensor] = {}
        evidence_BTU = None
        if self.router.needs_evidence:
            if cache is None:
                evidence_BTU = self._token_logp(query)
            else:
                evidence_BTU, logp_BKV = self._evidence(query, kept_K, cache)
        logw_BKU = self._log_weights(query, evidence_BTU, cache)[:, kept_K]
        total_BKV = None
        for u in query.running:
            one_BKV = logp_BKV.pop(u) if u in logp_BKV else self._expert(u, query, kept_K, cache)
            logw_BK1 = logw_BKU[..., u, None]
            one_BKV = torch.where(logw_BK1.isneginf(), NOTHING, logw_BK1 + one_BKV)
            total_BKV = one_BKV if total_BKV is None else torch.logaddexp(total_BKV, one_BKV)
        assert total_BKV is not None
        return total_BKV

    def _evidence(self, query: Query, kept_K: Tensor, cache: MixtureCache) -> tuple[Tensor, dict[int, Tensor]]:
        """With a cache: how likely each expert found the new tokens, and its log-probabilities at the positions kept."""
        B, T = query.ids_BT.shape
        evidence_BTU = torch.zeros(B, T, len(self.experts), device=query.ids_BT.device)
        logp_BKV = {}
        everything_T = torch.arange(T, device=query.ids_BT.device)
        for u in query.running:
            logp_BTV = self._expert(u, query, everything_T, cache)
            seen_BT = logp_BTV[:, :-1].gather(-1, query.ids_BT[:, 1:, None]).squeeze(-1)
            before = cache.last_logp_BV.get(u)
            first_B1 = seen_BT.new_zeros(B, 1) if before is None else before.gather(-1, query.ids_BT[:, :1])
            evidence_BTU[..., u] = torch.cat([first_B1, seen_BT], dim=1)
            cache.last_logp_BV[u] = logp_BTV[:, -1]
            logp_BKV[u] = logp_BTV[:, kept_K]
        return torch.where(query.counted_BT[..., None], evidence_BTU, 0.0), logp_BKV

    def _generate(self, inputs: Tensor | None, *args: Any, time: Times, **options: Any) -> Any:
        if options.get("inputs_embeds") is not None:
            raise RequestError("a mixture has no one embedding", where="inputs_embeds", do="give input_ids")
        if time is not None:
            ids = inputs if inputs is not None else options["input_ids"]
            times = ordinals(time, ids.shape[0])
            if None in times:
                raise RequestError("give every row a date, or none", where="time")
            options["time"] = torch.tensor(times, device=ids.device)  # a tensor: repeated with its row by beams and samples
        return super(Mixture, self).generate(inputs, *args, **options)  # type: ignore[misc]

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict, *args: Any, **kwargs: Any
    ) -> None:
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise RequestError(
                "a mixture keeps one dynamic cache for each expert",
                where="cache_implementation",
                found=str(generation_config.cache_implementation),
            )
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = MixtureCache()

    @classmethod
    def _open(cls, folder: Path, config: MixtureConfig | None, options: Mapping[str, Any]) -> Self:
        opening = Opening.of(options)
        config = config or OutputsConfig.from_pretrained(mixture_at(folder))
        assert isinstance(config, OutputsConfig)
        experts = files.open_experts(folder, config, opening)
        model = cls(config, experts, files.open_router(folder, config))
        nn.Module.to(model, experts[0].device)
        return model

    def _save(self, folder: Path, options: Mapping[str, Any]) -> OutputsConfig:
        write_router(self.router.state_dict(), folder)
        origin = Path(self.name_or_path) if self.name_or_path else None
        return files.write_experts(cast("list[PreTrainedModel]", list(self.experts)), self.config, origin, folder)


AutoModelForCausalLM.register(OutputsConfig, OutputsMixture, exist_ok=True)
