"""What stored pixels go through until a network sees them.

Examples:
  A file, or an array, becomes uint8 of one size on the host; what is random, and the
  normalisation, come on the device:

  >>> import jax
  >>> import numpy as np
  >>> from glomjax.preprocessing import IMAGENET, PRESETS, decode_image
  >>> stored = np.full((300, 320, 3), 200, np.uint8)
  >>> image = decode_image(stored, (96, 96), name="an array")
  >>> image.shape, image.dtype
  ((96, 96, 3), dtype('uint8'))
  >>> augment = jax.jit(PRESETS["histology"])
  >>> augmented = augment(image[None], jax.random.split(jax.random.key(0), 1))
  >>> IMAGENET(augmented).shape
  (1, 96, 96, 3)

  Stains as the median of some images has them (Macenko):

  >>> from glomjax.preprocessing import stain_normalization
  >>> tissue = np.random.default_rng(0).integers(90, 220, (4, 64, 64, 3)).astype(np.uint8)
  >>> rows = [stain_normalization.image_statistics("macenko", image) for image in tissue]
  >>> normalizer = stain_normalization.fit("macenko", np.stack(rows))
  >>> normalizer(tissue[0]).shape
  (64, 64, 3)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
