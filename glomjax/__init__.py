"""Kidney-histology patch classifiers in JAX: does this patch show a glomerulus?

- `load_classifier` applies a trained network; `glomjax.inference` has what belongs to it.
- `glomjax.training`: one call for a whole run, cross-validation, callbacks, the configuration.
- `glomjax.data`: labelled images from folders, tables and arrays; splits by patient; copies.
- `glomjax.preprocessing`: from stored pixels to what a network sees; augmentation, stain.
- `glomjax.models`: AlexNet-mini, GoogLeNet and DaViT as Flax NNX modules.
- `glomjax.pretrained`: published weights, loaded tensor by tensor.
- `glomjax.evaluation`: metrics with intervals that count patients, from arrays alone.
- `glomjax.report`: the page on a result.
- `glomjax.ops`: operations that XLA compiles badly on a CPU.

Nothing is imported before it is used. Every failure that its user can put right is a `UserError`.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
