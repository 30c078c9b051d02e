"""Several documents in one row, none of which sees another.

Architectures of transformers keep them apart when the positions restart, no attention mask is given and no cache is in
use; any one of the three missing, and documents leak into each other without a word. That is a property of a version of a
library, so it is measured on the model at hand: positions alone if they do, an explicit block mask if they do not, and a
refusal if neither does.

B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig

from coterie.errors import RequestError


def measured_once(measure: Callable[[nn.Module], bool]) -> Callable[[nn.Module], bool]:
    """A property of a model, measured in evaluation mode on a few tokens when it is first asked for."""
    known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

    @wraps(measure)
    def remembered(model: nn.Module) -> bool:
        if model not in known:
            training = model.training
            try:
                with torch.no_grad():
                    known[model] = measure(model.eval())
            finally:
                model.train(training)
        return known[model]

    return remembered


def inputs(
    model: nn.Module, ids_BT: Int[Tensor, "B T"], position_BT: Int[Tensor, "B T"] | None = None
) -> dict[str, Tensor | bool]:
    """Keyword arguments of the model's forward that keep documents apart wherever ``position_BT`` restarts."""
    if position_BT is None:
        return {"input_ids": ids_BT, "use_cache": False}
    together: dict[str, Tensor | bool] = {"input_ids": ids_BT, "position_ids": position_BT, "use_cache": False}
    if needs_mask(model):
        together["attention_mask"] = block_mask(position_BT)
    return together


def block_mask(position_BT: Int[Tensor, "B T"]) -> Bool[Tensor, "B 1 T T"]:
    """True where a query may look: at its own document, not ahead."""
    starts_BT = position_BT != torch.roll(position_BT, 1, dims=1) + 1
    starts_BT[:, 0] = True
    document_BT = starts_BT.cumsum(1)
    same_BTT = document_BT[:, :, None] == document_BT[:, None, :]
    return (same_BTT & torch.ones_like(same_BTT[0]).tril())[:, None]


@measured_once
def needs_mask(model: nn.Module) -> bool:
    """Whether restarting positions do not suffice for this model."""
    device, config = next(model.parameters()).device, cast(PreTrainedConfig, model.config)
    try:
        ids_BT = torch.arange(9, device=device)[None] % config.get_text_config().vocab_size
        position_BT = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1]], device=device)
        alone = torch.cat([model(input_ids=part, use_cache=False).logits for part in ids_BT.split([4, 3, 2], dim=1)], 1)
        close = alone.abs().max().clamp(min=1e-6) * (1e-3 if alone.dtype == torch.float32 else 5e-2)
        for mask in (None, block_mask(position_BT)):
            packed = model(input_ids=ids_BT, position_ids=position_BT, attention_mask=mask, use_cache=False).logits
            if (packed - alone).abs().max() < close:
                return mask is not None
    except (TypeError, ValueError) as error:
        raise RequestError(
            "this architecture takes no positions, so packed documents would run into each other",
            where=type(model).__name__,
            found=str(error),
            do="use another architecture",
        ) from None
    raise RequestError(
        "this architecture does not keep packed documents apart", where=type(model).__name__, do="use another architecture"
    )
