"""From an encoded image to the pixels that a network gets."""

import contextlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from glomjax.errors import UserError
from glomjax.preprocessing import tiff
from glomjax.preprocessing.image_files import cannot_decode, read_file
from glomjax.preprocessing.sixteen_bits import as_8_bits, scaled

# Of the rules by which files become pixels; it rises when the same file gives other pixels.
DECODING_VERSION = 2
RESIZES = ("stretch", "pad", "crop")
_WHITE = (255, 255, 255)  # the background of a slide


def decode_image(
    encoded: bytes | np.ndarray,
    image_size: tuple[int, int],
    *,
    name: str,
    resize: str = "stretch",
    scale: float | None = None,
    bits: int = 0,
) -> np.ndarray:
    """`open_image`, then `fit_image`: uint8 RGB [height, width, 3]."""
    image = open_image(encoded, name=name, bits=bits)
    return fit_image(image, image_size, resize=resize, scale=scale)


def open_image(
    encoded: bytes | np.ndarray | Image.Image,
    *,
    name: str,
    bits: int = 0,
    version: int = DECODING_VERSION,
) -> Image.Image:
    """Decodes one image to 8-bit RGB in its own size.

    The EXIF orientation is applied. Grey, palette and CMYK become RGB; transparency is composited
    on white, the background of a slide. 16-bit values are scaled so that the largest of `bits` is
    255, and rounded. A colour profile is not applied; the image that is returned has it in
    `info["icc_profile"]`.

    Args:
      encoded: the bytes of a PNG, JPEG, TIFF, BMP or WebP file; a uint8 array [h, w, 3], which is
        taken as RGB; or an image that Pillow has opened.
      name: what the image is called in messages.
      bits: that 16-bit images use: 8, 10, 12, 14 or 16. 0: 16, where an image is refused of which
        no value needs more than 14.
      version: of the rules. By version 1 the lower byte of 16-bit colours is left out, 65535 is
        white in every image of more than 8 bits, and white in 16-bit images where 0 should be.

    Raises:
      UserError: the bytes are empty, of another format, damaged, too large (Pillow's limit against
        decompression bombs) or of several pages (see `image_files.read_file`); the values are of a
        kind without a defined range (32-bit integer or float), or do not go with `bits`; or the
        array is not uint8 [h, w, 3].
    """
    if isinstance(encoded, np.ndarray):
        if encoded.dtype != np.uint8 or encoded.ndim != 3 or encoded.shape[2] != 3:
            raise UserError(
                f"Image '{name}' is an array of {encoded.dtype} {list(encoded.shape)}: give uint8 "
                f"[height, width, 3]."
            )
        if encoded.size == 0:
            raise UserError(f"Image '{name}' has no pixels: its shape is {list(encoded.shape)}.")
        return Image.fromarray(encoded)
    if isinstance(encoded, Image.Image):
        if 0 in encoded.size:
            raise UserError(f"Image '{name}' has no pixels: its size is {encoded.size}.")
        with _errors_of(name):
            image = _upright(own_copy(encoded, name=name))
            if version > 1 and image.mode.startswith("I;16"):
                image = scaled(np.asarray(image)[..., None], "L", name=name, bits=bits)
            return _rgb(image, name)
    if len(encoded) == 0:
        raise UserError(f"Image '{name}' is empty (0 bytes): restore the file or remove it.")
    file = read_file(encoded, name)
    if version == 1 and file.frames != (0,):
        raise UserError(
            f"Image '{name}' has several pages, of which the rules by which this network's images "
            "were decoded (version 1) take the first: save the one that is meant as a file of its "
            "own."
        )
    with _errors_of(name):
        if version > 1 and file.bits > 8:
            image = as_8_bits(file, name=name, bits=bits)
        elif len(file.frames) > 1:
            image = Image.merge("RGB", [_upright(file.open(n)) for n in file.frames])
        else:
            image = _upright(file.open(file.frames[0]))
        return _rgb(image, name)


def own_copy(image: Image.Image, *, name: str) -> Image.Image:
    """A copy of an image that Pillow has opened, which needs its file no more.

    Raises:
      UserError: the file has several pages, or values that Pillow would not give as they are.
    """
    if (pages := getattr(image, "n_frames", 1)) > 1:
        raise UserError(
            f"Image '{name}' has {pages} pages: give the one that is meant, which copy() makes "
            "after seek()."
        )
    rawmodes = [str(tile.args) for tile in getattr(image, "tile", ())]
    is_grey = image.mode.startswith("I;16")
    inverted = is_grey and getattr(image, "tag_v2", {}).get(tiff.PHOTOMETRIC) == 0
    if inverted or (not is_grey and any(";16" in rawmode for rawmode in rawmodes)):
        raise UserError(
            f"Image '{name}' has 16-bit values that Pillow does not give as they are: give the "
            "path of its file."
        )
    return image.copy()


def fit_image(
    image: Image.Image,
    image_size: tuple[int, int],
    *,
    resize: str = "stretch",
    scale: float | None = None,
) -> np.ndarray:
    """Brings an RGB image to one size with Pillow's bicubic filter, antialiased where it shrinks.

    Args:
      image_size: (height, width) of the result.
      resize: "stretch" to the size; "pad", which keeps the aspect ratio and adds white at the
        sides; or "crop", which keeps it and takes the centre.
      scale: a factor of both sides in place of `resize`; what is then too large is cropped to its
        centre, what is too small is padded with white.

    Returns:
      uint8 [height, width, 3].
    """
    height, width = image_size
    inner, kept = _extents(image.size, image_size, resize, scale)
    if image.size != inner:
        # Only what is kept is resampled: a large scale would make a huge image of the rest.
        left, top = ((a - b) // 2 for a, b in zip(inner, kept, strict=True))
        across, down = image.width / inner[0], image.height / inner[1]
        box = (left * across, top * down, (left + kept[0]) * across, (top + kept[1]) * down)
        image = image.resize(kept, Image.Resampling.BICUBIC, box=box)
    if image.size != (width, height):
        fitted = Image.new("RGB", (width, height), _WHITE)
        fitted.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
        image = fitted
    return np.array(image)  # a copy: it can be written to


def unfit_map(
    values: np.ndarray,
    size: tuple[int, int],
    *,
    resize: str = "stretch",
    scale: float | None = None,
) -> np.ndarray:
    """A map of what `fit_image` gave, laid over the image as it was before: what was cropped away
    has zeros, and what was padded is left out.

    Args:
      values: float32 [h, w].
      size: (height, width) of the image.
      resize, scale: as in `fit_image`.

    Returns:
      float32 [height, width].
    """
    (height, width), image_size = size, values.shape
    inner, kept = _extents((width, height), image_size, resize, scale)
    left, top = (
        (a - b) // 2 for a, b in zip(reversed(image_size), kept, strict=True)
    )  # of the image within what the network sees
    image = Image.fromarray(values[top : top + kept[1], left : left + kept[0]].astype(np.float32))
    # (left, top, right, bottom) of what was kept, in pixels of the image.
    sides = [(a - b) // 2 for a, b in zip(inner, kept, strict=True)]
    across, down = width / inner[0], height / inner[1]
    box = (
        round(sides[0] * across),
        round(sides[1] * down),
        round((sides[0] + kept[0]) * across),
        round((sides[1] + kept[1]) * down),
    )
    whole = np.zeros((height, width), np.float32)
    part = max(box[2] - box[0], 1), max(box[3] - box[1], 1)
    shown = np.asarray(image.resize(part, Image.Resampling.BILINEAR))
    place = whole[box[1] : box[1] + part[1], box[0] : box[0] + part[0]]
    place[...] = shown[: place.shape[0], : place.shape[1]]
    return whole


def _extents(
    size: tuple[int, int], image_size: tuple[int, int], resize: str, scale: float | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) to which `fit_image` resamples an image of (width, height) `size`, and of
    what is kept of that."""
    height, width = image_size
    if scale is None and resize == "stretch":
        inner = width, height
    else:
        if scale is None:
            wanted = width / size[0], height / size[1]
            scale = min(wanted) if resize == "pad" else max(wanted)
        inner = max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)
    return inner, (min(inner[0], width), min(inner[1], height))


def size_ratios(sizes: np.ndarray, image_size: tuple[int, int], resize: str) -> np.ndarray:
    """Stored over wanted size, by which `fit_image` multiplies the spacing of images that are not
    resampled.

    Args:
      sizes: [N, 2], (height, width) as stored.
      image_size, resize: as in `fit_image`.

    Returns:
      float64 [N, 2], one for each direction; [N, 1] where `resize` keeps the aspect ratio.
    """
    ratios = sizes / np.array(image_size)[None]
    if resize == "pad":
        return ratios.max(axis=1, keepdims=True)
    return ratios.min(axis=1, keepdims=True) if resize == "crop" else ratios


@contextlib.contextmanager
def _errors_of(name: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, UserError):
        raise
    except UnidentifiedImageError as error:
        raise UserError(
            f"Image '{name}' has a damaged header, or is of a kind that Pillow does not read: save "
            "it as 8-bit RGB, or remove it."
        ) from error
    except Exception as error:  # damaged files make Pillow raise nearly anything, not OSError alone
        raise cannot_decode(name, error) from error


def _upright(image: Image.Image) -> Image.Image:
    """The image, loaded."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16"):  # by version 1 of the rules
        values = np.asarray(image).astype(np.uint32)  # [h, w]
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UserError(
            f"Image '{name}' has pixels of mode '{image.mode}', whose range is not defined: save "
            f"it as 8-bit RGB."
        )
    profile = image.info.get("icc_profile")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image = image.convert("RGB")
    image.info = {} if profile is None else {"icc_profile": profile}
    return image
