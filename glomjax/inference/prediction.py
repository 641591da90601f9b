"""The one loop that turns batches of images into logits: of validation, test and prediction."""

import collections
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np


def predict_batches(
    step: Callable[[Any], Any],
    batches: Iterable[tuple[Any, int]],
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Any]:
    """The logits of each batch, float32 [n, K] (or a list of these), in the order of the batches.

    Args:
      step: images -> logits [B, K], or a list of these, on the device.
      batches: (images, n): of each batch the first n rows are images, the rest padding.
      should_stop: is called after each batch; True ends the iteration early.
    """
    ahead = steps_ahead()
    running: collections.deque[tuple[Any, int]] = collections.deque()
    for images, count in batches:
        running.append((step(images), count))
        if len(running) > ahead:
            yield _finished(*running.popleft())
        if should_stop():
            return
    while running:
        yield _finished(*running.popleft())


def steps_ahead() -> int:
    """How many steps may wait behind the running one.

    A CPU gains nothing by a queue of steps, ends sooner without one on a signal, and keeps
    the messages of two steps to other processes apart; elsewhere two more keep the device busy.
    More would only hold batches in memory.
    """
    return 0 if jax.default_backend() == "cpu" else 2


def wait(arrays: Any) -> None:
    """Waits for a step in small naps, since Python handles signals between two of its own
    instructions alone."""
    nap = 5e-5
    while not all(array.is_ready() for array in jax.tree.leaves(arrays)):
        time.sleep(nap)
        nap = min(2 * nap, 5e-3)


def _finished(logits: Any, count: int) -> Any:
    wait(logits)
    return jax.tree.map(lambda rows: np.asarray(rows)[:count], logits)
