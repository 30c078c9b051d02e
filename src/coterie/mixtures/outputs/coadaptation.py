"""Co-adaptation: at each step the router and one expert learn on documents of that expert's own slice.

The loss is the mixture's own, over the experts that may answer once the slice has ended; only the active expert has a
backward pass, the others are read without gradients. All parameters sit in one AdamW: those without a gradient in a step
are passed over, so each expert keeps optimizer state of its own. Which expert is active follows from the order of the rows,
which follows from (seed, step): ranks agree without a word, and that they did is checked after every step.

Shapes: B rows, T positions, U distinct experts, M counted tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from coterie.corpora.blocks import Blocks
from coterie.corpora.order import Order
from coterie.errors import RequestError, WorkError
from coterie.experts import expert_training as outcome
from coterie.experts import loop as loops
from coterie.experts import ranks
from coterie.experts.train_settings import Train
from coterie.experts.training import Job, prepared, seen, train_job
from coterie.experts.training_rows import Rows, require_fit
from coterie.mixtures.mixture_files import read_router, write_router
from coterie.mixtures.seats import Eligible, eligibility
from coterie.models import parameters
from coterie.models.initialise import copy_tokenizer
from coterie.models.logprob import target_logp
from coterie.models.open import open_model
from coterie.models.weight_precision import save_model, weight_precision
from coterie.routing.fit import Scored, objective
from coterie.routing.fit_settings import FitSettings
from coterie.routing.output_routers import OutputRouter
from coterie.routing.routers import RouterModule
from coterie.spec.json_types import Figures, Settings
from coterie.store import Artifact


class Together(nn.Module):
    """The router and all experts, of which one learns at a time.

    Args:
        eligible_UU: row u says which experts answer on documents of expert u's slice.
    """

    def __init__(
        self,
        experts: Sequence[nn.Module],
        router: RouterModule,
        eligible_UU: Tensor,
        log_count_U: Tensor,
        settings: FitSettings,
    ) -> None:
        super().__init__()
        self.experts, self.router, self.settings = nn.ModuleList(experts), router, settings
        self.eligible_UU, self.log_count_U = eligible_UU, log_count_U

    def forward(self, input_ids: Tensor, position_ids: Tensor, labels: Tensor, source: Tensor, **_: object) -> Tensor:
        """Sum over counted tokens of the mixture's nll and of the router's auxiliary terms."""
        active = int(source[0])
        assert bool((source == active).all()), "a batch of two slices"
        return self.loss(input_ids, position_ids, labels, active)

    def loss(self, ids_BT: Tensor, position_BT: Tensor, labels_BT: Tensor, active: int) -> Tensor:
        """The same; ``active`` is the expert that learns."""
        eligible_U = self.eligible_UU[active]
        logp_UBT1 = []
        for u, expert in enumerate(self.experts):
            expert.train(self.training and u == active)
            if not eligible_U[u]:
                logp_UBT1.append(torch.zeros(ids_BT.shape[0], ids_BT.shape[1] - 1, device=ids_BT.device))
                continue
            with torch.set_grad_enabled(torch.is_grad_enabled() and u == active):
                logp_UBT1.append(target_logp(expert, ids_BT, position_BT))
        eligible_B1U = eligible_U.to(ids_BT.device).expand(len(ids_BT), 1, -1)
        scored = Scored(ids_BT, position_BT, labels_BT != -100, torch.stack(logp_UBT1), eligible_B1U)
        with torch.autocast(ids_BT.device.type, enabled=False):  # weights over experts in fp32, as when they are used
            nll, aux = objective(self.router, scored, self.log_count_U.to(ids_BT.device), self.settings)
        return nll + aux


class Agreement(TrainerCallback):
    """On several ranks: after every step, the parameters that moved are the same on all."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: object) -> None:
        if args.world_size == 1:
            return
        model = given["model"]
        assert isinstance(model, nn.Module)
        sums = [p.detach().double().abs().sum() for p in model.parameters() if p.requires_grad]
        mine = torch.stack(sums)
        all_of = [torch.empty_like(mine) for _ in range(args.world_size)]
        torch.distributed.all_gather(all_of, mine)
        if any(not torch.equal(mine, theirs) for theirs in all_of):
            raise WorkError(
                "the ranks no longer hold the same weights",
                where=f"step {state.global_step}",
                kept="nothing of this run is published",
                do="report this: it is a fault of ours",
            )


def make(payload: Settings) -> Figures:
    """Train and write; see `coterie.mixtures.outputs.outputs_place`."""
    train = Train.model_validate({k: v for k, v in payload["train"].items() if k != "start"})
    with prepared(train.threads, payload["spec"]["seed"]) as threads:
        _run(payload, train)
    return {"threads": threads, "device": payload["where"], "processes": ranks.count()}


def _run(payload: Settings, train: Train) -> None:
    spec, label = payload["spec"], payload["label"]
    origins: list[Artifact] = payload["experts"]
    experts = [_opened(origin, payload["where"], name) for origin, name in zip(origins, payload["names"], strict=True)]
    recipe = OutputRouter.model_validate(spec["router"])
    router = recipe.build(len(experts), experts[0].config.vocab_size, spec["seed"])
    if payload["router"]:
        router.load_state_dict(read_router(payload["router"].path))
    router.to(payload["where"])
    log_count_U = torch.tensor(spec["counts"], dtype=torch.float32).log()
    model = Together(
        experts,
        router,
        own_eligible(spec["eligible"], payload["names"]),
        log_count_U,
        recipe.fitting or FitSettings(temperature=recipe.temperature),
    )
    before = parameters.fingerprints(model)
    sources, valid = ([Blocks.open(b) for b in payload[key]] for key in ("blocks", "valid"))
    for expert, *blocks in zip(experts, sources, valid, strict=True):
        for one in blocks:
            require_fit(expert, one)
    budget: dict[str, Any] = {"tokens": train.tokens} if train.tokens else {"epochs": train.epochs or 1.0}
    group = train.batch_size * train.accumulation
    order = Order([s.tokens_per_block for s in sources], None, spec["seed"], group=group, **budget)
    drawn = set(order.source.tolist())
    if missing := [name for u, name in enumerate(payload["names"]) if u not in drawn]:
        raise RequestError(
            "some experts would never learn",
            where="adapt.tokens",
            found=", ".join(missing),
            expected="a step for each expert at least",
            do="raise adapt.tokens, or lower adapt.batch_size",
        )

    held_out = partial(_held_out, model, valid)
    start = held_out()
    loop = train_job(
        Job(
            home=Path(payload["home"]),
            output=Path(payload["output"] if train.report_to else payload["home"]),
            model=model,
            rows=Rows(sources, order, mask=False, named=True),
            train=train,
            where=payload["where"],
            precision=payload["precision"],
            seed=spec["seed"],
            label=label,
            sparse=True,
            callbacks=[Agreement()],
            loss=lambda model, batch, count: model(**batch) / count,
            held_out=held_out,
        )
    )
    outcome.check_moved(loop, before)
    if ranks.first():
        _write(Path(payload["folder"]), payload, model, origins, loop, order, (start, held_out()))


def own_eligible(eligible: Eligible, names: Sequence[str]) -> Tensor:
    """Which experts answer on the slice of each: those that may once its own knowledge is complete (`strict`), or on the
    last day of its window (`inclusive`). [U, U] bool; every expert answers on its own slice."""
    rule, dates = eligibility(eligible["rule"], names, eligible["dates"]), eligible["dates"]
    key, early = {"all": (None, 0), "strict": ("knowledge", 0), "inclusive": ("end", 1)}[rule.rule]
    return rule.mask([date.fromisoformat(str(d[key])).toordinal() - early if key else 0 for d in dates])


def _opened(origin: Artifact, where: str, name: str) -> Any:
    """An expert's copy with what its kind trains set trainable."""
    if "adapter_config.json" in origin.files:
        raise RequestError(
            "co-adaptation trains whole models",
            where=name,
            found="a LoRA adapter",
            do="use kind full or ffn, or train adapters jointly (at: adapters, joint)",
        )
    model: Any = open_model(origin, device=where, trainable=True)
    if (origin.facts if "facts.json" in origin.files else {}).get("kind") == "ffn":
        parameters.train_only_feed_forward(model)
    else:
        model.requires_grad_(True)
    return model


@torch.no_grad()
def _held_out(model: Together, valid: Sequence[Blocks]) -> float:
    """Nats a token of the mixture on each slice's held-out documents, all slices together; no auxiliary terms."""
    training, settings = model.training, model.settings
    model.eval()
    model.settings = FitSettings(temperature=settings.temperature)
    total, count = 0.0, 0
    where = next(model.parameters()).device
    for u, blocks in enumerate(valid):
        for begin in range(0, len(blocks), 16):
            rows = slice(begin, begin + 16)
            ids, position, target = (
                torch.from_numpy(a[rows].astype("int64")).to(where) for a in (blocks.ids, blocks.position, blocks.target)
            )
            labels = ids.masked_fill(target == 0, -100)
            total += float(model.loss(ids, position, labels, u))
            count += int((labels[:, 1:] != -100).sum())
    model.train(training)
    model.settings = settings
    return total / max(count, 1)


def _write(
    folder: Path,
    payload: Settings,
    model: Together,
    origins: Sequence[Artifact],
    loop: loops.Loop,
    order: Order,
    losses: tuple[float, float],
) -> None:
    """Each expert as a stock library opens it, the router, the log and the figures."""
    tokens = seen(loop)
    for u, (expert, origin) in enumerate(zip(model.experts, origins, strict=True)):
        place = folder / "experts" / str(u)
        expert.config.use_cache = True  # type: ignore[union-attr]
        save_model(cast(PreTrainedModel, expert), place, weight_precision(origin.path))
        copy_tokenizer(origin.path, place)
        known = origin.facts if "facts.json" in origin.files else {}
        mine = loop.train_dataset.tokens_N[order.source == u]  # type: ignore[union-attr]
        facts = {"kind": known.get("kind", "full"), "tokens": int(mine.sum()), "start": origin.digest, "loss": None}
        facts |= {"parameters": parameters.count(expert), "trained_parameters": parameters.count(expert, trained=True)}
        (place / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    home = folder / "router"
    home.mkdir()
    write_router(model.router.state_dict(), home)
    record = {key: payload["spec"][key] for key in ("router", "counts")} | {"experts": len(origins)}
    (home / "router.json").write_text(json.dumps(record, indent=1, sort_keys=True))
    facts = {"tokens": int(tokens[-1]), "steps": len(tokens), "start_loss": losses[0], "loss": losses[1]}
    (folder / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    lines = outcome.log(loop, tokens)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
