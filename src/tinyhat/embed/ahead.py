"""Documents as they come, cut into what fits in memory, and one piece ahead of what uses them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def cut(items: Iterable[T], count: int, characters: int, length: Callable[[T], int]) -> Iterator[list[T]]:
    """Cut `items` into lists of at most `count` of them and `characters`, or of one that is longer alone.

    Args:
        items: in order.
        count: most of a list.
        characters: most of a list, added up.
        length: characters of an item.
    """
    held: list[T] = []
    total = 0
    for item in items:
        size = length(item)
        if held and (len(held) == count or total + size > characters):
            yield held
            held, total = [], 0
        held.append(item)
        total += size
    if held:
        yield held


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield `items`, made in a thread at most two ahead, so that making (reading, tokenising) overlaps using them.

    The thread's error is raised where the item would be.
    """
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
