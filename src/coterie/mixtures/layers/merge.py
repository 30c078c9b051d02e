"""Merging: one base's attention, norms and embeddings, and every distinct expert's feed-forward blocks.

Experts of kind `ffn`, and adapters of nothing but feed-forward linears, share everything else with the base bit by bit, and
so the merge is exact. Others are merged only by a rule that says what becomes of the rest: ``base`` keeps the base's,
``average`` takes the mean of the experts' (as BTX does, arXiv 2403.07816). All that can be wrong with the request is found
before a byte is written; a tensor that is not finite ends the writing, and who called throws the folder away.

Shapes: S slots, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from itertools import cycle
from typing import Literal

import torch
from torch import Tensor

from coterie.errors import RequestError
from coterie.mixtures.layers.expert_weights import Directory, Source
from coterie.mixtures.layers.gated_block import feed_forward
from coterie.mixtures.layers.layers_settings import GateSettings
from coterie.mixtures.layers.tensor_shards import AHEAD, SHARD, Wanted, read_ahead, same
from coterie.mixtures.mixture_files import SPECIAL_TOKENS, require_same_tokenizer
from coterie.spec.json_types import Settings

Shared = Literal["base", "average"]

_INDIFFERENT = set(
    "_name_or_path architectures bos_token_id dtype eos_token_id id2label label2id pad_token_id torch_dtype "
    "transformers_version use_cache max_position_embeddings attention_dropout initializer_range resid_pdrop "
    "embd_pdrop attn_pdrop chunk_size_feed_forward problem_type return_dict output_hidden_states".split()
)
"""Settings of a model that do not change what its weights compute."""


@dataclass(frozen=True)
class Merge:
    """One merge, as it was asked for."""

    base: Directory
    experts: Sequence[Source]
    """The distinct ones."""
    shared: Shared | None = None
    """What becomes of tensors outside the feed-forward blocks in which experts differ; None: they must not differ."""
    dtype: torch.dtype | None = None
    """Of the result; by default each tensor's is the widest in which the base or an expert has it, so nothing is rounded."""

    @cached_property
    def blocks(self) -> list[str]:
        """Names of the feed-forward blocks, one a layer."""
        return feed_forward(self.base.skeleton)

    @cached_property
    def names(self) -> list[str]:
        """All of the base's tensors, in the architecture's order."""
        return [name for name in self.base.skeleton.state_dict() if name in self.base.tensors]

    def block_of(self, name: str) -> str | None:
        """The feed-forward block that a tensor belongs to."""
        return next((b for b in self.blocks if name.startswith(f"{b}.")), None)

    def check(self) -> dict[str, float]:
        """Whether these experts can be merged on this base.

        Returns:
            for each expert the largest difference of a shared weight from the base's; 0 where the merge is exact.

        Raises:
            RequestError: names the first thing in which two differ, and both files.
        """
        require_same_tokenizer([(s.name, s.folder) for s in (self.base, *self.experts)])
        for expert in self.experts:
            self._check_config(expert)
            self._check_tensors(expert)
        return self._differences()

    def _check_config(self, expert: Source) -> None:
        here, there = self.base.config.to_dict(), expert.config.to_dict()
        for key in sorted((here.keys() | there.keys()) - _INDIFFERENT, key=lambda k: (k != "model_type", k)):
            if here.get(key) != there.get(key):
                raise RequestError(
                    f"expert {expert.name!r} is of another architecture than the base",
                    where=f"{expert.folder} ({key})",
                    expected=f"{here.get(key)}, as in {self.base.folder}",
                    found=str(there.get(key)),
                    do="merge experts that branch from one base",
                )

    def _check_tensors(self, expert: Source) -> None:
        for name in self.names:
            if name not in expert.tensors:
                raise RequestError(f"expert {expert.name!r} lacks a tensor", where=str(expert.folder), expected=name)
            ours, theirs = list(self.base.tensors[name].shape), list(expert.tensors[name].shape)
            if ours != theirs:
                raise RequestError(
                    f"a tensor of expert {expert.name!r} has another shape than the base's",
                    where=name,
                    expected=f"{ours} in {self.base.where(name)}",
                    found=f"{theirs} in {expert.where(name)}",
                    do="merge experts of one shape",
                )

    def _differences(self) -> dict[str, float]:
        """For each expert, the largest difference from the base outside the feed-forward blocks."""
        largest = {expert.name: 0.0 for expert in self.experts}
        shared = [name for name in self.names if self.block_of(name) is None]
        differing = {name: found for name in shared if (found := [e for e in self.experts if e.changes(name)])}
        for name, experts in differing.items():
            ours = self.base.read(name, self._of_base)
            turns = zip(experts, cycle(self.scratch), strict=False)
            tensors = read_ahead((partial(expert.read, name, memory) for expert, memory in turns), self.ahead)
            for expert, theirs in zip(experts, tensors, strict=True):
                if same(ours, theirs):
                    continue
                apart = float((ours.double() - theirs.double()).abs().max())
                largest[expert.name] = max(largest[expert.name], apart)
                if self.shared is None and apart > 0:
                    raise RequestError(
                        f"expert {expert.name!r} differs from the base outside its feed-forward blocks",
                        where=name,
                        expected=f"what {self.base.where(name)} holds",
                        found=f"up to {apart:.3g} away in {expert.where(name)}",
                        do="train experts of kind ffn, name the base that they branch from, or say what becomes of the "
                        "rest (shared: base, or shared: average)",
                    )
        return largest

    @cached_property
    def _most(self) -> int:
        """Bytes of the largest tensor."""
        return max(t.bytes for s in (self.base, *self.experts) for t in s.tensors.values())

    @property
    def ahead(self) -> int:
        """Tensors to read while one is used; fewer where more would not fit into two shards."""
        return max(0, min(AHEAD, 2 * SHARD // self._most - 2))

    @cached_property
    def _of_base(self) -> Tensor:
        """Memory for one tensor of the base."""
        return torch.empty(self._most, dtype=torch.uint8)

    @cached_property
    def scratch(self) -> list[Tensor]:
        """Memory for the largest tensor, for the one that is used and for those read meanwhile."""
        return [torch.empty(self._most, dtype=torch.uint8) for _ in range(1 + self.ahead)]

    def wanted(self) -> Iterator[Wanted]:
        """The tensors of the result in the names of `LayersMixture`, without its gates."""
        for name in self.names:
            dtype, shape = self.dtype or self._widest(name), self.base.tensors[name].shape
            block = self.block_of(name)
            if block is None:
                yield Wanted(f"model.{name}", dtype, shape, partial(self._shared, name), reuses=True)
                continue
            for u, expert in enumerate(self.experts):
                rest = name.removeprefix(f"{block}.")
                yield Wanted(f"model.{block}.experts.{u}.{rest}", dtype, shape, partial(expert.read, name), reuses=True)

    def _widest(self, name: str) -> torch.dtype:
        return reduce(torch.promote_types, [source.tensors[name].dtype for source in (self.base, *self.experts)])

    def _shared(self, name: str, memory: Tensor | None = None) -> Tensor:
        if self.shared != "average" or not any(e.changes(name) for e in self.experts):
            return self.base.read(name, memory)
        total = self.experts[0].read(name).float()
        for expert in self.experts[1:]:
            total += expert.read(name)
        return total / len(self.experts)


def gate_names(blocks: Sequence[str], bias: bool) -> list[str]:
    """Names of the gates' tensors in a `LayersMixture`."""
    return [f"model.{block}.gate.{part}" for block in blocks for part in (("weight", "bias") if bias else ("weight",))]


def describe(
    base: Directory,
    names: Sequence[str],
    seats: Sequence[int],
    digests: Sequence[str | None],
    gate: GateSettings,
    dtype: torch.dtype | None = None,
) -> Settings:
    """The text of `config.json` of a mixture on a base; see `mixture_settings`.

    Args:
        dtype: of the experts as written, where it may be another than the base's.
    """
    text = {k: v for k, v in base.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    if dtype is not None:
        text["dtype"] = str(dtype).removeprefix("torch.")
    return mixture_settings(text, names, seats, digests, gate, base.tied)


def mixture_settings(
    text: Settings, names: Sequence[str], seats: Sequence[int], digests: Sequence[str | None], gate: GateSettings, tied: bool
) -> Settings:
    """The text of `config.json` of a mixture with these distinct experts.

    Args:
        text: the base's.
        names: of each slot.
        seats: expert in each slot.
        tied: whether input and output embeddings are one.
    """
    first = {u: names[seats.index(u)] for u in dict.fromkeys(seats)}
    return {
        "model_type": "coterie_layers",
        "architectures": ["LayersMixture"],
        "text_config": text,
        "slots": [{"name": n, "expert": u} for n, u in zip(names, seats, strict=True)],
        "experts": [{"name": first[u], "digest": digest} for u, digest in enumerate(digests)],
        "gate": gate,
        "tie_word_embeddings": tied,
        **{k: text.get(k) for k in SPECIAL_TOKENS},
    }
