"""Gates without training: from the adapters themselves (arrow) or in closed form from running sums (ridge); and the files
of a mixture of finished experts.

The features of ridge are what a gate reads while each text is answered by its own expert: they do not depend on the other
experts, so the sums of one expert stay true whoever joins; and where the gate is right they are just what it will read.

Shapes: B rows, T positions, N tokens, H inputs of a gate, U experts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from coterie.corpora.blocks import Blocks
from coterie.mixtures.adapters.adapter_gates import WHOLE
from coterie.mixtures.adapters.adapter_routers import (
    AdapterGate,
    ClosedFormGate,
    FromAdaptersGate,
    Uniform,
    mixture_settings,
)
from coterie.mixtures.adapters.adapters_files import AdaptersConfig, Counts
from coterie.mixtures.adapters.adapters_mixture import AdaptersMixture
from coterie.mixtures.mixture_files import Opening, write_configuration, write_router
from coterie.mixtures.score_files import batches, write_gated
from coterie.mixtures.seats import Seat
from coterie.models import packed_inputs as packing
from coterie.models.device import Precision
from coterie.models.weight_precision import torch_dtype
from coterie.progress import say
from coterie.routing.gates import Ridge
from coterie.routing.scan import decayed_sum
from coterie.spec.json_types import Settings
from coterie.store import Artifact


def opened(
    folder: Path,
    seats: Sequence[Seat],
    base: Artifact,
    where: str = "cpu",
    config: AdaptersConfig | None = None,
    precision: Precision = "fp32",
) -> AdaptersMixture:
    """A mixture whose parts lie in the store; ``folder`` holds the rest of it."""
    parts = {"base": base.path} | {f"experts/{seat.name}": seat.artifact.path for seat in seats}
    return AdaptersMixture.from_parts(folder, config, Opening(torch_dtype(precision), where), parts)


def write_scores(
    mixture: Artifact,
    seats: Sequence[Seat],
    base: Artifact,
    blocks: Artifact,
    folder: Path,
    where: str,
    precision: Precision,
    label: str,
) -> None:
    """See `coterie.mixtures.score_files`."""
    model = opened(mixture.path, seats, base, where, precision=precision)
    write_gated(model, blocks, folder, torch.float64, where, label, named=True)


def write_mixture(
    settings: Settings,
    seats: Sequence[Seat],
    base: Artifact,
    folder: Path,
    *,
    router: Artifact | None,
    tokenizer: Artifact,
    label: str,
) -> None:
    """All of a mixture but its base and experts."""
    config = AdaptersConfig.on_base(settings, base.path)
    write_configuration(config, tokenizer.path, folder)
    if router is not None:
        shutil.copyfile(router.file("router.safetensors"), folder / "router.safetensors")
    elif isinstance(gate := AdapterGate.model_validate(config.router), FromAdaptersGate):
        equal = {**config.router, "kind": "uniform", "top_k": None, "top_p": None}
        plain = AdaptersConfig(**{**config.to_dict(), "router": equal})
        write_router(rows_of(gate, opened(folder, seats, base, config=plain)), folder)
    counts = opened(folder, seats, base).counts()
    say_counts(label, counts)
    (folder / "facts.json").write_text(json.dumps({"parameters": counts}, indent=1, sort_keys=True) + "\n")


def say_counts(label: str, counts: Counts) -> None:
    """Parameters by part, for people."""
    experts = sum(counts["experts"].values())
    total = experts + counts["router"] + counts["base"]
    largest = max(counts["experts"].values())
    each = ", ".join(f"{name} {n:,}" for name, n in counts["experts"].items())
    say(
        f"  {label}: experts {experts:,} ({each}), router {counts['router']:,}, frozen base {counts['base']:,}; "
        f"trainable share {(experts + counts['router']) / total:.2%}; "
        f"an expert of {largest:,} takes {4 * largest / 1e6:.2f} MB, {16 * largest / 1e6:.2f} MB while it trains"
    )


def rows_of(gate: FromAdaptersGate, model: AdaptersMixture) -> dict[str, Tensor]:
    """Rows [U, H] of each gate, from the adapters of the linears that read what the gate reads."""
    adapters = list(model.adapters().values())
    rows = {}
    for name, i in model.layout.hosted.items():
        inlet = model.layout.inlets[i]
        mine = [[(a[linear].A_RI, a[linear].B_OR) for linear in inlet.linears if linear in a] for a in adapters]
        none_H = torch.zeros(inlet.like_I.shape[1])
        rows[name] = torch.stack([gate.row(factors) if factors else none_H for factors in mine])
    return rows


@contextmanager
def gate_inputs(model: AdaptersMixture) -> Iterator[dict[str, Tensor]]:
    """Inside, what each gate reads in the last pass [B, T, H], by name."""
    read: dict[str, Tensor] = {}
    if model.config.router["scope"] == WHOLE:
        embedding = model.get_input_embeddings()
        hooks = [embedding.register_forward_hook(lambda _, args, out: read.__setitem__(WHOLE, out))]
    else:
        hosts = {gate: model.layout.inlets[i].linears[0] for gate, i in model.layout.hosted.items()}
        hooks = [
            model.base.get_submodule(host).register_forward_pre_hook(lambda _, x, gate=gate: read.__setitem__(gate, x[0]))
            for gate, host in hosts.items()
        ]
    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def write_sums(
    gate: AdapterGate,
    seats: Sequence[Seat],
    number: int,
    base: Artifact,
    blocks: Artifact,
    where: str,
    precision: Precision,
    folder: Path,
) -> None:
    """Sums of products and of features, with the constant 1, of what each gate reads of the text of expert ``number``."""
    equal = Uniform().settings | {"scope": gate.scope}
    settings = mixture_settings({s.name: None for s in seats}, ((s.name, u) for u, s in enumerate(seats)), equal)
    model = opened(folder, seats, base, where, AdaptersConfig.on_base(settings, base.path), precision)
    source = Blocks.open(blocks)
    sums: dict[str, Ridge] = {}
    with model.only(seats[number].name), gate_inputs(model) as read:
        for rows, ids_BT, position_BT in batches(source, where, "gates"):
            model.base(**packing.inputs(model.base, ids_BT, position_BT), logits_to_keep=1)
            there_BT = torch.from_numpy(source.document[rows] >= 0)
            for name, x_BTH in read.items():
                x_BTH = x_BTH.double()
                if gate.reads == "prefix":
                    x_BTH = decayed_sum(x_BTH, position_BT) / (position_BT + 1)[..., None]
                x_NH = x_BTH.cpu()[there_BT]
                sums.setdefault(name, Ridge(x_NH.shape[-1], 1)).add(x_NH, torch.zeros(len(x_NH), dtype=torch.long))
    tensors = {f"{name}/gram": ridge.gram_HH for name, ridge in sums.items()}
    tensors |= {f"{name}/moment": ridge.moment_HU[:, 0].contiguous() for name, ridge in sums.items()}
    save_file(tensors, folder / "sums.safetensors")


def write_closed_form(sums: Sequence[Artifact], gate: ClosedFormGate, folder: Path) -> None:
    """Merge the experts' sums, each in equal parts however long its text, and solve for every gate."""
    parts = [load_file(s.file("sums.safetensors")) for s in sums]
    rows = {}
    for name in dict.fromkeys(key.removesuffix("/gram") for key in parts[0] if key.endswith("/gram")):
        gram_HH = parts[0][f"{name}/gram"]
        ridge = Ridge(len(gram_HH) - 1, len(parts))
        for u, part in enumerate(parts):
            tokens = part[f"{name}/moment"][-1]
            ridge.gram_HH += part[f"{name}/gram"] / tokens
            ridge.moment_HU[:, u] = part[f"{name}/moment"] / tokens
        rows[name] = gate.solve(ridge)
    write_router(rows, folder)
