"""From examples to batches of uint8 pixels: Grain orders them, threads decode them."""

import copy
import os
import threading
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from glomjax.data.decoding import decode_image
from glomjax.data.examples import Examples

Batch = dict[str, np.ndarray]


class Batches:
    """Batches of one split, all of one shape: the last one is padded and masked.

    A batch is `{"image": uint8 [B, H, W, 3], "label": int32 [B], "mask": float32 [B], "index":
    int64 [B]}`; padding repeats the last example with mask 0. The order of an epoch depends on
    the seed alone.

    Args:
      examples: the split.
      image_size: (height, width).
      batch_size: B.
      stratified: every batch of a shuffled epoch holds each class in about its share of the split.
        By chance alone a batch of 8 is often 6 to 2, and then its gradient mostly shifts all logits
        one way, which a transformer that starts from random values takes long to average out.
      cache_bytes: decoded images are kept in memory up to this many bytes; what does not fit is
        decoded in every epoch.
    """

    def __init__(
        self,
        examples: Examples,
        image_size: tuple[int, int],
        batch_size: int,
        *,
        stratified: bool = False,
        cache_bytes: int = 0,
    ):
        self.examples = examples
        self.batch_size = batch_size
        self._stratified = stratified
        self._images: Any = _DecodedImages(examples, image_size, cache_bytes)

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-len(self.examples) // self.batch_size)

    def epoch(self, seed: int | None = None, *, start: int = 0) -> Iterator[Batch]:
        """One pass from batch `start`, shuffled by `seed`; in the examples' own order without."""
        if seed is not None and self._stratified:
            order = grain.MapDataset.source(stratified_order(self.examples.labels, seed))
        else:
            order = grain.MapDataset.source(np.arange(len(self.examples)))
            if seed is not None:
                order = order.seed(seed).shuffle()
        images = order.map(lambda index: {"image": self._images[index], "index": index})
        batches = images.batch(self.batch_size, drop_remainder=False)[start:]
        options = grain.ReadOptions(num_threads=os.cpu_count() or 1, prefetch_buffer_size=4)
        for batch in batches.to_iter_dataset(options):
            yield self._padded(batch)

    def of_features(self, features: np.ndarray) -> "Batches":
        """The same split with features [N, D] in place of its images, in the same orders."""
        batches = copy.copy(self)
        batches._images = features
        return batches

    def _padded(self, batch: Batch) -> Batch:
        size = len(batch["index"])
        mask = (np.arange(self.batch_size) < size).astype(np.float32)
        positions = np.minimum(np.arange(self.batch_size), size - 1)
        index = np.asarray(batch["index"], np.int64)[positions]
        images = batch["image"] if size == self.batch_size else batch["image"][positions]
        return {
            "image": images,
            "label": self.examples.labels[index].astype(np.int32),
            "mask": mask,
            "index": index,
        }


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """A shuffle of labels [N], as indices [N], that spreads each class evenly over the order."""
    rng = np.random.default_rng(seed)
    place = np.empty(len(labels))  # of each example between 0 and 1
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        place[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return np.argsort(place, kind="stable")


class _DecodedImages:
    """Random access to decoded images, kept while they fit."""

    def __init__(self, examples: Examples, image_size: tuple[int, int], cache_bytes: int):
        self._examples = examples
        self._image_size = image_size
        self._room = cache_bytes // (image_size[0] * image_size[1] * 3)
        self._kept: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __getitem__(self, index: int) -> np.ndarray:
        image = self._kept.get(index)
        if image is None:
            name = self._examples.ids[index]
            image = decode_image(self._examples.read(index), self._image_size, name=name)
            with self._lock:
                if len(self._kept) < self._room:
                    self._kept[index] = image
        return image
