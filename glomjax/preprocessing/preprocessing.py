"""From images to what a network sees: one size, one stain, then (x / 255 - mean) / std."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from glomjax.errors import UserError, assignment, shown
from glomjax.preprocessing.decoding import (
    DECODING_VERSION,
    fit_image,
    open_image,
    size_ratios,
    unfit_map,
)
from glomjax.preprocessing.stain_normalization import StainNormalizer

PREPROCESSINGS = ("imagenet", "standardize")
SAME_SPACING = 1.05  # ratio; microscopes are not calibrated better


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """A property of the weights: it is stored with them and applied wherever they are used.

    Files are decoded, and the size, the spacing and the stain settled on the host, by `open` and
    `prepare`; mean and deviation on the device, by calling this.

    Attributes:
      name: one of `PREPROCESSINGS`.
      mean: per channel, in units of the full range (0 to 1).
      std: the deviation, likewise.
      resize: how images come to the size of the network, as in `fit_image`.
      target_mpp: microns per pixel to which each image is resampled, or None where none is.
      seen_mpp: microns per pixel of what the network saw in training where nothing was resampled,
        or None where unknown.
      stain: what stains are normalised to, or None.
      bits: that 16-bit images use, 0 for all 16; see `open_image`.
      decoding: the `DECODING_VERSION` of the rules by which files became pixels.
    """

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str = "stretch"
    target_mpp: float | None = None
    seen_mpp: float | None = None
    stain: StainNormalizer | None = None
    bits: int = 0
    decoding: int = DECODING_VERSION

    @property
    def mpp(self) -> float | None:
        """Microns per pixel of what the network sees, or None where unknown."""
        return self.target_mpp or self.seen_mpp

    def open(self, encoded: bytes | np.ndarray | Image.Image, *, name: str) -> Image.Image:
        """An image as `open_image` gives it, by these bits and these rules."""
        return open_image(encoded, name=name, bits=self.bits, version=self.decoding)

    def prepare(
        self, image: Image.Image, image_size: tuple[int, int], mpp: float | None = None
    ) -> np.ndarray:
        """An RGB image in its own size -> uint8 [height, width, 3], with its stain normalised.

        Args:
          image_size: (height, width) of the result.
          mpp: microns per pixel of the image; needed where there is a `target_mpp`.
        """
        pixels = fit_image(image, image_size, resize=self.resize, scale=self._scale(mpp))
        return pixels if self.stain is None else self.stain(pixels)

    def lay_over(
        self, values: np.ndarray, size: tuple[int, int], mpp: float | None = None
    ) -> np.ndarray:
        """A map float32 [h, w] of what `prepare` gave -> float32 [height, width] of the image that
        it was given, of (height, width) `size`; see `unfit_map`."""
        return unfit_map(values, size, resize=self.resize, scale=self._scale(mpp))

    def _scale(self, mpp: float | None) -> float | None:
        if not self.target_mpp:
            return None
        if mpp is None:
            raise ValueError("an image is to be resampled, but its spacing is not given")
        return mpp / self.target_mpp

    def seen_spacing(self, size: tuple[int, int], image_size: tuple[int, int], mpp: float) -> float:
        """Microns per pixel at which the network sees an image of (height, width) `size` and
        spacing `mpp`; the mean of both directions where they differ."""
        if self.target_mpp:
            return self.target_mpp
        return mpp * float(size_ratios(np.array([size]), image_size, self.resize).mean())

    def __call__(self, images: jax.Array) -> jax.Array:
        """images uint8 [B, H, W, 3] -> float32 [B, H, W, 3]."""
        scale = jnp.asarray(1.0 / (255.0 * np.asarray(self.std)), jnp.float32)
        shift = jnp.asarray(-np.asarray(self.mean) / np.asarray(self.std), jnp.float32)
        return images.astype(jnp.float32) * scale[None, None, None] + shift[None, None, None]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` is its inverse, to the last bit."""
        stain = None if self.stain is None else self.stain.to_dict()
        plain = dataclasses.asdict(dataclasses.replace(self, stain=None))
        return {**plain, "mean": list(self.mean), "std": list(self.std), "stain": stain}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Preprocessing":
        """What `to_dict` has written; fields that are not there have their defaults, but for the
        rules of decoding, of which the first version did not write its number.

        Raises:
          UserError: the files were decoded by rules that this version does not know.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        fields = {name: value for name, value in stored.items() if name in names}
        fields.setdefault("decoding", 1)
        if fields["decoding"] not in range(1, DECODING_VERSION + 1):
            raise UserError(
                f"the network's images were decoded by version {shown(fields['decoding'])} of the "
                f"rules, and this glomjax has those up to {DECODING_VERSION}; use the glomjax that "
                "trained it"
            )
        stain = fields.get("stain")
        fields |= {
            "mean": tuple(fields["mean"]),
            "std": tuple(fields["std"]),
            "stain": None if stain is None else StainNormalizer.from_dict(stain),
        }
        return cls(**fields)


IMAGENET = Preprocessing("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation of ImageNet's training images, which the published DaViT weights expect."""


class ChannelStatistics:
    """Mean and standard deviation of each channel over images that pass one by one."""

    def __init__(self) -> None:
        self._pixels = 0
        self._sum = np.zeros(3)
        self._squares = np.zeros(3)

    def add(self, images: np.ndarray) -> None:
        """images uint8 [..., 3]."""
        pixels = images.reshape(-1, 3)
        self._pixels += len(pixels)
        # Exact: with a histogram the sums are whole numbers, far below 2^53.
        for channel in range(3):
            counts = np.bincount(pixels[:, channel], minlength=256).astype(np.float64)
            self._sum[channel] += counts @ np.arange(256)
            self._squares[channel] += counts @ np.arange(256) ** 2

    def merge(self, total: Callable[[np.ndarray], np.ndarray]) -> None:
        """Adds what other processes have counted; `total` sums float64 [7] over all of them."""
        counted = total(np.concatenate([[float(self._pixels)], self._sum, self._squares]))
        self._pixels, self._sum, self._squares = int(counted[0]), counted[1:4], counted[4:]

    def standardize(self, preprocessing: Preprocessing) -> Preprocessing:
        """`preprocessing` with the mean and deviation that give these pixels mean 0 and deviation 1
        in each channel.

        Raises:
          UserError: a channel has one value everywhere.
        """
        mean = self._sum / self._pixels / 255
        variance = self._squares / self._pixels / 255**2 - mean**2
        flat = int(np.argmin(variance))
        if variance[flat] < 1e-8:
            raise UserError(
                f"the training images cannot be standardised: channel {'RGB'[flat]} has the value "
                f"{mean[flat] * 255:.0f} in every pixel; use "
                f"{assignment('preprocessing', 'imagenet')} or other images"
            )
        return dataclasses.replace(
            preprocessing, name="standardize", mean=_triple(mean), std=_triple(np.sqrt(variance))
        )


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in values)
    return red, green, blue
