"""What learns: parts of the stack that stay as they are, parts that join later, layers that start anew."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from tinyhat.encoder.layers import layer_list, stack_of
from tinyhat.encoder.load import Encoder
from tinyhat.errors import UserError
from tinyhat.train.strategy import Strategy


class Freeze(Strategy):
    """Everything outside `keep` never moves, and no gradient is computed for it.

    Args:
        part: ``head`` (the head alone), ``top`` (head, pooler and the top layers), ``embeddings`` (all but these),
            ``bias`` (head and every bias of the body; Ben Zaken et al. 2022, BitFit).
        layers: for ``top``: how many.
    """

    def __init__(self, part: str, layers: int = 0) -> None:
        self.part, self.layers = part, layers

    def prepare(self, encoder: Encoder) -> None:
        """Switch gradients off.

        Raises:
            UserError: ``top`` asks for more layers than there are.
        """
        stack = stack_of(encoder.model)
        learns = set(stack.head)
        if self.part == "embeddings":
            learns |= set(stack.body) - set(stack.embeddings)
        elif self.part == "bias":
            learns |= {name for name in stack.body if name.rpartition(".")[2] == "bias"}
        elif self.part == "top":
            require_layers("top_layers", self.layers, len(stack.layers), encoder.name)
            learns |= {name for layer in stack.layers[-self.layers :] for name in layer} | set(stack.pooler)
        for name, parameter in encoder.model.named_parameters():
            if name not in learns:
                parameter.requires_grad_(False)


class Gradual(Strategy):
    """One part more learns from time to time: first the head, then the top layer, at last the embeddings.

    Howard & Ruder 2018 (ULMFiT), section 3.3, unfreeze a layer an epoch. Which parts learn is a function of the step
    alone, so a resumed run needs nothing but its step number.

    Args:
        every: steps between two parts.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._groups: list[list[nn.Parameter]] = []

    def prepare(self, encoder: Encoder) -> None:
        """Note the parts, leaving out what is frozen for good; all of them are in the optimiser from the start."""
        by_name = dict(encoder.model.named_parameters())
        parts = [[by_name[n] for n in group if by_name[n].requires_grad] for group in stack_of(encoder.model).groups()]
        self._groups = [part for part in parts if part]

    def note(self, steps: int) -> str | None:
        """Say how many parts never learn, where training is too short to come to them."""
        reached = 1 + (steps - 1) // self.every
        if reached >= len(self._groups):
            return None
        return (
            f"train.update = 'gradual': {len(self._groups) - reached} of {len(self._groups)} parts never learn, one "
            f"joins every {self.every} steps of {steps}; set train.unfreeze_every to "
            f"{max(1, (steps - 1) // (len(self._groups) - 1))} or less, or train for longer"
        )

    def before_step(self, step: int) -> None:
        """Let gradients stop where learning stops: what is below is not computed."""
        if not _several_ranks():  # DDP waits for every gradient it was built with
            for place, part in enumerate(self._groups):
                _require_grad(part, place <= step // self.every)

    def after_backward(self, step: int) -> None:
        """Drop the gradients of what does not learn yet: a parameter without one is neither moved nor decayed."""
        for part in self._groups[step // self.every + 1 :]:
            for parameter in part:
                parameter.grad = None

    def finish(self) -> None:
        """Leave every part as it was found."""
        for part in self._groups:
            _require_grad(part, True)


class Reinitialise(Strategy):
    """The top layers and the pooler start from random weights (Zhang et al. 2021, "Revisiting Few-sample BERT
    Fine-tuning", section 5): the topmost are the most specialised on pretraining, and the hardest to move.

    Args:
        layers: how many.
        seed: of the weights.
    """

    def __init__(self, layers: int, seed: int) -> None:
        self.layers, self.seed = layers, seed

    def prepare(self, encoder: Encoder) -> None:
        """Draw the weights as the family draws them.

        Raises:
            UserError: there are not so many layers.
        """
        model = encoder.model
        _, layers = layer_list(model.base_model)
        require_layers("reinit_layers", self.layers, len(layers), encoder.name)
        modules = [module for layer in layers[-self.layers :] for module in layer.modules()]
        pooler = getattr(model.base_model, "pooler", None)
        modules += list(pooler.modules()) if isinstance(pooler, nn.Module) else []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            for module in modules:
                for parameter in module.parameters(recurse=False):
                    parameter._is_hf_initialized = False  # type: ignore[attr-defined]
                model._init_weights(module)


def require_layers(key: str, asked: int, there: int, name: str) -> None:
    """Raise a UserError where ``train.KEY`` asks for more layers than the `there` of encoder `name`."""
    if asked > there:
        raise UserError(f"train.{key} = {asked}: {name} has {there} layers; set it to {there} or less")


def _require_grad(parameters: Iterable[nn.Parameter], value: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(value)


def _several_ranks() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
