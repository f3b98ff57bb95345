"""An embedder as a sentence-transformers model: the encoder, ``modules.json``, the pooling, and length 1 if wanted.

The module types have the names of sentence-transformers 2 to 5, which version 6 and text-embeddings-inference read too.
B texts, n tokens, D width.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from tinyhat.embed.choice import Pooling
from tinyhat.embed.embedder import Embedder
from tinyhat.encoder.quiet import quiet
from tinyhat.errors import UserError
from tinyhat.run import atomic_path, write_json

MODES: dict[Pooling, str] = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt": "pooling_mode_mean_sqrt_len_tokens",
    "weighted": "pooling_mode_weightedmean_tokens",
    "last": "pooling_mode_lasttoken",
}
TOLERANCE = 1e-4  # of the largest value, in fp32; packed and padded forward passes differ by about 1e-6
WORD = "the quick brown fox signed a contract with 27 states, and nobody paid any tax on milk"


def write_sentence_transformers(embedder: Embedder, out: Path) -> dict[str, Any]:
    """Write `embedder` as a sentence-transformers model folder, once plain transformers gives its vectors from there.

    Args:
        embedder: one layer, any pooling, documents truncated, plan fp32. A layer below the last is exported by leaving
            out what is above it.
        out: the folder.

    Returns:
        texts (how many were compared), largest_difference (relative to the largest value).

    Raises:
        UserError: several layers or the pooled vector, which the form cannot express; or vectors that differ.
    """
    if len(embedder.layers.indices) != 1:
        raise UserError(
            f"--layers {embedder.layers.name} does not fit a sentence-transformers model, which pools one layer: "
            "choose a single layer"
        )
    with atomic_path(out) as folder:
        _write_encoder(embedder, folder)
        _write_modules(embedder, folder)
        checked = _compare(embedder, folder)
        if not checked["largest_difference"] <= TOLERANCE:
            raise UserError(
                f"{embedder.encoder.name} gives other vectors after export (by {checked['largest_difference']:.1e} of "
                f"the largest value, layer {embedder.layers.name}): nothing is written, choose the last layer"
            )
    return checked


def _write_encoder(embedder: Embedder, folder: Path) -> None:
    body: PreTrainedModel = embedder.encoder.model.base_model
    if embedder.layers.indices[0] < embedder.layer_count:
        body = _cut(body, embedder.layers.indices[0])
    body = copy.copy(body)
    body.config = copy.deepcopy(body.config)
    tokenizer = copy.deepcopy(embedder.encoder.tokenizer)
    tokenizer.model_max_length = embedder.max_tokens
    with quiet():
        body.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _cut(body: PreTrainedModel, layers: int) -> PreTrainedModel:
    """Return a copy of an encoder with its first `layers` layers.

    Raises:
        UserError: its layers are not a list of `config.num_hidden_layers` (ALBERT shares them), or none is left.
    """
    count = int(body.config.num_hidden_layers)
    found = [name for name, m in body.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if layers < 1 or not found:
        raise UserError(
            f"layer {layers} of a {type(body).__name__} cannot be exported by leaving out what is above it: choose the "
            "last layer"
        )
    body = copy.deepcopy(body)
    if getattr(body.config, "layer_types", None):
        body.config.layer_types = body.config.layer_types[:layers]
    body.config.num_hidden_layers = layers
    parent, _, name = found[0].rpartition(".")
    setattr(body.get_submodule(parent), name, nn.ModuleList(list(body.get_submodule(found[0]))[:layers]))
    return body


def _write_modules(embedder: Embedder, folder: Path) -> None:
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if embedder.normalize:
        modules.append(("2_Normalize", "Normalize"))
        (folder / "2_Normalize").mkdir()
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    pooling = {"word_embedding_dimension": embedder.width}
    pooling |= {key: name == embedder.pooling for name, key in MODES.items()}
    (folder / "1_Pooling").mkdir()
    write_json(folder / "modules.json", listed)
    write_json(folder / "1_Pooling" / "config.json", pooling | {"include_prompt": True})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": embedder.max_tokens, "do_lower_case": False})
    write_json(folder / "config_sentence_transformers.json", {"prompts": {}, "default_prompt_name": None})


def _compare(embedder: Embedder, folder: Path) -> dict[str, Any]:
    """Compare vectors with those of the folder under plain transformers, padded, as sentence-transformers runs it."""
    texts = ["milk", WORD, "; ".join([WORD] * 5), " ".join([WORD] * (embedder.max_tokens // 8 + 1))]
    expected = torch.from_numpy(embedder.embed(texts))
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(**{k: v for k, v in inputs.items() if k != "token_type_ids" or v.any()}).last_hidden_state
    found = pool_padded(states, inputs["attention_mask"], embedder.pooling)
    if embedder.normalize:
        found = nn.functional.normalize(found)
    difference = (found - expected).abs().max() / expected.abs().max()
    return {"texts": len(texts), "largest_difference": float(difference)}


def pool_padded(states_BnD: torch.Tensor, mask_Bn: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Return float32 [B, D] from padded token states, by the definitions of sentence-transformers' ``Pooling``.

    Args:
        states_BnD: float32 [B, n, D], padding behind.
        mask_Bn: int64 [B, n], 1 where a token is.
        pooling: its name here.
    """
    mask = mask_Bn[:, :, None].to(states_BnD)
    if pooling == "max":
        return states_BnD.masked_fill(mask == 0, -torch.inf).amax(dim=1)
    if pooling == "cls":
        return states_BnD[:, 0]
    if pooling == "last":
        return states_BnD[torch.arange(len(mask)), mask_Bn.sum(dim=1) - 1]
    if pooling == "weighted":
        mask = mask * torch.arange(1, mask.shape[1] + 1)[None, :, None]
    total, weight = (states_BnD * mask).sum(dim=1), mask.sum(dim=1)
    return total / (weight.sqrt() if pooling == "mean_sqrt" else weight)
