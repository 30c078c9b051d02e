"""`import coterie` alone lets the Auto classes open our kinds, in whatever order, and brings no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.run.small import recipe

import coterie

AUTO = "from transformers import AutoModelForCausalLM, AutoConfig"
ORDERS = {
    "ours first": f"import coterie, sys; assert 'torch' not in sys.modules\n{AUTO}",
    "theirs first": f"{AUTO}\nimport coterie",
    "a pipeline": f"import coterie\n{AUTO}, pipeline",
}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("auto")
    coterie.run(recipe(home / "data"), store=home / "store", out=home / "out")
    return home / "out/mixtures/learned"


@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_know_our_kinds(mixture: Path, order: str) -> None:
    code = [
        ORDERS[order],
        f"d = {str(mixture)!r}",
        "assert type(AutoConfig.from_pretrained(d)).__name__ == 'OutputsConfig'",
        "assert type(AutoModelForCausalLM.from_pretrained(d)).__name__ == 'OutputsMixture'",
    ]
    if order == "a pipeline":
        code.append("assert len(pipeline('text-generation', d)('apple', max_new_tokens=3)[0]['generated_text']) > 5")
    done = subprocess.run([sys.executable, "-c", "\n".join(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_module_run_is_the_function_of_the_contract() -> None:
    import coterie.run as module

    assert coterie.run is module
    assert callable(coterie.run)
    with pytest.raises(AttributeError):
        _ = coterie.nothing
