"""From examples to batches of uint8 pixels: Grain orders them, threads decode them."""

import copy
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from glomjax.data.anomalies import Anomalies, find_anomalies
from glomjax.data.duplicates import WORDS, perceptual_hash
from glomjax.data.examples import Examples
from glomjax.data.image_facts import ImageFacts
from glomjax.data.threads import THREADS, map_ordered
from glomjax.errors import UserError
from glomjax.logs import logging_left_to_scripts
from glomjax.preprocessing import appearance
from glomjax.preprocessing.preprocessing import IMAGENET, Preprocessing

with logging_left_to_scripts():
    import grain

Batch = dict[str, np.ndarray]
T = TypeVar("T")
_LARGE, _PAGE = 128 * 1024, 4096  # bytes of a large piece of memory, and of a page of it


class Batches:
    """Batches of one split, all of one shape: what is left over is padded and masked.

    A batch is `{"image": uint8 [R, H, W, 3], "label": int32 [R], "mask": float32 [R], "index":
    int64 [R], "position": int32 [R]}` of R rows, where `position` is the place in the epoch's
    order. The first `batch_size` rows of all are examples; those beyond, and those
    after the last example, are black images with mask 0 and index -1. The order of an epoch depends
    on the seed alone, neither on the size of a batch nor on who reads which part of it.

    Args:
      images: the split's pixels.
      batch_size: examples in a batch.
      stratified: every batch of a shuffled epoch holds each class in about its share of the split.
        By chance alone 29% of the batches of 8 from two equal classes are 6 to 2 or more uneven,
        and then the gradient mostly shifts all logits one way, which a transformer that starts from
        random values seems to take long to average out.
      multiple: the rows of a batch are a multiple of this, so that devices get equal shares.
      shard: (process_index, process_count): R is so many consecutive rows of each batch, for one
        of several hosts; the default is all.

    Attributes:
      rows: of a batch over all hosts and devices: `batch_size` and the padding behind it.
      waited: seconds for which the reader of the last epoch waited for a batch.
    """

    def __init__(
        self,
        images: "DecodedImages",
        batch_size: int,
        *,
        stratified: bool = False,
        multiple: int = 1,
        shard: tuple[int, int] = (0, 1),
    ):
        self.examples = images.examples
        self.batch_size = batch_size
        self.waited = 0.0
        self._busy: list[float] = []
        self._stratified = stratified
        self._images: Any = images
        self._row = images.shape, np.dtype(np.uint8)
        rows = -(-batch_size // multiple) * multiple
        which, of = shard
        if rows % of:
            raise ValueError(f"{of} hosts cannot share batches of {rows} rows equally")
        self.rows = rows
        self._mine = slice(which * rows // of, (which + 1) * rows // of)

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-len(self.examples) // self.batch_size)

    @property
    def rate(self) -> float:
        """Images a second that the threads give while they work, in the last epoch."""
        rows = self._mine.stop - self._mine.start
        return rows * len(self._busy) * THREADS / max(sum(self._busy), 1e-9)

    @property
    def cache_left(self) -> int:
        """Bytes that the images of this split may still take when they are kept in memory."""
        return getattr(self._images, "cache_left", 0)  # features lie in a file

    def epoch(self, seed: int | None = None, *, start: int = 0) -> Iterator[Batch]:
        """One pass from batch `start`, shuffled by `seed`; in the examples' own order without."""
        index, mask = (table[start:, self._mine] for table in self._tables(seed))
        busy = self._busy = []  # seconds of each batch; a list takes additions from threads

        def load(number: int) -> np.ndarray:
            begun = time.perf_counter()
            shape, dtype = self._row
            images = np.zeros((index.shape[1], *shape), dtype)
            for row, i in enumerate(index[number]):
                if i >= 0:
                    images[row] = self._images[i]
            busy.append(time.perf_counter() - begun)
            return images

        options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=batches_ahead())
        loaded = iter(grain.MapDataset.range(len(index)).map(load).to_iter_dataset(options))
        rows = np.arange(self.rows, dtype=np.int32)[self._mine]
        self.waited = 0.0
        for number in range(len(index)):
            begun = time.perf_counter()
            images = next(loaded)
            self.waited += time.perf_counter() - begun
            yield {
                "image": images,
                "label": self.examples.labels[index[number]].astype(np.int32),
                "mask": mask[number],
                "index": index[number],
                "position": (start + number) * self.batch_size + rows,
            }

    def in_order(self) -> Iterator[tuple[np.ndarray, int]]:
        """(this host's images of a batch, how many rows of the whole batch are examples), in the
        examples' own order."""
        for number, batch in enumerate(self.epoch()):
            left = len(self.examples) - number * self.batch_size
            yield batch["image"], min(self.batch_size, left)

    def examples_of(self, seed: int | None, number: int) -> np.ndarray:
        """The examples of batch `number` of an epoch, int64 and without padding."""
        index, mask = self._tables(seed)
        return index[number][mask[number] > 0]

    def of_features(self, features: np.ndarray) -> "Batches":
        """The same split with features [N, D] in place of its images, in the same orders."""
        batches = copy.copy(self)
        batches._images, batches._row = features, (features.shape[1:], features.dtype)
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
        row = np.arange(self.rows)
        place = np.arange(len(self))[:, None] * self.batch_size + row[None]
        mask = (row[None] < self.batch_size) & (place < count)
        index = np.where(mask, order[np.minimum(place, count - 1)], -1)
        return index.astype(np.int64), mask.astype(np.float32)


def batches_ahead() -> int:
    """How many batches are read while a step runs: a thread a batch, so that all cores decode;
    fewer than four would not even out a slow one."""
    return max(THREADS, 4)


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """A shuffle of labels [N], as indices [N], that spreads each class evenly over the order."""
    rng = np.random.default_rng(seed)
    place = np.empty(len(labels))  # of each example between 0 and 1
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        place[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return np.argsort(place, kind="stable")


class DecodedImages:
    """Random access to the images of a split, uint8 [H, W, 3], kept in memory while they fit.

    Args:
      examples: the split.
      image_size: (height, width).
      preprocessing: what brings an image to this size, its spacing and its stain.
      cache_bytes: the images that are kept have at most this size together; the others are decoded
        each time.
      measured: whether what images look like is measured when they are first decoded.
      with_facts: whether the facts are gathered then on which negative controls are fitted.

    Attributes:
      sizes: int32 [N, 2], (height, width) of each image as it is stored, 0 until it was decoded.
      hashes: uint64 [N, 4], `perceptual_hash` of each image as it is stored, 0 until then.
      measures: float64 [N, K], of each image as it is stored, as `appearance.measure` gives them, 0
        where they are not `measured`.
      facts: of each image as it is stored, or None.
      anomalies: {index: what is unusual} of the images that were decoded.
    """

    def __init__(
        self,
        examples: Examples,
        image_size: tuple[int, int],
        *,
        preprocessing: Preprocessing = IMAGENET,
        cache_bytes: int = 0,
        measured: bool = False,
        with_facts: bool = False,
    ):
        self.examples = examples
        self.shape = (*image_size, 3)
        self.sizes = np.zeros((len(examples), 2), np.int32)
        self.hashes = np.zeros((len(examples), WORDS), np.uint64)
        self.measures = np.zeros((len(examples), appearance.MEASURES))
        self.facts = ImageFacts(len(examples)) if with_facts else None
        self.anomalies: dict[int, Anomalies] = {}
        self._preprocessing, self._measured = preprocessing, measured
        self._bytes = image_size[0] * image_size[1] * 3
        if self._bytes >= _LARGE:  # the C library gives whole pages out, of which it takes a little
            self._bytes = -(-(self._bytes + 16) // _PAGE) * _PAGE
        self._room = cache_bytes // self._bytes
        self._kept: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> np.ndarray:
        image = self._kept.get(index)
        if image is None:
            image = self._decode(index)
            with self._lock:
                if len(self._kept) < self._room:
                    self._kept[index] = image
        return image

    @property
    def cache_left(self) -> int:
        """Bytes that images which are not kept yet may take."""
        return max(min(self._room, len(self)) - len(self._kept), 0) * self._bytes

    def prepare_with(self, preprocessing: Preprocessing) -> None:
        """From now on the images are what this makes of them."""
        self._preprocessing = preprocessing
        self._kept.clear()

    def scan(
        self, indices: Sequence[int], look: Callable[[np.ndarray], T]
    ) -> Iterator[tuple[int, T | UserError]]:
        """(index, what `look` makes of the image) of each, in threads; the error where an image
        cannot be read."""

        def attempt(index: int) -> tuple[int, T | UserError]:
            try:
                return index, look(self[index])
            except UserError as error:
                return index, error

        return map_ordered(attempt, indices, ahead=4 * THREADS)

    def _decode(self, index: int) -> np.ndarray:
        name = self.examples.ids[index]
        encoded = self.examples.read(index)
        image = self._preprocessing.open(encoded, name=name)
        if index not in self.anomalies:
            self.anomalies[index] = find_anomalies(image)
            self.sizes[index] = image.height, image.width
            self.hashes[index] = perceptual_hash(np.asarray(image))
            if self._measured:
                self.measures[index] = appearance.measure(appearance.thumbnail(image))
            if self.facts is not None:
                self.facts.add(index, image, encoded, name)
        mpp = None if self.examples.mpp is None else float(self.examples.mpp[index])
        return self._preprocessing.prepare(image, self.shape[:2], mpp)
