"""Where a parameter stands in the stack: embeddings, layer i, what follows the layers (pooler, last norm), head.

Generic over families: nothing here knows a model by its name.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

_SHARED = ("embed", "relative", "rel_")  # siblings of the layers that serve all of them: DeBERTa, MPNet


@dataclass(frozen=True)
class Stack:
    """The parts of a classifier from bottom to top, as names of its parameters.

    Attributes:
        embeddings: what comes before the layers or serves all of them (relative positions).
        layers: one tuple a layer, lowest first; ALBERT, whose layers share their weights, has one.
        pooler: what comes between the last layer and the head inside the encoder: pooler, final norm.
        head: everything outside the encoder.
    """

    embeddings: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...]
    pooler: tuple[str, ...]
    head: tuple[str, ...]

    @property
    def body(self) -> tuple[str, ...]:
        """Every parameter of the encoder."""
        return (*self.embeddings, *(name for layer in self.layers for name in layer), *self.pooler)

    def groups(self) -> list[tuple[str, ...]]:
        """Return the parts from top to bottom as they are unfrozen: head, pooler with top layer, ..., embeddings."""
        if not self.layers:
            return [self.head, (*self.pooler, *self.embeddings)]
        top = (*self.pooler, *self.layers[-1])
        return [self.head, top, *reversed(self.layers[:-1]), self.embeddings]

    def depth(self) -> dict[str, int]:
        """Return how far below the top layer a parameter stands: head -1, top layer and pooler 0, ..., embeddings n."""
        return {name: i - 1 for i, group in enumerate(self.groups()) for name in group}


def stack_of(model: PreTrainedModel) -> Stack:
    """Sort every parameter of a ``*ForSequenceClassification`` into a `Stack` (shared ones under their first name).

    The layers are the outermost ``ModuleList`` inside the encoder that holds most parameters. What is registered before
    it is embeddings; what follows is pooler, unless it stands beside the layers and serves all of them.
    """
    body = model.base_model
    prefix = next((name for name, module in model.named_modules() if module is body), "")
    prefix = f"{prefix}." if prefix else ""
    inside = {id(p) for p in body.parameters()}
    place, layers = layer_list(body)
    where = [f"{prefix}{place}.{i}." for i in range(len(layers))]
    parent = f"{prefix}{place.rpartition('.')[0]}." if "." in place else ""
    names = [(name, id(p) in inside) for name, p in model.named_parameters()]
    beside = [n for n, own in names if own and parent and n.startswith(parent) and not n.startswith(tuple(where))]
    serving = set(beside) if any(word in n for n in beside for word in _SHARED) else set()
    found: dict[str, list[str]] = {"embeddings": [], "pooler": [], "head": []}
    stacked: list[list[str]] = [[] for _ in where]
    for name, own in names:
        layer = next((i for i, start in enumerate(where) if name.startswith(start)), None)
        if layer is not None:
            stacked[layer].append(name)
        elif not own:
            found["head"].append(name)
        elif name in serving or not any(stacked):
            found["embeddings"].append(name)
        else:
            found["pooler"].append(name)
    return Stack(
        tuple(found["embeddings"]), tuple(map(tuple, stacked)), tuple(found["pooler"]), tuple(found["head"])
    )  # fmt: skip


def layer_list(body: nn.Module) -> tuple[str, list[nn.Module]]:
    """Return the name within `body` of the list that holds its layers, and the layers; ("", []) where there is none."""
    best: tuple[int, str, nn.ModuleList] | None = None
    outer: list[str] = []
    for name, module in body.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{o}.") for o in outer):
            outer.append(name)
            size = sum(p.numel() for p in module.parameters())
            if best is None or size > best[0]:
                best = (size, name, module)
    return ("", []) if best is None else (best[1], list(best[2]))
