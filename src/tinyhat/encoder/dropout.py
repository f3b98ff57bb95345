"""Hidden dropout on CPU with a cheap mask: 16 random bits an element instead of one draw each."""

from __future__ import annotations

import torch
from torch import nn

_LEVELS = 1 << 16


class FastDropout(nn.Dropout):
    """``nn.Dropout`` whose mask costs a quarter on CPU; elsewhere, and compiled, it is ``nn.Dropout``.

    8192 x 384 bf16 values on one AVX-512 core: 4 ms against 19. The rate is rounded to
    1/65536 (0.1 becomes 0.100006); the bits come from torch's default generator, so seeds and checkpoints hold.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return `input` with each value zeroed with probability p and the others scaled by 1 / (1 - p)."""
        if not self.training or not 0 < self.p < 1 or not input.is_cpu or torch.compiler.is_compiling():
            return super().forward(input)
        draws = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = draws.view(torch.int16)[: input.numel()].view(input.shape)
        dropped = min(max(round(self.p * _LEVELS), 1), _LEVELS - 1)
        first_kept = dropped - _LEVELS // 2
        keep = bits.clamp_(first_kept - 1, first_kept).sub_(first_kept - 1)  # 0 or 1; comparing to bool is 3 ms slower
        return input * keep.to(input.dtype).mul_(1 / (1 - self.p))


def install_fast_dropout(model: nn.Module) -> None:
    """Replace every ``nn.Dropout`` of `model` by a FastDropout of the same rate; parameters and names stay."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout:
                setattr(parent, name, FastDropout(child.p).train(child.training))
