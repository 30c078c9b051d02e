"""What generation keeps between tokens: one key-value cache for each running expert, and the router's running sums.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig

from coterie.errors import RequestError
from coterie.routing.routers import State


class MixtureCache(Cache):
    """Caches of the experts that run, by index; rows are reordered, repeated and selected together."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.seen = 0
        """Tokens so far, padding included."""
        self.experts: dict[int, DynamicCache] = {}
        self.state: State = {}
        self.last_logp_BV: dict[int, Tensor] = {}
        """Each expert's distribution of the next token, if the router reads how likely that one will have been."""

    def of(self, expert: int, config: PretrainedConfig) -> DynamicCache:
        """The expert's cache, fresh at the first token.

        Raises:
            RequestError: the expert was not eligible when the cache was begun.
        """
        if expert not in self.experts:
            if self.seen:
                raise RequestError(
                    "the cache was begun at a date at which other experts were eligible",
                    where="past_key_values",
                    do="begin anew without past_key_values, or keep to the same time",
                )
            self.experts[expert] = DynamicCache(config=config)
        return self.experts[expert]

    def _rows(self, change: Callable[[Tensor], Tensor]) -> None:
        self.state = {key: change(value) for key, value in self.state.items()}
        self.last_logp_BV = {key: change(value) for key, value in self.last_logp_BV.items()}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        for cache in self.experts.values():
            cache.reorder_cache(beam_idx)  # type: ignore[arg-type]
        self._rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        for cache in self.experts.values():
            cache.batch_repeat_interleave(repeats)
        self._rows(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        for cache in self.experts.values():
            cache.batch_select_indices(indices)
        self._rows(lambda x: x[indices])

    def crop(self, tokens_to_remove: int) -> None:
        raise RequestError(
            "a mixture's cache cannot be rolled back: its router's sums go forward only",
            do="generate without an assistant model or prompt lookup",
        )

    def reset(self) -> None:
        self.__init__()  # type: ignore[misc]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    @property
    def batch_size(self) -> int:
        return next(iter(self.experts.values())).batch_size if self.experts else -1

    @property
    def is_initialized(self) -> bool:
        return self.seen > 0

    is_compileable = False
    is_croppable = False
