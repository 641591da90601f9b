"""What is unusual in images that can be read: rows of one colour, few colours, colour profiles."""

import collections
import dataclasses
import functools
import io
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageCms

from glomjax.errors import first_few

# Neighbouring rows of one colour that count. In 797 patches of kidney tissue there is not one row
# of one colour that is not pale; the first 4 KiB of zeros blacken four rows of 280 pixels.
FLAT_ROWS = 3
_PALE = 200  # above it in every channel: the background of a slide, with which tiles are padded
_FEW = 4  # colours of a mask or a label image
_NEAR, _APART = 24, 100  # of 255; masks that were saved as JPEG


@dataclasses.dataclass(frozen=True)
class Anomalies:
    """What is unusual in an image.

    Attributes:
      flat_rows: the most neighbouring rows of exactly one colour that is not pale, 0 where these
        are fewer than `FLAT_ROWS` or all: what a file lacks is decoded to black or to grey.
      few_colours: it has two to four colours, or grey of two levels.
      profile: the name of its colour profile, "" for none or sRGB.
    """

    flat_rows: int = 0
    few_colours: bool = False
    profile: str = ""


def find_anomalies(image: Image.Image) -> Anomalies:
    """Of an RGB image in its own size, with its profile in `info["icc_profile"]`."""
    profile = image.info.get("icc_profile")
    few_colours = _has_few_colours(image)
    return Anomalies(
        flat_rows=0 if few_colours else _flat_rows(image),
        few_colours=few_colours,
        profile="" if profile is None else profile_name(profile),
    )


def notes(found: Mapping[str, Anomalies]) -> dict[str, str]:
    """{kind of anomaly: sentence} on images, by their ids."""
    sentences = {}
    if flat := {name: a.flat_rows for name, a in found.items() if a.flat_rows}:
        listed = first_few(f"'{name}' ({rows} rows)" for name, rows in flat.items())
        sentences["flat rows"] = (
            f"{len(flat)} image(s) have {FLAT_ROWS} or more neighbouring rows of exactly one "
            f"colour, as files that were cut short or filled with zeros have: {listed}; look at "
            "them."
        )
    if few := [name for name, a in found.items() if a.few_colours]:
        sentences["few colours"] = (
            f"{len(few)} image(s) have two to four colours alone, as masks and label images have: "
            f"{first_few(map(repr, few))}; move those that are no tissue away."
        )
    if profiles := collections.Counter(a.profile for a in found.values() if a.profile):
        named = first_few(f"'{name}' in {count}" for name, count in profiles.most_common())
        sentences["colour profile"] = (
            f"{profiles.total()} image(s) have a colour profile other than sRGB ({named}), and "
            "profiles are not applied: their colours are those of the file. Where not all images "
            "have the same one, convert them to sRGB."
        )
    return sentences


def as_numbers(found: Mapping[int, Anomalies], count: int) -> np.ndarray:
    """float64 [count, 3] of {index: anomalies}, so that several processes can add what each has
    found; the name of a profile stays with the process that read it."""
    numbers = np.zeros((count, 3))
    for index, anomaly in found.items():
        numbers[index] = anomaly.flat_rows, anomaly.few_colours, bool(anomaly.profile)
    return numbers


def from_numbers(numbers: np.ndarray, here: Mapping[int, Anomalies]) -> dict[int, Anomalies]:
    """{index: anomalies} of all images in which something is unusual.

    Args:
      numbers: the sum of `as_numbers` over all processes.
      here: what this process has found.
    """
    found = {}
    for index in np.flatnonzero(numbers.any(axis=1)).tolist():
        rows, few, profile = numbers[index]
        elsewhere = Anomalies(int(rows), bool(few), "unknown" if profile else "")
        found[index] = here.get(index, elsewhere)
    return found


@functools.lru_cache(maxsize=32)
def profile_name(profile: bytes) -> str:
    """The description of an ICC profile; "" for sRGB, "unknown" where it cannot be read."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = " ".join(ImageCms.getProfileDescription(opened).split())
    except Exception:  # of whatever kind: it is not applied anyhow
        return "unknown"
    return "" if "srgb" in name.lower() else name or "unknown"


def _has_few_colours(image: Image.Image) -> bool:
    colours = image.getcolors(_FEW)
    if colours is not None:
        return len(colours) > 1
    for side in (8, 128):  # few pixels tell nearly every image that is not grey
        some = _some(image, side, side).astype(np.int16).reshape(-1, 3)
        if (np.abs(some[:, 1:] - some[:, :1]) > 8).any():
            return False
    # How many pixels lie near each level.
    levels = np.bincount(some[:, 1], minlength=256)
    near = np.convolve(levels, np.ones(2 * _NEAR + 1, int), "same")
    first = int(near.argmax())
    near_second = near[np.abs(np.arange(256) - first) >= _APART].max(initial=0)
    return near_second > 0.02 * len(some) and near[first] + near_second > 0.97 * len(some)


def _flat_rows(image: Image.Image) -> int:
    some = _some(image, 8, image.height)  # few columns tell nearly every row that is not flat
    if (some == some[:, :1]).all(axis=(1, 2)).sum() < FLAT_ROWS:
        return 0
    pixels = np.asarray(image)
    first = pixels[:, 0]
    flat = (pixels == first[:, None]).all(axis=(1, 2)) & (first <= _PALE).any(axis=1)
    goes_on = flat[1:] & flat[:-1] & (first[1:] == first[:-1]).all(axis=1)
    # Between two breaks, which are before, behind and within the rows, lies what goes on.
    breaks = np.flatnonzero(np.concatenate([[True], ~goes_on, [True]]))
    longest = int(np.diff(breaks).max())
    return longest if FLAT_ROWS <= longest < len(pixels) else 0


def _some(image: Image.Image, width: int, height: int) -> np.ndarray:
    """Pixels on a grid, uint8 [height, width, 3]."""
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST))
