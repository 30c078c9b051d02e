"""Code that lies beside weights, or that a configuration names, is never run: not by default, and not for a ``y`` either."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from tests.mixtures.adapters.cases import mixture as adapters_mixture
from tests.mixtures.built import members, recipe, whole
from tests.mixtures.layers.cases import mixture as layers_mixture
from tests.tiny import gpt2, llama, write_tokenizer

import coterie
from coterie.corpora.tokenizer import make_tokenizer
from coterie.errors import RequestError
from coterie.experts.expert_actions import adopt, adopt_model
from coterie.mixtures.export.write_checkpoint import export
from coterie.mixtures.layers.expert_weights import Directory
from coterie.mixtures.mixture_files import open_tokenizer
from coterie.mixtures.outputs.outputs_place import materialise
from coterie.models import lora_files
from coterie.models.checkpoint import checkpoint
from coterie.models.open import open_model
from coterie.store import Store

SOURCE = Path(coterie.__file__).parent
EVIL = """
from pathlib import Path
Path({canary!r}).write_text("run")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig): pass
class Model(LlamaForCausalLM): pass
class Tokenizer(PreTrainedTokenizerFast): pass
"""
MAPS = {
    "config.json": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoModel": "evil.Model"},
    "tokenizer_config.json": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
    "adapter_config.json": {"AutoModelForCausalLM": "evil.Model"},
}


@pytest.fixture(autouse=True)
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the code would write; whoever is asked whether to run it says yes."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    return tmp_path / "canary"


def poisoned(folder: Path, file: str, canary: Path) -> Path:
    (folder / "evil.py").write_text(EVIL.format(canary=str(canary)))
    path = folder / file
    path.chmod(0o644) if path.exists() else None
    given = json.loads(path.read_text()) if path.exists() else {}
    text = json.dumps(given | {"auto_map": MAPS[file]})
    path.unlink(missing_ok=True)  # it may be a link into a store
    path.write_text(text)
    return folder


def model(folder: Path) -> Path:
    llama(1).save_pretrained(folder)
    return write_tokenizer(folder)


def adapter(folder: Path) -> Path:
    get_peft_model(llama(1), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).save_pretrained(folder)
    return folder


def refused(opening: Callable[[], object], canary: Path) -> None:
    with pytest.raises(RequestError, match=r"refused|code of its own") as caught:
        opening()
    assert "auto_map" in str(caught.value.where)
    assert not canary.exists()


def test_the_canary_sings(tmp_path: Path, canary: Path) -> None:
    """What the other tests guard against does happen where it is asked for."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(poisoned(model(tmp_path / "m"), "tokenizer_config.json", canary), trust_remote_code=True)
    assert canary.exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_model_with_code_is_refused(tmp_path: Path, canary: Path, file: str, store: Store) -> None:
    folder = poisoned(model(tmp_path / "m"), file, canary)
    good = adapter(tmp_path / "adapter")
    ways: list[Callable[[], object]] = [
        lambda: open_model(folder),
        lambda: open_model(good, base=folder),
        lambda: checkpoint(folder),
        lambda: coterie.load(folder),
        lambda: coterie.load(good, base=folder),
        lambda: adopt_model(store, folder, kind="full", label="m"),
        lambda: Directory(folder),
    ]
    for way in ways:
        refused(way, canary)


def test_an_adapter_with_code_is_refused(tmp_path: Path, canary: Path, store: Store) -> None:
    base = model(tmp_path / "base")
    for file in ("adapter_config.json", "tokenizer_config.json"):
        folder = poisoned(adapter(tmp_path / file), file, canary)
        refused(lambda folder=folder: open_model(folder, base=base), canary)
        refused(lambda folder=folder: coterie.load(folder, base=base), canary)
        refused(lambda folder=folder: lora_files.read(folder, lora_files.linears(llama(1))), canary)
        refused(lambda folder=folder: adopt(store, folder, checkpoint(base), label="a"), canary)


def test_a_tokenizer_with_code_is_refused(tmp_path: Path, canary: Path, store: Store) -> None:
    folder = poisoned(write_tokenizer(tmp_path / "t"), "tokenizer_config.json", canary)
    refused(lambda: open_tokenizer(folder), canary)
    refused(lambda: make_tokenizer(store, str(folder), [], label="t"), canary)


@pytest.fixture(params=["outputs", "layers", "adapters"])
def mixture(request: pytest.FixtureRequest, tmp_path: Path, store: Store, tiny_tokenizer: Path) -> Path:
    folder = tmp_path / "mixture"
    if request.param == "outputs":
        seated = members(store, tiny_tokenizer)
        materialise(whole(store, tiny_tokenizer, recipe(seated), seated), seated, folder)
        (folder / "manifest.json").unlink()  # else code would be damage before it is code
        return folder
    made = layers_mixture("llama")[0] if request.param == "layers" else adapters_mixture("llama")
    made.save_pretrained(folder)
    return folder


def test_a_mixture_with_code_anywhere_is_refused(mixture: Path, canary: Path) -> None:
    assert coterie.load(mixture)
    places = [p for p in [mixture, mixture / "base", *mixture.glob("experts/*")] if p.is_dir()]
    for place in places:
        for file in ("config.json", "tokenizer_config.json", "adapter_config.json"):
            path = place / file
            if path.exists() or file == "tokenizer_config.json":
                before = path.read_text() if path.exists() else None
                poisoned(place, file, canary)
                refused(lambda: coterie.load(mixture), canary)
                path.write_text(before) if before is not None else path.unlink()
                (place / "evil.py").unlink()


def test_an_export_runs_no_code(tmp_path: Path, canary: Path) -> None:
    layers_mixture("llama")[0].save_pretrained(tmp_path / "mixture")
    for file in ("config.json", "tokenizer_config.json"):
        before = (tmp_path / "mixture" / "config.json").read_text()
        poisoned(tmp_path / "mixture", file, canary)
        refused(lambda: export(tmp_path / "mixture", tmp_path / "out", "mixtral"), canary)
        (tmp_path / "mixture" / "config.json").write_text(before)


def test_a_yes_on_the_command_line_runs_no_code(tmp_path: Path, canary: Path) -> None:
    folder = poisoned(model(tmp_path / "m"), "tokenizer_config.json", canary)
    words = ["generate", str(folder), "the cat", "--max-new-tokens", "4"]
    done = subprocess.run(
        [sys.executable, "-c", "from coterie.cli import main; main()", *words],
        input="y\n" * 20,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "auto_map" in done.stderr
    assert not canary.exists()


def test_every_auto_class_is_told_to_trust_no_code() -> None:
    """A call that leaves it out asks a person at the terminal, and whatever is on standard input answers."""
    found = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            of = node.func.value
            if (
                node.func.attr in ("from_pretrained", "from_config")
                and isinstance(of, ast.Name)
                and of.id.startswith("Auto")
            ):
                said = {k.arg: k.value for k in node.keywords}.get("trust_remote_code")
                trusts_none = isinstance(said, ast.Constant) and said.value is False
                found.append((f"{path.relative_to(SOURCE)}:{node.lineno}", trusts_none))
    assert len(found) >= 10
    assert [place for place, trusts_none in found if not trusts_none] == []


def test_a_kernel_of_a_hub_is_refused(tmp_path: Path) -> None:
    gpt2(1).save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attn_implementation": "somebody/kernel"}))
    with pytest.raises(RequestError, match="refused"):
        open_model(tmp_path / "m")
