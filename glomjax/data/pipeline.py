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
    """Batches of one split, all of one shape: what is left over is padded and masked.

    A batch is `{"image": uint8 [R, H, W, 3], "label": int32 [R], "mask": float32 [R], "index":
    int64 [R], "position": int32 [R]}` of R rows, where `position` is the place in the epoch's
    order. The first `batch_size` rows of all are examples; those beyond, and those
    after the last example, are black images with mask 0 and index -1. The order of an epoch depends
    on the seed alone, neither on the size of a batch nor on who reads which part of it.

    Args:
      examples: the split.
      image_size: (height, width).
      batch_size: examples in a batch.
      stratified: every batch of a shuffled epoch holds each class in about its share of the split.
        By chance alone a batch of 8 is often 6 to 2, and then its gradient mostly shifts all logits
        one way, which a transformer that starts from random values takes long to average out.
      cache_bytes: decoded images are kept in memory up to this many bytes; what does not fit is
        decoded in every epoch.
      multiple: the rows of a batch are a multiple of this, so that devices get equal shares.
      share: (which, of how many): R is so many consecutive rows of each batch, for one of several
        hosts; the default is all.
    """

    def __init__(
        self,
        examples: Examples,
        image_size: tuple[int, int],
        batch_size: int,
        *,
        stratified: bool = False,
        cache_bytes: int = 0,
        multiple: int = 1,
        share: tuple[int, int] = (0, 1),
    ):
        self.examples = examples
        self.batch_size = batch_size
        self._stratified = stratified
        self._images: Any = _DecodedImages(examples, image_size, cache_bytes)
        self._blank = np.zeros((*image_size, 3), np.uint8)
        rows = -(-batch_size // multiple) * multiple
        which, of = share
        if rows % of:
            raise ValueError(f"{of} hosts cannot share batches of {rows} rows equally")
        self._rows = rows
        self._mine = slice(which * rows // of, (which + 1) * rows // of)

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-len(self.examples) // self.batch_size)

    def epoch(self, seed: int | None = None, *, start: int = 0) -> Iterator[Batch]:
        """One pass from batch `start`, shuffled by `seed`; in the examples' own order without."""
        index, mask = (table[start:, self._mine] for table in self._tables(seed))
        source = grain.MapDataset.source(index.reshape(-1))
        images = source.map(lambda i: self._images[i] if i >= 0 else self._blank)
        images = images.batch(index.shape[1])
        options = grain.ReadOptions(num_threads=os.cpu_count() or 1, prefetch_buffer_size=4)
        decoded = images.to_iter_dataset(options)
        rows = np.arange(self._rows, dtype=np.int32)[self._mine]
        for number, batch in enumerate(decoded):
            yield {
                "image": batch,
                "label": self.examples.labels[index[number]].astype(np.int32),
                "mask": mask[number],
                "index": index[number],
                "position": (start + number) * self.batch_size + rows,
            }

    def examples_of(self, seed: int | None, number: int) -> np.ndarray:
        """The examples of batch `number` of an epoch, int64 and without padding."""
        index, mask = self._tables(seed)
        return index[number][mask[number] > 0]

    def of_features(self, features: np.ndarray) -> "Batches":
        """The same split with features [N, D] in place of its images, in the same orders."""
        batches = copy.copy(self)
        batches._images, batches._blank = features, np.zeros_like(features[0])
        return batches

    def _tables(self, seed: int | None) -> tuple[np.ndarray, np.ndarray]:
        """(example int64, mask float32) of each row of each batch of an epoch."""
        count = len(self.examples)
        if seed is None:
            order = np.arange(count)
        elif self._stratified:
            order = stratified_order(self.examples.labels, seed)
        else:
            shuffled = grain.MapDataset.range(count).seed(seed).shuffle()
            order = np.array([shuffled[i] for i in range(count)])
        row = np.arange(self._rows)
        place = np.arange(len(self))[:, None] * self.batch_size + row[None]
        mask = (row[None] < self.batch_size) & (place < count)
        index = np.where(mask, order[np.minimum(place, count - 1)], -1)
        return index.astype(np.int64), mask.astype(np.float32)


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
