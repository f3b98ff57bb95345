"""Against forgetting: the weights training started from, as a place to be pulled to, mixed in, or averaged with."""

from __future__ import annotations

import torch
from numpy.random import SeedSequence
from torch import nn

from tinyhat.encoder.layers import stack_of
from tinyhat.encoder.load import Encoder
from tinyhat.train.strategy import Strategy

Pairs = list[tuple[nn.Parameter, torch.Tensor]]


class L2SP(Strategy):
    """Pull the body towards where it started: adds alpha / 2 x |w - w0|^2 to the loss (Li et al. 2018, equation 2).

    Its gradient alpha x (w - w0) is added before clipping. The head has no pretrained weights and keeps plain weight
    decay; the body has none (`optim.parameter_groups`).

    Args:
        alpha: weight of the penalty.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self._anchors: Pairs = []

    def prepare(self, encoder: Encoder) -> None:
        """Copy the body as loaded; a resumed run loads the same weights before its checkpoint."""
        self._anchors = _anchors(encoder)

    @torch.no_grad()
    def after_backward(self, step: int) -> None:
        """Add the pull to what learns in this step."""
        for parameter, start in self._anchors:
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start, alpha=self.alpha)


class Mixout(Strategy):
    """Compute each step with a share of the body's matrix entries at their pretrained values (Lee et al. 2020).

    An entry is u = ((1 - m) w + m w0 - p w0) / (1 - p) with m ~ Bernoulli(p), so that its mean is w (equation 3
    there); the gradient in w is that in u times (1 - m) / (1 - p). Only matrices of linear layers are mixed, as there.

    Args:
        share: p.
        seed: of the masks, which depend on (seed, step) alone and are the same on every rank.
    """

    def __init__(self, share: float, seed: int) -> None:
        self.share, self.seed = share, seed
        self._anchors: Pairs = []
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def prepare(self, encoder: Encoder) -> None:
        """Copy the matrices as loaded."""
        linear = {id(m.weight) for m in encoder.model.modules() if isinstance(m, nn.Linear)}
        self._anchors = [(p, start) for p, start in _anchors(encoder) if id(p) in linear and p.requires_grad]

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Put the mixture in place of the weights."""
        for i, (parameter, start) in enumerate(self._anchors):
            seed = int(SeedSequence([self.seed, step, i]).generate_state(1, dtype="uint64")[0]) >> 1
            generator = torch.Generator(parameter.device).manual_seed(seed)
            draws = torch.rand(parameter.shape, generator=generator, device=parameter.device)
            factor = (draws >= self.share).to(parameter.dtype).div_(1 - self.share)
            self._kept.append((parameter.detach().clone(), factor))
            # ((1 - m) w + m w0 - p w0) / (1 - p) = w0 + (1 - m) / (1 - p) (w - w0)
            parameter.copy_(start + factor * (parameter - start))

    @torch.no_grad()
    def after_backward(self, step: int) -> None:
        """Put the weights back and pass the gradient through the mixture."""
        for (parameter, _), (weights, factor) in zip(self._anchors, self._kept, strict=True):
            parameter.copy_(weights)
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        self._kept = []


class WiseFT(Strategy):
    """Measure and keep (1 - share) w0 + share w of every weight of the body (Wortsman et al. 2022, WiSE-FT).

    The head, which has no pretrained weights, stays as trained. The change of an adapter is mixed by its second factor,
    which starts at 0: share x B A.

    Args:
        share: of the fine-tuned weights (alpha there); 1 changes nothing.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._anchors: Pairs = []
        self._trained: list[torch.Tensor] = []

    def prepare(self, encoder: Encoder) -> None:
        """Copy the body as loaded."""
        first = {id(p) for name, p in encoder.model.named_parameters() if "lora_A" in name}
        self._anchors = [(p, start) for p, start in _anchors(encoder) if id(p) not in first]

    @torch.no_grad()
    def show(self) -> None:
        """Put the mixture in place."""
        self._trained = [parameter.detach().clone() for parameter, _ in self._anchors]
        for parameter, start in self._anchors:
            parameter.copy_(torch.lerp(start, parameter, self.share))

    @torch.no_grad()
    def hide(self) -> None:
        """Put the trained weights back."""
        for (parameter, _), trained in zip(self._anchors, self._trained, strict=True):
            parameter.copy_(trained)
        self._trained = []

    def finish(self) -> None:
        """Let go of the copies: the mixture stays."""
        self._anchors, self._trained = [], []


class Average(Strategy):
    """Measure and keep a running mean of the weights instead of the last ones (Polyak & Juditsky 1992; EMA).

    After step t the mean moves by 1 - d_t to the weights, d_t = min(decay, (1 + t) / (10 + t)): the ramp lets a short
    run forget where it began (as TensorFlow's ExponentialMovingAverage with ``num_updates``).

    Args:
        decay: d for long runs.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._model: nn.Module | None = None
        self._means: dict[str, torch.Tensor] = {}
        self._weights: dict[str, torch.Tensor] = {}

    def prepare(self, encoder: Encoder) -> None:
        """Note the model; the means begin at the first step's weights."""
        self._model = encoder.model

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the means."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self._learning():
            if name in self._means:
                self._means[name].lerp_(parameter, 1 - decay)
            else:
                self._means[name] = parameter.detach().clone()

    @torch.no_grad()
    def show(self) -> None:
        """Put the means in place."""
        for name, parameter in self._learning():
            if name in self._means:
                self._weights[name] = parameter.detach().clone()
                parameter.copy_(self._means[name])

    @torch.no_grad()
    def hide(self) -> None:
        """Put the training weights back."""
        for name, parameter in self._learning():
            if name in self._weights:
                parameter.copy_(self._weights.pop(name))

    def state(self) -> dict[str, torch.Tensor]:
        """Return the means."""
        return self._means

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take them back."""
        by_name = dict(self._learning())
        self._means = {name: mean.to(by_name[name].device) for name, mean in state.items()}

    def _learning(self) -> list[tuple[str, nn.Parameter]]:
        assert self._model is not None
        return list(self._model.named_parameters())


def _anchors(encoder: Encoder) -> Pairs:
    """Return the body's parameters with copies of their present values."""
    by_name = dict(encoder.model.named_parameters())
    return [(by_name[name], by_name[name].detach().clone()) for name in stack_of(encoder.model).body]
