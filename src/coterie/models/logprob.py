"""Log-probabilities of the tokens that are there, without the vocabulary axis of a whole batch.

The decoder gives hidden states [B,T,D]; the head is applied to a chunk of tokens at a time, and of each chunk only the
target's log-probability is kept. What a batch costs beyond the weights is then the hidden states and one chunk.

B rows, T positions (T-1 of them are predicted), D width, V vocabulary, C tokens in a chunk.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from coterie.models import packed_inputs as packing

CHUNK = 2**22
"""Logits held at once: 16 MB in fp32."""


def target_logp(
    model: nn.Module, ids_BT: Int[Tensor, "B T"], position_BT: Int[Tensor, "B T"] | None = None
) -> Float[Tensor, "B T-1"]:
    """log P(x_{t+1} | x_{<=t}) in nats, fp32.

    Args:
        model: a causal language model, in evaluation mode; a PEFT model too.
        ids_BT: token ids.
        position_BT: position of each token in its own document. Documents do not see each other, and the first token of a
            document, which nothing predicts, has log-probability 0. Without it a row is one document.
    """
    target_BT = ids_BT[:, 1:].long()
    given = packing.inputs(model, ids_BT, position_BT)
    if _needs_whole_logits(model):
        logp_BT = _gather(model(**given).logits[:, :-1].flatten(0, 1), target_BT.flatten()).view_as(target_BT)
    else:
        hidden_ND = _decoder(model)(**given)[0][:, :-1].flatten(0, 1)
        size = max(CHUNK // _plain(model).config.get_text_config().vocab_size, 16)
        pairs = zip(hidden_ND.split(size), target_BT.flatten().split(size), strict=True)
        logp_BT = torch.cat([_gather(_head(model, hidden_CD), target_C) for hidden_CD, target_C in pairs]).view_as(target_BT)
    return logp_BT if position_BT is None else logp_BT.masked_fill(position_BT[:, 1:] == 0, 0.0)


def log_probs(
    model: nn.Module, ids_BT: Int[Tensor, "B T"], position_BT: Int[Tensor, "B T"] | None = None
) -> Float[Tensor, "B T V"]:
    """log P(. | x_{<=t}) over the whole vocabulary, in nats, fp32."""
    return model(**packing.inputs(model, ids_BT, position_BT)).logits.float().log_softmax(-1)


def _gather(logits_CV: Tensor, target_C: Tensor) -> Tensor:
    logits_CV = logits_CV.float()
    return logits_CV.gather(-1, target_C[:, None])[:, 0] - logits_CV.logsumexp(-1)


def _plain(model: nn.Module) -> PreTrainedModel:
    """The model under an adapter of PEFT."""
    return cast(PreTrainedModel, getattr(model, "get_base_model", lambda: model)())


def _decoder(model: nn.Module) -> nn.Module:
    return getattr(_plain(model), _plain(model).base_model_prefix)


def _head(model: nn.Module, hidden_CD: Tensor) -> Tensor:
    """Logits as the model's own forward makes them: head, then Cohere's and Granite's scales and Gemma's soft cap."""
    config = _plain(model).config.get_text_config()
    logits_CV = _plain(model).get_output_embeddings()(hidden_CD)
    if getattr(config, "logit_scale", None) is not None:
        logits_CV = logits_CV * config.logit_scale
    if getattr(config, "logits_scaling", None) is not None:
        logits_CV = logits_CV / config.logits_scaling
    cap = getattr(config, "final_logit_softcapping", None)
    return logits_CV if cap is None else torch.tanh(logits_CV / cap) * cap


@packing.measured_once
def _needs_whole_logits(model: nn.Module) -> bool:
    """Whether the model does something else to its logits than `_head` does."""
    device = next(model.parameters()).device
    ids_BT = torch.arange(4, device=device)[None] % _plain(model).config.get_text_config().vocab_size
    try:
        whole = model(input_ids=ids_BT, use_cache=False).logits
        parts = _head(model, _decoder(model)(input_ids=ids_BT, use_cache=False)[0])
        return not torch.allclose(
            whole.float(), parts.float(), rtol=1e-3, atol=1e-4
        )  # a training model's forward gives fp32
    except (AttributeError, TypeError):
        return True
