"""Which tensors there are: experts and gates on a base, laid out for who runs, who trains and who rests.

What an expert is does not change with the layout: `Layout.adapters` and `Layout.gates` give the same tensors before and
after.

Shapes: U distinct experts, H inputs of a gate, G gates' rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coterie.errors import RequestError
from coterie.mixtures.adapters.adapter_gates import WHOLE, Gates
from coterie.mixtures.adapters.adapter_routers import AdapterGate
from coterie.models import lora_files as files
from coterie.models.lora_files import Adapter
from coterie.models.stack import Inlet, Stacked
from coterie.models.stack_blocks import Weights

_LAYER = re.compile(r"(.*?\.\d+)\.")


class Layout:
    """Stacked linears in a base, and the canonical tensors behind them.

    Args:
        base: its linears are replaced in place.
        router: the mixture's, whoever it is at the time.
        settings: its ``kind`` and ``scope``.
        rows: of each gate [U, H], by name; None: zeros.
    """

    def __init__(
        self,
        base: Any,
        settings: Mapping[str, Any],
        router: Callable[[], Gates],
        adapters: Sequence[Adapter],
        rows: Mapping[str, Tensor] | None,
        dropout: float,
    ) -> None:
        self.base, self.router, self.settings = base, router, settings
        self.places = files.linears(base)
        named = [name for name in self.places if any(name in a for a in adapters)]
        if not named:
            raise RequestError(
                "no expert updates a linear of this base",
                where="experts",
                expected="LoRA on linear layers",
                found=f"{len(self.places)} linears",
            )
        self._adapters: dict[int, Adapter] = dict(enumerate(adapters))
        self._running: list[int] = []
        self.inlets: list[Inlet] = []
        self.hosted: dict[str, int] = {}
        """The inlet that each gate reads, by the gate's name."""
        self._install(_reads(base, named), dropout)
        if rows is not None:
            _check_gates(self.sizes, rows, len(adapters))
        zeros = {name: torch.zeros(len(adapters), size) for name, size in self.sizes.items()}
        self._rows = {name: rows[name].detach().float().clone() for name in zeros} if rows is not None else zeros

    def _install(self, groups: list[list[str]], dropout: float) -> None:
        """Put the stacked linears where the linears stand; the first inlet of a layer hosts its gate."""
        scope = self.settings["scope"]
        if scope == "linear":
            groups = [[name] for group in groups for name in group]
        for group in groups:
            gate = {WHOLE: WHOLE, "linear": group[0], "layer": _layer(group[0])}[scope]
            if scope != WHOLE:
                self.hosted.setdefault(gate, len(self.inlets))
            first = self.base.get_submodule(group[0])
            like_I = first.weight.new_zeros(1, self.places[group[0]][0])
            inlet = Inlet(group, [self.places[name][1] for name in group], like_I, self._asks(gate), dropout)
            self.inlets.append(inlet)
            for number, name in enumerate(group):
                parent, _, leaf = name.rpartition(".")
                stacked = Stacked(name, self.base.get_submodule(name), inlet, owns=number == 0)
                setattr(self.base.get_submodule(parent), leaf, stacked)

    def _asks(self, gate: str) -> Callable[[Tensor | None, torch.Size], Weights]:
        return lambda logits, shape: self.router().weights_of(gate, logits, shape)

    @property
    def sizes(self) -> dict[str, int]:
        """What each gate reads: its name and how many inputs; nothing for `uniform`."""
        if not AdapterGate.named(self.settings["kind"]).has_rows:
            return {}
        if self.settings["scope"] == WHOLE:
            return {WHOLE: self.base.get_input_embeddings().weight.shape[1]}
        return {gate: self.inlets[i].like_I.shape[1] for gate, i in self.hosted.items()}

    def compose(self, running: list[int], moving: Collection[int], gates_move: bool, router: Gates) -> None:
        """Lay out all tensors.

        Args:
            running: experts that may be used, by number.
            moving: those of them that train.
            router: takes the rows of the gate of the whole model.
        """
        self._adapters, self._rows = self.adapters(), self.gates()
        moves = [p for p, u in enumerate(running) if u in moving]
        rests = [p for p, u in enumerate(running) if u not in moving]
        groups = [(p, [self._adapters[running[i]] for i in p], trains) for p, trains in ((moves, True), (rests, False)) if p]
        hosts = {i: gate for gate, i in self.hosted.items() if gate in self._rows}
        for i, inlet in enumerate(self.inlets):
            inlet.compose(groups, self._rows[hosts[i]][running] if i in hosts else None, gates_move, router.top_k)
        if WHOLE in self._rows:
            like = self.inlets[0].like_I
            router.rows_UH = nn.Parameter(self._rows[WHOLE][running].to(like), requires_grad=gates_move)
        self._running = list(running)
        self._adapters = {u: {} if u in running else a for u, a in self._adapters.items()}  # what runs is held once

    def adapters(self) -> dict[int, Adapter]:
        """Every expert's factors as they are now, by number; of experts that run, views."""
        found = dict(self._adapters)
        for position, u in enumerate(self._running):
            blocks = [b for inlet in self.inlets for b in inlet.blocks if position in b.members]
            mine: Adapter = {name: f for b in blocks for name, f in b.of(position).items()}
            found[u] = {name: mine[name] for name in self.places if name in mine}
        return found

    def gates(self) -> dict[str, Tensor]:
        """Rows [U, H] of every gate as they are now, by name."""
        found = dict(self._rows)
        for name in found if self._running else ():
            rows_UH = self.router().rows_UH if name == WHOLE else self.inlets[self.hosted[name]].rows_GI
            assert rows_UH is not None
            found[name] = found[name].clone()
            found[name][self._running] = rows_UH.detach().float().cpu()
        return found

    def set_gates(self, rows: Mapping[str, Tensor]) -> None:
        """Replace the rows of every gate; takes effect when composed."""
        _check_gates(self.sizes, rows, len(self._adapters))
        self._adapters, self._running = self.adapters(), []
        self._rows = {name: rows[name].detach().float().cpu().clone() for name in self.sizes}

    def add(self, adapter: Adapter) -> None:
        """One expert more, whose gates' rows are zero."""
        self._rows = {name: torch.cat([r, r.new_zeros(1, r.shape[1])]) for name, r in self.gates().items()}
        self._adapters[len(self._adapters)] = dict(adapter)


def _check_gates(sizes: Mapping[str, int], found: Mapping[str, Tensor], experts: int) -> None:
    expected = {name: (experts, size) for name, size in sizes.items()}
    shapes = {name: tuple(rows.shape) for name, rows in found.items()}
    if shapes != expected:
        odd = next(n for n in [*expected, *shapes] if expected.get(n) != shapes.get(n))
        raise RequestError(
            "the gates are not those of this mixture",
            where=f"gate {odd}",
            expected=str(expected.get(odd, "nothing")),
            found=str(shapes.get(odd, "nothing")),
        )
    if bad := next((name for name, rows in found.items() if not torch.isfinite(rows).all()), None):
        raise RequestError("a gate is not finite", where=f"gate {bad}", found="NaN or infinity")


def _layer(name: str) -> str:
    """The layer a linear belongs to: its name up to the first number; outside all layers, itself."""
    found = _LAYER.match(name)
    return found[1] if found else name


@torch.no_grad()
def _reads(base: Any, names: Sequence[str]) -> list[list[str]]:
    """The linears in the order in which the model calls them, those that are given one and the same input together.

    Measured on two tokens, so that no list of architectures has to be kept.
    """
    calls: list[tuple[str, Tensor]] = []
    hooks = [
        base.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: calls.append((name, args[0])))
        for name in names
    ]
    training = base.training
    base.eval()
    base(input_ids=torch.zeros(1, 2, dtype=torch.long, device=base.device), use_cache=False)
    base.train(training)
    for hook in hooks:
        hook.remove()
    called = [name for name, _ in calls]
    if odd := next((name for name in names if called.count(name) != 1), None):
        raise RequestError(
            "a linear with an update is not called once for each token",
            where=odd,
            found=f"{called.count(odd)} calls",
            do="leave it out of lora.targets",
        )
    groups: list[tuple[Tensor, list[str]]] = []
    for name, x in calls:
        if groups and groups[-1][0] is x:
            groups[-1][1].append(name)
        else:
            groups.append((x, [name]))
    return [group for _, group in groups]
