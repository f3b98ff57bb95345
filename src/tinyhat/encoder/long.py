"""Encoders made for long documents, and BERTs made longer: global and block-sparse attention, tiled positions."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tinyhat.encoder.layers import layer_list
from tinyhat.errors import UserError

LOCAL = "tinyhat_local_attention"  # in config.json


def extend_positions(model: PreTrainedModel, tokens: int, first_position: int) -> None:
    """Give a model with learned positions room for `tokens` tokens: its positions are repeated in order.

    So Longformer was made of RoBERTa (Beltagy, Peters and Cohan 2020, section 5): neighbourhoods look as they did, all
    but those at the seams. The rows before `first_position` stay as they are.

    Args:
        model: a classifier of the BERT or RoBERTa kind; changed in place, its config too.
        tokens: tokens of a sequence, special tokens included.
        first_position: position id of a first token.

    Raises:
        UserError: the model has no table of positions, or a longer one already.
    """
    embeddings = getattr(model.base_model, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    if not isinstance(table, nn.Embedding) or not isinstance(embeddings, nn.Module):
        raise UserError(f"encoder.extend_positions: {type(model).__name__} has no learned positions; leave it out")
    before = table.num_embeddings - first_position
    if tokens < before:
        raise UserError(f"encoder.extend_positions = {tokens}: the model has {before} positions already; leave it out")
    rows = first_position + torch.arange(tokens) % before
    weights = torch.cat([table.weight.detach()[:first_position], table.weight.detach()[rows]])
    longer = nn.Embedding(len(weights), table.embedding_dim, table.padding_idx)
    with torch.no_grad():
        longer.weight.copy_(weights)
    embeddings.position_embeddings = longer
    for name, value in (("position_ids", torch.arange(len(weights))), ("token_type_ids", torch.zeros(len(weights)))):
        if name in embeddings._buffers:
            embeddings.register_buffer(name, value.long()[None], persistent=False)
    model.config.max_position_embeddings = len(weights)


def local_attention(model: PreTrainedModel, window: int) -> None:
    """Let the tokens of every layer but the last see `window` tokens around them, half on either side.

    In the last layer the first token, which the head reads, sees all. Only packed attention knows of it (`interface`),
    and config.json keeps the number, so that a saved model computes as it was trained.

    Args:
        model: a classifier whose layers are the largest ``ModuleList`` in its encoder.
        window: tokens.

    Raises:
        UserError: there is one list entry for all layers (ALBERT shares its weights), or one layer: none would change.
    """
    _, layers = layer_list(model.base_model)
    if len(layers) < 2:
        raise UserError(
            f"encoder.local_attention = {window}: {type(model).__name__} has no layer below the last one, so nothing "
            "would change; leave it out"
        )
    for layer in layers[:-1]:
        for module in layer.modules():
            vars(module)["sliding_window"] = window // 2 + 1
    setattr(model.config, LOCAL, window)


def full_attention_tokens(model: nn.Module) -> int | None:
    """Return up to how many tokens a BigBird's block-sparse attention becomes full attention; None for other models.

    Two global, three sliding and twice the random blocks must fit (Zaheer et al. 2020; so transformers has it).
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", "") != "big_bird" or config.attention_type != "block_sparse":
        return None
    return int((5 + 2 * config.num_random_blocks) * config.block_size)


def long_notes(model: PreTrainedModel, longest: int) -> list[str]:
    """Return what a user should know about a long encoder that learns from sequences of at most `longest` tokens."""
    least = full_attention_tokens(model)
    if least is None:
        return []
    if longest <= least:
        return [
            f"BigBird's attention is full, not block-sparse: the longest sequence has {longest} tokens, it is sparse "
            f"above {least}"
        ]
    return [f"BigBird's attention is block-sparse above {least} tokens, and full in shorter batches"]


def long_inputs(model: nn.Module, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Prepare `model` (under whatever wrapper) for a padded batch and return what else its forward takes.

    Longformer: global attention on the first token, which the head reads. BigBird: the attention that the length of
    this batch allows; left alone, transformers would turn to full attention for good at the first short batch.

    Args:
        model: the classifier.
        attention_mask: int64 [B, n], 1 on tokens.
    """
    bare: Any = getattr(model, "module", model)
    if getattr(bare.config, "model_type", "") == "longformer":
        first = torch.zeros_like(attention_mask)
        first[:, 0] = 1
        return {"global_attention_mask": first}
    least = full_attention_tokens(bare)
    if least is not None:
        kind = "block_sparse" if attention_mask.shape[1] > least else "original_full"
        # a change builds modules and drops their weights at once; these must not cost random numbers, or dropout would
        # depend on the batches before, and a resumed run would differ
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            bare.base_model.set_attention_type(kind)
    return {}


def sparse_blocks(model: nn.Module) -> tuple[int, int]:
    """Return a BigBird's block size and the fewest tokens it is sparse for; (0, 0) for other models.

    Args:
        model: a classifier, under whatever wrapper.
    """
    bare: Any = getattr(model, "module", model)
    least = full_attention_tokens(bare)
    return (0, 0) if least is None else (int(bare.config.block_size), least + 1)


def sparse_in_fp32(model: PreTrainedModel) -> None:
    """Let BigBird's layers compute in fp32 under autocast while they are block-sparse; nothing for other models.

    transformers scatters bf16 into fp32 there, which raises.
    """
    if full_attention_tokens(model) is not None:
        layers: Any = model.base_model.encoder
        layers.forward = MethodType(_without_autocast, layers)


def _without_autocast(layers: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    device = hidden_states.device.type
    if layers.attention_type != "block_sparse" or not torch.is_autocast_enabled(device):
        return type(layers).forward(layers, hidden_states, *args, **kwargs)
    with torch.autocast(device, enabled=False):
        return type(layers).forward(layers, hidden_states.float(), *args, **kwargs)
