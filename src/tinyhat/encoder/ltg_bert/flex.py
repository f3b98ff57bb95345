"""LTG-BERT's attention on a pack through FlexAttention, on CUDA: no score is ever written to memory.

S sequences, T tokens, Q queries, H heads, D width of a head, P relative positions.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from tinyhat.encoder.ltg_bert.batches import Inputs


def attend_flex(x: Inputs) -> torch.Tensor:
    """Return attention [T, H, D] as `packed.disentangled_attention` defines it; gradients flow to all five tensors.

    What a query asks of a position, and a position of a key, are two tables [H, T, P] in fp32 that the score function
    looks up (the sums of their gradients need fp32: hundreds of keys share the furthest buckets).

    Args:
        x: with the same boundaries for queries and keys.
    """
    by_content = torch.einsum("qhd,hpd->hqp", x.query * x.scale, x.asked).float()
    of_content = torch.einsum("khd,hpd->hkp", x.key, x.asking * x.scale).float()
    table, furthest = x.table, (x.table.shape[0] - 1) // 2

    def score(
        value: torch.Tensor, batch: torch.Tensor, head: torch.Tensor, q: torch.Tensor, k: torch.Tensor
    ) -> torch.Tensor:
        # within a sequence the distance in the pack is the distance in the sequence; all else is masked
        position = table[(q - k).clamp(-furthest, furthest) + furthest]
        return value + by_content[head, q, position] + of_content[head, k, position]

    query, key, value = (t.transpose(0, 1)[None] for t in (x.query, x.key, x.value))
    mask = _mask(x.cu_key, x.key.shape[0])
    out = _flex(x.query.is_cuda)(query, key, value, score_mod=score, block_mask=mask, scale=x.scale)
    return out[0].transpose(0, 1)


@lru_cache(maxsize=2)
def _flex(compiled: bool) -> Any:
    # on CPU only for tests of the forward pass, uncompiled: there it has no backward
    return torch.compile(flex_attention) if compiled else flex_attention


_newest: list[Any] = []  # boundaries of the newest pack and its mask: all layers ask for the same


def _mask(cu: torch.Tensor, rows: int) -> BlockMask:
    """Return the mask that keeps the sequences of a pack apart."""
    if not _newest or _newest[0] is not cu:
        sequence = torch.repeat_interleave(cu.diff(), output_size=rows)

        def same(batch: torch.Tensor, head: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return sequence[q] == sequence[k]

        _newest[:] = [cu, create_block_mask(same, None, None, rows, rows, device=str(cu.device))]
    mask: BlockMask = _newest[1]
    return mask
