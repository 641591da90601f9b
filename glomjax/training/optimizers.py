"""The optimizer's direction and the learning rate of each step."""

import math
from collections.abc import Mapping

import numpy as np
import optax

from glomjax.errors import UserError, assignment
from glomjax.training import parameter_groups
from glomjax.training.config import RunConfig


def make_optimizer(config: RunConfig, groups: Mapping[str, int]) -> optax.GradientTransformation:
    """The direction of a run's steps, each thaw group with a state of its own.

    Adam has Keras' epsilon, 1e-7. Keras adds it before bias correction and optax after it, which
    makes a step longer by (|g| + 1e-7 / sqrt(1 - 0.999**t)) / (|g| + 1e-7) at step t of a constant
    gradient g: for 1e-5 by 30% in the first step, 9% in the tenth and 2% in the hundredth, for
    1e-4 by 3% in the first. AdamW is Adam, since the step itself takes off the weight decay; SGD
    keeps Keras' and PyTorch's momentum. `clip_norm` bounds the norm of the whole gradient.
    """
    if config.optimizer == "sgd":
        direction = optax.trace(decay=config.momentum)
    else:
        direction = optax.scale_by_adam(eps=1e-7)
    optimizer = parameter_groups.partition(direction, groups)
    if not config.clip_norm:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)


def learning_rate(config: RunConfig, base: float, step: int, steps_per_epoch: int) -> np.float32:
    """The rate of a step, counted from 0.

    Args:
      base: what the plateau schedule says for the epoch, or the configured rate.

    It rises linearly over `warmup_epochs`; with the schedule "cosine" it then falls along half a
    cosine to 0 at the end of `num_epochs` (Loshchilov and Hutter 2017).
    """
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return np.float32(base * (step + 1) / warmup)
    if config.schedule != "cosine":
        return np.float32(base)
    total = config.num_epochs * steps_per_epoch
    share = (step - warmup) / max(total - warmup, 1)
    return np.float32(base * 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0))))


def check_cosine(config: RunConfig) -> str:
    """A sentence on a cosine that early stopping leaves no time to fall, "" where there is none.

    It has hardly fallen where it has lost less than a tenth when ten times as many epochs as the
    patience are over. Few runs take as long as that without having reached their best.
    """
    epochs = config.warmup_epochs + 10 * config.early_stopping.patience
    left = float(learning_rate(config, 1.0, epochs, 1))
    if config.schedule != "cosine" or left <= 0.9:
        return ""
    return (
        f"The schedule cosine falls over all of num_epochs, {config.num_epochs}, and early "
        f"stopping (patience {config.early_stopping.patience}) ends most runs long before: after "
        f"{epochs} epochs the learning rate is still {left:.1%} of its first value, as good as "
        f"constant; set {assignment('num_epochs')} to the number of epochs that the run is to have."
    )


def class_weights(text: str, labels: np.ndarray, classes: int) -> tuple[float, ...]:
    """One weight per class, () for none.

    Args:
      text: "none"; "balanced", so that each class weighs the same and the mean weight is 1; or the
        weights in the order of the classes, such as "1,2.5".
      labels: of the training examples [N].

    Raises:
      UserError: another number of weights than of classes, or none above 0.
    """
    if text == "none":
        return ()
    if text == "balanced":
        counts = np.bincount(labels, minlength=classes)
        return tuple(float(len(labels) / (classes * count)) for count in counts)
    weights = tuple(float(part) for part in text.split(","))
    if len(weights) != classes or not any(weights):
        raise UserError(
            f"class_weights is {text!r}, but the data has {classes} classes; give one weight for "
            "each, not all of them 0"
        )
    return weights
