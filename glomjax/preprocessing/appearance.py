"""What images look like as a whole, in a few numbers, and a rule that tells images apart from
those that a network was trained on.

A network gives every image a confident label: the glass beside the tissue, another organ, a stain
that it has never seen. The rule does not judge its answers; it says for which images the network's
own test does not speak.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from glomjax.files import as_tuples

# Optical densities of a thumbnail: of all, two channels' shares, spread, spread between channels,
# edges, skewness; and of the palest and of the darkest twentieth in each channel.
MEASURES = 14
# Of images held out with their patients, by each of both distances. Chosen, like both of these, on
# 754 kidney patches of two data sets: `docs/results.md`.
_HELD_OUT = 0.98
_FOLDS = 10
_LEAST_IMAGES = 30  # to fit it on; fewer do not tell how 14 measures vary together
_LEAST_GROUPS = 3
# Grey levels; the least of the same patches is 11, of glass with its noise 0 to 2.
_BLANK = 3.0
_SIDE = 64
_DENSITIES = -np.log10((np.arange(256) + 1) / 256)  # of the values of a pixel
# Of the measures those of hue alone: shares of two channels, and the spread between channels.
_HUES = [1, 2, 4, 5]
_MOST_HUES = 500
_NEIGHBOUR = 3  # so that one odd training image does not make room for others


@dataclasses.dataclass(frozen=True)
class Appearance:
    """What the training images of a network look like.

    Two distances tell how far an image is from them: that of Mahalanobis of all its measures, which
    sees glass, blur and another texture; and that of its hues to the third nearest of the training
    images, which sees a stain between others (of three stains, the ellipse of Mahalanobis is so
    wide that it takes in a fourth). Both are in units of the distance within which so many images
    of held-out patients lie as `_HELD_OUT` says; who is further in one of them looks otherwise.

    Attributes:
      mean, precision: of the measures, [K], and the inverse of their covariance, [K, K].
      hues: of at most `_MOST_HUES` training images, in deviations, [N, 4].
      hue_deviations: of each of the hues over the training images, [4].
      units: of both distances.
      false_alarms: the share of training images that the rule calls otherwise where neither it nor
        its units have seen their patients.
      groups: how many patients (or slides, or images) were held out in turn.
      kind: which of these: "patient", "slide" or "image".
    """

    mean: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...] = dataclasses.field(repr=False)
    hues: tuple[tuple[float, ...], ...] = dataclasses.field(repr=False)
    hue_deviations: tuple[float, ...]
    units: tuple[float, float]
    false_alarms: float
    groups: int
    kind: str = "patient"

    def distances(self, measures: np.ndarray) -> np.ndarray:
        """float64 [N, 2] of images with these measures [N, K]."""
        away = measures - np.array(self.mean)[None]
        far = np.sqrt(np.einsum("ij,jk,ik->i", away, np.array(self.precision), away))
        hues = measures[:, _HUES] / np.array(self.hue_deviations)[None]
        between = hues[:, None] - np.array(self.hues)[None]  # [N, M, 4]
        apart = np.sort(np.sqrt((between**2).sum(axis=2)), axis=1)[:, _NEIGHBOUR - 1]
        return np.stack([far, apart], axis=1) / np.array(self.units)[None]

    def differs(self, measures: np.ndarray) -> np.ndarray:
        """bool [N]: which images with these measures [N, K] look otherwise than the training
        images."""
        far, apart = self.distances(measures).T
        return (far > 1) | (apart > 1)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Appearance":
        """What `dataclasses.asdict` has given, after JSON."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: as_tuples(v) for name, v in stored.items() if name in names})


def thumbnail(image: Image.Image, side: int = _SIDE) -> np.ndarray:
    """uint8 [side, side, 3] of an RGB image of any size, whose pixels are averaged."""
    shrinks = min(image.size) >= side
    way = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    return np.asarray(image.resize((side, side), way))


def is_blank(pixels: np.ndarray) -> bool:
    """Whether a thumbnail shows one colour and nothing on it."""
    return bool(pixels.reshape(-1, 3).std(axis=0).max() < _BLANK)


def measure(pixels: np.ndarray) -> np.ndarray:
    """The measures float64 [K] of a thumbnail, all of them finite."""
    density = _DENSITIES[pixels]  # [64, 64, 3]
    grey = density.mean(axis=2)
    flat = density.reshape(-1, 3)
    means = flat.mean(axis=0)
    whole = means.sum() + 0.05  # what is added in these lines keeps white from dividing by zero
    edges = sum(np.abs(np.diff(grey, axis=axis)).mean() for axis in (0, 1))
    away = grey - grey.mean()
    skewness = (away * away * away).mean() / (grey.std() + 0.02) ** 3
    order = np.argsort(grey, axis=None, kind="stable")
    twentieth = len(order) // 20
    return np.array(
        [
            np.log(whole),
            means[0] / whole,
            means[1] / whole,
            np.log(flat.std(axis=0).mean() + 0.005),
            (density[..., 0] - density[..., 1]).std(),
            (density[..., 1] - density[..., 2]).std(),
            np.log(edges + 0.005),
            skewness,
            *np.log(flat[order[:twentieth]].mean(axis=0) + 0.05),
            *np.log(flat[order[-twentieth:]].mean(axis=0) + 0.05),
        ]
    )


def fit_appearance(
    measures: np.ndarray, groups: Sequence[str], kind: str = "patient"
) -> Appearance | None:
    """The rule of training images, None where these are too few.

    Args:
      measures: float64 [N, K], as `measure` gives them.
      groups: of each image its patient, or what stands in for it, [N].
      kind: what these are.
    """
    names, group_of = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    # Patients in a random order that the seed alone decides, each in one of the folds.
    fold_of = (np.random.default_rng(0).permutation(len(names)) % _FOLDS)[group_of]  # [N]
    sizes = np.sort(np.bincount(fold_of))
    # Two folds are held out at once, perhaps the largest.
    if len(names) < _LEAST_GROUPS or len(measures) - sizes[-2:].sum() < _LEAST_IMAGES:
        return None
    alarms = np.zeros(len(measures), bool)
    for fold in np.unique(fold_of):
        held = fold_of == fold
        alarms[held] = _fit(measures[~held], fold_of[~held]).differs(measures[held])
    rule = _fit(measures, fold_of)
    return dataclasses.replace(
        rule, false_alarms=float(alarms.mean()), groups=len(names), kind=kind
    )


def _fit(measures: np.ndarray, fold_of: np.ndarray) -> Appearance:
    """The rule with its units, for which each image is held out with its fold."""
    distances = np.zeros((len(measures), 2))
    for fold in np.unique(fold_of):
        held = fold_of == fold
        distances[held] = _shape(measures[~held]).distances(measures[held])
    # One deviation away is never otherwise, however alike the training images are.
    far, apart = np.maximum(np.quantile(distances, _HELD_OUT, axis=0), (1.0, 0.1)).tolist()
    return dataclasses.replace(_shape(measures), units=(far, apart))


def _shape(measures: np.ndarray) -> Appearance:
    """The rule without its units."""
    variances = measures.var(axis=0) + 1e-6
    covariance = np.cov(measures.T) + 1e-3 * np.diag(variances)
    deviations = measures[:, _HUES].std(axis=0) + 1e-3
    chosen = np.random.default_rng(0).permutation(len(measures))[:_MOST_HUES]
    hues = measures[np.sort(chosen)][:, _HUES] / deviations[None]
    return Appearance(
        mean=tuple(measures.mean(axis=0).tolist()),
        precision=as_tuples(np.linalg.inv(covariance).tolist()),
        hues=as_tuples(hues.round(4).tolist()),
        hue_deviations=tuple(deviations.tolist()),
        units=(1.0, 1.0),
        false_alarms=0.0,
        groups=0,
    )
