"""Who answers each token: gates over LoRA experts inside a model, and what they remember of one forward pass.

A gate is linear in what it reads and has no bias: the input of a linear (one gate a layer reads the first linear's, as a
standard mixture-of-experts router reads its block's input; or one gate a linear), or for the whole model the embeddings. It
reads the token, or the mean of its document so far; never what comes after. Arrow takes the projection's absolute value.

The softmax is over all running experts; slots that share an expert are one, with the logarithm of their number added. Then
`top_k` keeps the k largest weights, `top_p` the fewest that hold this mass (with `top_k` as the most), divided by their
sum, so that a mixture of equal experts is that expert. Divided by itself a single weight is 1 and would teach the gate
nothing; so backwards the weights are those of the softmax over all (straight-through): as every expert's ranks are
computed anyway, each gate hears how every expert would have done.

Shapes: B rows, T positions, M tokens, U running experts, H inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from coterie.errors import RequestError
from coterie.mixtures.adapters.adapter_routers import AdapterGate
from coterie.models.stack_blocks import Weights
from coterie.routing.gates import Gated
from coterie.routing.scan import decayed_sum

WHOLE = "model"
"""Name of the one gate of scope `model`."""


class AdaptersCache(DynamicCache):
    """The base's key-value cache, and the running sums of gates that read the prefix; rows move together."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sums: dict[str, Tensor] = {}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self.sums = {k: v.index_select(0, beam_idx.to(v.device)) for k, v in self.sums.items()}

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.sums = {k: v.repeat_interleave(repeats, dim=0) for k, v in self.sums.items()}

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.sums = {k: v[indices] for k, v in self.sums.items()}

    def crop(self, tokens_to_remove: int) -> None:
        if self.sums:
            raise RequestError(
                "the cache cannot be rolled back: gates that read the prefix go forward only",
                where="past_key_values",
                do="generate without an assistant model, or use gates that read the token",
            )
        super().crop(tokens_to_remove)


class PassInputs(TypedDict, total=False):
    """What is read of the keyword arguments of a forward pass."""

    input_ids: Tensor | None
    inputs_embeds: Tensor | None
    attention_mask: Tensor | None
    position_ids: Tensor | None
    past_key_values: Cache | None


class Gates(nn.Module):
    """All gates of a mixture: their policy, and the pass that is under way.

    Args:
        router: ``kind``, ``scope``, ``reads``, ``top_k``, ``top_p``, ``temperature``.
        counts: slots of each running expert.
        dense: some of them are not mature: all answer.
    """

    def __init__(self, router: dict[str, Any], counts: list[int], dense: bool) -> None:
        super().__init__()
        self.kind, self.scope = AdapterGate.named(router["kind"]), router["scope"]
        self.prefix = router["reads"] == "prefix"
        self.temperature = router["temperature"]
        self.policy: tuple[int | None, float | None] = (router["top_k"], router["top_p"])
        if not self.learned and self.policy != (None, None):
            raise RequestError("equal weights have no largest", where="router", expected="no top_k and no top_p")
        self.top_k, self.top_p = (None, None) if dense else self.policy
        if self.top_k is not None and self.top_k > len(counts):
            raise RequestError(
                "top_k is above the number of eligible experts",
                where="router.top_k",
                expected=f"at most {len(counts)}",
                found=str(self.top_k),
                do="lower it, or add experts",
            )
        self.top_k = None if self.top_k == len(counts) else self.top_k
        self.register_buffer("count_U", torch.tensor(counts, dtype=torch.float32), persistent=False)
        self.alike = len(set(counts)) == 1
        self.register_parameter("rows_UH", None)
        self.forced: int | None = None
        """An expert that answers everything, if set."""
        self.trace: dict[str, Gated] | None = None
        """If a dictionary: what each gate said in the last pass."""
        self.position_BT: Tensor | None = None
        self.cache: Cache | None = None
        self.now: dict[str, Weights] = {}

    count_U: Tensor
    rows_UH: nn.Parameter | None
    """The gate of scope `model`; others lie beside the matrices they are multiplied with."""

    def collaborate(self, yes: bool) -> None:
        """Let all experts answer, or those that the policy selects."""
        self.top_k, self.top_p = (None, None) if yes else self.policy

    @property
    def learned(self) -> bool:
        return self.kind.has_rows

    def begin(self, decoder: PreTrainedModel, args: Sequence[Tensor], given: PassInputs) -> None:
        """A forward pass of the base starts: forget the last one. A hook, so that it does not matter who runs the base."""
        ids, embeds = args[0] if args else given.get("input_ids"), given.get("inputs_embeds")
        like = ids if ids is not None else embeds
        assert like is not None
        self.now, self.cache = {}, given.get("past_key_values")
        if self.trace is not None:
            self.trace = {}
        if self.prefix:
            self.position_BT = _positions(like.shape[:2], like.device, given)
            own = isinstance(self.cache, AdaptersCache)
            if self.cache is not None and not own:
                raise RequestError(
                    "gates that read the prefix keep sums in the cache",
                    where="past_key_values",
                    expected="AdaptersCache",
                    found=type(self.cache).__name__,
                    do="leave it out: generate makes its own",
                )
        if self.scope == WHOLE and self.learned:
            assert self.rows_UH is not None
            x_BTH = embeds if embeds is not None else decoder.get_input_embeddings()(ids)
            self.decide(WHOLE, nn.functional.linear(x_BTH.to(self.rows_UH.dtype), self.rows_UH))

    def end(self) -> None:
        self.now = {}

    def weights_of(self, name: str, logits: Tensor | None, shape: torch.Size) -> Weights:
        """The weights of the gate ``name``, which decides if there are logits for it."""
        if logits is not None:
            self.decide(name, logits)
        elif name not in self.now:
            assert not self.learned, f"the gate {name} has not been asked"
            self._say(name, (self.count_U / self.count_U.sum()).expand(*shape, -1), None)
        return self.now[name]

    def decide(self, name: str, logits: Tensor) -> None:
        """From a gate's logits [..., U] to the weights of this pass."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.prefix:
            logits = self._mean(name, logits)
        if self.kind.absolute:
            logits = logits.abs()
        if self.temperature != 1:
            logits = logits / self.temperature
        if not self.alike:
            logits = logits + self.count_U.log()
        p = logits.softmax(-1)
        self._say(name, self._select(p), logits)

    def _select(self, p: Tensor) -> Tensor:
        if self.top_k is None and self.top_p is None:
            return p
        ranked, order = p.detach().sort(dim=-1, descending=True, stable=True)
        kept = torch.ones_like(ranked, dtype=torch.bool)
        if self.top_k is not None:
            kept[..., self.top_k :] = False
        if self.top_p is not None:
            kept &= ranked.cumsum(-1) - ranked < self.top_p
        hard = torch.where(kept, ranked, 0.0)
        hard = torch.zeros_like(p).scatter(-1, order, hard / hard.sum(-1, keepdim=True))
        return p + (hard - p).detach() if p.requires_grad else hard

    def _say(self, name: str, weight: Tensor, logits: Tensor | None) -> None:
        if self.forced is not None:
            weight = torch.zeros_like(weight)
            weight[..., self.forced] = 1.0
        if self.trace is not None:
            self.trace[name] = Gated(logits if logits is not None else self.count_U.log().expand_as(weight), weight)
        self.now[name] = Weights(weight.reshape(-1, weight.shape[-1]))

    def _mean(self, name: str, logits_BTU: Tensor) -> Tensor:
        """The gate's logits on the mean of what it has read of the document: the mean of its logits."""
        assert self.position_BT is not None
        sums = self.cache.sums if isinstance(self.cache, AdaptersCache) else None
        sum_BTU = decayed_sum(logits_BTU, self.position_BT, 1.0, None if sums is None else sums.get(name))
        if sums is not None:
            sums[name] = sum_BTU[:, -1]
        return sum_BTU / (self.position_BT + 1)[..., None]


def _positions(shape: torch.Size, device: torch.device, given: PassInputs) -> Tensor:
    """Position of each token in its document: as given, else counted over what is not padding."""
    B, T = shape
    if (position := given.get("position_ids")) is not None:
        return position.expand(B, T)
    mask, cache = given.get("attention_mask"), given.get("past_key_values")
    if mask is not None and mask.ndim == 2:
        return (mask.long().cumsum(-1) - 1).clamp_min(0)[:, -T:]
    past = cache.get_seq_length() if cache is not None else 0
    return torch.arange(past, past + T, device=device).expand(B, T)
