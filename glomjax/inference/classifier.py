"""A trained network in one call: `load_classifier("runs/davit").predict("patches")`."""

import collections
import contextlib
import copy
import dataclasses
import logging
import numbers
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from glomjax.data.threads import THREADS
from glomjax.errors import UserError, printable
from glomjax.evaluation.calibration import (
    FIXED,
    apply_temperature,
    check_threshold,
    predicted_classes,
    probability_text,
)
from glomjax.evaluation.logits import probabilities
from glomjax.files import cache_dir
from glomjax.inference.ensemble import Member, expand, joint_logits, threshold_of
from glomjax.inference.images import (
    PreparedImage,
    checked_mpp,
    iterate_images,
    prepare_images,
)
from glomjax.inference.network import Network, Part, Source, load_network
from glomjax.inference.prediction import predict_batches
from glomjax.inference.resemblance import summary
from glomjax.inference.saliency import explanation, scaled
from glomjax.memory import free_bytes
from glomjax.models import num_logits

MOST_IN_BATCH = 2**16  # images; as in training
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a network says of N images, in the order in which they were given.

    Attributes:
      ids: a path or a number of each image.
      logits: float32 [N, K], divided by the temperature that the network carries; NaN where an
        image could not be read. Of an ensemble, the log-odds (of two classes) or the logarithms of
        the mean probabilities.
      probabilities: float64 [N, C], of each class; NaN where an image could not be read.
      labels: the name of each image's class: of two the positive one where its probability is
        above the classifier's threshold, of more the most probable one; "" where the image could
        not be read.
      classes: names of the C classes.
      problems: {id: why} of the images that could not be read.
      unlike: {id: in what} of the images that do not resemble those of the training, for which the
        network's own test does not speak: `blank`, `another spacing`, `another size` or `other
        colours`.
    """

    ids: tuple[str, ...]
    logits: np.ndarray
    probabilities: np.ndarray
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    problems: dict[str, str]
    unlike: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


def load_classifier(
    source: Source | Sequence[Source],
    *,
    device_batch: int | None = None,
    symmetries: bool | None = None,
    threshold: float | None = None,
) -> "Classifier":
    """A trained network, with all that it needs to be applied.

    Args:
      source: a run's folder (its best weights), a checkpoint, a `.safetensors` file that
        `convert_weights` wrote; or several of these, an ensemble that gives the mean of the
        probabilities. The folder of a cross-validation stands for the networks of all its folds,
        each recalibrated on its own validation split.
      device_batch: images in a batch; by default as many as in the run, which gives the run's own
        logits bit for bit on the same machine. Others round otherwise, by some 1e-6. Where there
        is no memory for so many, there are fewer, and the log says so.
      symmetries: whether an image's logits are the mean over its flips and quarter turns; by
        default as in the run's test.
      threshold: of two classes, the probability above which an image is positive; by default the
        one that the network carries, of an ensemble whose members carry several their mean: the
        mean of the probabilities is above it where the members are above their own on average.

    Raises:
      UserError: no such source, a damaged one, weights that belong to no named classes, or members
        of an ensemble that differ in classes or image size.
    """
    try:
        sources = [source] if isinstance(source, (str, os.PathLike)) else [*map(_path, source)]
    except TypeError as error:
        raise UserError(
            f"the trained network is {source!r}; give a path, or a list of paths"
        ) from error
    if not sources:
        raise UserError("no trained network is named; give a run's folder or a weight file")
    if device_batch is not None:
        whole = isinstance(device_batch, numbers.Integral) and not isinstance(device_batch, bool)
        if not whole or not 1 <= device_batch <= MOST_IN_BATCH:
            raise UserError(
                f"device_batch is {device_batch!r}; it is a whole number from 1 to {MOST_IN_BATCH}"
            )
        device_batch = int(device_batch)
    if symmetries not in (None, True, False):
        raise UserError(f"symmetries is {symmetries!r}; it is True or False, or not given")
    if threshold is not None:
        check_threshold(threshold)
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        # A second start does not compile again.
        jax.config.update("jax_compilation_cache_dir", str(cache_dir("jit")))
    members = [member for named in sources for member in expand(named)]
    sources = [member.source for member in members]
    networks = [load_network(member, device_batch, symmetries) for member in sources]
    first = networks[0].spec
    for n, (member, network) in enumerate(zip(sources, networks, strict=True)):
        for other, before in zip(sources[:n], networks[:n], strict=True):
            if before.checksum == network.checksum:
                raise UserError(
                    f"{other} and {member} hold the same weights, which an ensemble would count "
                    "twice; name them once"
                )
        for what in ("classes", "image_size"):
            ours, theirs = getattr(first, what), getattr(network.spec, what)
            if ours != theirs:
                raise UserError(
                    f"{sources[0]} and {member} cannot be one ensemble: their {what} differ "
                    f"({ours} and {theirs}); name networks that were trained alike"
                )
    return Classifier(networks, members, threshold)


class Classifier:
    """A trained network, or several whose probabilities are averaged. Threads may share it.

    Attributes:
      specs: what each network carries.
      spec: what the first one carries, and so the only one, if it is no ensemble.
      classes: names of the classes; of two the second is the positive one.
      checksums: of the weights of each network, SHA-256, hexadecimal.
      threshold: of two classes, the probability above which an image is positive.
      threshold_rule: where it comes from.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        members: Sequence[Member],
        threshold: float | None = None,
    ):
        self._networks = tuple(networks)
        self._members = tuple(members)
        self.specs = tuple(network.spec for network in networks)
        self.spec = self.specs[0]
        self.classes = self.spec.classes
        self.checksums = tuple(network.checksum for network in networks)
        self.threshold, self.threshold_rule = threshold_of(self.specs, self._members, threshold)
        self._batch: dict[tuple[Part, int], int] = {}

    def __repr__(self) -> str:
        names = ", ".join(spec.architecture for spec in self.specs)
        height, width = self.spec.image_size
        return f"Classifier({names}; {height} x {width}; classes {', '.join(self.classes)})"

    @property
    def positive_from(self) -> str:
        """The positive class and the probability from which it is predicted, as results say it; ""
        where there are not two classes."""
        if not self.spec.positive:
            return ""
        chosen = "" if self.threshold_rule == FIXED else f"; threshold: {self.threshold_rule}"
        number = probability_text(self.threshold)
        return f"positive: {self.spec.positive}, from a probability of {number}{chosen}"

    def predict(
        self,
        images: Any,
        *,
        mpp: float | None = None,
        allow_outside: bool = False,
        progress: bool = False,
    ) -> Predictions:
        """Predictions for images.

        Args:
          images: a path of an image, a folder or a manifest, PIL images, uint8 arrays [H, W, 3] or
            [N, H, W, 3], or an iterable of these; see `iterate_images`.
          mpp: microns per pixel of the images, where a manifest does not give it; needed by
            networks whose images were resampled.
          allow_outside: a manifest may list images that lie outside its folder.
          progress: show rate and time left on standard error.

        Warns of images that do not resemble those of the training, which are in `unlike`.

        Raises:
          UserError: there are no such images, or images of another form, or no memory for one. A
            file that cannot be read is in `problems`.
        """
        parts = list(self.iterate(images, mpp=mpp, allow_outside=allow_outside, progress=progress))
        unlike = {name: why for part in parts for name, why in part.unlike.items()}
        if unlike:
            total = sum(len(part) - len(part.problems) for part in parts)
            warnings.warn(summary(collections.Counter(unlike.values()), total), stacklevel=2)
        return Predictions(
            ids=tuple(name for part in parts for name in part.ids),
            logits=np.concatenate(
                [np.zeros((0, self.outputs), np.float32), *(part.logits for part in parts)]
            ),
            probabilities=np.concatenate(
                [np.zeros((0, len(self.classes))), *(p.probabilities for p in parts)]
            ),
            labels=tuple(label for part in parts for label in part.labels),
            classes=self.classes,
            problems={name: why for part in parts for name, why in part.problems.items()},
            unlike=unlike,
        )

    def iterate(
        self,
        images: Any,
        *,
        mpp: float | None = None,
        allow_outside: bool = False,
        progress: bool = False,
    ) -> Iterator[Predictions]:
        """The same, a batch at a time as it is finished, in constant memory however many images
        there are."""
        for rows, outputs in self._batches(images, "network", mpp, allow_outside, progress):
            ids = tuple(row.id for row in rows)
            readable = np.array([not row.problem for row in rows])
            logits = np.full((len(ids), self.outputs), np.nan, np.float32)
            chances = np.full((len(ids), len(self.classes)), np.nan)
            if readable.any():
                members = [
                    member.recalibrate(apply_temperature(part[readable], spec.temperature))
                    for part, spec, member in zip(outputs, self.specs, self._members, strict=True)
                ]
                chances[readable] = np.mean([probabilities(part) for part in members], axis=0)
                logits[readable] = members[0] if len(members) == 1 else joint_logits(members)
            decided = predicted_classes(logits, self.threshold)
            labels = tuple(
                self.classes[number] if known else ""
                for number, known in zip(decided, readable, strict=True)
            )
            problems = {row.id: row.problem for row in rows if row.problem}
            unlike = {row.id: row.unlike for row in rows if row.unlike}
            yield Predictions(ids, logits, chances, labels, self.classes, problems, unlike)

    def features(
        self,
        images: Any,
        *,
        mpp: float | None = None,
        allow_outside: bool = False,
        progress: bool = False,
    ) -> np.ndarray:
        """float32 [N, D]: what the last layer sees of each image; of an ensemble, side by side.

        Raises:
          UserError: as `predict`; and for the first image that cannot be read, since a row without
            numbers would go unseen into whatever is fitted on them.
        """
        features = []
        for rows, outputs in self._batches(images, "embed", mpp, allow_outside, progress):
            if problems := [row.problem for row in rows if row.problem]:
                raise UserError(problems[0])
            features.append(np.concatenate(outputs, axis=1))
        return np.concatenate(features) if features else np.zeros((0, 0), np.float32)

    def saliency(
        self,
        images: Any,
        method: str = "grad_cam",
        target: str | None = None,
        *,
        mpp: float | None = None,
        allow_outside: bool = False,
        progress: bool = False,
    ) -> np.ndarray:
        """float32 [N, H, W]: how much each pixel speaks for a class, at the size of the images, 0
        where it does not, and 1 where it does most; zeros of an image in which nothing does. Of an
        ensemble, the mean of the members' maps, scaled likewise. See `make_saliency_step`.

        Args:
          images, mpp, allow_outside, progress: as in `predict`; all of one size.
          method: "grad_cam" (Selvaraju et al. 2017), "integrated_gradients" (Sundararajan et al.
            2017) or "occlusion" (Zeiler and Fergus 2014).
          target: the name of the class; by default of two the positive one, whether or not it is
            predicted, and of more that which is predicted.

        Raises:
          UserError: as `features`; images of different sizes; no such method or class; or several
            networks of more than two classes without a target.
        """
        maps: list[np.ndarray] = []
        for row, found in self.iterate_saliency(
            images, method, target, mpp=mpp, allow_outside=allow_outside, progress=progress
        ):
            if found is None:
                raise UserError(row.problem)
            if maps and found.shape != maps[0].shape:
                height, width = maps[0].shape
                raise UserError(
                    f"image '{row.id}' is {row.size[0]} x {row.size[1]} and those before it "
                    f"{height} x {width}; give images of one size, or take iterate_saliency"
                )
            maps.append(found)
        return np.stack(maps) if maps else np.zeros((0, *self.spec.image_size), np.float32)

    def iterate_saliency(
        self,
        images: Any,
        method: str = "grad_cam",
        target: str | None = None,
        *,
        mpp: float | None = None,
        allow_outside: bool = False,
        progress: bool = False,
    ) -> Iterator[tuple[PreparedImage, np.ndarray | None]]:
        """The same for images of any sizes, one after another: (the image without its pixels, its
        map float32 [H, W]); None for one that cannot be read."""
        what = explanation(method, target, self.classes, len(self._networks))
        for rows, outputs in self._batches(images, what, mpp, allow_outside, progress):
            for i, row in enumerate(rows):
                if row.problem:
                    yield row, None
                    continue
                members = [
                    scaled(spec.preprocessing.lay_over(part[i], row.size, row.mpp))
                    for part, spec in zip(outputs, self.specs, strict=True)
                ]
                yield row, members[0] if len(members) == 1 else scaled(np.mean(members, axis=0))

    def with_params(self, params: Mapping[str, Any]) -> "Classifier":
        """This classifier, of one network, with other values {path: array} of some parameters."""
        (network,) = self._networks
        other = copy.copy(self)
        other._networks = (network.with_params(params),)
        other.checksums = (other._networks[0].checksum,)
        return other

    @property
    def outputs(self) -> int:
        """Logits of an image."""
        if len(self._networks) == 1:
            return self.spec.outputs
        return num_logits(len(self.classes))

    def _batches(
        self, images: Any, part: Part, mpp: float | None, allow_outside: bool, progress: bool
    ) -> Iterator[tuple[list[PreparedImage], list[np.ndarray]]]:
        """(n images, of each network float32 [n, ...]) of one batch after another."""
        checked_mpp(mpp)
        stream = iterate_images(images, allow_outside=allow_outside)
        for note in stream.notes:
            _LOG.warning("%s", printable(note))
        if mpp is not None and not any(spec.preprocessing.mpp for spec in self.specs):
            _LOG.warning(
                "the spacing of the training images is not known, so that of the images, %g, "
                "changes nothing",
                mpp,
            )
        batch = self._fitting_batch(part) if stream.count != 0 else 1
        # So many wait in memory that a batch is ready when the one before it is done.
        prepared = prepare_images(stream.images, self.specs, mpp, ahead=batch + 2 * THREADS)
        running: collections.deque[list[PreparedImage]] = collections.deque()

        def pixels() -> Iterator[tuple[tuple[np.ndarray, ...], int]]:
            for rows in _grouped(prepared, batch):
                stacks = tuple(
                    np.zeros((batch, *self.spec.image_size, 3), np.uint8) for _ in self._networks
                )
                for i, row in enumerate(rows):
                    if not row.problem:
                        for stack, image in zip(stacks, row.pixels, strict=True):
                            stack[i] = image
                running.append([dataclasses.replace(row, pixels=()) for row in rows])
                yield stacks, len(rows)

        def step(stacks: tuple[np.ndarray, ...]) -> Any:
            pairs = zip(self._networks, stacks, strict=True)
            return [network.run(stack, part) for network, stack in pairs]

        with _bar(stream.count, shown=progress) as advance:
            for outputs in predict_batches(step, pixels()):
                rows = running.popleft()
                advance(len(rows))
                yield rows, outputs

    def _fitting_batch(self, part: Part) -> int:
        """The images in a batch: as many as the network asks for, or, where memory has no room for
        these, the half, the quarter, ... of them.

        Raises:
          UserError: there is no room for one image.
        """
        asked = batch = self.spec.device_batch
        if (part, asked) in self._batch:
            return self._batch[part, asked]
        while True:
            free = free_bytes()
            try:
                needed = sum(network.prepare(batch, part) for network in self._networks)
            except MemoryError:
                needed = None
            if needed is not None and (free is None or needed <= free):
                break
            if batch == 1:
                room = "" if free is None else f" ({free / 2**20:.0f} MiB are free)"
                raise UserError(
                    f"there is no memory to predict one image of {self.spec.image_size[0]} x "
                    f"{self.spec.image_size[1]}{room}; end other programs, or take another machine"
                )
            batch //= 2
        if batch < asked:
            _LOG.warning(
                "a batch of %d images does not fit into memory; batches of %d are predicted, which "
                "rounds otherwise, by some 1e-6",
                asked,
                batch,
            )
        self._batch[part, asked] = batch
        return batch


def _path(source: Source) -> Source:
    """Raises TypeError for what is no path."""
    os.fspath(source)
    return source


def _grouped(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    group: list[Any] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


@contextlib.contextmanager
def _bar(total: int | None, *, shown: bool) -> Iterator[Any]:
    """A function that takes the number of images done since it was called last."""
    bar = Progress(
        TextColumn("predict"),
        BarColumn(),
        TextColumn("{task.completed}{task.fields[of]} images  {task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
    task = bar.add_task("", total=total, rate="", of=f"/{total}" if total else "")

    def advance(count: int) -> None:
        bar.advance(task, count)
        speed = bar.tasks[0].speed
        bar.update(task, rate="" if speed is None else f"{speed:.1f} images/s")

    with bar:
        yield advance
