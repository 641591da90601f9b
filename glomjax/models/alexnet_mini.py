"""AlexNet-mini: a 13x13/3 stem and three dense layers, 7,742,721 parameters at 280."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from glomjax import ops
from glomjax.errors import UserError
from glomjax.models.layers import Conv, Dense, check_call, check_rate


class AlexNetMini(nnx.Module):
    """Five convolutions, three max pools, three dense layers; ReLU throughout.

    The published filters: 96 of 13x13 at stride 3, 256 of 5x5, then 384, 384 and 256 of 3x3, and
    128, 128 and `num_classes` units. The stem pads 3 zeros on each side, the other convolutions are
    `same`; the pools are `valid`, two of 3x3/2 and one of 2x2/2. The golden outputs of the Keras
    model fix these.

    Args:
      num_classes: logits; 0 gives the 128 features before them.
      image_size: (height, width) that the first dense layer is made for.
      dropout_rate: dropout after each hidden dense layer; the published list has none.
      rngs: the `params` stream initialises the kernels (Glorot uniform, as Keras).
    """

    HEAD_PATHS = r"head/.*"
    LOGITS_PATHS = HEAD_PATHS
    HIDDEN_OPTIONS = ()
    PUBLISHED_CUT = ""
    PREPROCESSING = "standardize"
    LEARNING_RATE = 1e-4

    @classmethod
    def check(cls, options: dict[str, Any], image_size: tuple[int, int]) -> None:
        """Raises UserError for options that it cannot have."""
        del image_size
        check_rate(options["dropout_rate"], "dropout_rate")

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: tuple[int, int],
        dropout_rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.image_size = image_size
        self.conv1 = Conv(
            3, 96, 13, stride=3, padding=((3, 3), (3, 3)), activation="relu", rngs=rngs
        )
        self.conv2 = Conv(96, 256, 5, activation="relu", rngs=rngs)
        self.conv3 = Conv(256, 384, 3, activation="relu", rngs=rngs)
        self.conv4 = Conv(384, 384, 3, activation="relu", rngs=rngs)
        self.conv5 = Conv(384, 256, 3, activation="relu", rngs=rngs)
        rows, columns = _maps(image_size)
        if min(rows, columns) < 1:
            raise UserError(
                f"image_size {image_size} is too small for alexnet_mini; use 37 or more"
            )
        self.fc1 = Dense(rows * columns * 256, 128, activation="relu", rngs=rngs)
        self.fc2 = Dense(128, 128, activation="relu", rngs=rngs)
        self.head = Dense(128, num_classes, rngs=rngs) if num_classes else None
        self.dropout = nnx.Dropout(dropout_rate)

    def __call__(
        self, images: jax.Array, *, deterministic: bool = True, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """images [B, H, W, 3] float, preprocessed -> logits [B, num_classes]."""
        x = self.embed(images, deterministic=deterministic, rngs=rngs)
        return self.classify(x, deterministic=deterministic, rngs=rngs)

    def embed(
        self, images: jax.Array, *, deterministic: bool = True, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """images [B, H, W, 3] -> what the head sees, before its dropout [B, 128]."""
        x = self.feature_map(images, deterministic=deterministic, rngs=rngs)
        return self.embed_map(x, deterministic=deterministic, rngs=rngs)

    def feature_map(
        self, images: jax.Array, *, deterministic: bool = True, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """images [B, H, W, 3] -> the map of the last convolution [B, h, w, 256]."""
        check_call(self, images, deterministic=deterministic, rngs=rngs)
        if _maps(images.shape[1:3]) != _maps(self.image_size):
            height, width = images.shape[1:3]
            raise UserError(
                f"images are {height} x {width} pixels and this alexnet_mini was made for "
                f"image_size {self.image_size}; resize them, or create it for theirs"
            )
        x = self.conv1(images)  # [B, 92, 92, 96] at 280
        x = ops.max_pool(x, 3, 2)
        x = self.conv2(x)  # [B, 45, 45, 256]
        x = ops.max_pool(x, 3, 2)
        x = self.conv3(x)  # [B, 22, 22, 384]
        x = self.conv4(x)
        return self.conv5(x)

    def embed_map(
        self, x: jax.Array, *, deterministic: bool = True, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """`feature_map`'s output [B, h, w, 256] -> `embed`'s [B, 128]."""
        x = ops.max_pool(x, 2, 2)  # [B, 11, 11, 256] at 280
        x = x.reshape(x.shape[0], -1)
        x = self.dropout(self.fc1(x), deterministic=deterministic, rngs=rngs)
        return self.fc2(x)

    def classify(
        self, x: jax.Array, *, deterministic: bool = True, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """`embed`'s output [B, 128] -> logits [B, num_classes]."""
        x = self.dropout(x, deterministic=deterministic, rngs=rngs)
        return self.head(x) if self.head is not None else x

    def map_grids(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Where the cells of `feature_map` lie; see `create_model`."""
        return (12, 12), (12, 12)


def _maps(image_size: Sequence[int]) -> tuple[int, int]:
    return _last_map(image_size[0]), _last_map(image_size[1])


def _last_map(size: int) -> int:
    """The extent of the last map for an input extent: 11 for 280."""
    size = (size + 6 - 13) // 3 + 1
    for _ in range(2):
        size = (size - 3) // 2 + 1
    return size // 2
