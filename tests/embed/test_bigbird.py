"""BigBird: hidden states are cut to the document, and its attention is switched by one worker alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.tiny.models import save_tiny
from transformers import AutoModel

from tinyhat.embed.embedder import load_embedder

SPARSE = {"attention_type": "block_sparse", "block_size": 8, "num_random_blocks": 1, "max_position_embeddings": 128}


@pytest.mark.filterwarnings("ignore")  # of transformers, about lengths that are no whole blocks
def test_hidden_states_of_long_documents_end_where_the_document_ends(tmp_path):
    folder = save_tiny(tmp_path / "big_bird", "big_bird", **SPARSE)
    embedder = load_embedder(folder, plan="fp32", layers="all", combine="concat", pooling="max", workers=3)
    assert embedder.workers == 1
    texts = ["law court market fish " * 20, "tax trade milk"]
    windows = embedder.reader.read(texts)
    assert windows.lengths[0] > 56, "long enough to be sparse"
    assert windows.lengths[0] % 8, "and no whole number of blocks"
    found = embedder.embed(texts)
    for text, vector, kind in zip(texts, found, ("block_sparse", "original_full"), strict=True):
        model = AutoModel.from_pretrained(folder, attention_type=kind).eval()
        ids = torch.from_numpy(embedder.reader.read([text]).input_ids.astype(np.int64))[None]
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states
        expected = np.concatenate([h[0, : ids.shape[1]].max(dim=0).values.numpy() for h in states])
        np.testing.assert_allclose(vector, expected, atol=1e-5)
