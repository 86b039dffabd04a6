"""The next rows of a training, on its device: drawn, pinned and copied while a step computes."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from .feed import Rows

T = TypeVar("T")
U = TypeVar("U")
DEPTH = 2
"""Batches that are on their way beside the one that is learned from."""


def ahead(rows: Iterator[Rows], device: torch.device) -> Generator[Rows, None, None]:
    """Yield the rows on the device, in their order.

    On a GPU a thread draws them into pinned memory and copies them on a stream of its own, so that neither the host nor the GPU
    waits for a batch. On a CPU, where both would share the cores with the step, they are yielded as they are drawn.
    """
    if device.type != "cuda":
        yield from rows
        return
    copies: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(drawn: Rows) -> tuple[Rows, Any]:
        with torch.cuda.device(device), torch.cuda.stream(copies):
            return drawn.pinned().to(device), copies.record_event()

    for sent, copied in in_thread(rows, send):
        here = torch.cuda.current_stream(device)
        here.wait_event(copied)
        for column in sent.tensors:
            column.record_stream(here)  # else its memory could go to the next copy while this step still reads it
        yield sent


def in_thread(items: Iterator[T], do: Callable[[T], U]) -> Generator[U, None, None]:
    """Yield what `do` makes of each item, in their order; both are done by one thread, DEPTH items ahead.

    An error of either is raised where its item would have come.
    """
    end = object()

    def one() -> U | object:
        item = next(items, end)
        return end if item is end else do(item)  # type: ignore[arg-type]

    with ThreadPoolExecutor(1, thread_name_prefix="feed") as thread:
        waiting = deque(thread.submit(one) for _ in range(DEPTH))
        try:
            while (made := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(one))
                yield made  # type: ignore[misc]
        finally:
            for future in waiting:
                future.cancel()
