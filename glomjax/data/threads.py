"""Work on one item after another by threads, as many as the machine has processors."""

import collections
import concurrent.futures
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = os.cpu_count() or 1


def map_ordered(
    function: Callable[[Item], Result], items: Iterable[Item], *, ahead: int
) -> Iterator[Result]:
    """`function` of each item, in their order, computed by threads while the caller works.

    Unlike the pool's own `map` it takes items only `ahead` of the result it gives, so that no more
    wait in memory. Where the caller stops early, what has not begun is not computed.
    """
    waiting: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
    with contextlib.ExitStack() as stack:
        pool = concurrent.futures.ThreadPoolExecutor(THREADS)
        stack.callback(pool.shutdown, cancel_futures=True)
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
