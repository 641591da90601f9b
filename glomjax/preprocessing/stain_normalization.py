"""Stain normalisation: every image gets the colours of a target fitted on the training images.

    statistics = np.stack([image_statistics("macenko", image) for image in training_images])
    normalizer = fit("macenko", statistics)
    image = normalizer(image)  # uint8 [H, W, 3] -> uint8 [H, W, 3]

It runs on the host and without randomness, before everything that is random, and once per image: a
second pass changes colours again, because what counts as tissue depends on them. Both methods are
made for images of one stain: a target fitted on several stains is none of them. White is 255, so an
image with a dark or tinted background is taken as if all of it were tissue.

Statistics are taken from tissue: pixels whose optical density, -ln(value / 255), is above 0.15 in
the mean of the three channels. Pixels with a value below 10 in any channel do not count, since a
density is hardly measured there: dark borders and saturated nuclei. An image whose statistics are
not defined stays as it is; see `image_statistics`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from glomjax.errors import UserError, shown

# Macenko et al. 2009 use 0.15 too, with log10; with the natural logarithm, as in most
# implementations, pale eosin is above it.
_LEAST_DENSITY = 0.15
_LEAST_VALUE = 10
_LEAST_TISSUE = 0.05  # share of the image's pixels
# Degrees between the two stains. Each of 797 kidney patches (H&E, PAS, Masson, PASM) has at least
# 9.9, a grey image with noise of one level has 3.
_LEAST_ANGLE = 5.0
# Of lightness, a and b over the tissue. The same patches have at least 1.2; a colour difference of
# 1 is about the least that the eye sees.
_LEAST_DEVIATION = 1.0


def image_statistics(method: str, image: np.ndarray) -> np.ndarray:
    """What a method measures in one image; `STATISTICS` names the numbers.

    macenko (Macenko et al. 2009, ISBI, 1107-1110): the plane of the two largest singular vectors
    of the tissue's optical densities is found; the 1st and the 99th percentile of the angle in it
    are the two stains, unit vectors (red, green, blue). The one that absorbs more red comes first:
    haematoxylin; the other is eosin, or what another staining has in its place. The maxima are the
    99th percentiles of their amounts, in units of optical density.

    reinhard (Reinhard et al. 2001, IEEE Comput Graph Appl 21(5):34-41): mean and standard deviation
    of CIELAB's lightness, a and b (sRGB, D65) over the tissue. CIELAB takes the place of the
    paper's own space, as in most histology tools, because the logarithm there gives the darkest
    pixels too much weight.

    Args:
      method: one of `METHODS`.
      image: uint8 [H, W, 3].

    Returns:
      float64 [k]; all NaN if tissue has less than 5% of the pixels (a blank, pale or black image),
      and for macenko if the two stains are less than 5 degrees apart (one stain, one colour, grey),
      for reinhard if lightness, a or b deviates by less than 1 (one colour, grey).

    Raises:
      UserError: the method is unknown.
      ValueError: the image is not uint8 [H, W, 3].
    """
    planes = _planes(image)
    space = _space(method)
    return space.statistics(_tissue(space.encode(planes), planes, _mean_density(planes)))


def fit(method: str, statistics: np.ndarray) -> "StainNormalizer":
    """The target: the median of each number over the images that have statistics.

    The stains are brought back to unit length. A target from many images, and not from one chosen
    image, follows Agraz et al. 2022 (IEEE Open J Eng Med Biol 3). The order of the images does not
    matter, nor how they are shared out among hosts.

    Args:
      method: one of `METHODS`.
      statistics: float64 [N, k], a row of `image_statistics` for each training image.

    Raises:
      UserError: the method is unknown, or no image has statistics.
      ValueError: the statistics are not [N, k] of this method.
    """
    space = _space(method)
    rows = np.asarray(statistics, np.float64)
    if rows.ndim != 2 or rows.shape[1] != len(space.names):
        raise ValueError(f"statistics of {method} are [N, {len(space.names)}], not {rows.shape}")
    defined = rows[~np.isnan(rows).any(axis=1)]
    if len(defined) == 0:
        raise UserError(
            f"none of the {len(rows)} training images can be a target of the stain normalisation "
            f"'{method}', because they show too little stained tissue: check the images, or train "
            f"without stain normalisation"
        )
    target = np.median(defined, axis=0)
    if method == "macenko":
        stains = target[:6].reshape(2, 3)
        target[:6] = (stains / np.linalg.norm(stains, axis=1, keepdims=True)).reshape(-1)
    return StainNormalizer(method, tuple(target.tolist()))


@dataclasses.dataclass(frozen=True)
class StainNormalizer:
    """Gives images the colours of a target. It can be called from several threads at once.

    macenko: the amounts of the image's own two stains are found by least squares (a negative one
    counts as none), scaled from the image's maxima to the target's, and shown in the target's
    stains. What the two stains cannot explain is lost, as in the paper. In an image without nuclei
    or without eosin the method takes some other difference in colour for the missing stain.

    reinhard: lightness, a and b are shifted and scaled so that the tissue gets the target's means
    and deviations. Below the density of tissue the change fades out in proportion to the density:
    white stays white, and there is no seam between tissue and background.

    Attributes:
      method: one of `METHODS`.
      target: what the method measures in an image of the target, in the order of `STATISTICS`.

    Raises:
      UserError: the method is unknown, or the target has not its finite numbers.
    """

    method: str
    target: tuple[float, ...]

    def __post_init__(self) -> None:
        names = _space(self.method).names
        if len(self.target) != len(names) or not all(map(math.isfinite, self.target)):
            raise UserError(
                f"the target of the stain normalisation '{self.method}' is {self.target}, but must "
                f"be {len(names)} finite numbers: {', '.join(names)}"
            )

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> uint8 [H, W, 3].

        It is a new array, or the image itself if `image_statistics` are not defined for it.

        Raises:
          ValueError: the image is not uint8 [H, W, 3].
        """
        planes = _planes(image)
        space = _space(self.method)
        colours = space.encode(planes)
        density = _mean_density(planes)
        source = space.statistics(_tissue(colours, planes, density))
        if np.isnan(source).any():
            return image
        moved = space.match(colours, density, source, np.asarray(self.target))
        return np.ascontiguousarray(space.decode(moved).T).reshape(image.shape)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the name of every number."""
        names = STATISTICS[self.method]
        return {"method": self.method, "target": dict(zip(names, self.target, strict=True))}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "StainNormalizer":
        """The normaliser that `to_dict` has described, to the last bit.

        Raises:
          UserError: the method is unknown, or a number is missing or not finite.
        """
        method, target = stored["method"], stored["target"]
        return cls(method, tuple(float(target.get(n, math.nan)) for n in _space(method).names))


def _planes(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [3, H * W]."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"stain normalisation takes uint8 [H, W, 3], not {image.dtype} {list(image.shape)}"
        )
    return np.ascontiguousarray(image.reshape(-1, 3).T)


def _mean_density(planes: np.ndarray) -> np.ndarray:
    """uint8 [3, N] -> the mean of a pixel's three optical densities, float32 [N]."""
    return np.take(_DENSITY, planes).mean(axis=0)


def _tissue(colours: np.ndarray, planes: np.ndarray, density: np.ndarray) -> np.ndarray:
    """The columns of colours [3, N] that are tissue, [3, n]; n is 0 if these are too few."""
    tissue = (density > _LEAST_DENSITY) & (planes.min(axis=0) >= _LEAST_VALUE)  # [N]
    enough = np.count_nonzero(tissue) >= _LEAST_TISSUE * tissue.size
    return np.compress(tissue, colours, axis=1) if enough else colours[:, :0]


def _times(matrix: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """matrix [m, k] times planes float32 [k, N].

    Not `@`: for matrices this thin the threads of a BLAS cost far more than they gain, and they
    stand in the way of the threads that decode.
    """
    return np.einsum("mk,kn->mn", matrix.astype(np.float32), planes)


# Macenko: optical densities.

_DENSITY = -np.log(np.maximum(np.arange(256), 1) / 255).astype(np.float32)  # of 0 as of 1


def _density(planes: np.ndarray) -> np.ndarray:
    """uint8 [3, N] -> optical densities, float32 [3, N]."""
    return np.take(_DENSITY, planes)


def _light(density: np.ndarray) -> np.ndarray:
    """Optical densities [3, N] -> uint8 [3, N]."""
    return np.rint(255 * np.exp(-np.maximum(density, 0))).astype(np.uint8)


def _stain_statistics(tissue: np.ndarray) -> np.ndarray:
    """Optical densities of the tissue [3, n] -> float64 [8]."""
    undefined = np.full(8, np.nan)
    if tissue.shape[1] == 0:
        return undefined
    moments = np.einsum("in,jn->ij", tissue, tissue).astype(np.float64)
    plane = np.linalg.eigh(moments)[1][:, [2, 1]]  # [3, 2], the largest first
    # Densities are not negative, so neither is their main direction: all angles are within +-90.
    plane[:, 0] *= np.sign(plane[:, 0].sum())
    along, across = _times(plane.T, tissue)
    angles = np.percentile(np.arctan2(across, along), [1, 99]).astype(np.float64)
    stains = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ plane.T  # [2, 3]
    stains = stains[np.argsort(-stains[:, 0])]
    if np.linalg.norm(np.cross(*stains)) < math.sin(math.radians(_LEAST_ANGLE)):
        return undefined
    # Above 0: a hundredth of the pixels lies beyond each stain, and these have at least their own
    # density of it.
    maxima = np.percentile(_amounts(tissue, stains), 99, axis=1)
    return np.concatenate([stains.reshape(-1), maxima])


def _amounts(density: np.ndarray, stains: np.ndarray) -> np.ndarray:
    """Least-squares amounts [2, N] of two stains [2, 3] in optical densities [3, N]."""
    return _times(np.linalg.pinv(stains).T, density)


def _match_stains(
    density: np.ndarray, _: np.ndarray, source: np.ndarray, target: np.ndarray
) -> np.ndarray:
    """Optical densities [3, N] -> those of the same amounts, scaled, of the target's stains."""
    amounts = np.maximum(_amounts(density, source[:6].reshape(2, 3)), 0)
    shown = target[:6].reshape(2, 3).T * (target[6:] / source[6:])  # [3, 2]
    return _times(shown, amounts)


# Reinhard: CIELAB. Curve of IEC 61966-2-1 (sRGB), primaries of ITU-R BT.709, white D65 of the
# 2 degree observer.

_TO_XYZ = np.asarray(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
) / np.asarray([[0.95047], [1.0], [1.08883]])  # relative to white
_TO_LAB = np.asarray([[0.0, 116.0, 0.0], [500.0, -500.0, 0.0], [0.0, 200.0, -200.0]])
_LAB_OFFSET = np.asarray([[16.0], [0.0], [0.0]], np.float32)
_KNEE = 6 / 29  # below it CIELAB's cube root is a straight line
_FROM_XYZ, _FROM_LAB = np.linalg.inv(_TO_XYZ), np.linalg.inv(_TO_LAB)


def _srgb_to_linear(value: np.ndarray) -> np.ndarray:
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _linear_to_srgb(linear: np.ndarray) -> np.ndarray:
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


_LINEAR = _srgb_to_linear(np.arange(256) / 255).astype(np.float32)
# Of 65536 steps of light; a step is at most a twentieth of a level.
_SRGB = np.rint(255 * _linear_to_srgb(np.arange(65536) / 65535)).astype(np.uint8)


def _lab(planes: np.ndarray) -> np.ndarray:
    """uint8 [3, N] -> CIELAB, float32 [3, N]."""
    xyz = _times(_TO_XYZ, np.take(_LINEAR, planes))
    bent = np.where(xyz > _KNEE**3, xyz ** (1 / 3), xyz / (3 * _KNEE**2) + 4 / 29)
    return _times(_TO_LAB, bent) - _LAB_OFFSET


def _rgb(lab: np.ndarray) -> np.ndarray:
    """CIELAB [3, N] -> uint8 [3, N]; colours outside sRGB are clipped."""
    bent = _times(_FROM_LAB, lab + _LAB_OFFSET)
    xyz = np.where(bent > _KNEE, bent * bent * bent, (bent - 4 / 29) * (3 * _KNEE**2))
    linear = np.clip(_times(_FROM_XYZ, xyz), 0, 1)
    return np.take(_SRGB, (linear * 65535 + 0.5).astype(np.uint16))


def _lab_statistics(tissue: np.ndarray) -> np.ndarray:
    """CIELAB of the tissue [3, n] -> float64 [6]."""
    if tissue.shape[1] == 0:
        return np.full(6, np.nan)
    deviation = tissue.std(axis=1, dtype=np.float64)
    if (deviation < _LEAST_DEVIATION).any():
        return np.full(6, np.nan)
    return np.concatenate([tissue.mean(axis=1, dtype=np.float64), deviation])


def _match_lab(
    lab: np.ndarray, density: np.ndarray, source: np.ndarray, target: np.ndarray
) -> np.ndarray:
    """CIELAB [3, N] -> the same with the target's mean and deviation in place of the source's."""
    scale = target[3:] / source[3:]
    change = _column(scale - 1) * lab + _column(target[:3] - source[:3] * scale)
    return lab + np.minimum(density / np.float32(_LEAST_DENSITY), 1) * change


def _column(values: np.ndarray) -> np.ndarray:
    """float64 [3] -> float32 [3, 1]."""
    return values[:, None].astype(np.float32)


@dataclasses.dataclass(frozen=True)
class _Space:
    """What a method is made of; pixels are [3, N]."""

    names: tuple[str, ...]  # of the statistics
    encode: Callable[[np.ndarray], np.ndarray]  # uint8 -> colours of the method's own space
    statistics: Callable[[np.ndarray], np.ndarray]  # colours of the tissue -> float64 [k]
    # colours, mean densities [N], statistics of source and target -> colours
    match: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    decode: Callable[[np.ndarray], np.ndarray]  # colours -> uint8


_SPACES = {
    "macenko": _Space(
        (
            "haematoxylin_red",
            "haematoxylin_green",
            "haematoxylin_blue",
            "eosin_red",
            "eosin_green",
            "eosin_blue",
            "haematoxylin_maximum",
            "eosin_maximum",
        ),
        _density,
        _stain_statistics,
        _match_stains,
        _light,
    ),
    "reinhard": _Space(
        (
            "lightness_mean",
            "a_mean",
            "b_mean",
            "lightness_deviation",
            "a_deviation",
            "b_deviation",
        ),
        _lab,
        _lab_statistics,
        _match_lab,
        _rgb,
    ),
}
METHODS = tuple(_SPACES)
STATISTICS = {method: space.names for method, space in _SPACES.items()}


def _space(method: str) -> _Space:
    if method not in _SPACES:
        raise UserError(
            f"the stain normalisation {shown(method)} is unknown; use {' or '.join(METHODS)}"
        )
    return _SPACES[method]
