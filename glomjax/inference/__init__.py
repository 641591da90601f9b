"""A trained network at work: predictions, judging it elsewhere, comparing, saliency.

Examples:
  `runs/davit` is the folder of a run; a file that `glomjax convert` wrote does as well:

  >>> import numpy as np
  >>> from glomjax.inference import load_classifier
  >>> classifier = load_classifier("runs/davit")
  >>> classifier.classes
  ('other', 'glomerulus')
  >>> pixels = np.random.default_rng(0).integers(60, 250, (2, 40, 40, 3)).astype(np.uint8)
  >>> found = classifier.predict(pixels)
  >>> found.logits.shape, found.probabilities.shape, len(found.labels)
  ((2, 1), (2, 2), 2)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
