"""Mixtures whose experts are parts of one model: feed-forward blocks, or adapters.

Shapes: B rows, T positions, V vocabulary, S slots, U distinct experts, G what a gate weighs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from coterie.mixtures.mixture import Mixture
from coterie.mixtures.query import Query, Times, refuse_date
from coterie.routing.gates import Gated


class SharedBaseMixture(Mixture):
    """A mixture whose experts are parts of one model, `inner`: one pass of it answers, and it generates."""

    supports_gradient_checkpointing = True
    goes_by_dates = False

    @property
    @abstractmethod
    def inner(self) -> PreTrainedModel:
        """The Hugging Face model that does the work."""

    def _log_probs(self, query: Query) -> Float[Tensor, "B T V"]:
        return query.log_probs(self.inner)

    def _nll(self, query: Query) -> Float[Tensor, "B T-1"]:
        return -query.token_logp(self.inner)[:, 1:]

    @abstractmethod
    def traced(self) -> AbstractContextManager[Callable[[], Mapping[str, Gated]]]:
        """Inside, what every gate says is kept; the value, called, gives it for the last pass, by gate."""

    @abstractmethod
    def over_experts(self, weight: Float[Tensor, "*N G"]) -> Float[Tensor, "*N U"]:
        """What a gate weighs, as weights over all distinct experts."""

    def over_slots(self, weight: Float[Tensor, "*N G"]) -> Float[Tensor, "*N S"]:
        """What a gate weighs, as weights over slots."""
        return weight

    def _weights(self, query: Query) -> Float[Tensor, "B T S"]:
        given = query.inputs(self.inner)  # may run the model to measure it, so before the gates are listened to
        with self.traced() as trace:
            self.inner(**given, logits_to_keep=1)
            return self.over_slots(torch.stack([gated.weight_NS for gated in trace().values()]).mean(0))

    def _generate(self, inputs: Tensor | None, *args: Any, time: Times, **options: Any) -> Any:
        refuse_date(time, 1 if inputs is None else len(inputs))
        inner: Any = self.inner
        inner.generation_config = self.generation_config
        return inner.generate(inputs, *args, **options)

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        return self.inner.get_output_embeddings()

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, object] | None = None, **kwargs: object
    ) -> None:
        self.inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    def gradient_checkpointing_disable(self) -> None:
        self.inner.gradient_checkpointing_disable()
