"""Gates are fitted on what they read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.mixtures.layers.cases import mixture
from tests.tiny import write_tokenizer

from coterie.mixtures.layers import layer_gate_fits as fitting
from coterie.mixtures.layers.layer_gate_fits import Text
from coterie.mixtures.layers.layers_mixture import LayersMixture
from coterie.routing.gates import Centroids, Ridge


def data() -> Iterator[Text]:
    """Two sequences of two documents each for each of three experts; the last tokens are padding."""
    for expert in (0, 2, 1):
        generator = torch.Generator().manual_seed(expert)
        ids_BT = torch.randint(3 + 18 * expert, 21 + 18 * expert, (2, 14), generator=generator)
        position_BT = torch.cat([torch.arange(6), torch.arange(5), torch.zeros(3, dtype=torch.long)]).expand(2, 14)
        counted_BT = torch.arange(14).expand(2, 14) < 11
        yield Text(expert, ids_BT, position_BT, counted_BT)


def reference(model: LayersMixture, layer: int, expert: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """What one gate reads of each document alone, in the mixture as it stands (or of one expert), and the labels."""
    seen: list[torch.Tensor] = []
    labels: list[int] = []
    handle = model.blocks[layer].register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    for text in data():
        for row in text.ids_BT:
            for part in (row[:6], row[6:11]):
                if expert is not None:
                    with model.only(text.expert), torch.no_grad():
                        model(part[None])
                else:
                    with torch.no_grad():
                        model(part[None])
                labels += [text.expert] * len(part)
    handle.remove()
    return torch.cat(seen), torch.tensor(labels)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "olmo2"])
@pytest.mark.parametrize("features", ["mixture", "own"])
def test_ridge_is_fitted_on_the_very_features_that_the_gate_reads(kind: str, features: str) -> None:
    model, _ = mixture(kind, (0, 1, 1, 2), top_k=2)
    fitting.fit(model, data, lambda: Ridge(32, 3), lambda s: s.solve(1e-3, False), features=features, temperature=0.5)
    for layer, gate in enumerate(model.router):
        x_NH, label_N = reference(model, layer, 0 if features == "own" else None)
        ridge = Ridge(32, 3)
        ridge.add(x_NH, label_N)
        weight_UH, _ = ridge.solve(1e-3, False)
        assert torch.allclose(gate.weight, weight_UH[[0, 1, 1, 2]] / 0.5, atol=1e-3)


def test_prompts_make_the_nearest_mean(tmp_path) -> None:
    model, _ = mixture("llama", (0, 1), vocab_size=96)
    said = {0: ["the cat sat", "the mat"], 1: ["def f(x):"]}

    def read() -> Iterator[Text]:
        return fitting.prompts(said, write_tokenizer(tmp_path), 64)

    assert [text.expert for text in read()] == [0, 0, 1]
    fitting.fit(model, read, lambda: Centroids(32, 2), lambda s: s.solve(False), features="mixture", temperature=0.1)
    assert all(gate.weight.abs().max() > 0 for gate in model.router)
    for expert, prompts in said.items():
        for prompt in prompts:
            ids = torch.tensor([[0, *model_ids(tmp_path, prompt)]])
            assert model.weights(ids).mean(1)[0].argmax() == expert


def model_ids(folder, text: str) -> list[int]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]


def test_own_features_of_an_expert_do_not_depend_on_the_others() -> None:
    """So the sums with one expert more are the old ones and that expert's."""
    few, _ = mixture("llama", (0, 1))
    many, _ = mixture("llama", (0, 1, 2))
    text = next(iter(data()))
    for one, two in zip(fitting.read(few, text, [0, 1], True), fitting.read(many, text, [0, 1], True), strict=True):
        assert torch.equal(one, two)


def test_random_gates_follow_from_the_seed() -> None:
    names = {"a": (3, 4), "b": (3, 4)}
    one, two, other = (fitting.draw(names, 0.5, seed) for seed in (1, 1, 2))
    assert torch.equal(one["a"], two["a"])
    assert not torch.equal(one["a"], other["a"])
    assert not torch.equal(one["a"], one["b"])
