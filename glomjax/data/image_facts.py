"""What of an image is no tissue: its colours, a thumbnail too small to show any, and the facts of
its file. Negative controls are fitted on these (`glomjax.evaluation.controls`)."""

import pathlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from glomjax.preprocessing.appearance import thumbnail
from glomjax.preprocessing.image_files import read_file

COLOURS, THUMBNAILS, FILES = "colour statistics", "16 x 16 thumbnails", "file facts"
_SIDE = 16
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_DENSITY = -np.log10(np.maximum(np.arange(256), 1) / 255)
_STANDARD_TABLE = 3689  # the sum of the luminance quantisation table of JPEG, ITU-T T.81, annex K
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")


class ImageFacts:
    """Of N images, each of which is filled in by `add`; zeros until then.

    Attributes:
      colours: float64 [N, 24], as `colour_statistics` gives them.
      thumbnails: uint8 [N, 16, 16, 3].
      files: float64 [N, 11]: whether there is a file; the logarithms of its bytes and of the
        image's height and width; the quality of a JPEG; the letters of its name without folders;
        and which of five formats it has.
    """

    def __init__(self, count: int):
        self.colours = np.zeros((count, 3 * (3 + len(_QUANTILES))))
        self.thumbnails = np.zeros((count, _SIDE, _SIDE, 3), np.uint8)
        self.files = np.zeros((count, 6 + len(_FORMATS)))

    def add(self, index: int, image: Image.Image, encoded: bytes | np.ndarray, name: str) -> None:
        """Looks at an image.

        Args:
          image: RGB, in its own size.
          encoded: from which it was decoded.
          name: of its file.
        """
        self.colours[index] = colour_statistics(image)
        self.thumbnails[index] = thumbnail(image, _SIDE)
        if isinstance(encoded, np.ndarray):
            return
        properties = file_properties(encoded)
        self.files[index] = [
            1.0,
            np.log(len(encoded)),
            np.log(image.height),
            np.log(image.width),
            float(properties.get("JPEG quality", 0)),
            len(pathlib.PurePath(name).name),
            *(properties.get("file format") == kind for kind in _FORMATS),
        ]

    def features(self) -> dict[str, np.ndarray]:
        """{what a control is fitted on: [N, D]}; facts of files where all images have files."""
        found: dict[str, np.ndarray] = {
            COLOURS: self.colours,
            THUMBNAILS: self.thumbnails.reshape(len(self.thumbnails), -1),
        }
        if len(self.files) and self.files[:, 0].all():
            found[FILES] = self.files[:, 1:]
        return found

    def subset(self, indices: np.ndarray) -> "ImageFacts":
        """Those of some of the images."""
        chosen = ImageFacts(0)
        chosen.colours, chosen.files = self.colours[indices], self.files[indices]
        chosen.thumbnails = self.thumbnails[indices]
        return chosen

    def add_up(self, total: Callable[[np.ndarray], np.ndarray]) -> None:
        """Adds what other processes have looked at, each at other images; `total` sums float64 [M]
        over all of them."""
        for facts in (self.colours, self.files):
            facts[:] = total(facts.reshape(-1)).reshape(facts.shape)
        # Four bytes in a number, which float64 holds exactly.
        words = self.thumbnails.reshape(-1).view(np.uint32)
        words[:] = total(words.astype(np.float64)).astype(np.uint32)


def colour_shares(image: Image.Image) -> np.ndarray:
    """float64 [3, 256]: of each channel of an RGB image the share of pixels with each value."""
    return np.reshape(image.histogram(), (3, 256)) / (image.width * image.height)


def colour_densities(shares: np.ndarray) -> np.ndarray:
    """The mean optical density -log10(value / 255) of each channel [3], of `colour_shares`; values
    below 1 count as 1."""
    return shares @ _DENSITY


def colour_statistics(image: Image.Image) -> np.ndarray:
    """Mean, standard deviation, mean optical density and five quantiles (5, 25, 50, 75 and 95%) of
    each channel of an RGB image, float64 [24]."""
    shares, values = colour_shares(image), np.arange(256)
    means = shares @ values
    deviations = np.sqrt(np.maximum(shares @ values**2 - means**2, 0))
    # What is left to rounding must not decide between two values.
    below = shares.cumsum(axis=1) + 1e-9
    quantiles = [(below >= share).argmax(axis=1) for share in _QUANTILES]
    return np.concatenate([means, deviations, colour_densities(shares), *quantiles])


def file_properties(encoded: bytes | np.ndarray) -> dict[str, str]:
    """Format, mode and, of a JPEG, quality; none of what is no image."""
    if isinstance(encoded, np.ndarray):
        return {"file format": "array", "pixel mode": "RGB"}
    try:
        file = read_file(encoded, "")
        image = file.open(file.frames[0])
    except Exception:  # decoding it tells why
        return {}
    mode = image.mode if file.bits in (1, 8) else f"{image.mode}, {file.bits} bits"
    found = {"file format": file.kind, "pixel mode": mode}
    if tables := getattr(image, "quantization", None):
        # libjpeg scales the standard table by 50 / quality below 50, by 2 - quality / 50 above.
        scale = sum(next(iter(tables.values()))) / _STANDARD_TABLE
        found["JPEG quality"] = str(round(50 / scale if scale > 1 else 100 - 50 * scale))
    return found
