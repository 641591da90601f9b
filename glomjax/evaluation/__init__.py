"""How good a classifier is: numbers with intervals that count patients, from arrays alone.

Examples:
  >>> import numpy as np
  >>> from glomjax.evaluation import auroc_interval, classification_metrics
  >>> rng = np.random.default_rng(0)
  >>> labels, patients = rng.integers(0, 2, 200), np.repeat(np.arange(20), 10)
  >>> logits = labels[:, None] * 2.0 + rng.normal(size=(200, 1))
  >>> metrics = classification_metrics(labels, logits, ("other", "glomerulus"), patients)
  >>> found = metrics["estimates"]["auroc"]
  >>> print(f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})")
  0.910 (0.849 to 0.947)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
