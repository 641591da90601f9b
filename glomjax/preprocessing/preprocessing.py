"""From images to what a network sees: one size, one stain, then (x / 255 - mean) / std."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glomjax.errors import UserError
from glomjax.preprocessing.stain_normalization import StainNormalizer

PREPROCESSINGS = ("imagenet", "standardize")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """A property of the weights: it is stored with them and applied wherever they are used.

    The size, the spacing and the stain are settled on the host, by `DecodedImages`; mean and
    deviation on the device, by calling this.

    Attributes:
      name: one of `PREPROCESSINGS`.
      mean, std: per channel, in units of the full range (0 to 1).
      resize: how images come to the size of the network, as in `fit_image`.
      mpp: microns per pixel of what the network sees, or None where unknown.
      stain: what stains are normalised to, or None.
    """

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str = "stretch"
    mpp: float | None = None
    stain: StainNormalizer | None = None

    def __call__(self, images: jax.Array) -> jax.Array:
        """images uint8 [B, H, W, 3] -> float32 [B, H, W, 3]."""
        scale = jnp.asarray(1.0 / (255.0 * np.asarray(self.std)), jnp.float32)
        shift = jnp.asarray(-np.asarray(self.mean) / np.asarray(self.std), jnp.float32)
        return images.astype(jnp.float32) * scale[None, None, None] + shift[None, None, None]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "mean": list(self.mean),
            "std": list(self.std),
            "resize": self.resize,
            "mpp": self.mpp,
            "stain": None if self.stain is None else self.stain.to_dict(),
        }


# Mean and deviation of ImageNet's training images, which the published DaViT weights expect.
IMAGENET = Preprocessing("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


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

    def standardize(self) -> Preprocessing:
        """The preprocessing that gives these pixels mean 0 and deviation 1 in each channel.

        Raises:
          UserError: a channel has one value everywhere.
        """
        mean = self._sum / self._pixels / 255
        variance = self._squares / self._pixels / 255**2 - mean**2
        flat = int(np.argmin(variance))
        if variance[flat] < 1e-8:
            raise UserError(
                f"the training images cannot be standardised: channel {'RGB'[flat]} has the value "
                f"{mean[flat] * 255:.0f} in every pixel; use --config.preprocessing=imagenet or "
                "other images"
            )
        return Preprocessing("standardize", _triple(mean), _triple(np.sqrt(variance)))


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in values)
    return red, green, blue
