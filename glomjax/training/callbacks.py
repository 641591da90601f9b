"""Early stopping and the plateau schedule with exactly Keras 3's semantics, as state machines.

Both run on the host between epochs. Both start without a best value: the first monitored value
becomes the best, NaN included, and NaN is never improved on nor an improvement, as in Keras 3. As
there, and unlike in all that a run prints and writes, epochs count from 0.
"""

import math
import numbers
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


def _count(name: str, value: Any) -> int:
    """A whole number from 0, of NumPy's kinds as well."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
        raise UserError(f"{name} is {value!r}; it is a whole number of epochs, at least 0")
    return int(value)


def _number(name: str, value: Any) -> float:
    """A finite number."""
    found = _value(name, value)
    if not math.isfinite(found):
        raise UserError(f"{name} is {value!r}; it is a finite number")
    return found


def _value(name: str, value: Any) -> float:
    """A number, NaN and infinity included; an array of one number, such as JAX gives, is one."""
    try:
        array = np.asarray(value)
        if array.dtype.kind in "iuf" or array.dtype.name == "bfloat16":
            return float(array.item())
    except (TypeError, ValueError):  # no array at all, or of several numbers
        pass
    raise UserError(f"{name} is {value!r}; it is a number, such as 0.25")


class EarlyStopping:
    """Stops after `patience` epochs without an improvement (`keras.callbacks.EarlyStopping`).

    Args:
      patience: epochs without an improvement after which training stops.
      min_delta: an improvement is larger than this.
      mode: "min" where less is better, "max" where more is.
      baseline: only values better than this reset the count of epochs.
      start_from_epoch: earlier epochs, counted from 0, are not looked at.

    Attributes:
      best: the best value so far, None before the first. best_epoch: its epoch, counted from 0.
      wait: epochs since then.

    Raises:
      UserError: an argument, or a value of `update`, that is of another kind.
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
        self.patience = _count("patience", patience)
        self.min_delta = abs(_number("min_delta", min_delta))
        self.mode = mode
        self.baseline = None if baseline is None else _number("baseline", baseline)
        self.start_from_epoch = _count("start_from_epoch", start_from_epoch)
        self.best: float | None = None
        self.best_epoch = 0
        self.wait = 0

    def update(self, epoch: int, value: float) -> bool:
        """Takes the monitored value of an epoch, counted from 0. True: stop now."""
        epoch, value = _count("epoch", epoch), _value("value", value)
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

    Raises:
      UserError: an argument, or one of `update`, that is of another kind.
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
        self.factor = _number("factor", factor)
        if not 0 <= self.factor < 1:
            raise UserError(
                f"the plateau schedule's factor is {factor}; it must be at least 0 and below 1"
            )
        self.patience = _count("patience", patience)
        self.min_delta = _number("min_delta", min_delta)
        self.mode = mode
        self.cooldown = _count("cooldown", cooldown)
        self.min_lr = _number("min_lr", min_lr)
        self.best: float | None = None
        self.wait = 0
        self.cooldown_left = 0

    def update(self, epoch: int, value: float, learning_rate: float) -> float:
        """Takes the monitored value of an epoch and returns the next epoch's learning rate.

        Rates are rounded to float32, as the optimizer has them. The epoch, counted from 0, changes
        nothing.
        """
        _count("epoch", epoch)
        value = _value("value", value)
        rate = np.float32(_number("learning_rate", learning_rate))
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
