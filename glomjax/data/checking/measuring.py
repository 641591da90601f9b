"""One reading of all images: of each what its file is like, two hashes and a few statistics."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from glomjax.data.anomalies import Anomalies
from glomjax.data.duplicates import content_hash
from glomjax.data.examples import SPLITS, DataSplits, Examples
from glomjax.data.image_facts import colour_densities, colour_shares, file_properties
from glomjax.data.pipeline import DecodedImages
from glomjax.data.survey import Survey
from glomjax.errors import UserError
from glomjax.preprocessing.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class Statistic:
    """A number of each image; `less` and `more` are what images with a low and a high value are
    called, "" if the number is only listed; `meaning` is for the reader of a report."""

    name: str
    digits: int
    meaning: str
    less: str = ""
    more: str = ""

    def word(self, more: bool) -> str:
        return self.more if more else self.less

    def text(self, value: float) -> str:
        return f"{value:.{self.digits}f}"


STATISTICS = (
    Statistic("brightness", 0, "mean grey (ITU-R BT.601), 0 to 255", "darker", "brighter"),
    # Values below 1 count as 1: the amount of stain by the law of Beer and Lambert, for a light of
    # 255.
    Statistic("OD red", 2, "mean optical density -log10(value / 255) of red: amount of stain"),
    Statistic("OD green", 2, "of green"),
    Statistic("OD blue", 2, "of blue"),
    Statistic("red / blue", 2, "ratio of the mean values", "bluer", "redder"),
    Statistic(
        *("saturation", 2, "mean (highest - lowest) / highest channel, 0 to 1"),
        *("less saturated", "more saturated"),
    ),
    Statistic(
        *("pale", 2, "share of pixels with all channels above 200, the slide's background"),
        *("fuller of tissue", "emptier"),
    ),
    Statistic(
        "detail px",
        1,
        # That has the image's ratio of root mean square gradient and Laplacian.
        "wavelength of its detail in pixels; large where close or blurred",
        "finer in detail",
        "coarser in detail (closer or blurred)",
    ),
)
TESTED = [s for s, statistic in enumerate(STATISTICS) if statistic.less]


@dataclasses.dataclass(frozen=True)
class Images:
    """The M images that can be read.

    Attributes:
      examples: of these images.
      splits: str [M].
      unreadable: {id: why} of the others.
      columns: {name: str [M]} of what the source gives, patients first.
      properties: {name: str [M]} of the files.
      contents, hashes, sizes: as in `Survey`, but of all splits together.
      statistics: float64 [M, S].
      anomalies: {id: what is unusual} of images in which something is.
      image_size, preprocessing: as the network sees them: a copy or a magnification counts as it
        arrives there.
    """

    examples: Examples
    splits: np.ndarray
    unreadable: dict[str, str]
    columns: dict[str, np.ndarray]
    properties: dict[str, np.ndarray]
    contents: np.ndarray
    hashes: np.ndarray
    sizes: np.ndarray
    statistics: np.ndarray
    anomalies: dict[str, Anomalies]
    image_size: tuple[int, int]
    preprocessing: Preprocessing

    @property
    def seen_as(self) -> str:
        """How the network sees the images, in words."""
        (height, width), mpp = self.image_size, self.preprocessing.target_mpp
        how = f"at {mpp:g} microns per pixel" if mpp else f"by {self.preprocessing.resize}"
        return f"{height} x {width}, {how}"

    @property
    def labels(self) -> np.ndarray:
        return self.examples.labels

    @property
    def patients(self) -> np.ndarray | None:
        return None if self.examples.patients is None else np.array(self.examples.patients)

    def as_in_training(self, classes: tuple[str, ...]) -> tuple[DataSplits, Survey]:
        """What training needs to decide whether to refuse the images: no perceptual hashes, since
        near copies are not refused and comparing takes time."""
        rows = {split: np.flatnonzero(self.splits == split) for split in SPLITS}
        train, validation, test = (self.examples.subset(rows[split]) for split in SPLITS)
        contents, sizes, hashes = (
            {split: array[rows[split]] for split in SPLITS}
            for array in (self.contents, self.sizes, np.zeros_like(self.hashes))
        )
        survey = Survey(
            {}, contents, hashes, sizes, measures=np.empty((0, 0)), stains=np.empty((0, 0))
        )
        return DataSplits(train, validation, test, classes), survey


def measure(
    examples: Examples,
    splits: Sequence[str],
    image_size: tuple[int, int],
    preprocessing: Preprocessing,
) -> Images:
    """Reads all images, with a bar on a terminal.

    Args:
      examples: N.
      splits: of each example, N.
      image_size: (height, width) to which they are brought.
      preprocessing: how; images without a known spacing are not resampled.
    """
    files: dict[int, dict[str, str]] = {}

    def read(i: int) -> bytes | np.ndarray:
        encoded = examples.read(i)
        files[i] = file_properties(encoded)
        return encoded

    def look(image: np.ndarray) -> tuple[int, np.ndarray]:
        return content_hash(image), image_statistics(image)

    if examples.mpp is None:
        preprocessing = dataclasses.replace(preprocessing, target_mpp=None)
    decoded = DecodedImages(
        dataclasses.replace(examples, read=read), image_size, preprocessing=preprocessing
    )
    count, console = len(examples), Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        rows = bar.track(decoded.scan(range(count), look), count, description="reading images")
        seen = dict(rows)
    unreadable = {examples.ids[i]: str(e) for i, e in seen.items() if isinstance(e, UserError)}
    found = {i: row for i, row in seen.items() if not isinstance(row, UserError)}
    index = list(found)
    contents, statistics = ([row[n] for row in found.values()] for n in range(2))
    properties = {"image size": [f"{h} x {w}" for h, w in decoded.sizes[index]]}
    for name in ("file format", "pixel mode", "JPEG quality"):
        properties[name] = [files[i].get(name, "") for i in index]
    if any(profiles := [decoded.anomalies[i].profile for i in index]):
        properties["colour profile"] = [profile or "none or sRGB" for profile in profiles]
    mpp = examples.mpp
    properties["spacing"] = ["unknown" if mpp is None else f"{mpp[i]:.4g} µm/px" for i in index]
    columns = dict(examples.columns)
    if examples.real_patients is not None:
        columns = {"patient": examples.real_patients, **columns}
    return Images(
        examples=examples.subset(index),
        splits=np.array(splits)[index],
        unreadable=unreadable,
        columns={name: np.array(cells)[index] for name, cells in columns.items()},
        properties={name: np.array(cells) for name, cells in properties.items() if any(cells)},
        contents=np.array(contents, np.uint64),
        hashes=decoded.hashes[index],
        sizes=decoded.sizes[index],
        statistics=np.array(statistics),
        anomalies={
            examples.ids[i]: decoded.anomalies[i]
            for i in index
            if decoded.anomalies[i] != Anomalies()
        },
        image_size=image_size,
        preprocessing=preprocessing,
    )


def image_statistics(image: np.ndarray) -> np.ndarray:
    """The `STATISTICS` of an image.

    Args:
      image: uint8 [H, W, 3], at least 6 x 6.

    Returns:
      float64 [S]. The detail of an image of one colour is the longer of its sides.
    """
    picture = Image.fromarray(image)
    shares = colour_shares(picture)
    means, densities = shares @ np.arange(256), colour_densities(shares)
    red, green, blue = (np.ascontiguousarray(image[..., c]) for c in range(3))
    highest = np.maximum(np.maximum(red, green), blue)
    lowest = np.minimum(np.minimum(red, green), blue)
    saturation = (highest - lowest) / np.maximum(highest, 1).astype(np.float32)

    # Means of 2 x 2 pixels keep out the noise of rounding and of the camera. Of means over 1, 2 and
    # 4 pixels, these best tell kidney patches from the same ones magnified 1.5 times.
    rows, columns = image.shape[0] // 2, image.shape[1] // 2
    grey = np.asarray(picture.convert("L"), np.float32)[: 2 * rows, : 2 * columns]
    grey = grey.reshape(rows, 2, columns, 2).mean(axis=(1, 3))
    right, down = grey[1:-1, 2:] - grey[1:-1, 1:-1], grey[2:, 1:-1] - grey[1:-1, 1:-1]
    left, up = grey[1:-1, 1:-1] - grey[1:-1, :-2], grey[1:-1, 1:-1] - grey[:-2, 1:-1]
    laplacian = np.mean((right - left + down - up) ** 2)
    gradient = np.mean(right**2) + np.mean(down**2)
    detail = 4 * math.pi * math.sqrt(gradient / laplacian) if laplacian else math.inf
    return np.array(
        [
            means @ _LUMA,
            *densities,
            (means[0] + 1) / (means[2] + 1),  # a black image is grey
            saturation.mean(),
            (lowest > 200).mean(),
            min(detail, max(image.shape[:2])),
        ]
    )


_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
