"""The door into transformers: its attention and mask interfaces call `packed_attention` when boundaries come along.

Stock encoders hand unknown keywords down to the attention function, so a pack travels as three keywords of the model's
forward: `cu_seqlens` (int32 [S + 1]), `max_seqlen` (int) and `gather` (True: only what the head reads is computed).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tinyhat.encoder.attention import KEEP_BYTES, KeptAttention, attention_bytes, groups, packed_attention
from tinyhat.encoder.ltg_bert.packed import Relative, attend_disentangled

NAME = "tinyhat"
VARLEN_DTYPES = (torch.bfloat16, torch.float16)
SHORTEST = 128  # tokens: below, attention costs nothing beside cuDNN's planning
SDPA_DTYPES = (torch.float32, torch.float64)  # here SDPA by length is a quarter faster on CPU than our op


_softmax: str | None = None


@contextmanager
def softmax_in(kind: str | None) -> Iterator[None]:
    """Force how packed attention rounds its weights: ``fp32`` (only the output is), ``low`` (to the inputs' dtype)."""
    global _softmax
    before, _softmax = _softmax, kind
    try:
        yield
    finally:
        _softmax = before


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
    """Return attention [Q, H, D] within sequences, by the fastest way there is for device and dtype.

    Half precision on CUDA: SDPA for equal lengths, else torch's varlen kernel. Single precision: SDPA by groups of
    equal length. bf16 on CPU, windows, and whatever is compiled (SDPA by groups would be compiled anew for every
    pack): our op.

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
    if _softmax == "fp32" and query.is_cpu and not window:
        return _sdpa_by_length(query, key, value, cu_query, cu_key, scale)
    if _has_varlen(query):
        if not window and _uniform(query, key, cu_key, max_query, max_key):
            return _dense(query, key, value, max_query, max_key, scale)
        reach = (window - 1, window - 1) if window else (-1, -1)
        out = varlen_attn(query, key, value, cu_query, cu_key, max_query, max_key, scale=scale, window_size=reach)
        assert isinstance(out, torch.Tensor)  # a pair only where the log-sum-exp is asked for
        return out
    if query.dtype == torch.float16 and query.is_cpu:  # no fast fp16 products there, see `HalfProducts`
        q, k, v = query.float(), key.float(), value.float()
        with torch.autocast("cpu", enabled=False):
            return attend(q, k, v, cu_query, cu_key, max_query, max_key, scale, window).to(query.dtype)
    if query.dtype in SDPA_DTYPES and not window and not torch.compiler.is_compiling():
        return _sdpa_by_length(query, key, value, cu_query, cu_key, scale)
    keeps = query.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if keeps and attention_bytes(query, cu_query, cu_key) <= KEEP_BYTES:
        out = KeptAttention.apply(query, key, value, cu_query, cu_key, scale, window)
        assert isinstance(out, torch.Tensor)
        return out
    return packed_attention(query, key, value, cu_query, cu_key, scale, window)


def takes_varlen(query: torch.Tensor, key: torch.Tensor, cu_key: torch.Tensor, max_query: int, max_key: int) -> bool:
    """Return whether attention without a window is torch's varlen kernel; arguments as for `attend`."""
    return _has_varlen(query) and not _uniform(query, key, cu_key, max_query, max_key)


def varlen_has(dtype: torch.dtype, width: int) -> bool:
    """Return whether torch's varlen kernel exists for heads of `width`."""
    return dtype in VARLEN_DTYPES and width % 8 == 0 and width <= 256


def _has_varlen(query: torch.Tensor) -> bool:
    return _softmax != "low" and query.is_cuda and varlen_has(query.dtype, query.shape[-1])


def _uniform(query: torch.Tensor, key: torch.Tensor, cu_key: torch.Tensor, max_query: int, max_key: int) -> bool:
    """Return whether all sequences are equally long and as many as SDPA should see: cuDNN plans anew for each number.

    Its kernels take two thirds of the time of varlen's (H200, 128 x 512 tokens: .26 and .90 ms against .40 and 1.34).
    """
    count = len(cu_key) - 1
    worth = count > 0 and count % 8 == 0 and max_key >= SHORTEST and max_query > 1 and not torch.compiler.is_compiling()
    return worth and count * max_key == len(key) and count * max_query == len(query)


def _dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, max_query: int, max_key: int, scale: float
) -> torch.Tensor:
    q, k, v = (
        x.unflatten(0, (-1, n)).transpose(1, 2) for x, n in ((query, max_query), (key, max_key), (value, max_key))
    )
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(0, 1)


def _sdpa_by_length(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_query: torch.Tensor,
    cu_key: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    runs = list(groups(cu_query, cu_key))
    rows_q = [run.count * run.query_length for run in runs]
    rows_k = [run.count * run.key_length for run in runs]
    # split, not slices: the gradient of a slice is as long as the whole pack
    parts = zip(runs, query.split(rows_q), key.split(rows_k), value.split(rows_k), strict=True)
    out = []
    for run, *qkv in parts:
        q, k, v = (x.unflatten(0, (run.count, -1)).transpose(1, 2) for x in qkv)
        out.append(F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(0, 1))
    return torch.cat(out)


def attention_forward(
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
    relative: Relative | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: query, key, value [B, H, n, D] in, [B, n, H, D] out.

    With boundaries B is 1, n is T, and `dropout` is not applied (packed training has none). Without them stock SDPA
    answers; a batch without mask, whose window its mask would have carried, is a pack of equal lengths. LTG-BERT
    hands over its tables of relative positions with the boundaries; without them they are in the mask.
    """
    batch, _, length, width = query.shape
    window = sliding_window or getattr(module, "sliding_window", None) or 0  # of the module: `local_attention`
    if cu_seqlens is None and window and attention_mask is None:
        cu_seqlens = torch.arange(0, batch * length + 1, length, dtype=torch.int32, device=query.device)
        max_seqlen = length
    if cu_seqlens is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    scale = width**-0.5 if scaling is None else scaling
    if relative is not None:
        out = attend_disentangled(q, k, v, relative, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, scale)
        return out.unflatten(0, (batch, length)), None
    out = attend(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, scale, window)
    return out.unflatten(0, (batch, length)), None


def _mask(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """Stock SDPA's mask, but none at all for a bidirectional input without padding, or a pack would get T x T."""
    if attention_mask is None and kwargs.get("allow_is_bidirectional_skip"):
        return None
    return sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, _mask)
