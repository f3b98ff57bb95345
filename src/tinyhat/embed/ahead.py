"""An iterator that is one item ahead: what makes the items (reading, tokenising) overlaps what uses them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield `items`, made in a thread that is at most two items ahead; its error is raised where the item would be."""
    line: queue.Queue[tuple[bool, object]] = queue.Queue(1)
    stop = threading.Event()

    def put(value: tuple[bool, object]) -> None:
        while not stop.is_set():
            try:
                line.put(value, timeout=0.1)
                return
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put((True, item))
                if stop.is_set():
                    return
            put((False, None))
        except BaseException as error:
            put((False, error))

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            good, item = line.get()
            if good:
                yield item  # type: ignore[misc]
            elif item is None:
                return
            else:
                raise item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
