"""The Auto classes open our kinds in any process, also without `import coterie`; who opens none loads nothing of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.run.small import recipe
from transformers import LlamaConfig

import coterie

AUTO = "from transformers import AutoModelForCausalLM, AutoConfig"
ORDERS = {
    "ours first": f"import coterie, sys; assert 'torch' not in sys.modules\n{AUTO}, pipeline",
    "theirs first": f"{AUTO}\nimport coterie",
    "a stock process": f"import sys; assert 'coterie' not in sys.modules\n{AUTO}, pipeline",
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
    if "pipeline" in ORDERS[order]:
        code.append("assert len(pipeline('text-generation', d)('apple', max_new_tokens=3)[0]['generated_text']) > 5")
    done = subprocess.run([sys.executable, "-c", "\n".join(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_stock_process_that_opens_no_mixture_loads_nothing_of_ours(tmp_path: Path) -> None:
    """The hook itself is one file, which imports nothing that Python has not loaded by then."""
    LlamaConfig(hidden_size=64).save_pretrained(tmp_path)
    code = [
        "import sys; at_start = set(sys.modules)",
        "from transformers import AutoConfig",
        f"assert AutoConfig.from_pretrained({str(tmp_path)!r}).hidden_size == 64",
        "print(*sorted(m for m in sys.modules if m.startswith('coterie')), 'importlib.abc' in at_start)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(code)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["coterie_autoclasses", "False"]


def test_the_hook_can_be_switched_off(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "coterie_outputs"}')
    code = f"from transformers import AutoConfig; AutoConfig.from_pretrained({str(tmp_path)!r})"
    environment = {**os.environ, "COTERIE_AUTOCLASSES": "off"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert "does not recognize this architecture" in done.stderr


def test_the_module_run_is_the_function_of_the_contract() -> None:
    import coterie.run as module

    assert coterie.run is module
    assert callable(coterie.run)
    with pytest.raises(AttributeError):
        _ = coterie.nothing
