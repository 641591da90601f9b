"""From an encoded image to the pixels that a network gets."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from glomjax.errors import UserError

# Of the rules by which files become pixels; it rises when the same file gives other pixels.
DECODING_VERSION = 1
RESIZES = ("stretch", "pad", "crop")
_WHITE = (255, 255, 255)  # the background of a slide


def decode_image(
    encoded: bytes | np.ndarray,
    image_size: tuple[int, int],
    *,
    name: str,
    resize: str = "stretch",
    scale: float | None = None,
) -> np.ndarray:
    """`open_image`, then `fit_image`: uint8 RGB [height, width, 3]."""
    return fit_image(open_image(encoded, name=name), image_size, resize=resize, scale=scale)


def open_image(encoded: bytes | np.ndarray | Image.Image, *, name: str) -> Image.Image:
    """Decodes one image to 8-bit RGB in its own size.

    The EXIF orientation is applied. Grey, palette and CMYK become RGB; transparency is composited
    on white, the background of a slide. 16-bit grey is scaled by 65535 / 255 = 257 and rounded.
    Of a file with several pages the first is taken. Colour profiles are not applied.

    Args:
      encoded: the bytes of an image file; a uint8 array [h, w, 3], which is taken as RGB; or an
        image that Pillow has opened.
      name: what the image is called in messages.

    Raises:
      UserError: the bytes are empty, truncated, too large (Pillow's limit against decompression
        bombs) or no image, the pixels are of a kind without a defined range (32-bit integer or
        float), or the array is not uint8 [h, w, 3].
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
        return _decoded(encoded.copy, name)
    if len(encoded) == 0:
        raise UserError(f"Image '{name}' is empty (0 bytes): restore the file or remove it.")
    return _decoded(lambda: Image.open(io.BytesIO(encoded)), name)


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
    if scale is None and resize == "stretch":
        inner = width, height
    else:
        if scale is None:
            wanted = width / image.width, height / image.height
            scale = min(wanted) if resize == "pad" else max(wanted)
        inner = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    kept = min(inner[0], width), min(inner[1], height)
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


def _decoded(open_copy: Callable[[], Image.Image], name: str) -> Image.Image:
    try:
        with open_copy() as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            rgb = _rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow raise nearly anything, not OSError alone
        reason = (
            "no known image format" if type(error).__name__ == "UnidentifiedImageError" else error
        )
        raise UserError(
            f"Image '{name}' cannot be decoded ({reason}): replace the file or remove it."
        ) from error
    if rgb is None:
        raise UserError(
            f"Image '{name}' has pixels of mode '{image.mode}', whose range is not defined: save "
            f"it as 8-bit RGB."
        )
    return rgb


def _rgb(image: Image.Image) -> Image.Image | None:
    """The image as RGB; None where its values have no defined white."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)  # [h, w]
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
