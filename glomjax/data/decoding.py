"""From an encoded image to the pixels that a network gets."""

import io

import numpy as np
from PIL import Image, ImageOps

from glomjax.errors import UserError


def decode_image(
    encoded: bytes | np.ndarray, image_size: tuple[int, int], *, name: str
) -> np.ndarray:
    """Decodes and resizes one image to uint8 RGB.

    The EXIF orientation is applied. Grey, palette and CMYK become RGB; transparency is composited
    on white, the background of a slide. 16-bit grey is scaled by 65535 / 255 = 257 and rounded.
    Of a file with several pages the first is taken. Colour profiles are not applied.

    Args:
      encoded: the bytes of an image file, or a uint8 array [h, w, 3], which is taken as RGB.
      image_size: (height, width) of the result; another size is resized with Pillow's bicubic
        filter, which is antialiased when it shrinks.
      name: what the image is called in messages.

    Returns:
      uint8 [height, width, 3].

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
        if encoded.shape[:2] == tuple(image_size):
            return encoded
        return _resized(Image.fromarray(encoded), image_size)
    if len(encoded) == 0:
        raise UserError(f"Image '{name}' is empty (0 bytes): restore the file or remove it.")
    return _resized(_decoded(encoded, name), image_size)


def _resized(image: Image.Image, image_size: tuple[int, int]) -> np.ndarray:
    height, width = image_size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.array(image)  # a copy: it can be written to


def _decoded(encoded: bytes, name: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            rgb = _rgb(image)
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
