"""fp16 matrix products on a processor without AVX-512 fp16: the same numbers through fp32 products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

_ATEN = torch.ops.aten
_PRODUCTS = (_ATEN.mm, _ATEN.addmm, _ATEN.bmm, _ATEN.baddbmm)
_ATTENTION = (
    _ATEN._scaled_dot_product_flash_attention_for_cpu,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward,
)


class HalfProducts(TorchDispatchMode):
    """Within it, products of fp16 matrices on the CPU are fp32 products of the same values, rounded to fp16 once.

    A tensor core multiplies fp16 values, adds in fp32 and rounds once: so does this, up to the order of sums. Torch's
    own fp16 product takes 40 times the fp32 one on a processor without AVX-512 fp16 (1024 x 384 x 1536 on one core: 483
    ms against 13). Overflow, underflow and skipped steps are those of fp16; the speed is that of fp32 with casts.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute one operation."""
        packet = getattr(func, "overloadpacket", None)
        if packet not in _PRODUCTS and packet not in _ATTENTION:
            return func(*args, **(kwargs or {}))
        halves = [x for x in args if isinstance(x, torch.Tensor) and x.dtype == torch.float16]
        if not halves or not halves[0].is_cpu or "out" in (kwargs or {}):
            return func(*args, **(kwargs or {}))
        result = func(*tree_map(_up, args), **tree_map(_up, dict(kwargs or {})))
        if packet is _ATEN._scaled_dot_product_flash_attention_for_cpu:
            return result[0].half(), result[1]  # the log-sum-exp stays fp32, as the fp16 kernel keeps it
        return tree_map(_down, result)


def _up(x: Any) -> Any:
    return x.float() if isinstance(x, torch.Tensor) and x.dtype == torch.float16 else x


def _down(x: Any) -> Any:
    return x.half() if isinstance(x, torch.Tensor) and x.dtype == torch.float32 else x
