"""Packed attention against SDPA one sequence at a time, forward and backward, by length and dtype, in one run.

    python benchmarks/attention.py [--tokens 4096] [--heads 12] [--width 32] [--threads N] [--json]

The arms alternate and the best of --repeats counts. Times are milliseconds for all tokens, wall clock, or CPU time with
--threads 1, which a busy machine disturbs less; `ratio` is SDPA over ours.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from tinyhat.encoder.attention import packed_attention

LENGTHS = (16, 64, 128, 256, 400, 512, 1024, 2048)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--width", type=int, default=32, help="of one head")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        for length in LENGTHS:
            count = max(1, args.tokens // length)
            rows.append(compare(dtype, length, count, args.heads, args.width, args.repeats))
            if not args.json:
                print("{dtype:>9} {length:5d} tokens  sdpa {sdpa_ms:7.1f} ms  ours {ours_ms:7.1f} ms  "
                      "ratio {ratio:4.2f}".format(**rows[-1]), flush=True)  # fmt: skip
    if args.json:
        print(json.dumps({"torch": torch.__version__, **vars(args), "rows": rows}))


def compare(dtype: torch.dtype, length: int, count: int, heads: int, width: int, repeats: int) -> dict:
    torch.manual_seed(0)
    inputs = [torch.randn(count * length, heads, width, dtype=dtype, requires_grad=True) for _ in range(3)]
    gradient = torch.randn(count * length, heads, width, dtype=dtype)
    cu = torch.arange(0, count * length + 1, length, dtype=torch.int32)

    def sdpa() -> None:
        # split, not slices: the gradient of a slice is as long as the whole pack
        sequences = zip(*(x.split(length) for x in inputs), strict=True)
        parts = [F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in qkv)) for qkv in sequences]
        torch.autograd.grad(torch.cat(parts, dim=2)[0].transpose(0, 1), inputs, gradient)

    def ours() -> None:
        torch.autograd.grad(packed_attention(*inputs, cu, cu, width**-0.5, 0), inputs, gradient)

    best = {"sdpa": float("inf"), "ours": float("inf")}
    for _ in range(repeats + 1):
        for name, arm in (("sdpa", sdpa), ("ours", ours)):
            best[name] = min(best[name], _seconds(arm))
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "length": length,
        "sdpa_ms": round(best["sdpa"] * 1e3, 2),
        "ours_ms": round(best["ours"] * 1e3, 2),
        "ratio": round(best["sdpa"] / best["ours"], 3),
    }


def _seconds(arm: Callable[[], None]) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    arm()
    return clock() - begin


if __name__ == "__main__":
    main()
