"""Pretrained weights: where they come from and how they become ours.

Examples:
  A source is a published id such as "kecam/davit_t_imagenet", a file, or a run, whose best weights
  are meant. `read_weights` gives its tensors by name, `load_weights` puts all of them into a
  network, or none:

  >>> from flax import nnx
  >>> from glomjax.models import create_model
  >>> from glomjax.pretrained import load_weights, read_weights
  >>> tensors, about = read_weights("runs/davit")
  >>> tensors["head/kernel"].shape, about.spec.classes
  ((8, 1), ('other', 'glomerulus'))
  >>> size = {"depths": (1,), "embed_dims": (8,), "num_heads": (1,)}
  >>> model = create_model("davit_tiny", image_size=(32, 32), rngs=nnx.Rngs(0), **size)
  >>> report = load_weights(model, "runs/davit", exclude=("head/.*",))
  >>> report.excluded
  ('head/bias', 'head/kernel')
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
