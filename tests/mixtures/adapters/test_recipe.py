"""Whole recipes of adapters in seconds: every router, joint training, an adapter made elsewhere, growing mixtures."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.run.small import recipe

import coterie
from coterie.errors import RequestError
from coterie.mixtures.adapters.adapters_mixture import AdaptersMixture
from coterie.models.open import open_model
from coterie.recipe import read
from coterie.store import Store


def lora(folder: Path, **changes: Any) -> dict[str, Any]:
    """Two adapters on a pre-trained base."""
    made = recipe(folder, single=None)
    made["experts"] = [
        {"name": n, "corpus": n, "kind": "lora", "lora": {"r": r, "alpha": 8}} for n, r in (("fruit", 4), ("tools", 2))
    ]
    made["mixtures"] = [{"name": "even", "at": "adapters", "slots": ["fruit", "tools", "tools"]}]
    return {**made, **changes}


ROUTED = [
    {"name": "arrow", "at": "adapters", "slots": ["fruit", "tools"], "router": {"kind": "arrow", "top_k": 1}},
    {
        "name": "ridge",
        "at": "adapters",
        "slots": ["fruit", "tools"],
        "router": {"kind": "ridge", "scope": "model", "reads": "prefix"},
    },
    {
        "name": "learned",
        "at": "adapters",
        "slots": ["fruit", "tools"],
        "router": {"kind": "learned", "top_k": 1, "tokens": 1500},
    },
    {
        "name": "joint",
        "at": "adapters",
        "router": {"kind": "learned", "top_k": 1, "balance": 0.01, "z": 0.001},
        "joint": {
            "experts": 3,
            "lora": {"r": 4, "alpha": 8, "dropout": 0.05},
            "corpora": {"fruit": 0.7, "tools": 0.3},
            "tokens": 3000,
            "train": {"learning_rate": 0.01, "save_every": 1000, "precision": "fp32"},
        },
    },
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any], Path]:
    root = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    asked = lora(root / "data")
    asked["mixtures"] = [*asked["mixtures"], *ROUTED]
    return coterie.run(copy.deepcopy(asked), store=root / "store", out=root / "out"), asked, root


def test_every_mixture_is_measured_and_opens_by_itself(ran: Any) -> None:
    run, _, root = ran
    table = run.summary["evaluation"]["losses"]
    for name in ("even", "arrow", "ridge", "learned", "joint"):
        assert 0 < table[name]["all"]["nll"] < 8
        opened = coterie.load(root / "out" / "mixtures" / name)
        assert isinstance(opened, AdaptersMixture)
        assert opened.complete("ripe", max_new_tokens=3) is not None
        use = run.summary["routing"][name]
        assert sum(use["utilization"]) == pytest.approx(1, abs=1e-4)
        assert use["experts"] == opened.names
    assert [s["name"] for s in run.summary["slots"]["joint"]] == ["expert-1", "expert-2", "expert-3"]
    assert run.summary["routing"]["even"]["utilization"] == pytest.approx([1 / 3, 2 / 3])
    assert run.summary["routing"]["ridge"]["by_group"]["fruit"][0] > 0.7
    assert run.summary["routing"]["ridge"]["by_group"]["tools"][1] > 0.7
    facts = json.loads((root / "out" / "mixtures" / "joint" / "facts.json").read_text())
    assert facts["after"].keys() == facts["before"].keys() == {"fruit", "tools"}
    assert facts["parameters"]["experts"].keys() == {"expert-1", "expert-2", "expert-3"}


def test_what_is_measured_is_what_the_opened_mixture_says(ran: Any) -> None:
    """Stored scores are those of the directory that a person opens."""
    from coterie.corpora.blocks import Blocks
    from coterie.run.parts import Parts

    _, asked, root = ran
    c = Parts(read(copy.deepcopy(asked)), Store(root / "store"))
    blocks = c.blocks("fruit", "test")
    source = Blocks.open(blocks)
    for mixture in c.recipe.mixtures:
        stored = load_file(mixture.scores(c, blocks).file("scores.safetensors"))["logp"]
        opened = coterie.load(root / "out" / "mixtures" / mixture.name)
        said = opened.nll(torch.tensor(source.ids[:4]).long(), position_ids=torch.tensor(source.position[:4]).long())
        torch.testing.assert_close(said, -stored[:4] * (torch.tensor(source.position[:4, 1:]) > 0), atol=1e-5, rtol=1e-4)


def test_nothing_is_made_twice_and_an_expert_more_leaves_the_sums_of_the_others(ran: Any, capsys: Any) -> None:
    _, asked, root = ran
    again = coterie.run(copy.deepcopy(asked), store=root / "store", out=root / "out", dry_run=True)
    assert not again.plan.missing
    more = copy.deepcopy(asked)
    more["experts"].append({"name": "third", "corpus": "tools", "kind": "lora", "lora": {"r": 2, "alpha": 8}, "seed": 9})
    ridge = next(m for m in more["mixtures"] if m["name"] == "ridge")
    ridge["slots"] = ["fruit", "tools", "third"]
    plan = coterie.run(more, store=root / "store", out=root / "out", dry_run=True).plan
    sums = [(s.label, "cached" if s.cached else "make") for s in plan if "gates read" in s.label]
    assert [state for label, state in sums if "third" not in label] == ["cached", "cached"]
    made = [step.label for step in plan.missing]
    assert "expert third" in made
    assert not any("expert fruit" in label or "expert tools" in label for label in made)


def test_the_ridge_of_all_is_the_ridge_of_parts(ran: Any) -> None:
    """Rows from streamed sums against one regression on all tokens at once."""
    from coterie.corpora.blocks import Blocks
    from coterie.mixtures.score_files import batches

    _, _, root = ran
    opened = coterie.load(root / "out" / "mixtures" / "ridge")
    rows = opened.gates()["model"]
    features, target = [], []
    from coterie.run.parts import Parts

    c = Parts(read(copy.deepcopy(ran[1])), Store(root / "store"))
    for u, name in enumerate(("fruit", "tools")):
        source = Blocks.open(c.blocks(name, "valid", None, {}, 100_000))
        for part, ids, position in batches(source, "cpu", "test"):
            x = opened.get_input_embeddings()(ids).double().detach()
            for b in range(len(x)):
                for t in range(x.shape[1]):
                    if source.document[part][b, t] >= 0:
                        begin = t - int(position[b, t])
                        features.append(x[b, begin : t + 1].mean(0))
                        target.append(u)
    X, y = torch.stack(features), torch.tensor(target)
    counts = torch.bincount(y).double()
    w = (1 / counts)[y]
    Y = torch.nn.functional.one_hot(y).double()
    gram = X.T @ (w[:, None] * X)
    gram = gram + 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    expected = torch.linalg.solve(gram, X.T @ (w[:, None] * Y)).T
    torch.testing.assert_close(rows.double(), expected, atol=1e-4, rtol=1e-3)


def test_an_adapter_made_elsewhere_takes_a_seat(ran: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    _, asked, root = ran
    torch.manual_seed(1)
    plain = open_model(root / "out" / "base")
    theirs = get_peft_model(
        plain, LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    )
    theirs.save_pretrained(str(tmp_path / "theirs"))
    more = copy.deepcopy(asked)
    more["experts"].append({"name": "theirs", "adapter": str(tmp_path / "theirs")})
    more["mixtures"] = [
        {"name": "arrow", "at": "adapters", "slots": ["fruit", "tools", "theirs"], "router": {"kind": "arrow", "top_k": 2}}
    ]
    run = coterie.run(more, store=root / "store", out=tmp_path / "out")
    opened = coterie.load(tmp_path / "out" / "mixtures" / "arrow")
    assert set(opened.adapters()["theirs"]) == {"model.layers.0.self_attn.q_proj"}
    entry = next(e for e in run.summary["experts"].values() if e["name"] == "theirs")
    assert not entry["trained"]
    again = coterie.run(copy.deepcopy(more), store=root / "store", out=tmp_path / "out", dry_run=True)
    assert not again.plan.missing
    elsewhere = copy.deepcopy(more)
    elsewhere["base"] = {**elsewhere["base"], "hidden_size": 32}
    with pytest.raises(RequestError, match="does not fit the base"):
        coterie.run(elsewhere, store=root / "store", out=tmp_path / "other")


def test_an_adapter_of_another_base_is_refused_by_digest(ran: Any, tmp_path: Path) -> None:
    import shutil

    _, asked, root = ran
    shutil.copytree(root / "out" / "experts" / "fruit", tmp_path / "fruit")
    other = copy.deepcopy(asked)
    other["base"]["pretrain"]["tokens"] = 900
    other["experts"] = [{"name": "fruit", "adapter": str(tmp_path / "fruit")}]
    other["mixtures"] = []
    with pytest.raises(RequestError, match="trained on another base"):
        coterie.run(other, store=root / "store", out=tmp_path / "out")


TOGETHER = {"experts": 2, "corpora": ["fruit"], "tokens": 9}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"at": "adapters", "slots": ["fruit"], "router": {"kind": "arrow", "top_k": 2}}, "top_k is above the number"),
    ({"at": "adapters", "slots": ["fruit"], "router": {"kind": "uniform", "top_k": 1}}, "has no effect on equal weights"),
    ({"at": "adapters", "slots": ["fruit"], "router": {"kind": "arrow", "scope": "model"}}, "wrong value"),
    ({"at": "adapters"}, "give either slots or joint"),
    ({"at": "adapters", "slots": ["fruit"], "joint": TOGETHER}, "give either slots or joint"),
    ({"at": "adapters", "joint": {**TOGETHER, "corpora": ["nothing"]}, "router": "learned"}, "no corpus is called"),
    ({"at": "adapters", "joint": TOGETHER, "router": "ridge"}, "cannot be trained with joint"),
    ({"at": "adapters", "joint": TOGETHER, "router": {"kind": "learned", "top_k": 3}}, "above the number"),
    ({"at": "adapters", "joint": TOGETHER, "router": {"kind": "learned", "tokens": 3}}, "ignored with joint"),
    ({"at": "adapters", "slots": ["whole"]}, "is no LoRA adapter"),
    ({"at": "adapters", "slots": ["fruit", "other"]}, "rest on different models"),
    ({"at": "adapters", "slots": ["fruit", "bare"], "router": "ridge"}, "names none"),
]


@pytest.mark.parametrize(("mixture", "message"), BAD)
def test_an_impossible_request_is_refused_before_anything_starts(
    mixture: dict[str, Any], message: str, tmp_path: Path
) -> None:
    asked = lora(tmp_path)
    asked["experts"] += [
        {"name": "whole", "corpus": "fruit"},
        {"name": "other", "corpus": "fruit", "kind": "lora", "from": "whole"},
        {"name": "bare", "adapter": "somewhere"},
    ]
    asked["mixtures"] = [{"name": "m", **mixture}]
    with pytest.raises(RequestError, match=message):
        read(asked)


def test_a_domain_without_training_rows_is_said(tmp_path: Path) -> None:
    asked = lora(tmp_path / "data")
    Path(asked["corpora"]["tools"]["path"]).write_text('{"id": "a", "text": "one only"}\n')
    asked["corpora"]["tools"]["split"] = {"valid": 0.99, "test": 0.0}
    asked["mixtures"], asked["evaluation"] = [dict(ROUTED[3])], []
    del asked["experts"]
    with pytest.raises(RequestError, match="no documents in the train split"):
        coterie.run(asked, store=tmp_path / "s", out=tmp_path / "o")


def test_a_cut_off_joint_run_is_the_straight_one(ran: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Killed after a checkpoint and gone on from: the same experts and gates, bit by bit."""
    from transformers import TrainerCallback

    from coterie.mixtures.adapters import joint_training as training

    _, asked, root = ran
    asked = copy.deepcopy(asked)
    asked["mixtures"] = [dict(ROUTED[3])]

    class StopError(Exception):
        pass

    class Kill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 9:
                raise StopError

    original = training.FirstSteps
    monkeypatch.setattr(training, "FirstSteps", lambda *given: _Both(original(*given), Kill()))
    with pytest.raises(StopError):
        coterie.run(copy.deepcopy(asked), store=tmp_path / "s", out=tmp_path / "o")
    monkeypatch.setattr(training, "FirstSteps", original)
    assert list((tmp_path / "s" / "work").glob("*/checkpoint-*"))
    coterie.run(asked, store=tmp_path / "s", out=tmp_path / "o")
    for name in ("router.safetensors", *(f"experts/expert-{i}/adapter_model.safetensors" for i in (1, 2, 3))):
        assert (tmp_path / "o/mixtures/joint" / name).read_bytes() == (root / "out/mixtures/joint" / name).read_bytes()


class _Both:
    """Two callbacks as one."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: [getattr(p, name)(*args, **kwargs) for p in self.parts][-1]


def test_use_is_told_for_each_gate(ran: Any) -> None:
    """Against weights asked of the opened mixture."""
    from coterie.corpora.blocks import Blocks
    from coterie.run.parts import Parts

    _, asked, root = ran
    c = Parts(read(copy.deepcopy(asked)), Store(root / "store"))
    blocks = c.blocks("fruit", "test")
    source = Blocks.open(blocks)
    mixture = next(m for m in c.recipe.mixtures if m.name == "arrow")
    facts = mixture.scores(c, blocks).facts
    opened = coterie.load(root / "out" / "mixtures" / "arrow")
    with torch.no_grad(), opened.traced() as trace:
        opened(torch.tensor(source.ids).long(), position_ids=torch.tensor(source.position).long())
        said = trace()
    counted = torch.tensor(source.target[:, 1:]).bool()
    assert facts["gates"] == list(said)
    for row, gated in zip(facts["by_layer"], said.values(), strict=True):
        assert row == pytest.approx(gated.weight_NS[:, :-1][counted].mean(0).tolist(), abs=1e-4)
    mean = torch.stack([g.weight_NS for g in said.values()]).mean(0)[:, :-1][counted].mean(0)
    assert facts["utilization"] == pytest.approx(mean.tolist(), abs=1e-4)
    assert sum(facts["chosen"]) == pytest.approx(1.0)
