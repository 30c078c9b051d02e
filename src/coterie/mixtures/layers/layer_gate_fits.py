"""Gates that need no training: equal, random, from example prompts, by ridge regression.

A fitted gate must read what it was fitted on. With ``features: mixture`` it is fitted on the very hidden states that it will
read: layer after layer, each pass with the gates below already in place and stopped at the layer in question. That costs
about half as many forward passes as there are layers. With ``features: own`` each text is answered by its own expert alone,
all layers in one pass; then an expert more adds to the sums and changes none, but where the mixture mixes, the gate sees
states that it was not fitted on.

Shapes: B rows, T positions, N tokens, S slots, U distinct experts, H hidden, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from coterie.corpora.blocks import Blocks
from coterie.mixtures import completion
from coterie.mixtures.layers.layers_mixture import LayersMixture
from coterie.models import packed_inputs as packing
from coterie.routing.gates import Centroids, Ridge
from coterie.store import Artifact

ROWS = 16
"""Sequences in one forward pass."""


@dataclass(frozen=True)
class Text:
    """Sequences of one expert's data."""

    expert: int
    ids_BT: Tensor
    position_BT: Tensor
    counted_BT: Tensor
    """Tokens that are not padding."""


def texts(blocks: Sequence[Artifact], experts: Sequence[int], tokens: int | None) -> Iterator[Text]:
    """Batches of blocks, so many tokens of each at most."""
    for artifact, expert in zip(blocks, experts, strict=True):
        source = Blocks.open(artifact)
        rows = len(source)
        if tokens is not None:
            rows = min(rows, int((np.cumsum(source.tokens_per_block) < tokens).sum()) + 1)
        for begin in range(0, rows, ROWS):
            part = slice(begin, min(begin + ROWS, rows))
            ids, position, document = (np.array(a[part]) for a in (source.ids, source.position, source.document))
            yield Text(
                expert, torch.from_numpy(ids).long(), torch.from_numpy(position).long(), torch.from_numpy(document) >= 0
            )


def prompts(by_expert: Mapping[int, Sequence[str]], tokenizer: Path, context: int) -> Iterator[Text]:
    """Example prompts, each a sequence of its own."""
    reader = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True, trust_remote_code=False)
    for expert, examples in by_expert.items():
        for text in examples:
            ids_BT, mask_BT = completion.prompts([text], reader, context, 0, 0)
            yield Text(expert, ids_BT, torch.arange(ids_BT.shape[1])[None], mask_BT.bool())


class _EnoughError(Exception):
    """Ends a forward pass at the layer that was asked for."""


@torch.no_grad()
def read(model: LayersMixture, text: Text, layers: Sequence[int], own: bool) -> list[Tensor]:
    """What the gates of some layers read of the counted tokens, [N, H] each."""
    found: list[Tensor] = []
    counted_BT = text.counted_BT.to(model.device)

    def grab(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0][counted_BT])
        if len(found) == len(layers):
            raise _EnoughError

    given = packing.inputs(model.model, text.ids_BT.to(model.device), text.position_BT.to(model.device))
    handles = [model.blocks[layer].register_forward_pre_hook(grab) for layer in layers]
    try:
        with model.only(text.expert) if own else nullcontext():
            model.model(**given, logits_to_keep=1)
    except _EnoughError:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found


def fit(
    model: LayersMixture,
    data: Callable[[], Iterator[Text]],
    sums: Callable[[], Ridge | Centroids],
    solve: Callable[[Ridge | Centroids], tuple[Tensor, Tensor]],
    *,
    features: str,
    temperature: float,
) -> None:
    """Fit every layer's gate, in place; slots that share an expert get equal rows.

    Args:
        data: begins anew each time.
        sums: empty running sums.
        solve: from sums to weights [U, H] and biases [U].
    """
    L, seats = len(model.blocks), torch.tensor(model.config.slot_to_expert)
    rounds = [list(range(L))] if features == "own" else [[layer] for layer in range(L)]
    for layers in rounds:
        counted = [sums() for _ in layers]
        for text in data():
            for one, x_NH in zip(counted, read(model, text, layers, own=features == "own"), strict=True):
                one.add(x_NH, torch.full((len(x_NH),), text.expert))
        for layer, one in zip(layers, counted, strict=True):
            weight_UH, bias_U = solve(one)
            gate = model.router[layer]
            gate.weight.data.copy_(weight_UH[seats] / temperature)
            if gate.bias is not None:
                gate.bias.data.copy_(bias_U[seats] / temperature)


def gates(model: LayersMixture) -> dict[str, Tensor]:
    """The gates' tensors, by name."""
    return {n: t.detach().cpu().float() for n, t in model.state_dict().items() if ".gate." in n}


def draw(names: Mapping[str, tuple[int, ...]], std: float, seed: int) -> dict[str, Tensor]:
    """Random gates, by name and shape."""
    generator = torch.Generator().manual_seed(seed)
    return {name: std * torch.randn(shape, generator=generator) for name, shape in names.items()}
