"""A trained network in one call: `load_classifier("runs/davit").predict("patches")`."""

import collections
import contextlib
import dataclasses
import numbers
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from glomjax.errors import UserError
from glomjax.evaluation.metrics import probabilities
from glomjax.files import cache_dir
from glomjax.inference.images import iterate_images, prepare_images
from glomjax.inference.network import Network, Source, load_network
from glomjax.inference.prediction import predict_batches
from glomjax.models import num_logits


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a network says of N images, in the order in which they were given.

    Attributes:
      ids: a path or a number of each image.
      logits: float32 [N, K]; NaN where an image could not be read. Of an ensemble, the log-odds (of
        two classes) or the logarithms of the mean probabilities.
      probabilities: float64 [N, C], of each class; NaN where an image could not be read.
      labels: the name of the most probable class of each image, "" where it could not be read.
      classes: names of the C classes.
      problems: {id: why} of the images that could not be read.
    """

    ids: tuple[str, ...]
    logits: np.ndarray
    probabilities: np.ndarray
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    problems: dict[str, str]

    def __len__(self) -> int:
        return len(self.ids)


def load_classifier(
    source: Source | Sequence[Source],
    *,
    device_batch: int | None = None,
    symmetries: bool | None = None,
) -> "Classifier":
    """A trained network, with all that it needs to be applied.

    Args:
      source: a run's folder (its best weights), a checkpoint, a `.safetensors` file that
        `convert_weights` wrote; or several of these, an ensemble that gives the mean of the
        probabilities.
      device_batch: images in a batch; by default as many as in the run, which gives the run's own
        logits bit for bit on the same machine. Others round otherwise, by some 1e-6.
      symmetries: whether an image's logits are the mean over its flips and quarter turns; by
        default as in the run's test.

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
        if not whole or device_batch < 1:
            raise UserError(f"device_batch is {device_batch!r}; it is a whole number of at least 1")
        device_batch = int(device_batch)
    if symmetries not in (None, True, False):
        raise UserError(f"symmetries is {symmetries!r}; it is True or False, or not given")
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        # A second start does not compile again.
        jax.config.update("jax_compilation_cache_dir", str(cache_dir("jit")))
    networks = [load_network(member, device_batch, symmetries) for member in sources]
    first = networks[0].spec
    for member, network in zip(sources[1:], networks[1:], strict=True):
        for what in ("classes", "image_size"):
            ours, theirs = getattr(first, what), getattr(network.spec, what)
            if ours != theirs:
                raise UserError(
                    f"{sources[0]} and {member} cannot be one ensemble: their {what} differ "
                    f"({ours} and {theirs}); name networks that were trained alike"
                )
    return Classifier(networks)


class Classifier:
    """A trained network, or several whose probabilities are averaged. Threads may share it.

    Attributes:
      specs: what each network carries.
      spec: what the first one carries, and so the only one, if it is no ensemble.
      classes: names of the classes; of two the second is the positive one.
    """

    def __init__(self, networks: Sequence[Network]):
        self._networks = tuple(networks)
        self.specs = tuple(network.spec for network in networks)
        self.spec = self.specs[0]
        self.classes = self.spec.classes

    def __repr__(self) -> str:
        names = ", ".join(spec.architecture for spec in self.specs)
        height, width = self.spec.image_size
        return f"Classifier({names}; {height} x {width}; classes {', '.join(self.classes)})"

    def predict(
        self, images: Any, *, mpp: float | None = None, progress: bool = False
    ) -> Predictions:
        """Predictions for images.

        Args:
          images: a path of an image, a folder or a manifest, PIL images, uint8 arrays [H, W, 3] or
            [N, H, W, 3], or an iterable of these; see `iterate_images`.
          mpp: microns per pixel of the images, where a manifest does not give it; needed by
            networks whose images were resampled.
          progress: show rate and time left on standard error.

        Raises:
          UserError: there are no such images, or images of another form. A file that cannot be
            read is in `problems`.
        """
        parts = list(self.iterate(images, mpp=mpp, progress=progress))
        return Predictions(
            ids=tuple(name for part in parts for name in part.ids),
            logits=np.concatenate(
                [np.zeros((0, self._outputs), np.float32), *(part.logits for part in parts)]
            ),
            probabilities=np.concatenate(
                [np.zeros((0, len(self.classes))), *(p.probabilities for p in parts)]
            ),
            labels=tuple(label for part in parts for label in part.labels),
            classes=self.classes,
            problems={name: why for part in parts for name, why in part.problems.items()},
        )

    def iterate(
        self, images: Any, *, mpp: float | None = None, progress: bool = False
    ) -> Iterator[Predictions]:
        """The same, a batch at a time as it is finished, in constant memory however many images
        there are."""
        for ids, outputs, problems in self._batches(images, "network", mpp, progress):
            readable = np.array([name not in problems for name in ids])
            logits = np.full((len(ids), self._outputs), np.nan, np.float32)
            chances = np.full((len(ids), len(self.classes)), np.nan)
            if readable.any():
                rows = [part[readable] for part in outputs]
                chances[readable] = np.mean([probabilities(part) for part in rows], axis=0)
                logits[readable] = rows[0] if len(rows) == 1 else _joint_logits(rows)
            labels = tuple(
                self.classes[int(row.argmax())] if known else ""
                for row, known in zip(chances, readable, strict=True)
            )
            yield Predictions(ids, logits, chances, labels, self.classes, problems)

    def features(
        self, images: Any, *, mpp: float | None = None, progress: bool = False
    ) -> np.ndarray:
        """float32 [N, D]: what the last layer sees of each image; of an ensemble, side by side.

        Raises:
          UserError: as `predict`; and for the first image that cannot be read, since a row without
            numbers would go unseen into whatever is fitted on them.
        """
        rows = []
        for _, outputs, problems in self._batches(images, "embed", mpp, progress):
            if problems:
                raise UserError(next(iter(problems.values())))
            rows.append(np.concatenate(outputs, axis=1))
        return np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)

    @property
    def _outputs(self) -> int:
        """Logits of an image."""
        if len(self._networks) == 1:
            return self.spec.outputs
        return num_logits(len(self.classes))

    def _batches(
        self, images: Any, part: str, mpp: float | None, progress: bool
    ) -> Iterator[tuple[tuple[str, ...], list[np.ndarray], dict[str, str]]]:
        """(ids, of each network float32 [n, ...], problems) of one batch after another."""
        named, count = iterate_images(images)
        batch = self.spec.device_batch
        info: collections.deque[tuple[tuple[str, ...], dict[str, str]]] = collections.deque()

        def pixels() -> Iterator[tuple[tuple[np.ndarray, ...], int]]:
            for rows in _grouped(prepare_images(named, self.specs, mpp), batch):
                stacks = tuple(
                    np.zeros((batch, *self.spec.image_size, 3), np.uint8) for _ in self._networks
                )
                problems = {}
                for i, (name, prepared) in enumerate(rows):
                    if isinstance(prepared, UserError):
                        problems[name] = str(prepared)
                        continue
                    for stack, image in zip(stacks, prepared, strict=True):
                        stack[i] = image
                info.append((tuple(name for name, _ in rows), problems))
                yield stacks, len(rows)

        def step(stacks: tuple[np.ndarray, ...]) -> Any:
            pairs = zip(self._networks, stacks, strict=True)
            return [network.run(stack, part) for network, stack in pairs]

        with _bar(count, shown=progress) as advance:
            for outputs in predict_batches(step, pixels()):
                ids, problems = info.popleft()
                advance(len(ids))
                yield ids, outputs, problems


def _path(source: Source) -> Source:
    """Raises TypeError for what is no path."""
    os.fspath(source)
    return source


def _joint_logits(members: Sequence[np.ndarray]) -> np.ndarray:
    """The log-odds float32 [N, 1] of two classes, or the logarithms [N, C] of more, of the mean of
    the probabilities that the members' logits [N, K] stand for; exact where these saturate."""
    logs = []
    for logits in members:
        z = logits.astype(np.float64)
        z = np.concatenate([np.zeros_like(z), z], axis=1) if z.shape[1] == 1 else z
        logs.append(z - np.logaddexp.reduce(z, axis=1, keepdims=True))
    mean = np.logaddexp.reduce(logs, axis=0) - np.log(len(logs))  # [N, C]
    return (mean[:, 1:] - mean[:, :1] if mean.shape[1] == 2 else mean).astype(np.float32)


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
