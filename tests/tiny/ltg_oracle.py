"""LTG-BERT in numpy float64, one sequence and one head at a time, written from the paper's equations alone."""

from __future__ import annotations

import math

import numpy as np
import torch

Array = np.ndarray


def bucket(offset: int, buckets: int, positions: int) -> int:
    """Signed bucket of query - key: the distance itself up to B/2, then logarithmic up to B - 1 at M - 1."""
    middle = buckets // 2
    distance = min(abs(offset), positions - 1)
    if distance > middle:
        share = math.log(distance / middle) / math.log((positions - 1) / middle)
        distance = middle + math.ceil(share * (middle - 1))
    return int(math.copysign(distance, offset)) if offset else 0


class Oracle:
    """The function a model computes, from its weights by name and its config.

    Args:
        model: any LTG-BERT of ours; only ``state_dict()`` and ``config`` are read.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.c = model.config
        state = {k: v.detach().double().numpy() for k, v in model.state_dict().items()}
        self.w = {k.removeprefix("model."): v for k, v in state.items()}

    def states(self, ids: Array) -> list[Array]:
        """Return the residual stream before the first and after every layer, [n, H] each, for ids [n]."""
        x = self._norm(self.w["embedding.word_embedding.weight"][ids])
        positions = self._affine(self.w["embedding.relative_embedding"], "embedding.relative_layer_norm")
        found = [x]
        for i in range(self.c.num_hidden_layers):
            x = x + self._attention(x, positions, f"transformer.layers.{i}.attention.")
            x = x + self._feed_forward(x, f"transformer.layers.{i}.mlp.")
            found.append(x)
        return found

    def word_logits(self, x: Array) -> Array:
        """Return the masked-LM logits [n, V] of last states [n, H]."""
        return self._mlp_head(x, "lm_head.", self.w["embedding.word_embedding.weight"])

    def class_logits(self, x: Array) -> Array:
        """Return the classifier's logits [..., L] of states [..., H]."""
        if self.c.classifier_head == "mlp":
            return self._mlp_head(x, "head.", self.w["head.out_proj.weight"])
        return x @ self.w["classifier.weight"].T + self.w["classifier.bias"]

    def _mlp_head(self, x: Array, name: str, out: Array) -> Array:
        dense = self._norm(x) @ self.w[f"{name}dense.weight"].T + self.w[f"{name}dense.bias"]
        gelu = dense * 0.5 * (1 + np.vectorize(math.erf)(dense / math.sqrt(2)))
        return self._norm(gelu) @ out.T + self.w[f"{name}out_proj.bias"]

    def _attention(self, x: Array, positions: Array, name: str) -> Array:
        n, width, heads = len(x), self.c.hidden_size, self.c.num_attention_heads
        d = width // heads
        weight, bias = self.w[f"{name}in_proj_qk.weight"], self.w[f"{name}in_proj_qk.bias"]
        h = self._norm(x)
        content, relative = h @ weight.T + bias, positions @ weight.T + bias
        values = h @ self.w[f"{name}in_proj_v.weight"].T + self.w[f"{name}in_proj_v.bias"]
        context = np.zeros((n, width))
        for head in range(heads):
            part = slice(head * d, head * d + d)
            q, k = content[:, :width][:, part], content[:, width:][:, part]
            if self.c.relative_qk_layout == "split":
                q_pos, k_pos = relative[:, :width][:, part], relative[:, width:][:, part]
            else:
                q_pos = relative[:, 2 * head * d : 2 * head * d + d]
                k_pos = relative[:, 2 * head * d + d : 2 * head * d + 2 * d]
            scores = np.zeros((n, n))
            for i in range(n):
                for j in range(n):
                    b = (
                        self.c.position_bucket_size
                        - 1
                        + bucket(i - j, self.c.position_bucket_size, self.c.max_position_embeddings)
                    )
                    scores[i, j] = (q[i] @ k[j] + q[i] @ k_pos[b] + k[j] @ q_pos[b]) / math.sqrt(3 * d)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            context[:, part] = (weights / weights.sum(1, keepdims=True)) @ values[:, part]
        projected = context @ self.w[f"{name}out_proj.weight"].T + self.w[f"{name}out_proj.bias"]
        return self._affine(projected, f"{name}post_layer_norm")

    def _feed_forward(self, x: Array, name: str) -> Array:
        both = self._norm(x) @ self.w[f"{name}up.weight"].T
        value, gate = both[:, : self.c.intermediate_size], both[:, self.c.intermediate_size :]
        gelu = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        return self._norm(value * gelu) @ self.w[f"{name}down.weight"].T

    def _norm(self, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.c.layer_norm_eps)

    def _affine(self, x: Array, name: str) -> Array:
        return self._norm(x) * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]
