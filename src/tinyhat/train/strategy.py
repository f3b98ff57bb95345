"""What the loop lets others do around its steps: freeze, pull, average, replay. A strategy overrides what it needs."""

from __future__ import annotations

import torch

from tinyhat.encoder.load import Encoder


class Strategy:
    """Hooks of the loop, all empty here. Steps are 0-based; a resumed run calls the same hooks for the same steps.

    What a strategy keeps between steps and cannot compute again from the step number goes through `state`.
    """

    def prepare(self, encoder: Encoder) -> None:
        """Before the optimiser is built, with the weights as loaded: freeze, wrap, initialise anew."""

    def note(self, steps: int) -> str | None:
        """Return what a user should know before a training of so many steps, in one sentence, or None."""
        return None

    def before_step(self, step: int) -> None:
        """Before the forward pass of `step`, after gradients were cleared."""

    def after_backward(self, step: int) -> None:
        """With the whole batch's gradients there, before they are clipped: add to them."""

    def after_step(self, step: int) -> None:
        """After the optimiser has moved the weights in `step`."""

    def show(self) -> None:
        """Put the weights in place that are measured and kept, where these are not the ones that are trained."""

    def hide(self) -> None:
        """Put the trained weights back; of several strategies the last one first."""

    def finish(self) -> None:
        """After the last step, with the chosen weights in place as `show` puts them."""

    def save(self) -> None:
        """After `finish`, with all in the weights that will be saved: write what is kept beside the model."""

    def state(self) -> dict[str, torch.Tensor]:
        """Return the tensors a checkpoint must keep, by name."""
        return {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take back what `state` returned."""
