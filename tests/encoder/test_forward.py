"""A Pack through `forward_pack`, packed and padded: one row of logits per sequence, in the pack's order."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny.models import PACKED, PADDED, save_tiny

from tinyhat.config import EncoderConfig
from tinyhat.encoder.forward import MAX_PADDING, forward_pack, length_groups
from tinyhat.encoder.load import Encoder, load_encoder
from tinyhat.types import Pack

CPU = torch.device("cpu")


def _pack(lengths: list[int], first_position: int, types: bool = False) -> Pack:
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    within = np.concatenate([np.arange(n) for n in lengths])
    return Pack(
        input_ids=np.random.default_rng(0).integers(5, 200, cu_seqlens[-1]),
        position_ids=within + first_position,
        cu_seqlens=cu_seqlens,
        max_seqlen=max(lengths),
        sequence_doc=np.arange(len(lengths)),
        rows=np.arange(len(lengths)),
        token_type_ids=(within >= 2).astype(np.int64) if types else None,
    )


def _encoder(folder: Path, family: str, path: str) -> Encoder:
    config = EncoderConfig(path=path, hidden_dropout=None)  # type: ignore[arg-type]
    encoder = load_encoder(str(save_tiny(folder, family)), "multi", ["a", "b", "c"], config, 32, 0)
    encoder.model.eval()
    return encoder


def _alone(encoder: Encoder, pack: Pack) -> torch.Tensor:
    rows = []
    for a, b in itertools.pairwise(pack.cu_seqlens):
        inputs = {"input_ids": torch.from_numpy(pack.input_ids[a:b])[None]}
        if pack.token_type_ids is not None and encoder.takes_token_types:
            inputs["token_type_ids"] = torch.from_numpy(pack.token_type_ids[a:b])[None]
        rows.append(encoder.model(**inputs).logits)
    return torch.cat(rows)


@pytest.mark.parametrize(("family", "path"), [(f, "packed") for f in PACKED] + [(f, "padded") for f in PACKED + PADDED])
def test_equals_one_by_one(tmp_path: Path, family: str, path: str) -> None:
    encoder = _encoder(tmp_path, family, path)
    pack = _pack([5, 30, 3, 12, 12, 2], encoder.first_position, types=True)
    logits = forward_pack(encoder, pack, CPU)
    assert logits.shape == (6, 3)
    torch.testing.assert_close(logits, _alone(encoder, pack), atol=1e-5, rtol=1e-4)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=60))
def testlength_groups_cover_everything_with_little_padding(lengths: list[int]) -> None:
    ordered = np.sort(np.array(lengths))[::-1]
    groups = [ordered[g] for g in length_groups(ordered)]
    assert np.concatenate(groups).tolist() == ordered.tolist()
    for group in groups:
        assert 1 - group.sum() / (group.max() * len(group)) <= MAX_PADDING + 1e-9
    # and no group is cut without need: the next one's first sequence would have been too much
    for group, following in itertools.pairwise(groups):
        assert 1 - (group.sum() + following[0]) / (group.max() * (len(group) + 1)) > MAX_PADDING - 1e-9
