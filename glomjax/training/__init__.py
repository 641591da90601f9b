"""Training: one call for a whole run, and the pieces that a script may use by themselves."""

from glomjax.training.callbacks import EarlyStopping, ReduceLROnPlateau
from glomjax.training.config import default_config
from glomjax.training.loop import train_and_evaluate

__all__ = ["EarlyStopping", "ReduceLROnPlateau", "default_config", "train_and_evaluate"]
