"""What packed LTG-BERT attention is computed from, and how a pack becomes one batch of matrix products on a GPU."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Inputs(NamedTuple):
    """What the attention of a pack is computed from.

    Attributes:
        query: [Q, H, D], the first rows of every sequence, as many as `cu_query` says.
        key: [T, H, D], of the dtype of `query`, as are all but the numbers and boundaries.
        value: [T, H, D].
        asked: [H, P, D], keys of the relative positions.
        asking: [H, P, D], queries of the relative positions.
        table: int64 [2 M - 1], which of the P positions the distance o has, at o + M - 1; further ones have the last.
        cu_query: int32 [S + 1], where each sequence's queries begin.
        cu_key: int32 [S + 1], where each sequence's keys begin.
        max_query: most queries of a sequence.
        max_key: most keys of a sequence.
        scale: factor on the scores.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    asked: torch.Tensor
    asking: torch.Tensor
    table: torch.Tensor
    cu_query: torch.Tensor
    cu_key: torch.Tensor
    max_query: int
    max_key: int
    scale: float


class PaddedBatch:
    """All sequences of a pack as one batch [S x H, length, D], inside attention only; on CPU `Group` has this part.

    Nothing here asks the device for a number, so no kernel is waited for.

    Args:
        cu_query: int32 [S + 1], where each sequence's queries begin.
        cu_key: int32 [S + 1], where each sequence's keys begin.
        query: [Q, H, D], for its size.
        key: [T, H, D], for its size.
        max_query: most queries of a sequence.
        max_key: most keys of a sequence.
    """

    def __init__(
        self,
        cu_query: torch.Tensor,
        cu_key: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        max_query: int,
        max_key: int,
    ) -> None:
        self._queries = _Side(cu_query, query.shape[0], max_query)
        self._keys = _Side(cu_key, key.shape[0], max_key)
        self.hidden = ~self._keys.real.repeat_interleave(key.shape[1], dim=0)[:, None]  # bool [S x H, 1, max_key]

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        """Return the rows of `x` [Q, H, D] as [S x H, max_query, D], zeros where a sequence is shorter."""
        return self._queries.pad(x)

    def keys(self, x: torch.Tensor) -> torch.Tensor:
        """Return the rows of `x` [T, H, D] as [S x H, max_key, D], zeros where a sequence is shorter."""
        return self._keys.pad(x)

    def store_queries(self, x: torch.Tensor, result: torch.Tensor) -> None:
        """Write [S x H, max_query, D] back into the rows of `x` [Q, H, D]."""
        x.copy_(self._queries.unpad(result, x.shape[1]))

    def store_keys(self, x: torch.Tensor, result: torch.Tensor) -> None:
        """Write [S x H, max_key, D] back into the rows of `x` [T, H, D]."""
        x.copy_(self._keys.unpad(result, x.shape[1]))


class _Side:
    """Where the rows of a pack go in the padded batch, and back."""

    def __init__(self, cu: torch.Tensor, rows: int, longest: int) -> None:
        begins, lengths = cu[:-1].long(), cu.diff()
        place = torch.arange(longest, device=cu.device)
        self.real = place < lengths[:, None]  # [S, longest]
        self.source = torch.where(self.real, begins[:, None] + place, 0)
        self.sequence = torch.repeat_interleave(lengths, output_size=rows)  # [rows]
        self.place = torch.arange(rows, device=cu.device) - begins[self.sequence]

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        padded = x[self.source] * self.real[:, :, None, None]
        return padded.transpose(1, 2).flatten(0, 1)

    def unpad(self, result: torch.Tensor, heads: int) -> torch.Tensor:
        return result.unflatten(0, (-1, heads)).transpose(1, 2)[self.sequence, self.place]
