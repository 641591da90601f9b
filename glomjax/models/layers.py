"""Layers shared by the networks: parameters named as the field names them, arithmetic in `ops`."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from glomjax import ops
from glomjax.errors import UserError, shown
from glomjax.models.initializers import Initializer, glorot_uniform, ones, zeros

Activation = Literal["relu"] | None


class Dense(nnx.Module):
    """x [..., I] -> x @ kernel [I, O] + bias [O], then `activation`: None or "relu"."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        activation: Activation = None,
        kernel_init: Initializer = glorot_uniform,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(zeros((outputs,)))
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...]
        if self.activation is None:
            return ops.dense(x, kernel, bias)
        return ops.bias_relu(ops.dense(x, kernel), bias)

    def product(self, x: jax.Array, norm: "LayerNorm") -> jax.Array:
        """norm(x) @ kernel, for an operation that adds the bias itself."""
        kernel = self.kernel[...].astype(x.dtype)
        return ops.layer_norm_dense(x, norm.scale[...], norm.bias[...], kernel)

    def of_gelu(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """GELU(x + bias) @ kernel + its own bias."""
        return ops.gelu_dense(x, bias, self.kernel[...].astype(x.dtype), self.bias[...])


class Conv(nnx.Module):
    """Convolution of x [B, H, W, I] with kernel [h, w, I, O], bias [O] and an activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        padding: ops.convolution.Padding = "SAME",
        activation: Activation = None,
        kernel_init: Initializer = glorot_uniform,
        rngs: nnx.Rngs,
    ):
        shape = (size, size, inputs, outputs)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape))
        self.bias = nnx.Param(zeros((outputs,)))
        self.stride = stride
        self.padding = padding if isinstance(padding, str) else tuple(padding)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return ops.conv2d(
            *self.branch(x),
            stride=self.stride,
            padding=self.padding,
            relu=self.activation == "relu",
        )

    def branch(self, x: jax.Array) -> ops.convolution.Branch:
        """What `ops.conv2d_branches` takes of a layer."""
        return x, self.kernel[...].astype(x.dtype), self.bias[...]


class ConvPositionEncoding(nnx.Module):
    """x + its 3x3 depthwise convolution, SAME (Chu et al. 2021): kernel [3, 3, 1, C], bias [C]."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(glorot_uniform(rngs.params(), (3, 3, 1, channels)))
        self.bias = nnx.Param(zeros((channels,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(x.dtype)
        return ops.residual_depthwise_conv2d(x, kernel, self.bias[...])


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, epsilon 1e-5: scale [C], bias [C]."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(ones((channels,)))
        self.bias = nnx.Param(zeros((channels,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return ops.layer_norm(x, self.scale[...], self.bias[...])


class DropPath(nnx.Module):
    """Stochastic depth (Huang et al. 2016): drops a residual branch per example, in training."""

    def __init__(self, rate: float):
        self.rate = rate

    def disable(self) -> None:
        """Keeps every branch from now on, also in training."""
        self.rate = 0.0

    def __call__(self, x: jax.Array, *, deterministic: bool, rngs: nnx.Rngs | None) -> jax.Array:
        if deterministic or self.rate == 0.0:
            return x
        if rngs is None:
            raise ValueError("stochastic depth in training needs rngs")
        keep = 1.0 - self.rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        mask = jax.random.bernoulli(rngs.dropout(), keep, shape).astype(x.dtype)
        return x * (mask / keep)


def check_call(
    network: nnx.Module, images: jax.Array, *, deterministic: bool, rngs: nnx.Rngs | None
) -> None:
    """Checks the arguments of a network's call, which costs nothing once that is compiled.

    Raises:
      UserError: images that are not float [B, H, W, 3], or no random numbers where some are needed.
    """
    shape = getattr(images, "shape", None)
    dtype = getattr(images, "dtype", None)
    if shape is None or dtype is None:
        raise UserError(f"images are of type {type(images).__name__}; {_IMAGES}")
    if len(shape) != 4 or shape[3] != 3:
        first = len(shape) in (3, 4) and shape[-3] == 3 and shape[-1] != 3
        why = " with the channels first" if first else ""
        raise UserError(f"images are {dtype} {list(shape)}{why}; {_IMAGES}")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"images are {dtype} {list(shape)}; {_IMAGES}")
    if deterministic:
        return
    if rngs is None:
        rates = [getattr(module, "rate", 0.0) for _, module in nnx.iter_modules(network)]
        if not any(rates):
            return
    elif isinstance(rngs, nnx.Rngs) and hasattr(rngs, "dropout"):
        return
    raise UserError(
        f"rngs is of type {type(rngs).__name__}; with deterministic=False, which drops values at "
        "random, it is flax.nnx.Rngs(dropout=seed)"
    )


_IMAGES = (
    "a network takes float [B, H, W, 3] from its preprocessing (a classifier that load_classifier "
    "gives takes uint8 images and does it itself)"
)


def check_rate(rate: float, name: str) -> None:
    """Raises UserError for what is no share of values to be dropped."""
    if not 0.0 <= rate < 1.0:
        raise UserError(f"{name} is {shown(rate)}; it must be at least 0 and below 1")
