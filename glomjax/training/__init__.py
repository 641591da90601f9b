"""Training: one call for a whole run, and the pieces that a script may use by themselves.

Examples:
  A run of two epochs with arrays; by default it writes what it says to the terminal:

  >>> import numpy as np
  >>> from glomjax.training import default_config, train_and_evaluate
  >>> config = default_config()
  >>> config.model.name = "alexnet_mini"
  >>> config.image_size, config.batch_size, config.num_epochs = (64, 64), 8, 2
  >>> labels = np.arange(8) % 2
  >>> images = np.broadcast_to(80 + 100 * labels[:, None, None, None], (8, 64, 64, 3))
  >>> data = {s: (images.astype(np.uint8), labels) for s in ("train", "validation", "test")}
  >>> metrics = train_and_evaluate(config, "runs/mine", data=data, progress=False)
  >>> metrics["n"], metrics["epochs"]
  (8, 2)

  The callbacks, with exactly Keras' semantics, go with any loop:

  >>> from glomjax.training import EarlyStopping, ReduceLROnPlateau
  >>> stop, plateau, rate = EarlyStopping(patience=2), ReduceLROnPlateau(0.5, patience=1), 1e-3
  >>> for epoch, loss in enumerate([0.7, 0.5, 0.6, 0.6, 0.6]):
  ...     rate = plateau.update(epoch, loss, rate)
  ...     if stop.update(epoch, loss):
  ...         break
  >>> epoch, stop.best_epoch, round(rate, 6)
  (3, 1, 0.00025)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
