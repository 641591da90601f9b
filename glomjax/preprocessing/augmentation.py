"""Random changes of training patches, on the device and inside the jitted training step.

    augmentation = PRESETS["histology"]
    images = augmentation(images, keys)  # uint8 -> float32, both in units of 0..255
    inputs = preprocessing(images)

Every example has a key of its own and every effect a stream of its own within it. So what happens
to an example depends neither on its neighbours nor on its place in the batch, and switching one
effect on leaves the numbers that the others draw as they were. (XLA compiles a batch of one to
another program, which may round the last bit of a float otherwise.)
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from glomjax.errors import UserError

# Red, green and blue of one image, each float32 [H, W]. With the channels last, XLA's CPU programs
# compute the earlier effects again for each channel of the later ones.
Planes = Sequence[jax.Array]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The strength of each effect; 0, the default of all, switches it off.

    The effects are applied in the order of the attributes: first where the tissue lies, then how
    it is stained, then how it is photographed. Colours are clipped to 0..255 after each effect.

    Attributes:
      symmetries: probability of drawing one of the eight flips and quarter turns, the identity
        among them; of images that are not square, one of the four that keep the shape.
      crop: the smallest crop has the share 1 - crop of the area. Area, aspect ratio and place are
        uniform (the ratio in its logarithm), as in Inception's random resized crop (Szegedy et
        al. 2015, section 6; torchvision's RandomResizedCrop), with the ratio within 3/4 to 4/3
        and, rather than by drawing again, within what fits into the image at this area. For
        images that are not square the ratio is relative to the image's own.
      rotation: largest angle about the centre, degrees.
      shear: largest angle of a shear along the rows, degrees.
      translation: largest shift, as a share of the side. Crop, rotation, shear and translation
        are one bilinear resampling, and beyond the border the image is mirrored.
      stain: haematoxylin, eosin and DAB are separated by Ruifrok and Johnston 2001 (see
        `separate_stains`); each is multiplied by 1 + u and increased by v times the amount that
        halves the light, u and v from [-stain, stain]. The pixel's optical density moves by what
        its stains have gained or lost, so what these three stains cannot explain (other stains,
        vignettes) stays, and a change of 0 gives the same pixel.
      brightness: a factor of the colours from [1 - s, 1 + s], as in torchvision's ColorJitter.
      contrast: the same of the distance to the image's mean grey.
      saturation: the same of the distance to the pixel's own grey.
      hue: largest turn of the hue, as a share of the colour circle, as in ColorJitter.

    Raises:
      UserError: a strength is out of its range.
    """

    symmetries: float = 0.0
    crop: float = 0.0
    rotation: float = 0.0
    shear: float = 0.0
    translation: float = 0.0
    stain: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        for name, strength in dataclasses.asdict(self).items():
            highest = _HIGHEST.get(name, 1.0)
            fits = 0 <= strength < 1 if name == "crop" else 0 <= strength <= highest
            if not fits:
                limits = "at least 0 and below 1" if name == "crop" else f"from 0 to {highest:g}"
                raise UserError(f"the augmentation's {name} is {strength}, but must be {limits}")

    def __call__(self, images: jax.Array, keys: jax.Array) -> jax.Array:
        """One random version of each image.

        Args:
          images: uint8 [B, H, W, 3].
          keys: random keys [B].

        Returns:
          float32 [B, H, W, 3] within 0..255; with every strength 0 the pixels themselves.

        Raises:
          ValueError: the images are not uint8, so their unit is unknown.
        """
        if images.dtype != jnp.uint8:
            raise ValueError(f"augmentation takes uint8 images, not {images.dtype}")
        return jax.vmap(self._augment)(images, keys)

    def _augment(self, image: jax.Array, key: jax.Array) -> jax.Array:
        """uint8 [H, W, 3] and its key -> float32 [H, W, 3]."""
        draw = functools.partial(self._draw, key)
        square = image.shape[0] == image.shape[1]
        symmetry = _drawn_symmetry(draw("symmetries", 4), self.symmetries, square)
        x: Planes
        if self.crop or self.rotation or self.shear or self.translation:
            # A symmetry of the image is the same symmetry of the places that are read.
            x = _resample(image, _turn_places(self._affine(image.shape, draw), *symmetry))
        else:
            image = _turn_image(image, *symmetry) if self.symmetries else image
            x = [image[..., c].astype(jnp.float32) for c in range(3)]

        if self.stain:
            changes = self.stain * draw("stain", 6)
            x = _restain(x, changes[:3], changes[3:])
        if self.brightness:
            x = _blend(x, 0.0, 1 + self.brightness * draw("brightness", 1)[0])
        if self.contrast:
            x = _blend(x, _mean_grey(x), 1 + self.contrast * draw("contrast", 1)[0])
        if self.saturation:
            x = _blend(x, _grey(x), 1 + self.saturation * draw("saturation", 1)[0])
        if self.hue:
            x = _turn_hue(x, self.hue * draw("hue", 1)[0])
        return jnp.stack(x, axis=-1)

    def _draw(self, key: jax.Array, effect: str, n: int) -> jax.Array:
        """float32 [n] from [-1, 1) out of a stream named after the effect; zeros if it is off."""
        if not getattr(self, effect):
            return jnp.zeros(n, jnp.float32)
        stream = jax.random.fold_in(key, zlib.crc32(effect.encode()))
        return jax.random.uniform(stream, (n,), jnp.float32, -1.0, 1.0)

    def _affine(self, shape: tuple[int, ...], draw: Callable[[str, int], jax.Array]) -> jax.Array:
        """float32 [2, 3]: pixel (x, y) of the result comes from affine (x, y, 1) in the image.

        In pixels, x to the right and y down, both from the centre.
        """
        height, width, _ = shape
        area, ratio, right, down = draw("crop", 4)
        area = 1 - self.crop * (area + 1) / 2
        ratio = jnp.exp(ratio * jnp.minimum(math.log(4 / 3), -jnp.log(area)))
        wide, tall = jnp.sqrt(area * ratio), jnp.sqrt(area / ratio)  # shares of the sides
        right = right * (1 - wide) * width / 2  # the crop's centre
        down = down * (1 - tall) * height / 2

        angle = math.radians(self.rotation) * draw("rotation", 1)[0]
        slope = jnp.tan(math.radians(self.shear) * draw("shear", 1)[0])
        shift = self.translation * draw("translation", 2)

        # rotation x shear, of the place inside the crop
        xx, yx = jnp.cos(angle), jnp.sin(angle)
        xy, yy = xx * slope - yx, yx * slope + xx
        from_x = jnp.stack([xx * wide, yx * wide])
        from_y = jnp.stack([xy * tall, yy * tall])
        offset = jnp.stack(
            [
                xx * right + xy * down + shift[0] * width,
                yx * right + yy * down + shift[1] * height,
            ]
        )
        return jnp.stack([from_x, from_y, offset], axis=1)


# What is not bounded by 1.
_HIGHEST = {"rotation": 180.0, "shear": 45.0, "hue": 0.5}

PRESETS = {
    "none": Augmentation(),
    "histology": Augmentation(
        symmetries=1.0,
        crop=0.4,
        rotation=45.0,
        stain=0.15,
        brightness=0.2,
        contrast=0.2,
        hue=0.05,
    ),
}
"""Strengths of all effects together. A patch has no upright, its scale and its stain differ between
slides. Of the sets that benchmarks/tissue_study.py compares `histology` had the lowest loss, on the
folds by which it was chosen (docs/results.md)."""


def symmetries(images: jax.Array) -> jax.Array:
    """Every flip and quarter turn of each image, for averaging predictions over them.

    Args:
      images: [B, H, W, 3] of any dtype.

    Returns:
      [8, B, H, W, 3] of the same dtype, the images as they are first; of images that are not
      square the [4, B, H, W, 3] that keep the shape.
    """
    found = [images, images[:, ::-1]]
    found += [x[:, :, ::-1] for x in found]
    if images.shape[1] == images.shape[2]:
        found += [x.swapaxes(1, 2) for x in found]
    return jnp.stack(found)


def undo_symmetries(maps: jax.Array) -> jax.Array:
    """Maps [8 or 4, B, H, W] of the images that `symmetries` gives, each as its image was first."""
    turned = [x.swapaxes(1, 2) if i >= 4 else x for i, x in enumerate(maps)]
    turned = [x[:, :, ::-1] if i % 4 >= 2 else x for i, x in enumerate(turned)]
    return jnp.stack([x[:, ::-1] if i % 2 else x for i, x in enumerate(turned)])


# Rows: how much red, green and blue light haematoxylin, eosin and DAB absorb. Ruifrok and Johnston
# 2001, Anal Quant Cytol Histol 23:291-299, as in scikit-image's rgb_from_hed.
_STAINS = np.asarray([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_DARKEST = 1e-6  # scikit-image's floor for a colour, and the base of its logarithm


def separate_stains(rgb: Planes) -> Planes:
    """Amounts of haematoxylin, eosin and DAB, as scikit-image's `rgb2hed`.

    Args:
      rgb: three planes, float32 [H, W] within 0..1.

    Returns:
      Three planes, float32 [H, W], at least 0; 1 lets a millionth of the light through.
    """
    density = [jnp.log(jnp.maximum(c, _DARKEST)) / math.log(_DARKEST) for c in rgb]
    return [jnp.maximum(stain, 0) for stain in _times(density, np.linalg.inv(_STAINS))]


def transmitted_light(stains: Planes) -> Planes:
    """The colour of light behind these stains, as scikit-image's `hed2rgb`, but not clipped.

    Args:
      stains: three planes, float32 [H, W], in the unit of `separate_stains`.

    Returns:
      Three planes, float32 [H, W], above 1 where a stain is taken away.
    """
    return [jnp.exp(math.log(_DARKEST) * density) for density in _times(stains, _STAINS)]


def _restain(x: Planes, factors: jax.Array, amounts: jax.Array) -> Planes:
    """Each stain grows by factors [3] times itself, and by amounts [3] of what halves the light."""
    halving = math.log(0.5) / math.log(_DARKEST)
    stains = separate_stains([c / 255 for c in x])
    gains = [factors[i] * stains[i] + halving * amounts[i] for i in range(3)]
    return [_clip(c * light) for c, light in zip(x, transmitted_light(gains), strict=True)]


def _times(x: Planes, matrix: np.ndarray) -> Planes:
    """x (as a row) times matrix [3, 3]; a product of matrices would be rounded on some devices."""
    columns = matrix.T.tolist()
    return [x[0] * a + x[1] * b + x[2] * c for a, b, c in columns]


def _drawn_symmetry(
    draws: jax.Array, probability: float, square: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Three bools: flip up and down, flip left and right, then exchange rows and columns."""
    wanted = (draws[0] + 1) / 2 < probability
    up, left, swap = (wanted & (draw < 0) for draw in draws[1:])
    return up, left, swap & square


def _turn_image(image: jax.Array, up: jax.Array, left: jax.Array, swap: jax.Array) -> jax.Array:
    """[H, W, 3] -> the same shape."""
    image = jnp.where(up, image[::-1], image)
    image = jnp.where(left, image[:, ::-1], image)
    if image.shape[0] == image.shape[1]:
        image = jnp.where(swap, image.swapaxes(0, 1), image)
    return image


def _turn_places(affine: jax.Array, up: jax.Array, left: jax.Array, swap: jax.Array) -> jax.Array:
    """affine [2, 3] of the turned image -> that of the image before `_turn_image`."""
    affine = jnp.where(swap, affine[::-1], affine)
    return affine * jnp.where(jnp.stack([left, up]), -1.0, 1.0)[:, None].astype(jnp.float32)


def _resample(image: jax.Array, affine: jax.Array) -> Planes:
    """uint8 [H, W, 3] -> three planes, bilinear; affine as `Augmentation._affine` has it."""
    height, width, _ = image.shape
    columns = jnp.arange(width, dtype=jnp.float32)[None] - (width - 1) / 2  # [1, W]
    rows = jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2  # [H, 1]
    x, y = (a[0] * columns + a[1] * rows + a[2] for a in affine)  # [H, W]
    left, right, x = _neighbours(x + (width - 1) / 2, width)
    above, below, y = _neighbours(y + (height - 1) / 2, height)

    # The three bytes of a pixel travel as one number: a third of the reads. Each image is read for
    # itself, and not all of them as one long array, so that a batch may lie on several devices.
    red, green, blue = (image[..., c].astype(jnp.uint32) for c in range(3))
    pixels = (red | green << 8 | blue << 16).reshape(-1)  # [H * W]

    def read(row: jax.Array, column: jax.Array) -> Planes:
        pixel = pixels.at[row * width + column].get(mode="promise_in_bounds")
        return [((pixel >> shift) & 255).astype(jnp.float32) for shift in (0, 8, 16)]

    top = _between(read(above, left), read(above, right), x)
    bottom = _between(read(below, left), read(below, right), x)
    return [_clip(c) for c in _between(top, bottom, y)]


def _between(first: Planes, second: Planes, along: jax.Array) -> Planes:
    return [a + (b - a) * along for a, b in zip(first, second, strict=True)]


def _neighbours(position: jax.Array, n: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Positions [H, W] along a side of n pixels -> the pixels before and after, and how far along.

    Beyond the border comes the mirror image, with the border pixel twice (SciPy's mode "reflect").
    """
    folded = n - jnp.abs(n - jnp.mod(position + 0.5, 2 * n)) - 0.5
    folded = jnp.clip(folded, 0, n - 1)
    before = jnp.floor(folded)
    first = before.astype(jnp.int32)
    return first, jnp.minimum(first + 1, n - 1), folded - before


def _grey(x: Planes) -> jax.Array:
    """[H, W], the luma of ITU-R BT.601."""
    return 0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]


def _mean_grey(x: Planes) -> jax.Array:
    """The mean grey of the image, of greys in whole levels as in Pillow's ImageEnhance.Contrast.

    The sum of whole numbers is the same in any order, so it cannot depend on how a device lays out
    the batch. (int32 is enough for 8 million pixels.)
    """
    levels = jnp.round(_grey(x)).astype(jnp.int32)
    return jnp.sum(levels).astype(jnp.float32) / levels.size


def _blend(x: Planes, towards: jax.Array | float, factor: jax.Array) -> Planes:
    """`towards` at factor 0, x at 1, beyond x above."""
    return [_clip(towards + factor * (c - towards)) for c in x]


def _turn_hue(x: Planes, turn: jax.Array) -> Planes:
    """The hue is turned by this share of the circle; value and saturation (of HSV) stay."""
    red, green, blue = x
    highest = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = highest - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(chroma > 0, chroma, 1)  # a grey has no hue
    sixth = jnp.where(  # the hue in sixths of the circle: -1..5 with red 0, green 2, blue 4
        highest == red,
        (green - blue) / divisor,
        jnp.where(highest == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    # A channel is at its highest within one sixth of its own hue, at its lowest beyond two.
    turned = []
    for own in (0, 2, 4):
        apart = jnp.abs(sixth + 6 * turn - own)  # at most 8
        apart = jnp.minimum(apart, jnp.abs(6 - apart))  # 0..3, the shorter way round
        turned.append(_clip(highest - chroma * jnp.clip(apart - 1, 0, 1)))
    return turned


def _clip(x: jax.Array) -> jax.Array:
    return jnp.clip(x, 0, 255)
