"""Co-adaptation: the router and the expert of the document's own slice learn, everything else stays as it is, bit by bit."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.experts.making import LENGTH, VOCABULARY, blocks, tokenizer
from tests.invariants.test_resume import after_step, killed
from tests.routing.cases import RECIPES, name

from coterie.corpora.windows import Window
from coterie.errors import RequestError
from coterie.experts.training_rows import batch
from coterie.mixtures.load import load
from coterie.mixtures.outputs import coadaptation
from coterie.mixtures.outputs.coadaptation import Together, own_eligible
from coterie.mixtures.outputs.outputs_place import OutputsPlace, adapted, coadapt
from coterie.mixtures.seats import Seat
from coterie.models import parameters
from coterie.models.checkpoint import contents
from coterie.models.initialise import initialise
from coterie.models.open import open_model
from coterie.models.packed_inputs import inputs
from coterie.recipe.base import FreshBase
from coterie.routing.fit_settings import FitSettings
from coterie.store import Artifact, Store

torch.set_num_threads(1)
YEARS = (2013, 2015, 2017)
LINEAR = {"kind": "linear", "features": ["tokens", "posterior"]}
ADAPT = {"start": "learned", "tokens": 1200, "batch_size": 2, "learning_rate": 3e-3, "precision": "fp32", "log_every": 1}


def members(store: Store, repeats: int = 1) -> list[Seat]:
    """Three experts of two years each, all of them different."""
    made = []
    for i, year in enumerate(YEARS):
        size = {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 24, "context": 64}
        model = initialise(store, FreshBase(**size), tokenizer(store), seed=i, sequence_length=LENGTH)
        window = Window(start=date(year, 1, 1), end=date(year + 2, 1, 1))
        made.append(Seat(f"y{year}", model, (f"y{year}",) * repeats, None, window, window.end))
    return made


def mixture(router: Any = LINEAR, eligible: str = "strict", repeats: int = 1, **adapt: Any) -> OutputsPlace:
    slots = [f"y{year}" for year in YEARS for _ in range(repeats)]
    given = {"name": "coadapted", "at": "outputs", "slots": slots, "router": router, "eligible": eligible}
    return OutputsPlace.model_validate(given | {"adapt": ADAPT | adapt})


def run(store: Store, spec: OutputsPlace | None = None, repeats: int = 1) -> Artifact:
    spec = spec or mixture()
    train, valid = ([blocks(store, n, seed=begin + i) for i in range(3)] for n, begin in ((8, 0), (3, 10)))
    return coadapt(store, spec, members(store, repeats), None, train, valid, 7)


def together(store: Store, router: Any = LINEAR, **settings: float) -> Together:
    spec = OutputsPlace.model_validate({"name": "m", "at": "outputs", "slots": ["a"], "router": router})
    experts = [open_model(m.artifact, trainable=True).requires_grad_(True) for m in members(store)]
    made = spec.router.build(3, VOCABULARY, seed=1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return Together(
        experts, made, torch.ones(3, 3).tril().bool(), torch.tensor([1.0, 2.0, 1.0]).log(), FitSettings(**settings)
    )


def drawn(store: Store, seed: int = 0) -> dict[str, torch.Tensor]:
    held = load_file(blocks(store, 6, seed=seed).file("blocks.safetensors"))
    return batch(*(held[name].numpy() for name in ("ids", "position", "target")), mask=False)


@pytest.mark.parametrize("router", [router.model_dump(mode="json") for router in RECIPES], ids=map(name, RECIPES))
@pytest.mark.parametrize("active", [0, 1, 2])
def test_the_loss_is_the_mixtures_over_the_experts_that_may_answer(tmp_path, router, active):
    store = Store(tmp_path)
    torch.manual_seed(active)
    model, given = together(store, router), drawn(store, seed=active)
    ids, position, labels = (given[name] for name in ("input_ids", "position_ids", "labels"))
    with torch.no_grad():
        logp_UBTV = torch.stack([e(**inputs(e, ids, position)).logits.double().log_softmax(-1) for e in model.experts])
        seen_UBT = logp_UBTV[:, :, :-1].gather(-1, ids[None, :, 1:, None].expand(3, -1, -1, 1))[..., 0]
        seen_UBT = seen_UBT.masked_fill(position[:, 1:] == 0, 0.0)
        evidence_BTU = torch.nn.functional.pad(seen_UBT, (1, 0)).movedim(0, -1).float()
        eligible = torch.arange(3) <= active
        logits_BTU, _ = model.router(ids, position, eligible.expand(len(ids), 1, 3), evidence_BTU)
        total = 0.0
        for b in range(len(ids)):
            for t in range(1, ids.shape[1]):
                if labels[b, t] == -100:
                    continue
                raw = (logits_BTU[b, t - 1] + model.log_count_U).double().exp() * eligible
                total -= float((raw / raw.sum() * seen_UBT[:, b, t - 1].exp()).sum().log())
    with torch.no_grad():
        ours = float(model(**given, source=torch.full((len(ids),), active)))
    assert ours == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("active", [0, 1, 2])
def test_one_backward_and_a_forward_for_each_expert_that_may_answer(tmp_path, active, monkeypatch):
    model, given = together(Store(tmp_path)), drawn(Store(tmp_path))
    model(**given, source=torch.full((6,), active))  # heads and masks are measured once, on a few tokens
    forward, backward = [], []
    for u, expert in enumerate(model.experts):
        expert.model.register_forward_hook(lambda *_, u=u: forward.append(u))
        expert.model.layers[0].register_full_backward_hook(lambda *_, u=u: backward.append(u))
    model(**given, source=torch.full((6,), active)).backward()
    assert forward == list(range(active + 1))
    assert backward == [active]
    for u, expert in enumerate(model.experts):
        assert all((p.grad is not None and bool(p.grad.any())) == (u == active) for p in expert.parameters())
    # Of one expert there is nothing to choose.
    assert all(p.grad is not None and bool(p.grad.any()) == (active > 0) for p in model.router.parameters())


def test_every_step_moves_the_router_and_one_expert(tmp_path, monkeypatch):
    trace: list[tuple[int, dict[str, str], dict[str, float]]] = []

    class Spy(coadaptation.Agreement):
        def on_step_end(self, args, state, control, model=None, optimizer=None, **rest):
            steps = {n: float(optimizer.state[p]["step"]) for n, p in model.named_parameters() if optimizer.state.get(p)}
            trace.append((state.global_step, parameters.fingerprints(model), steps))

    monkeypatch.setattr(coadaptation, "Agreement", Spy)
    store = Store(tmp_path)
    made = run(store)
    before, seen = None, dict.fromkeys(range(3), 0)
    for step, now, counts in trace:
        if before is not None:
            moved = {
                name.split(".")[1] if name.startswith("experts.") else "router" for name in now if now[name] != before[name]
            }
            active = (moved - {"router"}).pop()
            assert moved == {"router", active}
            seen[int(active)] += 1
            # A state of its own: an expert's optimizer counts the steps in which that expert learned, and no others.
            mine = {value for name, value in counts.items() if name.startswith(f"experts.{active}.")}
            assert len(mine) == 1
            assert mine.pop() <= step
        before = now
    assert min(seen.values()) >= 3
    assert made.facts["loss"] < made.facts["start_loss"]
    for member, other in zip(members(store), adapted(made, members(store)), strict=True):
        assert contents(member.artifact) != contents(other.artifact)


@pytest.mark.slow
def test_two_ranks_adapt_as_one(tmp_path):
    one = run(Store(tmp_path / "one"), mixture(batch_size=4))
    two = run(Store(tmp_path / "two"), mixture(batch_size=4, parallel="ddp", processes=2))
    assert two.made["processes"] == 2
    names = [f"experts/{u}/model.safetensors" for u in range(3)] + ["router/router.safetensors"]
    for file in names:
        a, b = load_file(one.file(file)), load_file(two.file(file))
        assert max((a[key] - b[key]).abs().max() for key in a) <= 1e-5
    assert (
        one.files["experts/0/model.safetensors"] != members(Store(tmp_path / "one"))[0].artifact.files["model.safetensors"]
    )


def test_a_killed_run_resumes_bit_by_bit(tmp_path):
    straight = run(Store(tmp_path / "straight"), mixture(save_every=200))
    store = Store(tmp_path / "killed")
    killed(lambda: run(store, mixture(save_every=200)), after_step(20))
    assert list((tmp_path / "killed" / "work").glob("*/checkpoint-*"))
    assert run(store, mixture(save_every=200)).digest == straight.digest


def test_who_answers_on_each_slice():
    def table(rule: str) -> list[list[bool]]:
        dates = [{"start": f"{y}-01-01", "end": f"{y + 2}-01-01", "knowledge": f"{y + 2}-01-01"} for y in YEARS]
        return own_eligible({"rule": {"rule": rule}, "dates": dates}, [str(y) for y in YEARS]).tolist()

    lower = [[True, False, False], [True, True, False], [True, True, True]]
    assert table("strict") == lower
    assert table("inclusive") == lower
    assert table("all") == [[True] * 3] * 3


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(RequestError, match="never learn"):
        run(Store(tmp_path), mixture(tokens=20))
    with pytest.raises(ValueError, match="start"):
        OutputsPlace.model_validate({"name": "m", "at": "outputs", "slots": ["a"], "adapt": {"tokens": 10}})


def test_in_a_recipe(tmp_path: Path):
    from tests.run.small import BASE, WORDS, write_corpus

    import coterie

    path = write_corpus(tmp_path / "dated.jsonl", WORDS["fruit"], 240, 0, dated=True)
    adapting = {"start": "learned", "tokens": 2500, "learning_rate": 0.01, "precision": "fp32"}
    common = {"at": "outputs", "slots": ["y*"], "eligible": "strict"}
    windows = {"start": "2013-01-01", "end": "2025-01-01", "every": "4y"}
    dated = {"path": str(path), "text": "text", "id": "id", "time": "date", "split": {"valid": 0.15, "test": 0.2}}
    asked: dict[str, Any] = {
        "name": "time",
        "sequence_length": 32,
        "base": BASE,
        "corpora": {"dated": dated},
        "train": {"tokens": 1000, "learning_rate": 0.01, "precision": "fp32"},
        "experts": [{"name": "y{start}", "corpus": "dated", "windows": windows}],
        "mixtures": [
            {"name": "learned", **common, "router": {"kind": "linear", "epochs": 2}},
            {"name": "coadapted", **common, "router": "linear", "adapt": adapting},
        ],
        "evaluation": [{"name": "losses", "corpora": ["dated"], "bootstrap": 20}],
    }
    done = coterie.run(asked, store=tmp_path / "store", out=tmp_path / "out")
    plain, ours = ([s["expert"] for s in done.summary["slots"][name]] for name in ("learned", "coadapted"))
    assert not set(plain) & set(ours)
    table = done.summary["evaluation"]["losses"]
    live = load(tmp_path / "out" / "mixtures" / "coadapted")
    ids = torch.tensor([live.tokenizer("apple pear plum")["input_ids"]])
    assert not torch.equal(live.nll(ids, time="2024-01-01"), done.mixtures["learned"].nll(ids, time="2024-01-01"))
    assert table["coadapted"]["all"]["nll"] != table["learned"]["all"]["nll"]
    again = coterie.run(asked, store=tmp_path / "store", out=tmp_path / "out")
    assert again.summary["reuse"]["trained"] == 0
    for changes, what in (
        ({"slots": ["y2013"]}, "goes on with the experts"),
        ({"router": "mlp"}, "another shape"),
        ({"adapt": {"start": "nobody"}}, "no mixture at outputs"),
        ({"adapt": {"start": "coadapted"}}, "circle"),
        ({"eligible": "inclusive"}, "goes on under the rule"),
    ):
        wrong = asked | {"mixtures": [asked["mixtures"][0], asked["mixtures"][1] | changes]}
        with pytest.raises(RequestError, match=what):
            coterie.run(wrong, store=tmp_path / "store", out=tmp_path / "out", dry_run=True)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["mixtures"].keys() == {"learned", "coadapted"}
