"""The door into transformers: its attention and mask interfaces call `packed_attention` when boundaries come along.

Stock encoders hand unknown keywords down to the attention function, so a pack travels as three keywords of the model's
forward: `cu_seqlens` (int32 [S + 1]), `max_seqlen` (int) and `gather` (True: only what the head reads is computed).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tinyhat.encoder.attention import packed_attention

NAME = "tinyhat"
_FLASH_DTYPES = (torch.bfloat16, torch.float16)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_query: torch.Tensor,
    cu_key: torch.Tensor,
    max_query: int,
    max_key: int,
    scale: float,
    window: int = 0,
) -> torch.Tensor:
    """Return attention [Q, H, D] within sequences, by torch's varlen kernel where there is one, else by our op.

    Args:
        query: [Q, H, D]; key and value [T, H, D], all of one dtype.
        key: see `query`.
        value: see `query`.
        cu_query: int32 [S + 1] boundaries of the queries.
        cu_key: int32 [S + 1] boundaries of the keys.
        max_query: most queries of a sequence.
        max_key: most keys of a sequence.
        scale: factor on the scores.
        window: keys at a distance below it are seen; 0: all.
    """
    if query.is_cuda and query.dtype in _FLASH_DTYPES and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256:
        reach = (window - 1, window - 1) if window else (-1, -1)
        out = varlen_attn(query, key, value, cu_query, cu_key, max_query, max_key, scale=scale, window_size=reach)
        assert isinstance(out, torch.Tensor)  # a pair only where the log-sum-exp is asked for
        return out
    return packed_attention(query, key, value, cu_query, cu_key, scale, window)


def _attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seqlens: torch.Tensor | None = None,
    max_seqlen: int = 0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: query, key, value [B, H, n, D] in, [B, n, H, D] out.

    With boundaries B is 1, n is T, and `dropout` is not applied (packed training has none). Without them stock SDPA
    answers; a batch without mask, whose window its mask would have carried, is a pack of equal lengths.
    """
    batch, _, length, width = query.shape
    window = sliding_window or 0
    if cu_seqlens is None and window and attention_mask is None:
        cu_seqlens = torch.arange(0, batch * length + 1, length, dtype=torch.int32, device=query.device)
        max_seqlen = length
    if cu_seqlens is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    scale = width**-0.5 if scaling is None else scaling
    out = attend(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, scale, window)
    return out.unflatten(0, (batch, length)), None


def _mask(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """Stock SDPA's mask, but none at all for a bidirectional input without padding, or a pack would get T x T."""
    if attention_mask is None and kwargs.get("allow_is_bidirectional_skip"):
        return None
    return sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(NAME, _attention_forward)
AttentionMaskInterface.register(NAME, _mask)
