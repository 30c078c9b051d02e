"""In and out: whole mixtures, single experts, and everything that is no whole expert of this base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.mixtures.adapters.cases import KINDS, adapter, base, close, config, ids, mixture
from tests.models.architectures import make
from tests.tiny import V as VOCABULARY
from tests.tiny import write_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import coterie
from coterie.errors import RequestError
from coterie.mixtures.adapters.adapters_mixture import AdaptersMixture
from coterie.models import lora_files as files
from coterie.models.open import open_model


@pytest.mark.parametrize("router", [*KINDS, {"scope": "model", "reads": "prefix"}, {"scope": "linear", "top_k": 2}])
def test_a_mixture_comes_back_whole(router: dict[str, Any], tmp_path: Path) -> None:
    made = mixture("qwen3", (2, 4, 3), alphas=[2.0, 4.0, 1.0], slots=[0, 1, 2, 2], seed=5, **router)
    made.tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(tmp_path / "tokenizer"))
    tokens = ids()
    said, weights = made.log_probs(tokens), made.weights(tokens)
    made.save_pretrained(tmp_path / "m")
    for opened in (coterie.load(tmp_path / "m"), AutoModelForCausalLM.from_pretrained(tmp_path / "m")):
        assert isinstance(opened, AdaptersMixture)
        assert torch.equal(opened.log_probs(tokens), said)
        assert torch.equal(opened.weights(tokens), weights)
        assert opened.tokenizer is not None
        assert opened.slots == made.slots
    assert len(list((tmp_path / "m" / "experts").iterdir())) == 3  # slots are free
    plain = open_model(tmp_path / "m" / "base")  # the base is a stock model, its linears under their own names
    with torch.no_grad():
        assert torch.equal(plain(input_ids=tokens).logits, base("qwen3", 5)(input_ids=tokens).logits)


def test_a_new_expert_is_saved_too(tmp_path: Path) -> None:
    made = mixture(ranks=(2, 3), seed=4)
    fresh = adapter(base(), 5, seed=9)
    made.add_expert("later", fresh)
    made.save_pretrained(tmp_path / "m")
    opened = coterie.load(tmp_path / "m")
    assert opened.running == [0, 1]
    for name, factors in opened.adapters()["later"].items():
        assert torch.equal(factors.A_RI, fresh[name].A_RI)


def test_ranks_and_alphas_of_peft_are_read_as_peft_reads_them(tmp_path: Path) -> None:
    """Patterns, rank-stabilised scales, targets by regular expression."""
    from peft import LoraConfig, PeftModel, get_peft_model

    asked = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=r".*\.(q_proj|up_proj)",
        rank_pattern={r"layers\.1\..*up_proj": 2},
        alpha_pattern={"q_proj": 3},
        use_rslora=True,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(0)
    get_peft_model(base(), asked).save_pretrained(str(tmp_path / "theirs"))
    found = files.read(tmp_path / "theirs", files.linears(base()))
    assert {f.A_RI.shape[0] for f in found.values()} == {4, 2}
    theirs = PeftModel.from_pretrained(base(), str(tmp_path / "theirs")).eval()
    ours = AdaptersMixture(config(1, kind="uniform"), base(), [found])
    tokens = ids()
    with torch.no_grad():
        assert close(ours(tokens).logits, theirs(input_ids=tokens).logits)


# what is no whole expert of this base -------------------------------------------------------------------------------------


def _saved(folder: Path) -> Path:
    model = base()
    files.write(adapter(model, 3), files.linears(model), folder / "e")
    return folder / "e"


def _tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return apply


def _config(**said: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | said))

    return apply


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def _digits(t: dict[str, torch.Tensor]) -> None:
    t[KEY.replace("lora_A.weight", "lora_A.0.weight")] = t.pop(KEY)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing key": (_tensors(lambda t: t.pop(KEY)), "a tensor that its configuration promises is missing"),
    "missing linear": (_tensors(lambda t: [t.pop(k) for k in list(t) if "layers.1.mlp.up" in k]), "configuration promises"),
    "extra key": (_tensors(lambda t: t.update({KEY.replace("layers.0", "layers.9"): t[KEY].clone()})), "of another base"),
    "extra tensor": (_tensors(lambda t: t.update({"base_model.lm_head.weight": torch.ones(2)})), "not of a linear's update"),
    "shape": (_tensors(lambda t: t.update({KEY: torch.ones(3, 7)})), "does not fit the base"),
    "rank": (_tensors(lambda t: t.update({KEY: torch.ones(5, 32)})), "does not fit the base"),
    "digits": (_tensors(_digits), "name of digits"),
    "empty": (_tensors(lambda t: t.clear()), "holds no weights"),
    "nan": (_tensors(lambda t: t.update({KEY: t[KEY] * torch.nan})), "not finite"),
    "dora": (_config(use_dora=True), "DoRA"),
    "head": (_config(modules_to_save=["lm_head"]), "modules saved whole"),
    "bias": (_config(bias="all"), "trained biases"),
    "pissa": (_config(init_lora_weights="pissa"), "start changed its base"),
    "kind": (_config(peft_type="IA3"), "not a LoRA adapter"),
    "no json": (lambda f: (f / "adapter_config.json").write_text("{"), "cannot be read as JSON"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "no adapter is here"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "has no weights"),
    "damaged": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"x" * 64), "damaged weights"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_whole_expert_of_this_base_is_refused_by_name(what: str, tmp_path: Path) -> None:
    folder = _saved(tmp_path)
    spoil, message = BROKEN[what]
    spoil(folder)
    with pytest.raises(RequestError, match=message):
        files.read(folder, files.linears(base()))


def test_an_adapter_of_another_architecture_or_size_is_refused(tmp_path: Path) -> None:
    folder = _saved(tmp_path)
    with pytest.raises(RequestError, match="of another base"):
        files.read(folder, files.linears(base("gpt2")))
    wider = {name: (inputs * 2, outputs) for name, (inputs, outputs) in files.linears(base()).items()}
    with pytest.raises(RequestError, match="does not fit the base"):
        files.read(folder, wider)


def test_an_expert_is_never_called_by_a_number(tmp_path: Path) -> None:
    model = base()
    with pytest.raises(ValueError, match="digits alone"):
        files.write(adapter(model, 3), files.linears(model), tmp_path / "1")
    with pytest.raises(ValueError, match="digits alone"):
        mixture(ranks=(2, 2)).add_expert("3", adapter(model, 2))


@pytest.mark.parametrize("spoil", ["missing", "extra", "shape", "nan"])
def test_gates_that_are_not_this_mixtures_are_refused(spoil: str, tmp_path: Path) -> None:
    mixture(ranks=(2, 3)).save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "router.safetensors"
    rows = load_file(path)
    first = next(iter(rows))
    match spoil:
        case "missing":
            del rows[first]
        case "extra":
            rows["elsewhere"] = rows[first].clone()
        case "shape":
            rows[first] = rows[first][:1].clone()
        case "nan":
            rows[first] = rows[first] * torch.nan
    save_file(rows, path)
    with pytest.raises(RequestError, match=r"the gates are not those|not finite"):
        coterie.load(tmp_path / "m")


def test_a_mixture_on_another_base_is_refused(tmp_path: Path) -> None:
    made = mixture(ranks=(2, 3))
    made.save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    said = json.loads(path.read_text())
    assert said["base"]["digest"]
    other = base(seed=7)
    other.save_pretrained(tmp_path / "m" / "base")
    with pytest.raises(RequestError, match="another base"):
        coterie.load(tmp_path / "m")


def test_a_part_that_is_not_there_is_named(tmp_path: Path) -> None:
    mixture(ranks=(2, 3)).save_pretrained(tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "experts" / "e1")
    with pytest.raises(RequestError, match="the expert 'e1' is not beside the mixture"):
        coterie.load(tmp_path / "m")


def test_pipelines_and_peft_take_it_as_any_model(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import pipeline

    model = make("llama", vocab_size=VOCABULARY)
    made = AdaptersMixture(config(2), model, [adapter(model, 2), adapter(model, 3, seed=1)])
    tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(tmp_path / "tokenizer"))
    said = pipeline("text-generation", model=made, tokenizer=tokenizer)("a", max_new_tokens=3, do_sample=False)
    assert said[0]["generated_text"].startswith("a")
    tokens = ids()
    before = made.log_probs(tokens)
    more = get_peft_model(made, LoraConfig(r=2, target_modules=["linear"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        assert close(more(input_ids=tokens).logits.log_softmax(-1), before)  # B is zero at first
    for name, parameter in more.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    with torch.no_grad():
        assert not close(more(input_ids=tokens).logits.log_softmax(-1), before, 1e-2)
