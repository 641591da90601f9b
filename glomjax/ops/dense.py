"""Dense layers, with what goes before them in a transformer."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from glomjax.ops import native
from glomjax.ops.activation import add_bias, bias_gelu, plain_add_bias, plain_bias_gelu
from glomjax.ops.normalization import EPSILON, layer_norm, plain_layer_norm
from glomjax.ops.reduction import plain_column_sum

# Below this many rows, packing the weights costs more than the kernel saves.
_ROWS = 64


def plain_dense(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """x @ kernel, + bias where there is one. x [..., I], kernel [I, O], bias [O] -> [..., O]."""
    y = x @ kernel
    return y if bias is None else plain_add_bias(y, bias)


def plain_layer_norm_dense(
    x: jax.Array, scale: jax.Array, bias: jax.Array, kernel: jax.Array
) -> jax.Array:
    """layer_norm(x) @ kernel. x [..., I], scale and bias [I], kernel [I, O] -> [..., O]."""
    return plain_layer_norm(x, scale, bias) @ kernel


def plain_gelu_dense(
    x: jax.Array, x_bias: jax.Array, kernel: jax.Array, bias: jax.Array
) -> jax.Array:
    """GELU(x + x_bias) @ kernel + bias. x [..., I], x_bias [I], kernel [I, O], bias [O]."""
    return plain_dense(plain_bias_gelu(x, x_bias), kernel, bias)


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """`plain_dense`. x [..., I], kernel [I, O], bias [O] -> [..., O]."""
    given = jnp.zeros(kernel.shape[1:], kernel.dtype) if bias is None else bias
    if x.size >= _ROWS * x.shape[-1] and native.supports(x, kernel, given):
        return _dense(native.rounds(), x, kernel, given)
    y = x @ kernel
    return y if bias is None else add_bias(y, bias)


def layer_norm_dense(
    x: jax.Array, scale: jax.Array, bias: jax.Array, kernel: jax.Array
) -> jax.Array:
    """`plain_layer_norm_dense`; on a CPU the backward pass normalises again.

    Kept from the forward pass, normalised maps and GELUs are a third of a step's memory.
    """
    if native.supports(x, scale, bias, kernel):
        return _layer_norm_dense(native.rounds(), x, scale, bias, kernel)
    return _dense_of(layer_norm, (x, scale, bias), kernel, None)


def gelu_dense(x: jax.Array, x_bias: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """`plain_gelu_dense`; on a CPU the backward pass computes GELU again."""
    if native.supports(x, x_bias, kernel, bias):
        return _gelu_dense(native.rounds(), x, x_bias, kernel, bias)
    return _dense_of(bias_gelu, (x, x_bias), kernel, bias)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dense(bfloat16: bool, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return native.call("dense", plain_dense, x, kernel, bias, bfloat16=bfloat16)


def _dense_forward(bfloat16: bool, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple:
    return _dense(bfloat16, x, kernel, bias), (x, kernel)


def _dense_backward(bfloat16: bool, residuals: tuple, g: jax.Array) -> tuple:
    x, kernel = residuals
    return _input_gradient(bfloat16, g, kernel), *_weight_gradient(bfloat16, x, g)


_dense.defvjp(_dense_forward, _dense_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _layer_norm_dense(
    bfloat16: bool, x: jax.Array, scale: jax.Array, bias: jax.Array, kernel: jax.Array
) -> jax.Array:
    args, options = (x, scale, bias, kernel), {"bfloat16": bfloat16, "epsilon": EPSILON}
    return native.call("layer_norm_dense", plain_layer_norm_dense, *args, **options)


def _layer_norm_dense_forward(bfloat16: bool, *args: jax.Array) -> tuple[jax.Array, tuple]:
    return _layer_norm_dense(bfloat16, *args), args


def _layer_norm_dense_backward(bfloat16: bool, residuals: tuple, g: jax.Array) -> tuple:
    *args, kernel = residuals
    dx, dscale, dbias, normalised = native.call(
        "layer_norm_dense_gradient",
        partial(_gradients_and_value, plain_layer_norm),
        *args,
        _input_gradient(bfloat16, g, kernel),
        epsilon=EPSILON,
    )
    return dx, dscale, dbias, _weight_gradient(bfloat16, normalised, g)[0]


_layer_norm_dense.defvjp(_layer_norm_dense_forward, _layer_norm_dense_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gelu_dense(
    bfloat16: bool, x: jax.Array, x_bias: jax.Array, kernel: jax.Array, bias: jax.Array
) -> jax.Array:
    args = x, x_bias, kernel, bias
    return native.call("gelu_dense", plain_gelu_dense, *args, bfloat16=bfloat16)


def _gelu_dense_forward(bfloat16: bool, *args: jax.Array) -> tuple[jax.Array, tuple]:
    return _gelu_dense(bfloat16, *args), args[:3]


def _gelu_dense_backward(bfloat16: bool, residuals: tuple, g: jax.Array) -> tuple:
    x, x_bias, kernel = residuals
    dx, dx_bias, activated = native.call(
        "gelu_dense_gradient",
        partial(_gradients_and_value, plain_bias_gelu),
        x,
        x_bias,
        _input_gradient(bfloat16, g, kernel),
    )
    return dx, dx_bias, *_weight_gradient(bfloat16, activated, g)


_gelu_dense.defvjp(_gelu_dense_forward, _gelu_dense_backward)


def _gradients_and_value(function: Callable[..., jax.Array], *args_and_g: jax.Array) -> tuple:
    *args, g = args_and_g
    y, backward = jax.vjp(function, *args)
    return *backward(g), y


def _input_gradient(bfloat16: bool, g: jax.Array, kernel: jax.Array) -> jax.Array:
    def plain(g: jax.Array, kernel: jax.Array) -> jax.Array:
        return g @ kernel.T

    return native.call("dense_input_gradient", plain, g, kernel, bfloat16=bfloat16)


def _weight_gradient(bfloat16: bool, x: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of kernel [I, O] and bias [O], from x [..., I] and the gradient of the output, g [..., O]."""

    def plain(x: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.einsum("bhwi,bhwo->io", x, g)[None, None], plain_column_sum(g)

    # The kernel takes convolutions: this is one of 1x1 filters.
    x, g = (array.reshape(-1, 1, 1, array.shape[-1]) for array in (x, g))
    geometry = {"channel": 0, "left": 0, "stride": 1, "top": 0}
    dkernel, dbias = native.call("weight_gradient", plain, x, g, bfloat16=bfloat16, **geometry)
    return dkernel[0, 0], dbias


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dense_of(
    function: Callable[..., jax.Array], args: tuple, kernel: jax.Array, bias: jax.Array | None
) -> jax.Array:
    return dense(function(*args), kernel, bias)


def _dense_of_forward(
    function: Callable, args: tuple, kernel: jax.Array, bias: jax.Array | None
) -> tuple[jax.Array, tuple]:
    return _dense_of(function, args, kernel, bias), (args, kernel, bias)


def _dense_of_backward(function: Callable, residuals: tuple, g: jax.Array) -> tuple:
    args, kernel, bias = residuals
    # Without this XLA would find that it knows the value already, and keep it. Of several devices
    # it would wait for the first one's share of g.
    after = g if jax.device_count() == 1 else None
    x, function_backward = jax.vjp(partial(function, after=after), *args)
    dx, dkernel, dbias = jax.vjp(dense, x, kernel, bias)[1](g)
    return function_backward(dx), dkernel, dbias


_dense_of.defvjp(_dense_of_forward, _dense_of_backward)
