"""Early stopping and the plateau schedule with exactly Keras 3's semantics, as state machines.

Both run on the host between epochs. Both start without a best value: the first monitored value
becomes the best, NaN included, and NaN is never improved on nor an improvement, as in Keras 3.
"""

from typing import Any

import numpy as np

from glomjax.errors import UserError


def _improves(value: float, best: float | None, min_delta: float, mode: str) -> bool:
    if best is None:
        return True
    return value + min_delta < best if mode == "min" else value - min_delta > best


def _check_mode(mode: str) -> None:
    if mode not in ("min", "max"):
        raise UserError(f"mode is {mode!r}; it is 'min' or 'max'")


class EarlyStopping:
    """Stops after `patience` epochs without an improvement (`keras.callbacks.EarlyStopping`).

    Args:
      patience: epochs without an improvement after which training stops.
      min_delta: an improvement is larger than this.
      mode: "min" where less is better, "max" where more is.
      baseline: only values better than this reset the count of epochs.
      start_from_epoch: earlier epochs are not looked at.

    Attributes:
      best: the best value so far, None before the first. best_epoch: its epoch.
      wait: epochs since then.
    """

    def __init__(
        self,
        patience: int,
        min_delta: float = 0.0,
        mode: str = "min",
        baseline: float | None = None,
        start_from_epoch: int = 0,
    ):
        _check_mode(mode)
        self.patience = patience
        self.min_delta = abs(min_delta)
        self.mode = mode
        self.baseline = baseline
        self.start_from_epoch = start_from_epoch
        self.best: float | None = None
        self.best_epoch = 0
        self.wait = 0

    def update(self, epoch: int, value: float) -> bool:
        """Takes the monitored value of an epoch, counted from 0. True: stop now."""
        if epoch < self.start_from_epoch:
            return False
        self.wait += 1
        if _improves(value, self.best, self.min_delta, self.mode):
            self.best, self.best_epoch = value, epoch
            if self.baseline is None or _improves(value, self.baseline, self.min_delta, self.mode):
                self.wait = 0
            return False
        # Keras never stops after the very first epoch.
        return self.wait >= self.patience and epoch > 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch, "wait": self.wait}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_epoch, self.wait = state["best"], state["best_epoch"], state["wait"]


class ReduceLROnPlateau:
    """Multiplies the learning rate by `factor` on a plateau (`keras.callbacks.ReduceLROnPlateau`).

    Args:
      factor: below 1.
      patience: epochs without an improvement after which the rate falls.
      min_delta: an improvement is larger than this.
      mode: "min" where less is better, "max" where more is.
      cooldown: epochs after a reduction that do not count.
      min_lr: the rate never falls below this.
    """

    def __init__(
        self,
        factor: float,
        patience: int,
        min_delta: float = 0.0,
        mode: str = "min",
        cooldown: int = 0,
        min_lr: float = 0.0,
    ):
        _check_mode(mode)
        if factor >= 1.0:
            raise UserError(f"the plateau schedule's factor is {factor}; it must be below 1")
        self.factor = factor
        self.patience = patience
        self.min_delta = min_delta
        self.mode = mode
        self.cooldown = cooldown
        self.min_lr = min_lr
        self.best: float | None = None
        self.wait = 0
        self.cooldown_left = 0

    def update(self, epoch: int, value: float, learning_rate: float) -> float:
        """Takes the monitored value of an epoch and returns the next epoch's learning rate.

        Rates are rounded to float32, as the optimizer has them.
        """
        del epoch
        rate = np.float32(learning_rate)
        if self.cooldown_left > 0:
            self.cooldown_left -= 1
            self.wait = 0
        if _improves(value, self.best, self.min_delta, self.mode):
            self.best, self.wait = value, 0
        elif self.cooldown_left == 0:
            self.wait += 1
            if self.wait >= self.patience and rate > np.float32(self.min_lr):
                rate = np.float32(max(float(rate) * self.factor, self.min_lr))
                self.cooldown_left, self.wait = self.cooldown, 0
        return float(rate)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "wait": self.wait, "cooldown_left": self.cooldown_left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.wait = state["best"], state["wait"]
        self.cooldown_left = state["cooldown_left"]
