"""Labelled images: where they come from, who is in which split, and which of them are copies.

Examples:
  The embedded data, in splits that share no patient; a folder or a table of yours takes its place:

  >>> from glomjax.data import load_source, make_splits, normal_form
  >>> source = load_source("synthetic")
  >>> source.classes
  ('other', 'glomerulus')
  >>> len(source.train), len(set(source.train.patients))
  (720, 18)

  Splits of your own arrays, by patient:

  >>> import numpy as np
  >>> labels, patients = np.tile([0, 1], 20), np.repeat(list("abcdefghij"), 4)
  >>> splits = make_splits(labels, patients, fractions=(0.6, 0.2, 0.2), seed=0)
  >>> {name: len(set(patients[part])) for name, part in splits.items()}
  {'train': 6, 'validation': 2, 'test': 2}

  Two spellings of one name:

  >>> normal_form("Case_07") == normal_form(" case 7")
  True
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
