"""Addresses and artifacts as they were recorded: a change of the code's structure leaves them as they are.

`plans.json`: the action keys of every artifact that the shipped recipes ask for, from dry runs. They depend on no processor;
versions of libraries are left out. `runs.json`: recipes for each place, run whole. On the kind of machine that recorded them
the digests are compared, on others the figures. `COTERIE_GOLDEN=write` writes both anew.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from tests.run.small import BASE, write_corpora, write_corpus
from threadpoolctl import threadpool_limits
from transformers import LlamaConfig, LlamaForCausalLM

import coterie
from coterie.recipe import read
from coterie.store import DryStore, artifact

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
SHIPPED = sorted([*(ROOT / "recipes").iterdir(), *(ROOT / "src/coterie/quickstart").glob("*.yaml")])


def golden(name: str, key: str, found: Any) -> Any:
    """What was recorded under ``key``; with COTERIE_GOLDEN=write, ``found`` becomes it."""
    path = GOLDEN / name
    recorded = json.loads(path.read_text()) if path.exists() else {}
    if os.environ.get("COTERIE_GOLDEN") == "write":
        recorded[key] = found
        lines = [f"{json.dumps(k)}: {json.dumps(v, sort_keys=True)}" for k, v in sorted(recorded.items())]
        path.write_text("{" + ",\n".join(lines) + "}\n")
    return recorded[key]


# addresses ----------------------------------------------------------------------------------------------------------------


def write_inputs(folder: Path) -> None:
    """A corpus, questions and a checkpoint for any shipped recipe; a dry run reads nothing but their bytes."""
    (folder / "rows.jsonl").write_text('{"text": "a"}\n')
    question = {
        "question": "Which?",
        "options": ["a", "b", "c", "d"],
        "label": 0,
        "time": "2016-05-01",
        "query_date": "2016-05-01",
        "date": "2016-05-01",
        "year": 2016,
        "option_kinds": ["correct", "past", "future", "irrelevant"],
    }
    (folder / "questions.jsonl").write_text(json.dumps(question) + "\n")
    base = folder / "base"
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "vocab_size": 300,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "tie_word_embeddings": True,
    }
    base.mkdir()
    (base / "config.json").write_text(json.dumps(config))
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(base))
    tensors = {name: torch.zeros_like(t) for name, t in model.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    (base / "tokenizer.json").write_text("{}")
    (base / "tokenizer_config.json").write_text("{}")


def settings_of(path: Path, folder: Path) -> list[str]:
    recipe = read(path)
    said = [f"corpora.{name}.path={folder}/rows.jsonl" for name, c in recipe.corpora.items() if not c.hub or path.suffix]
    if path.suffix == ".json":
        said = [f"paths.{name}={folder}/rows.jsonl" for name in recipe.corpora]
    said += [f"evaluation.{e.name}.choices={folder}/questions.jsonl" for e in recipe.evaluation if hasattr(e, "choices")]
    return said + ([f"base.path={folder}/base"] if hasattr(recipe.base, "path") else [])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_addresses_are_the_recorded_ones(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "_version", lambda name: "any")
    monkeypatch.setattr("coterie.models.device.precision", lambda asked, where: "fp32" if asked == "auto" else asked)
    keys: dict[str, set[str]] = {}
    make = DryStore.make

    def noted(self: DryStore, action: Any, build: Any, **more: Any) -> Any:
        keys.setdefault(action.kind, set()).add(action.key[:16])
        return make(self, action, build, **more)

    monkeypatch.setattr(DryStore, "make", noted)
    write_inputs(tmp_path)
    settings = settings_of(path, tmp_path)
    coterie.run(path, store=tmp_path / "store", out=tmp_path / "out", dry_run=True, settings=settings)
    found = {kind: sorted(of_kind) for kind, of_kind in keys.items()}
    assert found == golden("plans.json", f"{path.parent.name}/{path.name}", found)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_plan_names_no_two_things_alike(path: Path, tmp_path: Path) -> None:
    write_inputs(tmp_path)
    settings = settings_of(path, tmp_path)
    plan = coterie.run(path, store=tmp_path / "store", out=tmp_path / "out", dry_run=True, settings=settings).plan
    labels = Counter(step.label for step in plan)
    assert [label for label, count in labels.items() if count > 1] == []


# artifacts ----------------------------------------------------------------------------------------------------------------


def common(folder: Path) -> dict[str, Any]:
    paths = write_corpora(folder)
    return {
        "sequence_length": 32,
        "base": {**BASE, "pretrain": {"corpora": list(paths), "tokens": 1500}},
        "corpora": {
            name: {"path": str(path), "text": "text", "id": "id", "split": {"valid": 0.15, "test": 0.15}}
            for name, path in paths.items()
        },
        "train": {"tokens": 1500, "learning_rate": 0.01, "precision": "fp32", "threads": 1},
        "evaluation": [{"name": "losses", "corpora": list(paths), "bootstrap": 50}],
    }


PLACES = """
outputs:
  experts: [{name: fruit, corpus: fruit, train: {snapshots: 0.5}}, {name: tools, corpus: tools, kind: lora, lora: {r: 2}}]
  single: true
  mixtures:
    - {name: average, at: outputs, slots: [fruit, tools, tools]}
    - {name: posterior, at: outputs, slots: [fruit, tools], router: {kind: posterior, epochs: 2, top_k: 1}}
    - {name: linear, at: outputs, slots: [fruit, tools], router: {kind: linear, features: [tokens, posterior], epochs: 2}}
    - {name: mlp, at: outputs, slots: [fruit, tools], router: {kind: mlp, epochs: 2}}
layers:
  experts: [{name: fruit, corpus: fruit, kind: ffn}, {name: tools, corpus: tools, kind: ffn}, {name: full, corpus: fruit}]
  mixtures:
    - {name: uniform, at: layers, slots: [fruit, tools, tools]}
    - {name: ridge, at: layers, slots: [fruit, tools], router: ridge}
    - {name: prompt, at: layers, slots: [fruit, tools], router: {kind: prompt, prompts: {fruit: [apple], tools: [saw]}}}
    - {name: label, at: layers, slots: [fruit, tools], router: {kind: label, tokens: 600, balance: 0.1, top_k: 1}}
    - {name: random, at: layers, slots: [fruit, full], router: random, shared: average}
    - {name: tuned, at: layers, slots: [fruit, tools], router: learned, tune: {what: gate+experts, tokens: 600}}
adapters:
  experts:
    - {name: fruit, corpus: fruit, kind: lora, lora: {r: 2}}
    - {name: tools, corpus: tools, kind: lora, lora: {r: 3}}
  mixtures:
    - {name: uniform, at: adapters, slots: [fruit, tools, tools]}
    - {name: arrow, at: adapters, slots: [fruit, tools], router: {kind: arrow, top_k: 1}}
    - {name: ridge, at: adapters, slots: [fruit, tools], router: {kind: ridge, reads: prefix}}
    - {name: learned, at: adapters, slots: [fruit, tools], router: {kind: learned, tokens: 600, scope: model, balance: 0.1}}
    - name: joint
      at: adapters
      router: {kind: learned, top_k: 1}
      joint: {experts: 2, lora: {r: 2}, corpora: [fruit, tools], tokens: 900}
time:
  experts: [{name: "y{start}", corpus: dated, windows: {start: 2013-01-01, end: 2025-01-01, every: 4y}, from: previous}]
  mixtures:
    - {name: average, at: outputs, slots: ["y*"]}
    - {name: adapted, at: outputs, slots: ["y*"], adapt: {start: average, tokens: 1500, batch_size: 2}}
  evaluation: [{name: losses, corpora: [dated], by: year, bootstrap: 50}]
select:
  experts: {per: cluster, corpus: both, name: "topic-{value}"}
  mixtures: [{name: average, at: outputs, slots: ["topic-*"]}]
"""


@pytest.mark.parametrize("name", yaml.safe_load(PLACES))
def test_artifacts_are_the_recorded_ones(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.models.device.precision", lambda asked, where: "fp32" if asked == "auto" else asked)
    torch.set_num_threads(1)
    raw = common(tmp_path / "data") | {"name": name} | yaml.safe_load(PLACES)[name]
    if name == "time":
        path = write_corpus(tmp_path / "data" / "dated.jsonl", ["apple", "pear", "plum", "fig"], 240, 7, dated=True)
        split = {"valid": 0.15, "test": 0.15}
        raw["corpora"] = {"dated": {"path": str(path), "text": "text", "id": "id", "time": "date", "split": split}}
        del raw["base"]["pretrain"]
    if name == "select":
        both = {**raw["corpora"]["fruit"], "path": [c["path"] for c in raw["corpora"].values()]}
        raw["corpora"]["both"] = both | {"select": {"budget": {"docs": 120}, "axes": {"cluster": {"k": 2, "mix": 0.5}}}}
    with threadpool_limits(1):  # sums of other lengths have other last bits
        run = coterie.run(raw, store=tmp_path / "store", out=tmp_path / "out")
    records = sorted((tmp_path / "store" / "actions").glob("*/*.json"))
    objects = sorted(re.findall(r'"object": ?"(\w+)"', "".join(r.read_text() for r in records)))
    figures = {
        f"{e} {model} {group}": round(f["nll"], 5)
        for e, table in run.summary["evaluation"].items()
        for model, groups in table.items()
        for group, f in groups.items()
        if f.get("nll") is not None
    }
    machine = f"{_processor()} torch {torch.__version__}"
    as_recorded = {key: value for key, value in run.summary.items() if key != "foresight"}  # came later
    found = {"machine": machine, "objects": [o[:16] for o in objects], "figures": figures, "summary": shape(as_recorded)}
    recorded = golden("runs.json", name, found)
    assert found["summary"] == recorded["summary"]
    assert figures == pytest.approx(recorded["figures"], rel=1e-3)
    assert len(objects) == len(recorded["objects"])
    if machine == recorded["machine"]:
        assert found["objects"] == recorded["objects"]


def shape(summary: Any) -> Any:
    """Keys of a summary, without those that are digests, and without values."""
    if isinstance(summary, dict):
        return {("DIGEST" if re.fullmatch(r"\w{64}", k) else k): shape(v) for k, v in summary.items()}
    return [shape(v) for v in summary[:1]] if isinstance(summary, list) else type(summary).__name__


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    names = re.findall(r"^(?:model name|model|cpu family)\s*: (.*)$", path.read_text(), re.M) if path.exists() else []
    return " ".join(dict.fromkeys(names)) or platform.processor()
