"""All that changes while a run trains."""

import dataclasses
from typing import Any

import numpy as np

from glomjax.training.callbacks import EarlyStopping, ReduceLROnPlateau

Arrays = dict[str, Any]


@dataclasses.dataclass
class Position:
    """How far a run has come."""

    epoch: int = 0  # the next one, or the one that it is in
    batch: int = 0  # the next one in this epoch
    step: int = 0  # the next one of all
    seconds: float = 0.0  # spent in this epoch
    learning_rate: float = 0.0  # of this epoch, before warm-up and cosine
    stop: bool = False
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)  # on what the run has lost


@dataclasses.dataclass
class TrainState:
    """The state of a run.

    Attributes:
      trainable, frozen: {path: parameter}.
      opt_state: of the optimizer, as `init_state` makes it.
      sums: the running sums of the epoch, as `zero_sums` has them.
      position: how far the run has come.
      stopping, plateau: the callbacks.
      averages: whether `opt_state` holds a moving average of the parameters.
      best: the parameters of the best epoch on the host, {} before the first has ended.
    """

    trainable: Arrays
    frozen: Arrays
    opt_state: Any
    sums: Any
    position: Position
    stopping: EarlyStopping
    plateau: ReduceLROnPlateau
    averages: bool = False
    best: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def params(self) -> Arrays:
        """All parameters, as the last step left them."""
        return {**self.trainable, **self.frozen}

    @property
    def evaluated(self) -> Arrays:
        """The parameters that are evaluated and kept: the moving average where there is one."""
        return {**self.params, **(self.opt_state[1] if self.averages else {})}
