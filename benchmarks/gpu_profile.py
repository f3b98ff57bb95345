"""Where a training step's time goes on a GPU: kernels by kind, and where nothing ran."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable

from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

# the first that matches; names are those of cuBLAS, FlashAttention, cuDNN, torch and Triton
KINDS = (
    ("attention", r"flash|fmha|cudnn|sdpa|mha"),
    ("products", r"gemm|nvjet|cutlass|xmma|splitk|cublas"),
    ("optimiser", r"adam|multi_tensor"),
    ("compiled", r"^triton"),
    ("fused", r"^(norm|gelu)_(for|back)ward$"),
    ("norms", r"layer_norm|LayerNorm|GammaBeta"),
    ("dropout", r"dropout"),
    ("embeddings", r"embedding|krn_partial|compute_grad_weight|radix|DeviceSort|sum_and_scatter|indexing_backward"),
    ("sums", r"reduce_kernel|reduce_1Block"),
    ("copies", r"Memcpy|Memset|copy"),
    ("element-wise", r"elementwise|index|fill|cat|where"),
)


def profile_steps(step: Callable[[], object], steps: int, top: int = 25) -> str:
    """Run `step` under the profiler and return a table: ms a step by kind, then the `top` kernels.

    Args:
        step: one optimiser step that waits for the device before it returns.
        steps: how many to average over.
        top: kernels named one by one.
    """
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as watched:
        for _ in range(steps):
            step()
    kernels = [e for e in watched.events() if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    kinds: dict[str, float] = defaultdict(float)
    names: dict[str, list[float]] = defaultdict(list)
    for event in kernels:
        milliseconds = (event.time_range.end - event.time_range.start) / 1e3 / steps
        kinds[_kind(event.name)] += milliseconds
        names[event.name].append(milliseconds)
    spans = [(e.time_range.start / 1e3, e.time_range.end / 1e3) for e in kernels]
    wall = (max(end for _, end in spans) - min(begin for begin, _ in spans)) / steps
    kinds["nothing ran"] = wall - _covered(spans) / steps
    lines = [f"{'ms a step':>10}  share  kind"]
    lines += [f"{ms:10.2f} {ms / wall:6.1%}  {kind}" for kind, ms in sorted(kinds.items(), key=lambda k: -k[1])]
    lines.append(f"{wall:10.2f}         from the first kernel to the last")
    lines.append(f"{'ms a step':>10} {'calls':>6}  kernel")
    ranked = sorted(names.items(), key=lambda item: -sum(item[1]))[:top]
    lines += [f"{sum(ms):10.2f} {len(ms) / steps:6.0f}  {name[:140]}" for name, ms in ranked]
    lines.append(f"{'ms idle':>10}         the longest of {steps} steps: after, before")
    lines += [f"{ms:10.2f}         {after[:60]}, {before[:60]}" for ms, after, before in _gaps(kernels)[:8]]
    return "\n".join(lines)


def _gaps(kernels: list[FunctionEvent]) -> list[tuple[float, str, str]]:
    """Return (ms, kernel before, kernel after) of every stretch in which nothing ran, the longest first."""
    ordered = sorted(kernels, key=lambda e: e.time_range.start)
    last, found = ordered[0], []
    for event in ordered[1:]:
        gap = (event.time_range.start - last.time_range.end) / 1e3
        if gap > 0:
            found.append((gap, last.name, event.name))
        if event.time_range.end > last.time_range.end:
            last = event
    return sorted(found, reverse=True)


def _kind(name: str) -> str:
    return next((kind for kind, pattern in KINDS if re.search(pattern, name)), "other")


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of `spans`."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
