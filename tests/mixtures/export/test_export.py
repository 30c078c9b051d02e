"""Exports: what stock libraries open is the mixture."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.in_memory import merged
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tests.mixtures.layers.cases import base, expert, ids, logp, mixture
from tests.mixtures.layers.test_merge import merge, saved, whole
from tests.models.architectures import make
from transformers import AutoModelForCausalLM

from coterie.errors import RequestError, WorkError
from coterie.mixtures.export import closed_mixture as compare
from coterie.mixtures.export import closed_mixture as folding
from coterie.mixtures.export import write_checkpoint
from coterie.mixtures.export.write_checkpoint import export
from coterie.mixtures.layers.layers_files import tensors_of
from coterie.mixtures.layers.layers_mixture import LayersMixture

FORMATS = {"llama": "mixtral", "mistral": "mixtral", "qwen2": "qwen2_moe", "qwen3": "qwen3_moe", "olmo2": "flex_olmo"}
PAIRS = [*FORMATS.items(), ("llama", "qwen2_moe")]


def opened(folder: Path) -> Any:
    """In stock transformers, with nothing missing and nothing unexpected."""
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return model.eval()


@pytest.mark.parametrize(("kind", "format"), PAIRS)
@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_stock_transformers_opens_it_and_says_the_same(kind: str, format: str, top_k: int | None, tmp_path: Path) -> None:
    model, _ = mixture(kind, (0, 1, 2), top_k=top_k)
    model.save_pretrained(tmp_path / "own")
    done = export(tmp_path / "own", tmp_path / "out", None if FORMATS[kind] == format else format)
    assert (done.format, done.experts) == (format, 3)
    assert done.difference < 1e-4
    stock = opened(tmp_path / "out")
    assert (
        type(stock).__name__
        == {"mixtral": "Mixtral", "qwen2_moe": "Qwen2Moe", "qwen3_moe": "Qwen3Moe", "flex_olmo": "FlexOlmo"}[format]
        + "ForCausalLM"
    )
    assert (logp(stock, ids()) - model.log_probs(ids())).abs().max() < 1e-4
    assert stock.config.num_experts_per_tok == (top_k or 3)


@pytest.mark.parametrize(("kind", "format"), PAIRS)
def test_names_are_those_with_one_tensor_an_expert(kind: str, format: str, tmp_path: Path) -> None:
    model, _ = mixture(kind, (0, 1))
    model.save_pretrained(tmp_path / "own")
    export(tmp_path / "own", tmp_path / "out", format)
    names = load_file(tmp_path / "out/model.safetensors").keys()
    part = "block_sparse_moe.experts.1.w1" if format == "mixtral" else "mlp.experts.1.gate_proj"
    assert f"model.layers.0.{part}.weight" in names
    assert not any("gate_up_proj" in n or n.endswith("experts.down_proj") for n in names)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["num_experts"] == config["num_local_experts"] == 2
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert config["norm_topk_prob"] is True


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from(PAIRS), st.booleans())
@settings(max_examples=10)
def test_copies_of_one_expert_are_that_expert_in_every_format(
    tmp_path_factory: pytest.TempPathFactory, slots: int, top_k: int, pair: tuple[str, str], expand: bool
) -> None:
    tmp_path = tmp_path_factory.mktemp("copies")
    kind, format = pair
    one = expert(base(kind), 1)
    model = merged(base(kind), {"e": one}, ["e"] * slots, top_k=top_k)
    for gate in model.router:
        torch.nn.init.normal_(gate.weight)
    model.save_pretrained(tmp_path / "own")
    done = export(tmp_path / "own", tmp_path / "out", format, expand=expand)
    assert done.experts == (slots if expand else 1)
    assert (logp(opened(tmp_path / "out"), ids()) - logp(one, ids())).abs().max() < 1e-5


def test_rotary_positions_survive(tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
    model, _ = mixture("llama", (0, 1), rope_parameters=rope)
    model.save_pretrained(tmp_path / "own")
    export(tmp_path / "own", tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["rope_parameters"] == rope
    assert config["rope_theta"] == 5000.0
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    model, _ = mixture("qwen3", (0, 1), tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "own")
    export(tmp_path / "own", tmp_path / "out")
    stock = opened(tmp_path / "out")
    assert stock.lm_head.weight is stock.model.embed_tokens.weight


@pytest.mark.parametrize(("kind", "format"), PAIRS)
def test_it_goes_on_training_in_stock_transformers(kind: str, format: str, tmp_path: Path) -> None:
    model, _ = mixture(kind, (0, 1, 2), top_k=2)
    model.save_pretrained(tmp_path / "own")
    export(tmp_path / "own", tmp_path / "out", format)
    stock = opened(tmp_path / "out").train()
    optimizer = torch.optim.AdamW(stock.parameters(), lr=1e-3, weight_decay=0.0)
    losses = []
    for _ in range(3):
        loss = stock(ids(4, 32), labels=ids(4, 32)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in stock.named_parameters():
        zero = any(part in name for part in ("shared_expert", "_proj.bias")) and format == "qwen2_moe"
        assert zero or parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_precision_and_shards(dtype: str, tmp_path: Path) -> None:
    model, _ = mixture("llama", (0, 1))
    model.save_pretrained(tmp_path / "own")
    said: list[str] = []
    done = export(tmp_path / "own", tmp_path / "out", dtype=dtype, shard_bytes=20_000, say=said.append)
    assert said == [f"mixtral, 2 experts, {done.bytes / 1e9:,.2f} GB"]
    assert done.difference < 1e-4
    assert 1e-4 < done.rounding < 0.5
    files = list((tmp_path / "out").glob("model-*-of-*.safetensors"))
    assert len(files) > 3
    tensors = {k: v for f in files for k, v in load_file(f).items()}
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16 if dtype == "bf16" else torch.float16}
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == done.bytes == sum(t.nbytes for t in tensors.values())
    opened(tmp_path / "out")


@pytest.mark.parametrize("format", [None, "coterie", "qwen2_moe"])
def test_a_bf16_mixture_reads_back_at_equal_arithmetic(format: str | None, tmp_path: Path) -> None:
    """Standard gates are written in the checkpoint's precision, and ours are in fp32: that is rounding, and no fault."""
    start = base("llama").to(torch.bfloat16)
    model, experts = mixture("llama", (0, 1))
    saved(tmp_path, base=start, **{f"e{u}": e.to(torch.bfloat16) for u, e in enumerate(experts)})
    gates = [gate.weight.detach() for gate in model.router]
    whole(merge(tmp_path, ["e0", "e1"], shared="base"), tmp_path / "own", gates=gates)
    done = export(tmp_path / "own", tmp_path / "out", format)
    assert done.difference < 1e-5
    assert done.rounding is not None
    assert (done.rounding > 1e-4) == (format != "coterie")
    assert ("precision: rounding" in " ".join(done.lines)) == (format != "coterie")
    assert {t.dtype for n, t in tensors_of(tmp_path / "out").items() if ".experts." in n} == {torch.bfloat16}


def test_a_fault_is_found_whatever_the_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rounded export that computes something else is refused too; before, only one in the mixture's own precision was."""
    model, _ = mixture("llama", (0, 1))
    model.save_pretrained(tmp_path / "own")
    right = write_checkpoint._standard

    def swapped(*given: object) -> list[object]:
        found = right(*given)
        gates = [t for t in found if "gate.weight" in t.name]
        return [replace(t, get=lambda t=t: -t.get()) if t in gates else t for t in found]

    monkeypatch.setattr(write_checkpoint, "_standard", swapped)
    with pytest.raises(WorkError, match="does not compute what the mixture does"):
        export(tmp_path / "own", tmp_path / "out", dtype="bf16")
    assert not (tmp_path / "out").exists()


# slots ------------------------------------------------------------------------------------------------------------------


def tied(kind: str, seats: tuple[int, ...], top_k: int | None, seed: int = 0) -> LayersMixture:
    """Slots of one expert have equal rows in the gate."""
    model, _ = mixture(kind, seats, top_k, seed)
    for gate in model.router:
        with torch.no_grad():
            gate.weight.copy_(gate.weight[torch.tensor([seats.index(u) for u in seats])])
    return model


@given(
    st.sampled_from([(0, 0, 1, 1), (0, 1, 0, 1), (0, 0, 1), (0, 1, 2), (0, 0, 0), (0, 1, 1, 0, 2, 2)]),
    st.sampled_from([None, 1, 2, 3, 4]),
    st.integers(0, 5),
)
@settings(max_examples=25)
def test_folding_is_exact_exactly_when_it_says_so(
    tmp_path_factory: pytest.TempPathFactory, seats: tuple[int, ...], top_k: int | None, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("fold")
    model = tied("llama", seats, top_k, seed)
    model.save_pretrained(folder)
    gates = {f"model.layers.{i}.mlp": gate.weight.detach() for i, gate in enumerate(model.router)}
    difference = compare.of_folding(folder, *folding.folded(seats, gates, top_k))
    if folding.why_not(seats, gates, top_k) is None:
        assert difference < 1e-5
    else:
        assert difference > 1e-5


def test_slots_are_folded_or_expanded(tmp_path: Path) -> None:
    model = tied("llama", (0, 0, 1, 1), 2)
    model.save_pretrained(tmp_path / "own")
    few = export(tmp_path / "own", tmp_path / "few")
    many = export(tmp_path / "own", tmp_path / "many", expand=True)
    assert (few.experts, many.experts) == (2, 4)
    assert few.bytes < many.bytes
    for folder in ("few", "many"):
        assert (logp(opened(tmp_path / folder), ids()) - model.log_probs(ids())).abs().max() < 1e-4


def test_folding_that_is_not_exact_is_refused_with_its_price(tmp_path: Path) -> None:
    model = tied("llama", (0, 0, 0, 1), None)
    model.save_pretrained(tmp_path / "own")
    with pytest.raises(RequestError, match="cannot be folded exactly") as caught:
        export(tmp_path / "own", tmp_path / "out")
    text = str(caught.value)
    assert "3, 1" in text
    assert "--expand writes 4 experts" in text
    assert "apart if they were" in text
    assert not (tmp_path / "out").exists()
    assert export(tmp_path / "own", tmp_path / "out", expand=True).difference < 1e-4


def test_our_own_format_keeps_slots(tmp_path: Path) -> None:
    for kind in ("gpt2", "llama"):
        model, _ = mixture(kind, (0, 0, 0, 1), 2)
        model.save_pretrained(tmp_path / kind)
        done = export(tmp_path / kind, tmp_path / f"{kind}-out", "coterie")
        assert (done.experts, done.difference < 1e-5) == (2, True)
        again = opened(tmp_path / f"{kind}-out")
        assert isinstance(again, LayersMixture)
        assert again.slots == model.slots


# bad input --------------------------------------------------------------------------------------------------------------


def test_gpt2_has_no_standard_format(tmp_path: Path) -> None:
    model, _ = mixture("gpt2", (0, 1))
    model.save_pretrained(tmp_path / "own")
    for format in (None, "mixtral"):
        with pytest.raises(RequestError, match=r"no standard .* gpt2") as caught:
            export(tmp_path / "own", tmp_path / "out", format)
        assert "outputs" in str(caught.value)
        assert "coterie" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "format", "changes", "match"),
    [
        ("qwen3", "mixtral", {}, "cannot hold a qwen3"),
        ("llama", "flex_olmo", {}, "cannot hold a llama"),
        ("llama", "mixtral", {"attention_bias": True}, "attention_bias"),
        ("llama", "mixtral", {"mlp_bias": True}, "mlp_bias"),
    ],
)
def test_a_format_that_cannot_hold_it(kind: str, format: str, changes: dict, match: str, tmp_path: Path) -> None:
    model, _ = mixture(kind, (0, 1), **changes)
    model.save_pretrained(tmp_path / "own")
    with pytest.raises(RequestError, match=match):
        export(tmp_path / "own", tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_a_plain_model_and_other_places_are_refused_with_the_reason(tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path / "plain")
    with pytest.raises(RequestError, match="only mixtures at layers"):
        export(tmp_path / "plain", tmp_path / "out")
    (tmp_path / "plain/config.json").write_text('{"model_type": "coterie_outputs"}')
    with pytest.raises(RequestError, match="side by side"):
        export(tmp_path / "plain", tmp_path / "out")
    (tmp_path / "plain/config.json").write_text('{"model_type": "coterie_adapters"}')
    with pytest.raises(RequestError, match="added to linears before the activation"):
        export(tmp_path / "plain", tmp_path / "out")
    with pytest.raises(RequestError, match="no model is here"):
        export(tmp_path, tmp_path / "out")


def test_gates_with_biases_have_no_standard_format(tmp_path: Path) -> None:
    model, _ = mixture("llama", (0, 1))
    model.config.gate = {"kind": "given", "top_k": None, "bias": True}
    for gate in model.router:
        gate.bias = torch.nn.Parameter(torch.ones(2))
    model.save_pretrained(tmp_path / "own")
    with pytest.raises(RequestError, match="no bias"):
        export(tmp_path / "own", tmp_path / "out")


def test_what_is_already_there_is_left_alone(tmp_path: Path) -> None:
    model, _ = mixture("llama", (0, 1))
    model.save_pretrained(tmp_path / "own")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("x")
    with pytest.raises(RequestError, match="something already"):
        export(tmp_path / "own", tmp_path / "out")
    assert (tmp_path / "out/mine").read_text() == "x"


def test_an_export_that_is_not_the_mixture_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = mixture("llama", (0, 1))
    model.save_pretrained(tmp_path / "own")
    right = folding.folded
    monkeypatch.setattr(
        "coterie.mixtures.export.closed_mixture.folded", lambda *given: folding.Seating([0, 0], right(*given).gates, 2)
    )
    with pytest.raises(WorkError, match="does not compute"):
        export(tmp_path / "own", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["own"]


# import -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "format"), PAIRS)
def test_an_expanded_checkpoint_comes_back_with_equal_experts_folded(kind: str, format: str, tmp_path: Path) -> None:
    model, _ = mixture(kind, (0, 1, 0, 0, 2), top_k=3)
    model.save_pretrained(tmp_path / "own")
    wide = export(tmp_path / "own", tmp_path / "wide", format, expand=True)
    done = export(tmp_path / "wide", tmp_path / "back")
    assert (wide.experts, done.experts, done.format) == (5, 3, "coterie")
    assert done.difference < 1e-5
    back = opened(tmp_path / "back")
    assert back.config.slot_to_expert == [0, 1, 0, 0, 2]
    assert (back.log_probs(ids()) - model.log_probs(ids())).abs().max() < 1e-5
    again = export(tmp_path / "back", tmp_path / "again", expand=True)
    assert again.difference < 1e-5


def test_what_ours_cannot_hold_is_not_imported(tmp_path: Path) -> None:
    model, _ = mixture("qwen2", (0, 1))
    model.save_pretrained(tmp_path / "own")
    export(tmp_path / "own", tmp_path / "moe")
    with pytest.raises(RequestError, match="only become a mixture of ours"):
        export(tmp_path / "moe", tmp_path / "back", "mixtral")
    stock = opened(tmp_path / "moe")
    torch.nn.init.normal_(stock.model.layers[1].mlp.shared_expert.down_proj.weight)
    stock.save_pretrained(tmp_path / "shared")
    with pytest.raises(RequestError, match="shared expert"):
        export(tmp_path / "shared", tmp_path / "back")
    config = json.loads((tmp_path / "moe/config.json").read_text())
    (tmp_path / "moe/config.json").write_text(json.dumps(config | {"norm_topk_prob": False}))
    with pytest.raises(RequestError, match="norm_topk_prob"):
        export(tmp_path / "moe", tmp_path / "back")


def test_a_kill_leaves_nothing_under_the_name_and_the_next_export_clears_up(tmp_path: Path) -> None:
    model, _ = mixture("llama", (0, 1))
    model.save_pretrained(tmp_path / "own")
    code = (
        "import os\n"
        "from coterie.mixtures.export import closed_mixture as compare\n"
        "compare.compared = lambda *_: os._exit(9)\n"  # all is written, nothing is compared yet
        "from coterie.mixtures.export.write_checkpoint import export\n"
        f"export({str(tmp_path / 'own')!r}, {str(tmp_path / 'out')!r})\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 9
    left = {p.name for p in tmp_path.iterdir()} - {"own"}
    assert len(left) == 1
    assert next(iter(left)).startswith(".out~")
    export(tmp_path / "own", tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"own", "out"}
