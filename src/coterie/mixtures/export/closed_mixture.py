"""A mixture at layers that is read where it lies, tensor by tensor, and never opened; and when its slots can be folded.

A standard gate has no bias, so it cannot say that one expert stands for several slots. Where the slots of each expert have
equal rows it need not say so in two cases: if the k largest are slots of one expert, because each has at least k; and if
each has the same number c of slots and c divides k, as softmax then gives each c equal shares.

Shapes: S slots, U distinct experts, H hidden, B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PretrainedConfig

from coterie.errors import RequestError
from coterie.mixtures.layers.layers_files import tensors_of
from coterie.mixtures.layers.layers_mixture import LayersConfig, LayersMixture
from coterie.mixtures.layers.tensor_shards import Stored
from coterie.models.local_files import no_model
from coterie.models.quiet import load_strictly, quiet
from coterie.store.admit import admit


@dataclass(frozen=True)
class ClosedMixture:
    """A mixture directory, closed: its configuration and where its tensors lie."""

    folder: Path
    config: LayersConfig
    tensors: Mapping[str, Stored]

    @classmethod
    def at(cls, folder: Path) -> ClosedMixture:
        """Raises RequestError where no mixture inside the layers is."""
        kind = model_type(folder)
        if kind != LayersConfig.model_type:
            why = {
                "coterie_outputs": "a mixture at outputs runs whole models side by side, which no checkpoint format says",
                "coterie_adapters": "adapters are added to linears before the activation, which is no sum of experts",
            }.get(kind, f"a {kind} model is no mixture inside the layers")
            raise RequestError(
                f"only mixtures at layers can be exported: {why}",
                where=str(folder),
                do="mix the same experts at: layers (kinds ffn and lora merge exactly)",
            )
        return cls(folder, LayersConfig.from_pretrained(folder), tensors_of(folder))

    @property
    def blocks(self) -> list[str]:
        """Names of the feed-forward blocks."""
        return [n.removeprefix("model.").removesuffix(".gate.weight") for n in self.tensors if n.endswith(".gate.weight")]

    @property
    def dtype(self) -> torch.dtype:
        """Of the experts."""
        return next(t.dtype for n, t in self.tensors.items() if ".experts." in n)

    def gates(self) -> dict[str, Tensor]:
        """Rows of each block's gate."""
        return {block: self.tensors[f"model.{block}.gate.weight"].read() for block in self.blocks}


def model_type(folder: Path) -> str:
    """What a directory says that it holds.

    Raises:
        RequestError: nothing is there.
    """
    if not (folder / "config.json").is_file():
        raise no_model(folder)
    admit(folder)
    return json.loads((folder / "config.json").read_text()).get("model_type")


class Seating(NamedTuple):
    """What is written: the experts in order (repeats are copies), the gates' rows and how many are kept."""

    experts: list[int]
    gates: Mapping[str, Tensor]
    top_k: int


def expanded(seats: Sequence[int], gates: Mapping[str, Tensor], top_k: int | None) -> Seating:
    """One copy a slot: what the mixture does, in any format."""
    return Seating(list(seats), gates, min(top_k or len(seats), len(seats)))


def folded(seats: Sequence[int], gates: Mapping[str, Tensor], top_k: int | None) -> Seating:
    """One copy a distinct expert; the row of its gate is the mean of its slots'."""
    U, slots = max(seats) + 1, max(Counter(seats).values())
    where = torch.tensor(list(seats))
    rows = {n: torch.stack([gate_SH[where == u].mean(0) for u in range(U)]) for n, gate_SH in gates.items()}
    kept = len(seats) if top_k is None else top_k
    return Seating(list(range(U)), rows, min(-(-kept // slots), U))


def why_not(seats: Sequence[int], gates: Mapping[str, Tensor], top_k: int | None) -> str | None:
    """Why folding would change the function; None if it would not."""
    counts, where = Counter(seats), torch.tensor(list(seats))
    if len(counts) in (1, len(seats)):
        return None
    first_S = (where[:, None] == where).float().argmax(1)  # for each slot, the first one with the same expert
    if any(not bool((gate_SH == gate_SH[first_S]).all()) for gate_SH in gates.values()):
        return "slots of one expert have different rows in the gate"
    fewest, most = min(counts.values()), max(counts.values())
    if top_k is not None and top_k <= fewest:
        return None
    if fewest != most:
        return f"experts have different numbers of slots ({', '.join(str(counts[u]) for u in sorted(counts))})"
    if top_k is not None and top_k % most:
        return f"top_k {top_k} keeps a part of an expert's {most} slots"
    return None


def seating(mixture: ClosedMixture, expand: bool) -> Seating:
    """Which experts are written, in what order.

    Raises:
        RequestError: folding would change the function; says by how much, and how large the expanded one is.
    """
    seats = mixture.config.slot_to_expert
    given = (seats, mixture.gates(), mixture.config.gate["top_k"])
    if expand:
        return expanded(*given)
    reason = why_not(*given)
    if reason is None:
        return folded(*given)
    one = sum(t.bytes for n, t in mixture.tensors.items() if ".experts.0." in n)
    all_of_it = sum(t.bytes for t in mixture.tensors.values())
    size = all_of_it + one * (len(seats) - len(mixture.config.experts))
    raise RequestError(
        f"slots that share an expert cannot be folded exactly: {reason}",
        where=str(mixture.folder),
        found=f"log-probabilities up to {of_folding(mixture.folder, *folded(*given)):.3g} apart if they were",
        do=f"--expand writes {len(seats)} experts, {size / 1e9:,.2f} GB; --format coterie keeps "
        f"{len(mixture.config.experts)}",
    )


def require_plain_gates(mixture: ClosedMixture) -> None:
    if mixture.config.gate["bias"]:
        raise RequestError(
            "standard gates have no bias, and this mixture's have", where=str(mixture.folder), do="fit them with bias: false"
        )


ROWS, LENGTH = 4, 64


def probe(config: PretrainedConfig) -> Tensor:
    """Tokens to ask both about: random ones, the same for the same vocabulary. [B, T]"""
    text = config.get_text_config()
    T = min(LENGTH, text.max_position_embeddings)
    return torch.randint(0, text.vocab_size, (ROWS, T), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def log_probs(model: nn.Module, ids_BT: Tensor) -> Float[Tensor, "B T V"]:
    """In nats."""
    return model(input_ids=ids_BT, use_cache=False).logits.float().log_softmax(-1)


@dataclass(frozen=True)
class Apart:
    """Largest differences in log-probability."""

    written: float
    """Of what was written from the source with its values rounded in the same way: both in fp32."""
    rounding: float
    """Of the source with its values rounded from the source as it is: both in fp32. 0 where nothing is rounded."""


def compared(source: Path, written: Path, dtype: torch.dtype, gates: torch.dtype) -> Apart:
    """Two model directories, which must open strictly.

    Args:
        dtype: of the weights as written.
        gates: of the gates as written.
    """
    model = load_strictly(source, dtype=torch.float32)
    ids_BT = probe(model.config)
    before = log_probs(model, ids_BT)
    rounded = before
    if _round(model, dtype, gates):
        rounded = log_probs(model, ids_BT)
    del model
    after = log_probs(load_strictly(written, dtype=torch.float32), ids_BT)
    return Apart(float((after - rounded).abs().max()), float((rounded - before).abs().max()))


def _round(model: nn.Module, dtype: torch.dtype, gates: torch.dtype) -> bool:
    """Give all weights the values that they have once written; whether that changed any."""
    changed = False
    for name, parameter in model.named_parameters():
        value = parameter.data.to(gates if ".gate." in name else dtype).to(parameter.dtype)
        changed = changed or not torch.equal(value, parameter.data)
        parameter.data = value
    return changed


def of_folding(folder: Path, experts: list[int], gates: Mapping[str, Tensor], top_k: int) -> float:
    """Between a mixture and itself with its slots folded into these experts."""
    with quiet():
        model: Any = LayersMixture.from_pretrained(folder, dtype=torch.float32)
    ids_BT = probe(model.config)
    before = log_probs(model, ids_BT)
    for name, rows in gates.items():
        block = model.model.get_submodule(name)
        block.gate.weight = torch.nn.Parameter(rows)
        block.gate.top_k = top_k if top_k < len(rows) else None
        block.seats = experts
    return float((log_probs(model, ids_BT) - before).abs().max())
