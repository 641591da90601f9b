"""GoogLeNet (Szegedy et al. 2015) with auxiliary classifiers in training alone."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from glomjax import ops
from glomjax.errors import UserError, shown
from glomjax.models.layers import Conv, Dense, check_call

# Filters per block: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection (table 1 of the paper).
_BLOCKS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class GoogLeNet(nnx.Module):
    """Nine Inception blocks, two auxiliary heads, global average pooling; ReLU throughout.

    Args:
      num_classes: logits; 0 gives the features before them (1000 or 1024 by the preset).
      image_size: (height, width) that the auxiliary dense layers are made for.
      preset: "notebook" is the published Keras network (11,560,835 parameters at 280): the 1x1 stem
        convolution has 192 filters, the trunk pools are `valid` and 1000 units precede the logit.
        "paper" is Szegedy et al. 2015 (12,665,651): 64 filters, `same` pools, no such layer.
      aux_heads: build the auxiliary heads. Inference needs none.
      rngs: the `params` stream initialises the kernels (Glorot uniform, as Keras).
    """

    HEAD_PATHS = r"head/.*"
    LOGITS_PATHS = r"(aux\d/)?head/.*"
    HIDDEN_OPTIONS = ()
    PUBLISHED_CUT = ""
    PREPROCESSING = "standardize"
    LEARNING_RATE = 3e-4

    aux1: "AuxiliaryHead"
    aux2: "AuxiliaryHead"

    @classmethod
    def check(cls, options: dict[str, Any], image_size: tuple[int, int]) -> None:
        """Raises UserError for options that it cannot have."""
        del image_size
        if options["preset"] not in ("notebook", "paper"):
            preset = shown(options["preset"])
            raise UserError(f"model preset is {preset}; it is 'notebook' or 'paper'")

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: tuple[int, int],
        preset: str = "notebook",
        aux_heads: bool = True,
        rngs: nnx.Rngs,
    ):
        notebook = preset == "notebook"
        self.preset = preset
        self.image_size = image_size
        self.pool_padding = "VALID" if notebook else "SAME"
        self._check_size(image_size)
        reduce = 192 if notebook else 64
        self.conv1 = Conv(3, 64, 7, stride=2, activation="relu", rngs=rngs)
        self.conv2_reduce = Conv(64, reduce, 1, activation="relu", rngs=rngs)
        self.conv2 = Conv(reduce, 192, 3, activation="relu", rngs=rngs)
        channels = 192
        for name, widths in _BLOCKS.items():
            block = Inception(channels, widths, rngs=rngs)
            setattr(self, f"inception_{name}", block)
            channels = block.outputs
            if aux_heads and num_classes and name in ("4a", "4d"):
                head = AuxiliaryHead(channels, self._aux_map(), num_classes, rngs=rngs)
                setattr(self, "aux1" if name == "4a" else "aux2", head)
        self.aux_heads = aux_heads and num_classes > 0
        self.fc = Dense(channels, 1000, activation="relu", rngs=rngs) if notebook else None
        features = 1000 if notebook else channels
        self.head = Dense(features, num_classes, rngs=rngs) if num_classes else None
        self.dropout = nnx.Dropout(0.4)

    def __call__(
        self, images: jax.Array, *, deterministic: bool = True, rngs: nnx.Rngs | None = None
    ) -> jax.Array | tuple[jax.Array, tuple[jax.Array, ...]]:
        """images [B, H, W, 3] float, preprocessed -> logits [B, num_classes].

        With deterministic=False and auxiliary heads: (logits, (auxiliary 1, auxiliary 2)).
        """
        x, maps = self._trunk(images, deterministic=deterministic, rngs=rngs)
        x = self.embed_map(x, deterministic=deterministic, rngs=rngs)
        logits = self.classify(x, deterministic=deterministic, rngs=rngs)
        if deterministic or not self.aux_heads:
            return logits
        return logits, self._auxiliary(maps, deterministic=False, rngs=rngs)

    def embed(
        self, images: jax.Array, *, deterministic: bool = True, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """images [B, H, W, 3] -> what the head sees [B, 1000 or 1024 by the preset]."""
        x = self.feature_map(images, deterministic=deterministic, rngs=rngs)
        return self.embed_map(x, deterministic=deterministic, rngs=rngs)

    def feature_map(
        self, images: jax.Array, *, deterministic: bool = True, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """images [B, H, W, 3] -> the map of the last Inception block [B, h, w, 1024]."""
        x, _ = self._trunk(images, deterministic=deterministic, rngs=rngs)
        return x

    def embed_map(
        self, x: jax.Array, *, deterministic: bool = True, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """`feature_map`'s output [B, h, w, 1024] -> `embed`'s."""
        x = jnp.mean(x, axis=(1, 2))  # [B, 1024]
        if self.fc is None:
            return x
        return self.fc(self.dropout(x, deterministic=deterministic, rngs=rngs))

    def classify(
        self, x: jax.Array, *, deterministic: bool = True, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """`embed`'s output -> logits [B, num_classes]."""
        if self.fc is None:
            x = self.dropout(x, deterministic=deterministic, rngs=rngs)
        return self.head(x) if self.head is not None else x

    def auxiliary_logits(self, images: jax.Array) -> tuple[jax.Array, ...]:
        """Both auxiliary heads' logits without dropout, [B, num_classes] each, for inspection."""
        _, maps = self._trunk(images, deterministic=True, rngs=None)
        return self._auxiliary(maps, deterministic=True, rngs=None)

    def _trunk(
        self, images: jax.Array, *, deterministic: bool, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """The last map [B, h, w, 1024] and the maps that the auxiliary heads read."""
        check_call(self, images, deterministic=deterministic, rngs=rngs)
        self._check_size(images.shape[1:3])
        maps = []
        x = self._pool(self.conv1(images))
        x = self._pool(self.conv2(self.conv2_reduce(x)))
        for name in _BLOCKS:
            x = getattr(self, f"inception_{name}")(x)
            if name in ("4a", "4d"):
                maps.append(x)
            if name in ("3b", "4e"):
                x = self._pool(x)
        return x, tuple(maps)

    def map_grids(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Where the cells of `feature_map` lie; see `create_model`."""
        height, width = self.image_size
        return self._grid(height), self._grid(width)

    def _auxiliary(
        self, maps: tuple[jax.Array, ...], *, deterministic: bool, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, ...]:
        heads = (self.aux1, self.aux2)
        if maps[0].shape[1:3] != tuple(self._extent(side, 3) for side in self.image_size):
            raise UserError(
                f"googlenet's auxiliary heads were made for image_size {self.image_size} and the "
                "images are of another; resize them, or create it for theirs"
            )
        return tuple(
            head(x, deterministic=deterministic, rngs=rngs)
            for head, x in zip(heads, maps, strict=True)
            if head.active
        )

    def _pool(self, x: jax.Array) -> jax.Array:
        return ops.max_pool(x, 3, 2, self.pool_padding)

    def _aux_map(self) -> tuple[int, int]:
        """The spatial size after the auxiliary heads' average pool."""

        height, width = (self._extent(side, 3) for side in self.image_size)
        pooled = (height - 5) // 3 + 1, (width - 5) // 3 + 1
        if min(pooled) < 1:
            raise UserError(
                f"image_size {self.image_size} is too small for googlenet's auxiliary heads; use "
                "93 or more, or aux_heads=False"
            )
        return pooled

    def _grid(self, size: int) -> tuple[int, int]:
        first, step = 0, 1
        for pools in range(5):  # conv1 and four pools, of stride 2 each
            extent = size if pools == 0 else self._extent(size, pools - 1)
            # A window of `same` padding begins at the border where the extent is even.
            inside = extent % 2 == 0 or (pools > 0 and self.pool_padding == "VALID")
            first, step = first + step * inside, 2 * step
        return first, step

    def _check_size(self, image_size: Sequence[int]) -> None:
        """Raises UserError for images of which no map would be left, but for NaN."""
        if min(self._extent(side, 4) for side in image_size[:2]) < 1:
            height, width = image_size
            raise UserError(
                f"images of {height} x {width} pixels are too small for googlenet; use "
                "61 or more, or preset 'paper'"
            )

    def _extent(self, size: int, pools: int) -> int:
        """That of the map behind so many pools of the trunk."""
        size = -(-size // 2)  # conv1
        for _ in range(pools):
            size = (size - 3) // 2 + 1 if self.pool_padding == "VALID" else -(-size // 2)
        return size


class Inception(nnx.Module):
    """Four branches side by side: 1x1, 3x3, 5x5 and a projected 3x3 max pool, concatenated."""

    def __init__(self, inputs: int, widths: tuple[int, ...], *, rngs: nnx.Rngs):
        one, reduce3, three, reduce5, five, pool = widths
        self.conv1x1 = Conv(inputs, one, 1, activation="relu", rngs=rngs)
        self.conv3x3_reduce = Conv(inputs, reduce3, 1, activation="relu", rngs=rngs)
        self.conv3x3 = Conv(reduce3, three, 3, activation="relu", rngs=rngs)
        self.conv5x5_reduce = Conv(inputs, reduce5, 1, activation="relu", rngs=rngs)
        self.conv5x5 = Conv(reduce5, five, 5, activation="relu", rngs=rngs)
        self.pool_proj = Conv(inputs, pool, 1, activation="relu", rngs=rngs)
        self.outputs = one + three + five + pool

    def __call__(self, x: jax.Array) -> jax.Array:
        return ops.conv2d_branches(
            self.conv1x1.branch(x),
            self.conv3x3.branch(self.conv3x3_reduce(x)),
            self.conv5x5.branch(self.conv5x5_reduce(x)),
            self.pool_proj.branch(ops.max_pool(x, 3, 1, "SAME")),
        )


class AuxiliaryHead(nnx.Module):
    """Average pool 5x5/3, 1x1 convolution of 128, dense 1024, dropout 0.7, logits.

    It regularises the layers before it; `active` says whether it still does.
    """

    def __init__(self, inputs: int, pooled: tuple[int, int], num_classes: int, *, rngs: nnx.Rngs):
        self.conv = Conv(inputs, 128, 1, activation="relu", rngs=rngs)
        self.fc = Dense(pooled[0] * pooled[1] * 128, 1024, activation="relu", rngs=rngs)
        self.head = Dense(1024, num_classes, rngs=rngs)
        self.dropout = nnx.Dropout(0.7)
        self.active = True

    def disable(self) -> None:
        """Leaves its logits, and so its loss, out of training from now on."""
        self.active = False

    def __call__(self, x: jax.Array, *, deterministic: bool, rngs: nnx.Rngs | None) -> jax.Array:
        window, stride = (1, 5, 5, 1), (1, 3, 3, 1)
        zero = np.zeros((), x.dtype)
        x = lax.reduce_window(x, zero, lax.add, window, stride, "VALID") / 25
        x = self.conv(x)
        x = self.fc(x.reshape(x.shape[0], -1))
        return self.head(self.dropout(x, deterministic=deterministic, rngs=rngs))
