"""Export for llama.cpp: a Llama or Mistral mixture as one GGUF file, through the `gguf` package.

The file says what llama.cpp's own converter would say of the Mixtral checkpoint: architecture ``llama`` with experts, whose
matrices are stacked in one tensor a layer; queries and keys with their rotary halves interleaved; norms and gates in fp32.
It is read back, dequantised and compared with the mixture before it appears.

Shapes: E experts, H hidden, I intermediate, D outputs of a projection.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coterie.errors import RequestError
from coterie.mixtures.export import closed_mixture as compare
from coterie.mixtures.export.closed_mixture import ClosedMixture, Seating, require_plain_gates, seating
from coterie.mixtures.export.export_formats import FORMATS
from coterie.mixtures.export.write_checkpoint import Exported, appearing, require_close
from coterie.mixtures.layers.layers_mixture import LayersMixture
from coterie.mixtures.layers.tensor_shards import Stored, Wanted, finite, like
from coterie.models.quiet import quiet

_PARTS = {"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"}
_OTHERS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def export_gguf(
    folder: str | Path,
    to: str | Path,
    *,
    dtype: str = "fp32",
    expand: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write a mixture of a Llama or Mistral base as a GGUF file.

    Args:
        dtype: of the matrices: ``fp32``, ``fp16`` or ``q8_0``.
        expand: write one copy of its expert for each slot.

    Raises:
        RequestError: the format cannot hold it, or the `gguf` package is not there; nothing is written.
        WorkError: what was read back is not the mixture; nothing is left.
    """
    mixture, to = ClosedMixture.at(Path(folder)), Path(to)
    base = mixture.config.text_config.to_dict()
    if base["model_type"] not in ("llama", "mistral"):
        raise RequestError(
            f"a {base['model_type']} model cannot be written as gguf here",
            where="--format",
            expected="llama or mistral",
            found=base["model_type"],
            do="export a standard checkpoint, and convert that with llama.cpp",
        )
    FORMATS["mixtral"].require(base)
    require_plain_gates(mixture)
    rope = base.get("rope_parameters") or {}
    if rope.get("rope_type", "default") not in ("default", "linear"):
        raise RequestError(
            "these rotary positions cannot be written as gguf here",
            where="rope_type",
            found=rope["rope_type"],
            do="export as mixtral, and convert that with llama.cpp",
        )
    gguf = _package()
    kind = {"fp32": "F32", "fp16": "F16", "q8_0": "Q8_0"}.get(dtype)
    if kind is None:
        raise RequestError("gguf files are written as fp32, fp16 or q8_0", where="--dtype", found=dtype)
    placed = seating(mixture, expand)
    tensors = list(_tensors(mixture, placed, base))
    types = {t.name: _type(gguf, t, kind) for t in tensors}
    sizes = {t.name: _size(gguf, t, types[t.name]) for t in tensors}
    say(f"gguf, {len(placed.experts)} experts, {sum(sizes.values()) / 1e9:,.2f} GB")
    with appearing(to, sum(sizes.values()), "file") as draft:
        writer = gguf.GGUFWriter(draft, "llama")
        _describe(gguf, writer, base, rope, placed, kind, mixture.folder)
        for t in tensors:
            shape = gguf.quant_shape_to_byte_shape(t.shape, types[t.name]) if types[t.name].name == "Q8_0" else t.shape
            number = {"F32": np.float32, "F16": np.float16}.get(types[t.name].name, np.uint8)
            writer.add_tensor_info(t.name, shape, np.dtype(number), sizes[t.name], types[t.name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for t in tensors:
            tensor = t.get().float()
            if not finite(tensor):
                raise RequestError("the weights are not finite", where=t.name, found="NaN or infinity")
            writer.write_tensor_data(gguf.quants.quantize(tensor.numpy(), types[t.name]))
        writer.close()
        difference = _difference(gguf, mixture, placed, base, draft)
        if dtype == "fp32":
            require_close(difference, f"gguf of {mixture.folder}")
    return Exported(to, f"gguf {dtype}", len(placed.experts), to.stat().st_size, difference)


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise RequestError(
            "the gguf package is not installed", where="--format gguf", do="pip install coterie[export]"
        ) from None
    return gguf


def _names(
    mixture: ClosedMixture, experts: Sequence[int], base: Mapping[str, Any]
) -> Iterator[tuple[str, list[str], int | None]]:
    """A tensor's name in the file, in a mixture (of stacked ones one each expert), and its rotary heads if it has any."""
    for ours, theirs in _WHOLE.items():
        if f"model.{ours}.weight" in mixture.tensors:
            yield f"{theirs}.weight", [f"model.{ours}.weight"], None
    heads = {"self_attn.q_proj": base["num_attention_heads"], "self_attn.k_proj": base["num_key_value_heads"]}
    for number, block in enumerate(mixture.blocks):
        for ours, theirs in _OTHERS.items():
            yield f"blk.{number}.{theirs}.weight", [f"model.{block.removesuffix('.mlp')}.{ours}.weight"], heads.get(ours)
        yield f"blk.{number}.ffn_gate_inp.weight", [f"model.{block}.gate.weight"], None
        for ours, theirs in _PARTS.items():
            yield f"blk.{number}.{theirs}.weight", [f"model.{block}.experts.{u}.{ours}.weight" for u in experts], None


def _tensors(mixture: ClosedMixture, placed: Seating, base: Mapping[str, Any]) -> Iterator[Wanted]:
    rows = {f"model.{block}.gate.weight": rows for block, rows in placed.gates.items()}
    for name, ours, heads in _names(mixture, placed.experts, base):
        parts = [mixture.tensors[one] for one in ours]
        if name.endswith("_exps.weight"):
            yield Wanted(name, torch.float32, (len(parts), *parts[0].shape), partial(_stack, parts))
        elif ours[0] in rows:
            yield like(rows[ours[0]], name, torch.float32)
        else:
            get = partial(_interleaved, parts[0].read, heads) if heads else parts[0].read
            yield Wanted(name, torch.float32, parts[0].shape, get)


def _stack(parts: Sequence[Stored]) -> Tensor:
    return torch.stack([part.read() for part in parts])


def _interleaved(read: Callable[[], Tensor], heads: int) -> Tensor:
    """From halves of a rotary head one after the other to pairs, as llama.cpp turns them."""
    weight_DH = read()
    D, H = weight_DH.shape
    return weight_DH.view(heads, 2, D // heads // 2, H).transpose(1, 2).reshape(D, H)


def _halves(weight_DH: Tensor, heads: int) -> Tensor:
    """The reverse of `_interleaved`."""
    D, H = weight_DH.shape
    return weight_DH.view(heads, D // heads // 2, 2, H).transpose(1, 2).reshape(D, H)


def _type(gguf: Any, tensor: Wanted, kind: str) -> Any:
    types = gguf.GGMLQuantizationType
    if len(tensor.shape) == 1 or tensor.name.endswith("ffn_gate_inp.weight"):
        return types.F32
    return types.F16 if kind == "Q8_0" and tensor.shape[-1] % 32 else types[kind]


def _size(gguf: Any, tensor: Wanted, kind: Any) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return int(np.prod(tensor.shape)) // block * size


def _describe(
    gguf: Any, writer: Any, base: Mapping[str, Any], rope: Mapping[str, Any], placed: Seating, kind: str, folder: Path
) -> None:
    """The file's keys: shape, rotary positions, experts, tokenizer."""
    heads, hidden = base["num_attention_heads"], base["hidden_size"]
    width = base.get("head_dim") or hidden // heads
    writer.add_name(folder.name)
    writer.add_vocab_size(base["vocab_size"])
    writer.add_context_length(base["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(base["num_hidden_layers"])
    writer.add_feed_forward_length(base["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(base["num_key_value_heads"])
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(base["rms_norm_eps"])
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(rope.get("rope_theta", base.get("rope_theta", 10_000.0)))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    writer.add_expert_count(len(placed.experts))
    writer.add_expert_used_count(placed.top_k)
    files = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "Q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(gguf.LlamaFileType[files[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _tokenizer(gguf, writer, folder, base["vocab_size"])


def _tokenizer(gguf: Any, writer: Any, folder: Path, vocabulary: int) -> None:
    """Byte-level BPE as llama.cpp's ``gpt2``, sentence pieces as its ``llama``; without a tokenizer it says ``none``."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        writer.add_tokenizer_model("none")
        return
    try:
        vocab = gguf.vocab.BpeVocab(folder)
    except FileNotFoundError:
        vocab = gguf.vocab.LlamaHfVocab(folder)
    tokens, scores, types = (list(column) for column in zip(*vocab.all_tokens(), strict=True))
    for extra in range(len(tokens), vocabulary):  # rows of the embedding that no token has
        tokens.append(f"[PAD{extra}]".encode())
        scores.append(-1000.0)
        types.append(gguf.TokenType.UNUSED)
    writer.add_tokenizer_model(vocab.tokenizer_model)
    if vocab.tokenizer_model == "gpt2":
        splitter = json.loads(file.read_text(encoding="utf-8")).get("pre_tokenizer") or {}
        plain = splitter.get("type") == "ByteLevel" and splitter.get("use_regex", True)
        writer.add_tokenizer_pre("gpt-2" if plain else "default")
    else:
        writer.add_token_scores(scores)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    gguf.SpecialVocab(folder, load_merges=True, n_vocab=len(tokens)).add_to_gguf(writer, quiet=True)


def _difference(gguf: Any, mixture: ClosedMixture, placed: Seating, base: Mapping[str, Any], file: Path) -> float:
    """Largest difference in log-probability between the mixture and the file, dequantised."""
    with quiet():
        before: Any = LayersMixture.from_pretrained(mixture.folder, dtype=torch.float32)
    ids_BT = compare.probe(before.config)
    expected = compare.log_probs(before, ids_BT)
    config = before.config
    config.slots = [{"name": f"expert-{e}", "expert": e} for e in range(len(placed.experts))]
    config.experts = [{"name": f"expert-{e}", "digest": None} for e in range(len(placed.experts))]
    config.gate = {**config.gate, "top_k": placed.top_k}
    del before
    after = LayersMixture(config)
    state = dict(_state(gguf, mixture, placed, base, file))
    missing, unexpected = after.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all(base["tie_word_embeddings"] and name.endswith("lm_head.weight") for name in missing), missing
    after.tie_weights()
    return float((compare.log_probs(after, ids_BT) - expected).abs().max())


def _state(
    gguf: Any, mixture: ClosedMixture, placed: Seating, base: Mapping[str, Any], file: Path
) -> Iterator[tuple[str, Tensor]]:
    """What the file holds, in the names of a mixture whose slots are its experts."""
    found = {t.name: t for t in gguf.GGUFReader(file).tensors}

    for name, ours, heads in _names(mixture, range(len(placed.experts)), base):
        raw = found.pop(name)
        tensor = torch.from_numpy(np.array(gguf.quants.dequantize(raw.data, raw.tensor_type)))
        if name.endswith("_exps.weight"):
            yield from zip(ours, tensor, strict=True)
        else:
            yield ours[0], _halves(tensor, heads) if heads else tensor
    assert not found, f"the file holds more than was written: {sorted(found)}"
