"""Exports open in transformers 4.57 too, in an environment of its own that is made when first asked for."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.mixtures.export.test_export import PAIRS
from tests.mixtures.layers.cases import ids, mixture

from coterie.mixtures.export.write_checkpoint import export

VERSION = "4.57.6"
ASK = """
import json, sys, torch, transformers
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
assert transformers.__version__ == sys.argv[2], transformers.__version__
for folder in sorted(Path(sys.argv[1]).iterdir()):
    model, report = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"], (folder, report)
    with torch.no_grad():
        logp = model(load_file(folder.parent.parent / "ids.safetensors")["ids"]).logits.log_softmax(-1)
    save_file({"logp": logp}, folder.parent.parent / f"{folder.name}.safetensors")
"""


@pytest.fixture(scope="module")
def python() -> Path:
    """An interpreter with the old transformers; torch is the one that is here."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "coterie"
    home = cache / f"transformers-{VERSION}"
    if not (home / "made").exists():
        venv.create(home, with_pip=True, clear=True)
        run = [str(home / "bin/python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*run, "--no-deps", f"transformers=={VERSION}"], check=True)
        subprocess.run([*run, "huggingface_hub>=0.34,<1", "tokenizers>=0.22,<0.23.1"], check=True)
        (home / "made").touch()
    site = next((home / "lib").glob("python*/site-packages"))
    (site / "ours.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # after its own: for torch and numpy, from here
    return home / "bin/python"


@pytest.mark.compat
@pytest.mark.timeout(1800)
def test_every_format_opens_in_the_old_version_and_says_the_same(python: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    said = {}
    for kind, format in PAIRS:
        for top_k in (None, 2):
            name = f"{kind}-{format}-{top_k}"
            rope = {} if top_k is None else {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}}
            model, _ = mixture(kind, (0, 1, 2), top_k=top_k, **rope)
            model.save_pretrained(tmp_path / "own" / name)
            export(tmp_path / "own" / name, tmp_path / "out" / name, format)
            said[name] = model.log_probs(ids())
    save_file({"ids": ids()}, tmp_path / "ids.safetensors")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(python), "-c", ASK, str(tmp_path / "out"), VERSION],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, logp in said.items():
        there = load_file(tmp_path / f"{name}.safetensors")["logp"]
        assert (there - logp).abs().max() < 1e-4, name
