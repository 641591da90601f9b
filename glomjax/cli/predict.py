"""`glomjax predict`: what trained networks say of images, as a table."""

import argparse
import collections
import os
import pathlib
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from glomjax.cli.command import (
    Parser,
    add_allow_outside,
    add_networks,
    load_networks,
    print_text,
)
from glomjax.errors import UserError

if TYPE_CHECKING:
    from glomjax.inference.classifier import Classifier
    from glomjax.inference.images import ImageStream, NamedImage
    from glomjax.inference.prediction_table import PredictionTable, Row

HELP = "write what trained networks say of images as a table"


def add_arguments(parser: Parser) -> None:
    parser.usage = (
        "%(prog)s SOURCE [SOURCE ...] --data WHAT [--out FILE.csv] [--saliency DIR] [options]"
    )
    parser.description = (
        "Writes a row for each image: its prediction, probabilities and logits, in what it does\n"
        "not resemble the training images, and why it cannot be read, where it cannot."
    )
    parser.epilog = (
        "The exit code is 0 where all images were read, and 1 where some could not be. What was\n"
        "stopped goes on with the same command.\n\n"
        "example:\n  %(prog)s runs/davit --data new_patches --out predictions.csv"
    )
    add_networks(parser)
    parser.add_argument(
        "--data",
        required=True,
        type=os.path.expanduser,
        metavar="WHAT",
        help="image, folder, manifest, tfds:NAME or synthetic; labels are not needed",
    )
    parser.add_argument(
        "--out",
        default="",
        type=os.path.expanduser,
        metavar="FILE.csv",
        help="a new file; by default the table is printed",
    )
    parser.add_argument(
        "--saliency",
        default="",
        type=os.path.expanduser,
        metavar="DIR",
        help="a new folder, for each image with what speaks for the positive class (of more than "
        "two classes, for the predicted one) laid over it, by Grad-CAM; its name begins with the "
        "number of its row",
    )
    add_allow_outside(parser)


def run(arguments: argparse.Namespace) -> int:
    from glomjax.inference.images import checked_mpp, iterate_images

    # A wrong path is said before a network is loaded.
    stream = iterate_images(arguments.data, allow_outside=arguments.allow_outside)
    if arguments.out and not arguments.out.lower().endswith(".csv"):
        raise UserError(f"--out {arguments.out} must end in .csv")
    checked_mpp(arguments.mpp)
    classifier = load_networks(arguments)
    job = _PredictionJob(classifier, stream, arguments)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        return job.run()
    except _NobodyReads:
        return 0
    except KeyboardInterrupt as interrupt:
        number = interrupt.args[0] if interrupt.args else signal.SIGINT
        print(f"stopped after {job.rows_so_far()}", file=sys.stderr, flush=True)
        return 128 + number
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: Any) -> None:
    del frame
    raise KeyboardInterrupt(number)


class _NobodyReads(Exception):
    """Whoever was given the printed table has closed it."""


class _PredictionJob:
    """Predicts the images of one command, and prints their rows or writes them to its table."""

    def __init__(
        self, classifier: "Classifier", stream: "ImageStream", arguments: argparse.Namespace
    ):
        self._classifier, self._stream, self._arguments = classifier, stream, arguments
        self._table: PredictionTable | None = None
        self._overlays: pathlib.Path | None = None
        self._rows = self._unread = 0
        self._unlike: collections.Counter[tuple[str, ...]] = collections.Counter()

    def run(self) -> int:
        """The exit code."""
        from glomjax.inference.prediction_table import PredictionTable, header_of
        from glomjax.inference.saliency import explanation

        columns, out = self._stream.columns, self._arguments.out
        classifier = self._classifier
        if self._arguments.saliency:  # refused before anything is predicted
            explanation("grad_cam", None, classifier.classes, len(classifier.specs))
        header = header_of(columns, classifier.classes, classifier.outputs)
        if out:
            self._table = PredictionTable(out, header, self._about())
            try:
                self._open_overlays()
                self._write(self._after(self._table.kept_rows()))
                self._table.finish()
            finally:
                self._table.close()
        else:
            from glomjax.files import csv_text

            self._open_overlays()
            if not print_text(csv_text([header]).removesuffix("\n"), as_it_is=True):
                raise _NobodyReads
            self._write(iter(self._stream.images))
        for line in self._closing_lines():
            print(line, file=sys.stderr, flush=True)
        return 1 if self._unread else 0

    def _open_overlays(self) -> None:
        from glomjax.files import new_folder
        from glomjax.inference.saliency import explanation

        if not (folder := self._arguments.saliency):
            return
        if self._table is not None and self._table.goes_on:
            self._overlays = pathlib.Path(folder)
            return
        try:
            # Refuses what cannot be explained before anything is predicted.
            explanation("grad_cam", None, self._classifier.classes, len(self._classifier.specs))
            self._overlays = new_folder(folder, "--saliency")
        except UserError:
            if self._table is not None:  # or the same command would go on with it in that folder
                self._table.discard()
            raise

    def rows_so_far(self) -> str:
        """What there is of the table when a signal has ended it."""
        kept = f"{self._rows} rows"
        if self._table is None:
            return kept
        return f"{kept}, which '{self._table.part}' keeps; the same command goes on there"

    def _after(self, kept: "Iterable[Row]") -> "Iterator[NamedImage]":
        """The images behind those that have a row already."""
        images = iter(self._stream.images)
        for row in kept:
            image = next(images, None)
            if image is None or image.id != row[0]:
                raise UserError(
                    f"row {self._rows + 1} of '{self._arguments.out}.part' is of image '{row[0]}', "
                    "and the data has another one there now; remove it, or name another file"
                )
            self._count(row)
        if self._rows:
            print(f"going on after {self._rows} rows", file=sys.stderr, flush=True)
        return images

    def _write(self, images: "Iterator[NamedImage]") -> None:
        from glomjax.files import csv_text
        from glomjax.inference.images import ImageStream
        from glomjax.inference.prediction_table import rows_of

        columns, count = self._stream.columns, self._stream.count
        under_way: collections.deque[NamedImage] = collections.deque()

        def noted() -> "Iterator[NamedImage]":
            for image in images:
                under_way.append(image)
                yield image

        left = ImageStream(
            noted(), None if count is None else count - self._rows, notes=self._stream.notes
        )
        mpp = self._arguments.mpp
        for part in self._classifier.iterate(left, mpp=mpp, progress=sys.stderr.isatty()):
            batch = [under_way.popleft() for _ in range(len(part))]
            rows = rows_of(part, batch, columns)
            if self._overlays is not None:  # before the rows, which say that an image is done
                self._write_overlays(self._overlays, batch)
            if self._table is not None:
                self._table.write(rows)
            elif not print_text(csv_text(rows).removesuffix("\n"), as_it_is=True):
                raise _NobodyReads
            for row in rows:
                self._count(row)

    def _write_overlays(self, folder: pathlib.Path, images: "list[NamedImage]") -> None:
        from glomjax.files import write_file
        from glomjax.inference.images import ImageStream
        from glomjax.inference.saliency import overlay_name, overlay_png

        classifier, mpp = self._classifier, self._arguments.mpp
        maps = classifier.iterate_saliency(ImageStream(images, len(images)), mpp=mpp)
        for number, (image, (_, saliency)) in enumerate(
            zip(images, maps, strict=True), self._rows + 1
        ):
            if saliency is not None:
                picture = image.open(classifier.spec.preprocessing)
                png = overlay_png(picture, saliency)
                write_file(folder / overlay_name(number, image.id), png)

    def _count(self, row: "Row") -> None:
        unlike, problem = row[-2:]
        self._rows += 1
        self._unread += bool(problem)
        if unlike:
            self._unlike[tuple(unlike.split("; "))] += 1

    def _closing_lines(self) -> Iterator[str]:
        """What is said on standard error when all rows are there."""
        from glomjax.evaluation.calibration import FIXED
        from glomjax.inference.resemblance import COLOURS, false_alarms, summary, without_rule

        where = f" in '{self._arguments.out}'" if self._arguments.out else ""
        yield f"{self._rows} image(s){where}"
        if self._overlays is not None:
            yield f"what speaks for {self._explained()} lies over each image in '{self._overlays}'"
        if self._unread:
            yield f"{self._unread} could not be read; the column 'problem' says why"
        if text := summary(self._unlike, self._rows - self._unread):
            yield text
            if any(COLOURS in reasons for reasons in self._unlike):
                yield false_alarms(self._classifier.specs)
        if text := without_rule(self._classifier.specs):
            yield text
        if self._classifier.threshold_rule != FIXED:
            yield self._classifier.positive_from

    def _explained(self) -> str:
        """The class of the maps."""
        positive = self._classifier.spec.positive
        return f"'{positive}'" if positive else "the predicted class"

    def _about(self) -> dict[str, Any]:
        """Which networks, settings and data the table is made with."""
        import glomjax

        classifier = self._classifier
        saliency = self._arguments.saliency
        return {
            **({"saliency": saliency} if saliency else {}),
            "glomjax_version": glomjax.__version__,
            "networks": [
                {
                    "sha256": checksum,
                    "architecture": spec.architecture,
                    "temperature": spec.temperature,
                }
                for checksum, spec in zip(classifier.checksums, classifier.specs, strict=True)
            ],
            "classes": list(classifier.classes),
            "batch": classifier.spec.device_batch,
            "threshold": classifier.threshold,
            "threshold_rule": classifier.threshold_rule,
            "symmetries": [spec.symmetries for spec in classifier.specs],
            "data": self._arguments.data,
            "mpp": self._arguments.mpp,
        }
