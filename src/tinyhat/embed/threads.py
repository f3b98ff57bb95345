"""Threads that compute side by side, and what holds for all of them at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier

import torch

from tinyhat.encoder.precision import Plan


def start_threads(workers: int, each: int = 1) -> ThreadPoolExecutor:
    """Return threads whose torch operations run on `each` threads, leaving the rest of the process as it is.

    Args:
        workers: how many.
        each: OpenMP threads of one of them.
    """
    threads = torch.get_num_threads()
    met = Barrier(workers)

    def begin(_: int) -> None:
        torch.get_num_threads()  # or the first operation of this thread would take the number of the process instead
        torch.set_num_threads(each)
        met.wait()  # so that every thread gets one of these

    pool = ThreadPoolExecutor(workers, "embed")
    list(pool.map(begin, range(workers)))
    torch.set_num_threads(threads)  # what is set last holds for threads that are born later
    return pool


@contextmanager
def products_of(plan: Plan) -> Iterator[None]:
    """Set how fp32 products are computed, which holds for the whole process: once, not by each thread for itself."""
    before = torch.get_float32_matmul_precision()
    if before != plan.matmul:
        torch.set_float32_matmul_precision(plan.matmul)
    try:
        yield
    finally:
        if before != plan.matmul:
            torch.set_float32_matmul_precision(before)
