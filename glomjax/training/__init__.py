"""Training: one call for a whole run, and the pieces that a script may use by themselves."""

from glomjax.training.callbacks import EarlyStopping, ReduceLROnPlateau
from glomjax.training.config import default_config
from glomjax.training.crossval import cross_validate
from glomjax.training.interrupts import Interrupted
from glomjax.training.loop import train_and_evaluate
from glomjax.training.processes import initialize
from glomjax.training.run_folder import clear

__all__ = [
    "EarlyStopping",
    "Interrupted",
    "ReduceLROnPlateau",
    "clear",
    "cross_validate",
    "default_config",
    "initialize",
    "train_and_evaluate",
]
