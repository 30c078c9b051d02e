"""The face of every mixture, and what mixtures inside one model share, whether their experts are adapters or feed-forward
blocks: one pass of that model answers, no date rules anyone out, and generation is the model's own.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel

from coterie.mixtures.completion import complete
from coterie.mixtures.query import Query, Times
from coterie.routing.eligibility import Eligibility

ANYONE = Eligibility("all", ("all",))
"""Inside a model no expert is ruled out by a date."""


class Face:
    """What every mixture answers in one way, wherever its experts meet."""

    config: Any

    @property
    def slots(self) -> list[dict[str, Any]]:
        """``{"slot", "name", "expert": index into experts}`` of each slot."""
        return [{"slot": i, **slot} for i, slot in enumerate(self.config.slots)]

    def complete(
        self,
        text: str | Sequence[str],
        time: Times = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
    ) -> Any:
        """What follows a text, or each of several, without the text itself.

        Args:
            temperature: 0 takes the likeliest token at every step.
            stop: end before the first of these strings.

        A prompt that leaves no room for ``max_new_tokens`` loses its beginning, as in training.
        """
        return complete(self, text, time, max_new_tokens, temperature, top_k, top_p, stop, seed)


class Inside(Face, PreTrainedModel, GenerationMixin):
    """A mixture whose experts are parts of one model, `inner`."""

    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    @property
    @abstractmethod
    def inner(self) -> Any:
        """The Hugging Face model that does the work."""

    @torch.no_grad()
    def log_probs(
        self,
        ids_BT: Int[Tensor, "B T"],
        time: Times = None,
        attention_mask: Int[Tensor, "B T"] | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """log P(x_{t+1} | x_{<=t}) in nats; ``time`` changes nothing. Positions that restart keep documents apart."""
        query = Query.of(ids_BT, attention_mask, position_ids, 0, time, ANYONE)
        return self.inner(**query.inputs(self.inner)).logits.float().log_softmax(-1)

    @torch.no_grad()
    def nll(
        self,
        ids_BT: Int[Tensor, "B T"],
        time: Times = None,
        attention_mask: Int[Tensor, "B T"] | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T-1"]:
        """-log P of each next token in nats; 0 where it is padding or begins a document."""
        return -Query.of(ids_BT, attention_mask, position_ids, 0, time, ANYONE).token_logp(self.inner)[:, 1:]

    def generate(self, inputs: Tensor | None = None, *args: Any, time: Times = None, seed: int | None = None, **kwargs: Any):
        """Hugging Face's, on ids.

        Args:
            time: changes nothing.
            seed: makes sampling repeatable without touching the global generator.
        """
        self.inner.generation_config = self.generation_config
        with repeatable(seed, self.device):
            return self.inner.generate(inputs, *args, **kwargs)

    def get_input_embeddings(self) -> Any:
        return self.inner.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.inner.get_output_embeddings()


@contextmanager
def repeatable(seed: int | None, device: torch.device) -> Iterator[None]:
    """With a seed, random numbers follow from it inside, and the global generators outside go on as if nothing had been."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else [], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield
