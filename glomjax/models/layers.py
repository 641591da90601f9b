"""Layers shared by the networks: parameters named as the field names them, arithmetic in `ops`."""

from typing import Literal

import jax
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


def check_rate(rate: float, name: str) -> None:
    """Raises UserError for what is no share of values to be dropped."""
    if not 0.0 <= rate < 1.0:
        raise UserError(f"{name} is {shown(rate)}; it must be at least 0 and below 1")
