"""Images of more than 8 bits a sample, brought to 8. Pillow keeps the upper byte of colours alone,
and takes 65535 for white whatever the range of the camera was."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from glomjax.errors import UserError, assignment
from glomjax.preprocessing import tiff
from glomjax.preprocessing.image_files import StoredImage

BITS = (8, 10, 12, 14, 16)  # that cameras use of 16
_FULL = 2**16 - 1
_NEARLY_ALL = 99.9  # percent of the values


def as_8_bits(file: StoredImage, *, name: str, bits: int) -> Image.Image:
    """The picture of a file with more than 8 bits a sample, upright and in a mode of 8 bits; as it
    is where its values have no defined range (mode "I" or "F").

    Args:
      name, bits: as in `scaled`.

    Raises:
      UserError: as `scaled`; or the colours lie in planes of their own.
    """
    page = file.page
    inverted = page is not None and page.number(tiff.PHOTOMETRIC, 1) == 0
    if page is not None and inverted:
        file = StoredImage(file.kind, page.with_black_as_zero(), file.bits, file.frames)
    image = file.open(file.frames[0])
    if image.mode in ("I", "F"):
        return image
    if image.mode.startswith("I;16"):
        planes = [_pixels(file.open(frame)) for frame in file.frames]
        values, mode = np.stack(planes, axis=-1), "L" if len(planes) == 1 else "RGB"
    elif page is not None and page.number(tiff.PLANAR, 1) == 2:
        raise UserError(
            f"Image '{name}' has {file.bits}-bit colours in planes of their own, which is not "
            "read: save it with the colours of each pixel side by side, or as 8-bit RGB."
        )
    else:
        values, mode = _colours(lambda: file.open(file.frames[0]))
    result = scaled(values, mode, name=name, bits=bits, stored=file.bits, inverted=inverted)
    key = image.info.get("transparency")  # of a PNG file: the value that is transparent
    if key is not None:
        result.putalpha(Image.fromarray(np.uint8(255) * (values != key).any(axis=-1)))
    if profile := image.info.get("icc_profile"):
        result.info["icc_profile"] = profile
    return result


def scaled(
    values: np.ndarray,
    mode: str,
    *,
    name: str,
    bits: int = 0,
    stored: int = 16,
    inverted: bool = False,
) -> Image.Image:
    """Brings the range of the values to 0 to 255, and rounds.

    Args:
      values: uint16 [h, w, C].
      mode: what the channels are, as Pillow names it.
      name: what the image is called in messages.
      bits: that the values use, one of `BITS`: the largest of so many bits becomes 255. 0: all 16,
        where an image is refused that needs 14 or fewer.
      stored: bits in which a value lies; where these are fewer than 16, they are what it uses.
      inverted: 0 is white.

    Raises:
      UserError: a value needs more than `bits`; or none needs 16, and `bits` is 0.
    """
    colours = values.astype(np.uint32)
    alpha = colours[..., -1:] if mode in ("LA", "RGBA", "RGBa") else None
    if alpha is not None:
        colours = colours[..., :-1]
    largest = int(colours.max(initial=0))
    limit = 2 ** (stored if stored < 16 else bits or 16) - 1
    if largest > limit:
        raise UserError(
            f"Image '{name}' has the value {largest}, above the {limit} that is white with "
            f"{assignment('data.bits', bits)}: train with the bits that the cameras use, or 16, or "
            "leave the image out."
        )
    few = "no value"
    if stored == 16 and not bits and largest >= 2**14:
        # Single pixels of a camera are hot, whatever its range.
        nearly = int(np.percentile(colours, _NEARLY_ALL))
        largest, few = (nearly, "hardly a value") if 0 < nearly < 2**14 else (largest, few)
    if stored == 16 and not bits and 0 < largest < 2**14:
        used = next(n for n in BITS if largest < 2**n)
        raise UserError(
            f"Image '{name}' is stored with 16 bits and has {few} above {largest}, as of "
            f"a camera with {used} bits: with {_FULL} as white it would be too dark. Train with "
            f"{assignment('data.bits', used)} (16 where {_FULL} is white), or save it as 8-bit RGB."
        )
    opaque = limit
    if alpha is not None and alpha.max(initial=0) > limit:
        opaque = _FULL
    if alpha is not None and mode == "RGBa":  # the colours have been multiplied with it
        divisor = np.maximum(alpha, 1)
        colours = np.minimum((colours * opaque + divisor // 2) // divisor, limit)
    image = _image(limit - colours if inverted else colours, limit)
    if alpha is not None:
        image.putalpha(_image(alpha, opaque))
    return image


def _image(values: np.ndarray, limit: int) -> Image.Image:
    """uint32 [h, w, 1, 3 or 4] of 0 to `limit` as grey, RGB or CMYK."""
    rounded = ((510 * values + limit) // (2 * limit)).astype(np.uint8)
    if rounded.shape[-1] == 4:
        return Image.fromarray(rounded, "CMYK")
    return Image.fromarray(rounded[..., 0] if rounded.shape[-1] == 1 else rounded)


def _colours(open_file: Callable[[], ImageFile.ImageFile]) -> tuple[np.ndarray, str]:
    """(uint16 [h, w, C], what the channels are) of an image of which Pillow reads one byte of each
    value: the upper bytes as it reads them, and the lower ones as if the bytes were in the other
    order."""
    image = open_file()
    rawmode = _rawmode(image)
    mode, _, order = rawmode.partition(";16")
    if mode == "LA":  # which Pillow has in one order only, but it is as long as RGBA of 8 bits
        four = _pixels(image, "RGBA").astype(np.uint16)
        return four[..., ::2] << 8 | four[..., 1::2], mode
    native = "L" if sys.byteorder == "little" else "B"
    order = native if order == "N" else order
    stored = "RGBA" if mode == "RGBa" else mode
    upper = _pixels(image, f"{stored};16{order}").astype(np.uint16)
    lower = _pixels(open_file(), f"{stored};16{'B' if order == 'L' else 'L'}")
    return upper << 8 | lower, mode


def _rawmode(image: ImageFile.ImageFile) -> str:
    """How the values lie in the file, in Pillow's words."""
    arguments: Any = image.tile[0].args
    return arguments if isinstance(arguments, str) else arguments[0]


def _pixels(image: ImageFile.ImageFile, rawmode: str = "") -> np.ndarray:
    """The values of an image that has not been loaded, upright, read as `rawmode`."""
    if rawmode:
        more: list[Any] = [() if isinstance(tile.args, str) else tile.args for tile in image.tile]
        image.tile = [
            tile._replace(args=(rawmode, *args[1:]) if args else rawmode)
            for tile, args in zip(image.tile, more, strict=True)
        ]
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return np.asarray(image)
