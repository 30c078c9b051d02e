"""Training of a merged model: its gates, its experts too, or all of it; and gates that learn to tell corpora apart.

Shapes: B rows, T positions, S slots, U distinct experts, M counted tokens.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coterie.corpora.blocks import Blocks
from coterie.corpora.order import Order
from coterie.experts import expert_training as outcome
from coterie.experts.training import Job, prepared, seen, train_job
from coterie.experts.training_rows import Batch, Rows, require_fit
from coterie.mixtures.layers import layer_gate_fits as fitting
from coterie.mixtures.layers import layers_files as files
from coterie.mixtures.layers.layers_mixture import LayersMixture
from coterie.mixtures.layers.layers_settings import MergedModel, Tuning
from coterie.mixtures.layers.tensor_shards import SHARD, like, stored, write
from coterie.models import device, parameters
from coterie.models.packed_inputs import needs_mask
from coterie.routing.gates import Gated, auxiliary, by_expert
from coterie.spec.json_types import Figures


def make(merged: MergedModel, request: Tuning, where: str, precision: device.Precision, home: Path, folder: Path) -> Figures:
    """Train, check, write; returns what the record says of the making.

    Args:
        home: where checkpoints go.
    """
    with prepared(request.train.threads, request.seed) as threads:
        _run(merged, request, where, precision, home, folder)
    return {"threads": threads, "device": where}


def _run(merged: MergedModel, request: Tuning, where: str, precision: device.Precision, home: Path, folder: Path) -> None:
    model = files.opened(merged, where)
    freeze(model, request.what)
    if request.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    before = parameters.fingerprints(model)
    sources = [Blocks.open(blocks) for blocks in request.blocks]
    for blocks in sources:
        require_fit(model, blocks)
    order = Order([s.tokens_per_block for s in sources], request.weights, request.seed, tokens=request.train.tokens)
    loss = ByLabel(model, request.losses) if request.by_label else ByText(model, request.losses)
    loop = train_job(
        Job(
            home=home,
            output=home,
            model=model,
            rows=Rows(sources, order, mask=needs_mask(model.model), named=request.by_label),
            train=request.train,
            where=where,
            precision=precision,
            seed=request.seed,
            label=request.label,
            loss=loss,
        )
    )
    outcome.check_moved(loop, before)
    tokens = seen(loop)
    lines = outcome.log(loop, tokens)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = {
        "what": request.what,
        "tokens": int(tokens[loop.state.global_step - 1]),
        "steps": loop.state.global_step,
        "loss": next((line["loss"] for line in reversed(lines) if "loss" in line), None),
        "trained_parameters": parameters.count(model, trained=True),
    }
    (folder / "facts.json").write_text(json.dumps(figures, sort_keys=True) + "\n")
    files.write_gates(fitting.gates(model), folder)
    if request.what != "gate":
        tensors = {n: p.detach().cpu() for n, p in model.named_parameters() if ".gate." not in n}
        written = stored(sorted(merged.experts.path.glob("model*.safetensors")))
        write(folder, [like(t, n, written[n].dtype) for n, t in tensors.items()], SHARD)


def freeze(model: LayersMixture, what: str) -> None:
    """Set trainable what moves, and nothing else."""
    for name, parameter in model.named_parameters():
        moves = {"gate": ".gate." in name, "gate+experts": ".gate." in name or ".experts." in name, "all": True}
        parameter.requires_grad_(moves[what])


class ByText:
    """The language-model loss of a batch, and the gates' auxiliary losses over the tokens that predict a counted one."""

    def __init__(self, model: LayersMixture, losses: dict[str, float]) -> None:
        self.losses, self.U = losses, len(model.names)

    def __call__(self, model: nn.Module, batch: Batch, count: Tensor) -> Tensor:
        assert isinstance(model, LayersMixture)
        given = {k: batch[k] for k in ("input_ids", "position_ids", "attention_mask") if k in batch}
        with model.traced() as trace:
            logits_BT1V = model(**given, use_cache=False).logits[:, :-1]
            gates = [Gated(*(part[:, :-1] for part in gated)) for gated in trace().values()]
        target_BT1 = batch["labels"][:, 1:]
        counted_BT1 = target_BT1 != -100
        slots_S = torch.tensor(model.config.slot_to_expert, device=counted_BT1.device)
        extra = auxiliary(gates, slots_S, self.U, counted_BT1, **self.losses)
        return self._sum(logits_BT1V, gates, slots_S, batch, counted_BT1) / count + extra * counted_BT1.sum() / count

    def _sum(self, logits_BT1V: Tensor, gates: list[Gated], slots_S: Tensor, batch: Batch, counted_BT1: Tensor) -> Tensor:
        """Over counted tokens, in nats."""
        return F.cross_entropy(logits_BT1V[counted_BT1].float(), batch["labels"][:, 1:][counted_BT1], reduction="sum")


class ByLabel(ByText):
    """Cross-entropy of every gate's softmax over distinct experts against the source of the text, mean over gates."""

    def _sum(self, logits_BT1V: Tensor, gates: list[Gated], slots_S: Tensor, batch: Batch, counted_BT1: Tensor) -> Tensor:
        label_M = batch["source"][:, None].expand_as(counted_BT1)[counted_BT1]
        total = torch.zeros((), device=label_M.device)
        for gated in gates:
            share_MU = by_expert(gated.logits_NS[counted_BT1].float().softmax(-1), slots_S, self.U)
            total = total + F.nll_loss(share_MU.clamp_min(1e-30).log(), label_M, reduction="sum")
        return total / len(gates)
