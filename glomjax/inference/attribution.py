"""How much each pixel speaks for a class: Grad-CAM, integrated gradients and occlusion.

Each works on a `score`, a function of images that gives one number for each, and knows nothing of
networks and files.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Score = Callable[[jax.Array], jax.Array]  # [B, ...] -> [B]
Grid = tuple[float, float]  # the pixel of the first cell's centre, pixels from cell to cell


def grad_cam(
    feature_map: Callable[[jax.Array], jax.Array],
    score: Score,
    images: jax.Array,
    grids: tuple[Grid, Grid],
) -> jax.Array:
    """Grad-CAM (Selvaraju et al. 2017, equations 1 and 2) before its ReLU.

    The channels of a map, each with the mean of its gradient as its weight, are summed. The sum is
    laid over the image where the cells of the map look at it, linearly between their centres.

    Each channel counts from its own mean over the image, which moves no peak: what is alike
    everywhere says nothing of where, and a normalised map, whose channels may be far from 0 at
    every place, would otherwise be below 0 as a whole in some images.

    Args:
      feature_map: images [B, H, W, 3] -> map [B, h, w, C].
      score: of such a map.
      images: float [B, H, W, 3].
      grids: of the rows and of the columns of the map.

    Returns:
      float32 [B, H, W].
    """
    maps = feature_map(images)
    gradients = jax.grad(lambda x: jnp.sum(score(x)))(maps)
    weights = jnp.mean(gradients.astype(jnp.float32), axis=(1, 2))  # [B, C]
    values = maps.astype(jnp.float32)
    centred = values - jnp.mean(values, axis=(1, 2), keepdims=True)
    cells = jnp.einsum("bhwc,bc->bhw", centred, weights)
    # What is left of a map without structure is rounding, which no scale may make visible.
    summed = jnp.max(jnp.einsum("bhwc,bc->bhw", jnp.abs(values), jnp.abs(weights)), axis=(1, 2))
    cells = jnp.where(jnp.abs(cells) > 1e-5 * summed[:, None, None], cells, 0)
    rows, columns = (
        _interpolation(pixels, count, grid)
        for pixels, count, grid in zip(images.shape[1:3], cells.shape[1:], grids, strict=True)
    )
    return jnp.einsum("yh,bhw,xw->byx", rows, cells, columns)


def integrated_gradients(
    score: Score, images: jax.Array, baseline: jax.Array, steps: int
) -> jax.Array:
    """Integrated gradients (Sundararajan et al. 2017, equation 1), summed over the channels.

    The integral is a sum over the midpoints of `steps` equal parts of the way. What all pixels get
    adds up to score(images) - score(baseline), but for the error of that sum.

    Args:
      images, baseline: float [B, H, W, 3].

    Returns:
      float32 [B, H, W].
    """
    gradient = jax.grad(lambda x: jnp.sum(score(x)))

    def add(total: jax.Array, way: jax.Array) -> tuple[jax.Array, None]:
        return total + gradient(baseline + way * (images - baseline)), None

    ways = (jnp.arange(steps, dtype=jnp.float32) + 0.5) / steps
    total, _ = jax.lax.scan(add, jnp.zeros_like(images), ways)
    return jnp.sum(total / steps * (images - baseline), axis=-1)


def occlusion(
    score: Score, images: jax.Array, fill: jax.Array, window: tuple[int, int]
) -> jax.Array:
    """Occlusion (Zeiler and Fergus 2014, section 4.2): by how much the score falls where a window
    is covered; of a pixel, the mean over the windows that cover it.

    The windows begin at each border and lie at equal distances of about half a window.

    Args:
      images: float [B, H, W, 3].
      fill: float [B, 1, 1, 3], the colour of the cover.
      window: (height, width) in pixels.

    Returns:
      float32 [B, H, W].
    """
    rows, columns = (
        _windows(pixels, side) for pixels, side in zip(images.shape[1:3], window, strict=True)
    )  # [R, H], [C, W]
    whole = score(images)

    def fall(place: jax.Array) -> jax.Array:
        row, column = place // len(columns), place % len(columns)
        covered = (rows[row][:, None] * columns[column][None])[None, :, :, None]  # [1, H, W, 1]
        return whole - score(jnp.where(covered > 0, fill, images))

    falls = jax.lax.map(fall, jnp.arange(len(rows) * len(columns)))  # [R * C, B]
    falls = falls.reshape(len(rows), len(columns), -1).astype(jnp.float32)
    total = jnp.einsum("ry,rcb,cx->byx", rows, falls, columns)
    return total / (jnp.sum(rows, axis=0)[:, None] * jnp.sum(columns, axis=0)[None])[None]


def _interpolation(pixels: int, cells: int, grid: Grid) -> jax.Array:
    """float32 [pixels, cells]: how much of each cell a pixel shows; beyond the outer centres that
    of the outer cell."""
    first, step = grid
    place = jnp.clip((jnp.arange(pixels, dtype=jnp.float32) - first) / step, 0, cells - 1)
    return jnp.maximum(0, 1 - jnp.abs(place[:, None] - jnp.arange(cells)[None]))


def _windows(pixels: int, side: int) -> jax.Array:
    """float32 [R, pixels]: 1 where each of the R windows lies."""
    side = min(side, pixels)
    count = -(-(pixels - side) // max(side // 2, 1)) + 1
    starts = [round(i * (pixels - side) / max(count - 1, 1)) for i in range(count)]
    places = jnp.arange(pixels)[None] - jnp.array(starts)[:, None]
    return ((places >= 0) & (places < side)).astype(jnp.float32)
