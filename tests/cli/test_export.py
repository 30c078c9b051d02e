"""`coterie export` as a person uses it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.mixtures.layers.cases import ids, logp, mixture
from transformers import AutoModelForCausalLM

from coterie.cli.export_command import _bytes, command
from coterie.errors import RequestError


def test_it_says_the_size_the_difference_and_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model, _ = mixture("llama", (0, 0, 1, 1))
    for gate in model.router:
        torch.nn.init.zeros_(gate.weight)
    model.save_pretrained(tmp_path / "own")
    capsys.readouterr()
    command(tmp_path / "own", tmp_path / "out", shard_size="20kB")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("mixtral, 2 experts, ")
    assert lines[1].startswith("read back: largest difference in log-probability ")
    assert float(lines[1].split()[-1]) < 1e-4
    assert lines[2].startswith(f"mixtral: {tmp_path / 'out'}, 2 experts, ")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (logp(stock, ids()) - model.log_probs(ids())).abs().max() < 1e-4
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    with pytest.raises(RequestError, match="there is something already"):
        command(tmp_path / "own", tmp_path / "out")


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    for given, text in (
        ({}, "no such directory"),
        ({"shard_size": "many"}, "not a size"),
        ({"dtype": "q8_0"}, "only gguf"),
        ({"format": "gguf"}, "no such directory"),
    ):
        with pytest.raises(RequestError, match=text):
            command(tmp_path / "none", tmp_path / "out", **given)


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5MB", 1_500_000), ("20kB", 20_000), ("2000", 2000)])
def test_sizes(text: str, size: int) -> None:
    assert _bytes(text) == size


@pytest.mark.parametrize("text", ["", "5 apples", "-1GB", "0", "5gb"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(RequestError, match="not a size"):
        _bytes(text)
