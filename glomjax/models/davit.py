"""DaViT: dual attention vision transformers (Ding et al. 2022), tiny to giant."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from glomjax import ops
from glomjax.errors import UserError, shown
from glomjax.models.initializers import truncated_normal
from glomjax.models.layers import (
    Conv,
    ConvPositionEncoding,
    Dense,
    DropPath,
    LayerNorm,
    check_call,
    check_rate,
)

# The sizes of the paper as timm lists them.
SIZES = {
    name: {"depths": depths, "embed_dims": embed_dims, "num_heads": num_heads}
    for name, depths, embed_dims, num_heads in (
        ("davit_tiny", (1, 1, 3, 1), (96, 192, 384, 768), (3, 6, 12, 24)),
        ("davit_small", (1, 1, 9, 1), (96, 192, 384, 768), (3, 6, 12, 24)),
        ("davit_base", (1, 1, 9, 1), (128, 256, 512, 1024), (4, 8, 16, 32)),
        ("davit_large", (1, 1, 9, 1), (192, 384, 768, 1536), (6, 12, 24, 48)),
        ("davit_huge", (1, 1, 9, 1), (256, 512, 1024, 2048), (8, 16, 32, 64)),
        ("davit_giant", (1, 1, 12, 3), (384, 768, 1536, 3072), (12, 24, 48, 96)),
    )
}


MOST_BLOCKS = 32  # pairs in all stages; davit_giant has 17
MOST_PARAMETERS = 2**32  # davit_giant has a third of them
MOST_VALUES = 2**29  # of the largest array that one image becomes: 2 GiB of float32


class DaViT(nnx.Module):
    """Four stages of block pairs: attention over windows, then attention over channels.

    Args:
      num_classes: logits; 0 gives the pooled, normalised features.
      image_size: (height, width) of the images to come. The parameters fit any other size, too.
      preset: "kecam" (keras_cv_attention_models): normalise, then pool; windows of 1/32 of the
        input. "msft" (the authors' model and timm): pool, then normalise; windows of 7 x 7. Both
        have the same tensors and give different numbers.
      window_size: overrides the preset's window: a side, or a pair of height and width; 0 leaves
        the preset's, which for kecam follows the images that come.
      head_norm_first: overrides the preset's order of normalisation and pooling in the head.
      depths: block pairs per stage. embed_dims: channels per stage. num_heads: heads per stage.
      drop_path_rate: stochastic depth, rising linearly to this rate at the last block.
      dropout_rate: dropout before the logits.
      rngs: the `params` stream initialises the parameters: Glorot uniform, as Keras and so
        keras_cv_attention_models do, but for the head. timm's smaller values leave the untrained
        branches next to linear: a linear probe of such features sees no texture.
    """

    HEAD_PATHS = r"head/.*"
    LOGITS_PATHS = HEAD_PATHS
    HIDDEN_OPTIONS = ("window_size", "head_norm_first", "num_heads")
    # Right behind `stack2_block1_attn_ln` of the Keras model: the stem, the first stage and the
    # second up to the first block's attention are frozen.
    PUBLISHED_CUT = "stages/1/blocks/0/spatial/norm1"
    PREPROCESSING = "imagenet"
    LEARNING_RATE = 3e-5
    MAP_STAGE = 2  # of four, whose map Grad-CAM weighs; docs/saliency.md has the comparison

    @classmethod
    def check(cls, options: dict[str, Any], image_size: tuple[int, int]) -> None:
        """Raises UserError for options that it cannot have, or by which it would be too large."""
        if options["preset"] not in ("kecam", "msft"):
            raise UserError(f"model preset is {shown(options['preset'])}; it is 'kecam' or 'msft'")
        for name in ("drop_path_rate", "dropout_rate"):
            check_rate(options[name], name)
        sizes = {name: options[name] for name in ("depths", "embed_dims", "num_heads")}
        told = ", ".join(f"{name} {shown(value)}" for name, value in sizes.items())
        if len(set(map(len, sizes.values()))) > 1 or not sizes["depths"]:
            raise UserError(f"{told} differ in length or are empty; they have one entry per stage")
        if min(map(min, sizes.values())) < 1 or sum(sizes["depths"]) > MOST_BLOCKS:
            raise UserError(
                f"{told}: each entry is at least 1, and depths add up to at most {MOST_BLOCKS}"
            )
        for width, heads in zip(sizes["embed_dims"], sizes["num_heads"], strict=True):
            if width % heads:
                raise UserError(
                    f"num_heads {shown(heads)} does not divide embed_dims {shown(width)}"
                )
        window = options["window_size"]
        rows, columns = _window(options["preset"], window, image_size)
        maps = _quarter(image_size)
        # The msft preset's own 7 x 7 goes with images of any size.
        if window != 0 and not all(
            1 <= side <= max(extent, 7) for side, extent in zip((rows, columns), maps, strict=True)
        ):
            raise UserError(
                f"window_size is {shown(window)}, but the first map of images of {image_size[0]} x "
                f"{image_size[1]} is {maps[0]} x {maps[1]}; a side is at least 1 and at most the "
                "map's, or window_size is 0 for the preset's"
            )
        parameters, values = _extent((rows, columns), maps, **sizes)
        if parameters > MOST_PARAMETERS:
            raise UserError(
                f"{told} make a network of {_amount(parameters)} parameters; it can have at most "
                f"{MOST_PARAMETERS:,}"
            )
        if values > MOST_VALUES:
            raise UserError(
                f"{told} and windows of {rows} x {columns} make an array of {_amount(values)} "
                f"numbers of one image of {image_size[0]} x {image_size[1]}; it can have at most "
                f"{MOST_VALUES:,}"
            )

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: tuple[int, int],
        depths: tuple[int, ...],
        embed_dims: tuple[int, ...],
        num_heads: tuple[int, ...],
        preset: str = "kecam",
        window_size: int | tuple[int, int] = 0,
        head_norm_first: bool | None = None,
        drop_path_rate: float = 0.0,
        dropout_rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.image_size = image_size
        self.preset = preset
        self.window_size = window_size
        self.head_norm_first = preset == "kecam" if head_norm_first is None else head_norm_first
        rates = np.linspace(0.0, drop_path_rate, sum(depths)).tolist()
        self.stem = Stem(3, embed_dims[0], rngs)
        stages, inputs = [], embed_dims[0]
        for i, (depth, width, heads) in enumerate(zip(depths, embed_dims, num_heads, strict=True)):
            start = sum(depths[:i])
            block_rates = rates[start : start + depth]
            stages.append(Stage(inputs, width, heads, block_rates, rngs, downsample=i > 0))
            inputs = width
        self.stages = nnx.List(stages)
        self.norm = LayerNorm(inputs)
        self.dropout = nnx.Dropout(dropout_rate)
        # Small, so that the first losses are near the prior's entropy.
        head = (
            Dense(inputs, num_classes, kernel_init=truncated_normal, rngs=rngs)
            if num_classes
            else None
        )
        self.head = head

    @classmethod
    def settle(cls, options: dict[str, Any], image_size: tuple[int, int]) -> dict[str, Any]:
        """The preset's order in the head, and the window of these images in numbers."""
        kecam = options["preset"] == "kecam"
        first = options["head_norm_first"]
        rows, columns = _window(options["preset"], options["window_size"], image_size)
        return options | {
            "head_norm_first": kecam if first is None else first,
            "window_size": rows if rows == columns else (rows, columns),
        }

    def __call__(
        self, images: jax.Array, *, deterministic: bool = True, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """images [B, H, W, 3] float, preprocessed -> logits [B, num_classes]."""
        x = self.embed(images, deterministic=deterministic, rngs=rngs)
        return self.classify(x, deterministic=deterministic, rngs=rngs)

    def embed(
        self, images: jax.Array, *, deterministic: bool = True, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """images [B, H, W, 3] -> what the head sees, before its dropout [B, C]."""
        x = self.features(images, deterministic=deterministic, rngs=rngs)
        return self._pooled(x)

    def classify(
        self, x: jax.Array, *, deterministic: bool = True, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """`embed`'s output [B, C] -> logits [B, num_classes]."""
        x = self.dropout(x, deterministic=deterministic, rngs=rngs)
        return self.head(x) if self.head is not None else x

    def features(
        self, images: jax.Array, *, deterministic: bool = True, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """images [B, H, W, 3] -> the last map [B, ceil(H/32), ceil(W/32), C].

        Normalised where the head normalises first, as keras_cv_attention_models gives it; as it
        leaves the last block otherwise, as timm gives it.
        """
        x = self.feature_map(images, deterministic=deterministic, rngs=rngs)
        return self._last_map(x, deterministic=deterministic, rngs=rngs)

    def feature_map(
        self, images: jax.Array, *, deterministic: bool = True, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """images [B, H, W, 3] -> the map [B, h, w, c] that leaves the stage `MAP_STAGE`, normalised
        as the next stage reads it, or the head where none follows."""
        check_call(self, images, deterministic=deterministic, rngs=rngs)
        height, width = images.shape[1:3]
        window = self.window((height, width))
        x = self.stem(images)
        for stage in self.stages[: self.MAP_STAGE]:
            x = stage(x, window, deterministic=deterministic, rngs=rngs)
        if len(self.stages) > self.MAP_STAGE:
            downsample = self.stages[self.MAP_STAGE].downsample
            assert downsample is not None  # which the first stage alone has none of
            return downsample.norm(x)
        return self.norm(x) if self.head_norm_first else x

    def embed_map(
        self, x: jax.Array, *, deterministic: bool = True, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """`feature_map`'s output [B, h, w, c] -> `embed`'s [B, C]."""
        return self._pooled(self._last_map(x, deterministic=deterministic, rngs=rngs))

    def map_grids(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Where the cells of `feature_map` lie; see `create_model`."""
        step = self._map_step()
        grid = ((step - 4) / 2, float(step))  # the stem's windows have their centres at 0, 4, ...
        return grid, grid

    def _map_step(self) -> int:
        """Pixels between neighbouring cells of `feature_map`."""
        return 4 * 2 ** (min(self.MAP_STAGE, len(self.stages)) - 1)

    def _last_map(self, x: jax.Array, *, deterministic: bool, rngs: nnx.Rngs | None) -> jax.Array:
        """`feature_map`'s output -> that of `features`."""
        rest = self.stages[self.MAP_STAGE :]
        if not rest:
            return x
        step = self._map_step()
        # Rounding up twice is rounding up once: the window is that of the images themselves.
        window = self.window((x.shape[1] * step, x.shape[2] * step))
        assert rest[0].downsample is not None
        x = rest[0].downsample.conv(x)
        x = rest[0].run_blocks(x, window, deterministic=deterministic, rngs=rngs)
        for stage in rest[1:]:
            x = stage(x, window, deterministic=deterministic, rngs=rngs)
        return self.norm(x) if self.head_norm_first else x

    def _pooled(self, x: jax.Array) -> jax.Array:
        x = jnp.mean(x, axis=(1, 2))
        return x if self.head_norm_first else self.norm(x)

    def window(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in tokens of the windows of attention, for images of (height, width)."""
        return _window(self.preset, self.window_size, image_size)


def _window(
    preset: str, window_size: int | tuple[int, int], image_size: tuple[int, int]
) -> tuple[int, int]:
    if window_size:
        return _pair(window_size)
    if preset == "msft":
        return 7, 7
    height, width = image_size
    return -(-height // 32), -(-width // 32)


def _quarter(image_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the first stage's map."""
    return -(-image_size[0] // 4), -(-image_size[1] // 4)


def _extent(
    window: tuple[int, int],
    maps: tuple[int, int],
    *,
    depths: tuple[int, ...],
    embed_dims: tuple[int, ...],
    num_heads: tuple[int, ...],
) -> tuple[int, int]:
    """(parameters, values of the largest array that one image becomes), without the logits."""
    (rows, columns), (height, width) = window, maps
    parameters, values, patch = 0, 0, 7 * 7 * 3  # the stem's kernel is 7 x 7, the others 2 x 2
    for depth, channels, heads in zip(depths, embed_dims, num_heads, strict=True):
        parameters += patch * channels + depth * (24 * channels + 66) * channels
        windows = -(-height // rows) * -(-width // columns)
        scores = windows * heads * (rows * columns) ** 2
        values = max(values, scores, 4 * channels * height * width, channels**2 // heads)
        height, width, patch = -(-height // 2), -(-width // 2), 4 * channels
    return parameters, values


def _amount(number: int) -> str:
    return f"{number:,}" if number < 10**30 else "more than 10^30"


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


class Stem(nnx.Module):
    """7x7 convolution at stride 4, then layer normalisation: [B, H, W, 3] -> [B, H/4, W/4, C]."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        # Padding the input to a multiple of 4 first, as timm does, reads the same zeros.
        self.conv = Conv(inputs, outputs, 7, stride=4, padding=((3, 3), (3, 3)), rngs=rngs)
        self.norm = LayerNorm(outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))


class Downsample(nnx.Module):
    """Layer normalisation, then a 2x2 convolution at stride 2; odd maps are padded below/right."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.norm = LayerNorm(inputs)
        self.conv = Conv(inputs, outputs, 2, stride=2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(self.norm(x))


class Stage(nnx.Module):
    """An optional downsampling and `len(drop_path_rates)` pairs of blocks."""

    def __init__(
        self,
        inputs: int,
        width: int,
        heads: int,
        drop_path_rates: list[float],
        rngs: nnx.Rngs,
        *,
        downsample: bool,
    ):
        self.downsample = Downsample(inputs, width, rngs) if downsample else None
        self.blocks = nnx.List([BlockPair(width, heads, rate, rngs) for rate in drop_path_rates])

    def __call__(
        self, x: jax.Array, window: tuple[int, int], *, deterministic: bool, rngs: nnx.Rngs | None
    ) -> jax.Array:
        if self.downsample is not None:
            x = self.downsample(x)
        return self.run_blocks(x, window, deterministic=deterministic, rngs=rngs)

    def run_blocks(
        self, x: jax.Array, window: tuple[int, int], *, deterministic: bool, rngs: nnx.Rngs | None
    ) -> jax.Array:
        """What the stage makes of a map that is downsampled already."""
        for block in self.blocks:
            x = block(x, window, deterministic=deterministic, rngs=rngs)
        return x


class BlockPair(nnx.Module):
    """A spatial block and a channel block (figure 3 of the paper)."""

    def __init__(self, width: int, heads: int, drop_path_rate: float, rngs: nnx.Rngs):
        windows = WindowAttention(width, heads, rngs)
        channels = ChannelAttention(width, heads, rngs)
        self.spatial = Block(width, windows, drop_path_rate, rngs)
        self.channel = Block(width, channels, drop_path_rate, rngs)

    def __call__(
        self, x: jax.Array, window: tuple[int, int], *, deterministic: bool, rngs: nnx.Rngs | None
    ) -> jax.Array:
        x = self.spatial(x, window, deterministic=deterministic, rngs=rngs)
        return self.channel(x, window, deterministic=deterministic, rngs=rngs)


class Block(nnx.Module):
    """Position encoding, attention, position encoding, MLP, each on a residual branch."""

    def __init__(
        self,
        width: int,
        attention: nnx.Module,
        drop_path_rate: float,
        rngs: nnx.Rngs,
    ):
        self.cpe1 = ConvPositionEncoding(width, rngs=rngs)
        self.norm1 = LayerNorm(width)
        self.attention = attention
        self.cpe2 = ConvPositionEncoding(width, rngs=rngs)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, 4 * width, rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(
        self, x: jax.Array, window: tuple[int, int], *, deterministic: bool, rngs: nnx.Rngs | None
    ) -> jax.Array:
        def drop(branch: jax.Array) -> jax.Array:
            return self.drop_path(branch, deterministic=deterministic, rngs=rngs)

        x = self.cpe1(x)
        x = x + drop(self.attention(x, self.norm1, window))
        x = self.cpe2(x)
        return x + drop(self.mlp(x, self.norm2))


class Mlp(nnx.Module):
    """Two dense layers with an exact GELU between them, of normalised tokens."""

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs):
        self.fc1 = Dense(width, hidden, rngs=rngs)
        self.fc2 = Dense(hidden, width, rngs=rngs)

    def __call__(self, x: jax.Array, norm: LayerNorm) -> jax.Array:
        return self.fc2.of_gelu(self.fc1.product(x, norm), self.fc1.bias[...])


class WindowAttention(nnx.Module):
    """Multi-head self-attention within windows; maps are zero-padded to whole windows, no mask."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.qkv = Dense(width, 3 * width, rngs=rngs)
        self.proj = Dense(width, width, rngs=rngs)

    def __call__(self, x: jax.Array, norm: LayerNorm, window: tuple[int, int]) -> jax.Array:
        qkv = self.qkv.product(x, norm)
        return self.proj(ops.window_attention(qkv, self.qkv.bias[...], self.heads, window))


class ChannelAttention(nnx.Module):
    """Multi-head attention between channels: softmax((k / sqrt(d))^T v) applied to q."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.qkv = Dense(width, 3 * width, rngs=rngs)
        self.proj = Dense(width, width, rngs=rngs)

    def __call__(self, x: jax.Array, norm: LayerNorm, window: tuple[int, int]) -> jax.Array:
        del window
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        qkv = self.qkv.product(tokens, norm)
        y = ops.channel_attention(qkv, self.qkv.bias[...], self.heads)
        return self.proj(y.reshape(x.shape))
