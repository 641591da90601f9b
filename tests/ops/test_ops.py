"""Every operation equals its plain definition in value and gradient, on whatever runs the tests."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quick_programs import quickly

from glomjax import ops
from glomjax.models import davit
from glomjax.ops import native
from glomjax.ops.activation import plain_add_bias, plain_bias_gelu, plain_bias_relu
from glomjax.ops.attention import plain_channel_attention, plain_window_attention
from glomjax.ops.convolution import (
    plain_conv2d,
    plain_conv2d_branches,
    plain_residual_depthwise_conv2d,
)
from glomjax.ops.dense import plain_dense, plain_gelu_dense, plain_layer_norm_dense
from glomjax.ops.normalization import plain_layer_norm
from glomjax.ops.pooling import plain_max_pool
from glomjax.ops.reduction import column_sum, plain_column_sum


@pytest.fixture(params=["auto", "off"], autouse=True)
def kernels(request):
    """Each test twice: with the native kernels where they serve, and without any."""
    with native.setting(request.param):
        if request.param == "auto" and native.status() != "native kernels: on":
            pytest.skip(native.status())
        yield


few = settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
TOLERANCE = {jnp.dtype("float32"): 2e-5, jnp.dtype("bfloat16"): 4e-2}


def windows(heads, rows, columns):
    return (
        lambda qkv, bias: ops.window_attention(qkv, bias, heads, (rows, columns)),
        partial(plain_window_attention, heads=heads, rows=rows, columns=columns),
    )


def channels(heads):
    return partial(ops.channel_attention, heads=heads), partial(
        plain_channel_attention, heads=heads
    )


DENSE = ops.dense, plain_dense
NORM_DENSE = ops.layer_norm_dense, plain_layer_norm_dense
GELU_DENSE = ops.gelu_dense, plain_gelu_dense
DEPTHWISE = ops.residual_depthwise_conv2d, plain_residual_depthwise_conv2d
# (operation, plain definition, shapes of the arguments) without convolutions and pools.
ELEMENTWISE = {
    "bias": (ops.add_bias, plain_add_bias, ((2, 5, 3, 7), (7,))),
    "gelu": (ops.bias_gelu, plain_bias_gelu, ((2, 5, 3, 7), (7,))),
    "gelu_rows": (ops.bias_gelu, plain_bias_gelu, ((3, 13), (13,))),
    "gelu_1x1": (ops.bias_gelu, plain_bias_gelu, ((1, 1, 1, 1), (1,))),
    "relu": (ops.bias_relu, plain_bias_relu, ((2, 5, 3, 7), (7,))),
    "relu_rows": (ops.bias_relu, plain_bias_relu, ((3, 13), (13,))),
    "layer_norm": (ops.layer_norm, plain_layer_norm, ((2, 5, 3, 7), (7,), (7,))),
    "layer_norm_rows": (ops.layer_norm, plain_layer_norm, ((3, 96), (96,), (96,))),
    "layer_norm_1x1": (ops.layer_norm, plain_layer_norm, ((1, 1, 1, 5), (5,), (5,))),
    "depthwise": (*DEPTHWISE, ((2, 9, 7, 5), (3, 3, 1, 5), (5,))),
    "depthwise_wide": (*DEPTHWISE, ((1, 10, 4, 37), (3, 3, 1, 37), (37,))),
    "depthwise_1x1": (*DEPTHWISE, ((2, 1, 1, 3), (3, 3, 1, 3), (3,))),
    "depthwise_5x3": (*DEPTHWISE, ((1, 2, 6, 3), (5, 3, 1, 3), (3,))),
    # More rows than are packed at once, more columns than a block has, and odd ones.
    "dense": (*DENSE, ((2, 9, 4, 7), (7, 11), (11,))),
    "dense_rows": (*DENSE, ((300, 96), (96, 301), (301,))),
    "dense_without_bias": (*DENSE, ((2, 70, 33), (33, 5))),
    "dense_1x1": (*DENSE, ((64, 1), (1, 1), (1,))),
    "dense_few_rows": (*DENSE, ((3, 40), (40, 5), (5,))),
    # More inputs than are summed at once, to an odd number.
    "dense_deep": (*DENSE, ((65, 1337), (1337, 40), (40,))),
    "layer_norm_dense": (*NORM_DENSE, ((2, 5, 3, 7), (7,), (7,), (7, 9))),
    "layer_norm_dense_deep": (*NORM_DENSE, ((2, 49, 768), (768,), (768,), (768, 33))),
    # More blocks of the kernel's gradient than are divided by rows.
    "dense_of_many_blocks": (*DENSE, ((200, 1200), (1200, 600), (600,))),
    "gelu_dense": (*GELU_DENSE, ((2, 5, 3, 7), (7,), (7, 9), (9,))),
    "gelu_dense_deep": (*GELU_DENSE, ((2, 49, 1030), (1030,), (1030, 33), (33,))),
    # Heads of 32 as in every DaViT, windows of 9, 7 and 17, padded maps, and odd ones.
    "windows": (*windows(2, 9, 9), ((1, 18, 11, 192), (192,))),
    "windows_of_7": (*windows(3, 7, 7), ((2, 9, 14, 288), (288,))),
    "windows_of_17": (*windows(1, 17, 17), ((1, 17, 16, 96), (96,))),
    "windows_odd": (*windows(3, 4, 5), ((1, 10, 13, 63), (63,))),
    "windows_larger_than_the_map": (*windows(1, 5, 6), ((1, 1, 2, 15), (15,))),
    "channels": (*channels(3), ((2, 81, 288), (288,))),
    "channels_odd": (*channels(2), ((1, 65, 42), (42,))),
    "channels_of_one_token": (*channels(1), ((1, 1, 9), (9,))),
}
# (map, kernel size, stride, padding): the networks' own and awkward ones.
CONVOLUTIONS = {
    "davit_stem": ((17, 15), 7, 4, ((3, 3), (3, 3))),
    "davit_downsample_odd": ((9, 7), 2, 2, "SAME"),
    "alexnet_stem": ((22, 19), 13, 3, ((3, 3), (3, 3))),
    "googlenet_stem": ((15, 16), 7, 2, "SAME"),
    "valid_3": ((14, 11), 7, 3, "VALID"),
    "valid_4": ((11, 8), 2, 4, "VALID"),
    "uneven_padding": ((10, 9), 7, 3, ((0, 2), (1, 4))),
    "one_pixel": ((1, 1), 7, 2, "SAME"),
    "pointwise": ((5, 3), 1, 1, "SAME"),
    "pointwise_padded_below": ((5, 3), 1, 1, ((0, 2), (0, 0))),
    "pointwise_cropped_below": ((5, 3), 1, 1, ((0, -1), (0, 0))),
    "pointwise_strided": ((5, 4), 1, 2, "SAME"),
    "unit_stride": ((6, 5), 3, 1, "SAME"),
    "unit_stride_uneven_padding": ((6, 5), 3, 1, ((2, 0), (0, 1))),
    "wider_than_a_tile": ((9, 29), 5, 1, "SAME"),
}
BLOCKS = ["layer_norm_dense", "gelu_dense", "windows", "channels"]
POOLS = [(3, 2), (2, 2), (3, 1)]
# Of 32 channels each, in all stages of the six DaViTs.
HEADS = {heads for size in davit.SIZES.values() for heads in size["num_heads"]}


def arrays(shapes, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal(s), dtype) for s in shapes)


def value_and_gradients(op, args, seed=7, options=None):
    """The output and the gradients for a random cotangent, compiled as one program with these
    options."""
    out = jax.eval_shape(op, *args)
    (g,) = arrays([out.shape], out.dtype, seed)

    def run(g, *args):
        y, vjp = jax.vjp(op, *args)
        return y, vjp(g)

    return jax.jit(run, compiler_options=options)(g, *args)


def assert_agree(op, plain, args):
    """Value and gradients equal in shape, dtype and, relative to the largest, in number."""
    ours = value_and_gradients(op, args)
    theirs = value_and_gradients(plain, args, options=quickly())
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        scale = max(1.0, np.abs(b[np.isfinite(b)]).max(initial=0.0))
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE[args[0].dtype] * scale)


def convolution(size, stride, padding, **options):
    """The operation, its plain definition and the shapes of kernel and bias."""
    options |= {"stride": stride, "padding": padding}
    return (
        partial(ops.conv2d, **options),
        partial(plain_conv2d, **options),
        (size, size, 3, 5),
        (5,),
    )


def pool(window, stride, padding):
    options = {"window": window, "stride": stride, "padding": padding}
    # Positions by index: custom_vjp tells which arguments are not differentiated that way.
    return lambda x: ops.max_pool(x, *options.values()), partial(plain_max_pool, **options)


@pytest.mark.parametrize("case", ELEMENTWISE)
def test_float32_agrees_with_the_plain_definition(strict_dtypes, case):
    op, plain, shapes = ELEMENTWISE[case]
    assert_agree(op, plain, arrays(shapes))


@pytest.mark.parametrize("window", [7, 9])
@pytest.mark.parametrize("heads", sorted(HEADS))
def test_every_width_of_every_davit_agrees(strict_dtypes, heads, window):
    """The operations of a block at the widths and windows that the six networks have."""
    if native.status() != "native kernels: on":
        pytest.skip("without them, these shapes are no cases of their own")
    width = 32 * heads
    shapes = (1, window, window, 3 * width), (3 * width,)
    assert_agree(*windows(heads, window, window), arrays(shapes))
    if window != 7:  # the others have no window, and their widths are those of the other case
        return
    assert_agree(*channels(heads), arrays([(1, window**2, 3 * width), (3 * width,)]))
    x, vector = (1, window, window, width), (width,)
    assert_agree(*DEPTHWISE, arrays([x, (3, 3, 1, width), vector]))
    assert_agree(*NORM_DENSE, arrays([x, vector, vector, (width, 3 * window)]))
    assert_agree(*GELU_DENSE, arrays([(*x[:3], 4 * width), (4 * width,), (4 * width, 9), (9,)]))


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_convolution_agrees_with_the_plain_one(strict_dtypes, case):
    extent, size, stride, padding = CONVOLUTIONS[case]
    op, plain, *kernel = convolution(size, stride, padding)
    assert_agree(op, plain, arrays([(2, *extent, 3), *kernel]))


@pytest.mark.parametrize("case", ["alexnet_stem", "pointwise", "unit_stride", "wider_than_a_tile"])
def test_a_rectified_convolution_agrees_with_the_plain_one(strict_dtypes, case):
    extent, size, stride, padding = CONVOLUTIONS[case]
    op, plain, *kernel = convolution(size, stride, padding, relu=True)
    assert_agree(op, plain, arrays([(2, *extent, 3), *kernel]))


# So many channels that minimal filtering serves; widths that fill no vector.
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (0, 3))])
@pytest.mark.parametrize(
    ("extent", "inputs", "outputs"),
    # The last one has more channels, outputs and tiles than a task takes.
    [((9, 7), 33, 47), ((6, 8), 64, 32), ((23, 21), 100, 130)],
)
def test_a_wide_3x3_convolution_agrees(strict_dtypes, extent, inputs, outputs, padding, relu):
    op, plain, *_ = convolution(3, 1, padding, relu=relu)
    shapes = [(2, *extent, inputs), (3, 3, inputs, outputs), (outputs,)]
    assert_agree(op, plain, arrays(shapes))


def test_a_deep_convolution_agrees(strict_dtypes):
    # Its sum is taken in parts: rows 1 and 2 of the filter, 3 and 4, and 5.
    op, plain, *_ = convolution(5, 1, "SAME", relu=True)
    assert_agree(op, plain, arrays([(2, 7, 6, 48), (5, 5, 48, 40), (40,)]))


def test_a_convolution_without_outputs_has_zero_gradients():
    op, plain, *_ = convolution(3, 1, "VALID")
    assert_agree(op, plain, arrays([(1, 2, 2, 3), (3, 3, 3, 5), (5,)]))


def test_a_bias_of_another_type_is_taken_as_the_plain_definition_takes_it():
    x, kernel, bias = arrays([(70, 8), (8, 4), (4,)])
    bias = bias.astype(jnp.bfloat16)
    np.testing.assert_allclose(ops.dense(x, kernel, bias), plain_dense(x, kernel, bias), atol=1e-5)


def in_threes(operation):
    """Of branches one after another, as arrays alone."""
    return lambda *arrays: operation(*(arrays[i : i + 3] for i in range(0, len(arrays), 3)))


# As in an Inception block, at widths that fill no vector, a half and more than a panel.
BRANCHES = tuple(
    shape
    for inputs, outputs, size in ((7, 5, 1), (4, 18, 3), (2, 40, 5), (7, 33, 1), (32, 40, 3))
    for shape in ((2, 6, 9, inputs), (size, size, inputs, outputs), (outputs,))
)


def test_branches_side_by_side_agree_with_the_plain_ones(strict_dtypes):
    assert_agree(in_threes(ops.conv2d_branches), in_threes(plain_conv2d_branches), arrays(BRANCHES))


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize(("window", "stride"), POOLS)
def test_a_max_pool_agrees_with_the_plain_one(strict_dtypes, window, stride, padding):
    op, plain = pool(window, stride, padding)
    assert_agree(op, plain, arrays([(2, 9, 6, 5)]))


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 5), (4, 7, 9, 5), (2, 0, 9, 5), (1, 1, 1, 1)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_column_sum_is_the_plain_one_in_float32(shape, dtype):
    (x,) = arrays([shape], dtype)
    ours, plain = (jax.jit(f)(x) for f in (column_sum, plain_column_sum))
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, plain, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("case", ["gelu", "relu", "layer_norm", "depthwise", "layer_norm_dense"])
def test_bfloat16_agrees_loosely_and_stays_bfloat16(case):
    op, plain, shapes = ELEMENTWISE[case]
    assert_agree(op, plain, arrays(shapes, "bfloat16"))


def test_bfloat16_convolution_and_pool_agree_loosely_and_stay_bfloat16():
    op, plain, *kernel = convolution(7, 4, ((3, 3), (3, 3)))
    assert_agree(op, plain, arrays([(2, 13, 11, 3), *kernel], "bfloat16"))
    assert_agree(*pool(3, 2, "SAME"), arrays([(2, 9, 6, 5)], "bfloat16"))


@pytest.fixture
def rounded_products():
    """Native products round their factors to bfloat16."""
    with native.products_in("bfloat16"):
        if not native.rounds() or native.activations("bfloat16") != "float32":
            pytest.skip(native.status("bfloat16"))
        yield


def rounded(x):
    return x.astype(jnp.bfloat16).astype(jnp.float32)


# Odd numbers of what is summed: rows for the kernel's gradient, inputs for the value.
@pytest.mark.parametrize("shapes", [((75, 33), (33, 40), (40,)), ((300, 96), (96, 301), (301,))])
def test_products_round_their_factors_alone(rounded_products, shapes):
    x, kernel, bias = arrays(shapes)
    (g,) = arrays([(shapes[0][0], shapes[1][1])], seed=7)
    y, (dx, dkernel, dbias) = value_and_gradients(ops.dense, (x, kernel, bias))
    x, kernel, short = rounded(x), rounded(kernel), rounded(g)
    for ours, exact in (
        (y, plain_dense(x, kernel, bias)),
        (dx, short @ kernel.T),
        (dkernel, x.T @ short),
        (dbias, g.sum(0)),
    ):
        np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize("size", [1, 5])
def test_a_convolution_rounds_its_factors_alone(rounded_products, size):
    x, kernel, bias = arrays([(2, 7, 9, 6), (size, size, 6, 34), (34,)])
    (g,) = arrays([(2, 7, 9, 34)], seed=7)
    y, (dx, dkernel, _) = value_and_gradients(ops.conv2d, (x, kernel, bias))
    x, kernel, short = rounded(x), rounded(kernel), rounded(g)
    exact, backward = jax.vjp(lambda x, kernel: plain_conv2d(x, kernel, bias), x, kernel)
    for a, b in zip((y, dx, dkernel), (exact, *backward(short)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_rounded_branches_agree_loosely(rounded_products):
    args = arrays(BRANCHES)
    ours = value_and_gradients(in_threes(ops.conv2d_branches), args)
    theirs = value_and_gradients(in_threes(plain_conv2d_branches), args)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        # A value near 0 may fall on either side of the ReLU.
        assert np.linalg.norm(a - b) < 4e-2 * np.linalg.norm(b)


@pytest.mark.parametrize("case", ["layer_norm_dense_deep", "gelu_dense_deep"])
def test_rounded_products_of_a_normalisation_or_gelu_agree_loosely(rounded_products, case):
    op, plain, shapes = ELEMENTWISE[case]
    args = arrays(shapes)
    ours, theirs = value_and_gradients(op, args), value_and_gradients(plain, args)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-2 * np.abs(b).max())
    assert not np.array_equal(ours[0], theirs[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_rounded_product_hides_no_non_finite_number(rounded_products, bad):
    x, kernel = arrays([(70, 40), (40, 33)])
    y = ops.dense(x.at[3, 5].set(bad), kernel)
    assert not np.isfinite(y[3]).any()
    assert np.isfinite(y[:3]).all()
    assert np.isfinite(y[4:]).all()


@pytest.mark.parametrize("case", ["gelu", "relu", "layer_norm"])
def test_float32_parameters_serve_bfloat16_activations(case):
    op, plain, (x, *parameters) = ELEMENTWISE[case]
    args = (*arrays([x], "bfloat16"), *arrays(parameters))
    assert_agree(op, plain, args)


@pytest.mark.parametrize("case", ["gelu", "relu", "layer_norm", "depthwise", "dense", *BLOCKS])
def test_an_empty_batch_gives_an_empty_output_and_zero_parameter_gradients(case):
    op, plain, ((_, *rest), *parameters) = ELEMENTWISE[case]
    assert_agree(op, plain, arrays([(0, *rest), *parameters]))


def test_an_empty_batch_passes_through_convolution_and_pool():
    op, plain, *kernel = convolution(7, 2, "SAME")
    assert_agree(op, plain, arrays([(0, 9, 8, 3), *kernel]))
    assert_agree(*pool(3, 2, "VALID"), arrays([(0, 9, 6, 5)]))


@pytest.mark.parametrize("case", ["gelu", "relu", "layer_norm", "depthwise", "dense"])
def test_non_finite_numbers_show_where_the_plain_definition_shows_them(case):
    op, plain, shapes = ELEMENTWISE[case]
    x, *parameters = arrays(shapes)
    x = x.at[0, 0, 0, 0].set(jnp.nan).at[1, 0, 0, 1].set(jnp.inf).at[1, -1, -1, 2].set(-jnp.inf)
    ours, theirs = (jax.jit(f)(x, *parameters) for f in (op, plain))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not np.isfinite(ours).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("case", ["windows", "channels"])
def test_attention_hides_no_non_finite_number(case, bad):
    """In a query, a key and a value in turn, each of another head; values and gradients."""
    op, plain, shapes = ELEMENTWISE[case]
    qkv, bias = arrays(shapes)
    third = qkv.shape[-1] // 3
    for part, channel in enumerate((1, third + 33, 2 * third + 2)):
        args = qkv.reshape(-1, 3 * third).at[4 + part, channel].set(bad).reshape(qkv.shape), bias
        ours, theirs = value_and_gradients(op, args), value_and_gradients(plain, args)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))
        assert not np.isfinite(ours[0]).all()


@pytest.mark.parametrize("case", ["gelu", "layer_norm", "depthwise"])
def test_nan_reaches_the_gradients_as_in_the_plain_definition(case):
    op, plain, shapes = ELEMENTWISE[case]
    x, *parameters = arrays(shapes)
    args = (x.at[1, 2, 1, 3].set(jnp.nan), *parameters)
    ours, theirs = value_and_gradients(op, args), value_and_gradients(plain, args)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    assert any(np.isnan(gradient).any() for gradient in ours[1])


def test_relu_passes_the_gradient_of_a_nan_and_stops_it_at_zero():
    x = jnp.asarray([[-1.0, 0.0, 1.0, jnp.nan]])
    y, vjp = jax.vjp(ops.bias_relu, x, jnp.zeros(4))
    np.testing.assert_array_equal(y, plain_bias_relu(x, jnp.zeros(4)))
    np.testing.assert_array_equal(vjp(jnp.full((1, 4), jnp.nan))[0], [[0, 0, jnp.nan, jnp.nan]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_strided_convolution_hides_no_non_finite_number(bad):
    # 2x2 at stride 2 reads each pixel once. 7x7 at stride 4 reads a block of zero weights more,
    # so that a NaN may show in a neighbour too; it never shows less than in the plain one.
    for size, stride, exact in ((2, 2, True), (7, 4, False)):
        op, plain, *kernel = convolution(size, stride, "VALID")
        x, *kernel = arrays([(1, 14, 14, 3), *kernel])
        x = x.at[0, 5, 6, 1].set(bad)
        ours, theirs = (~np.isfinite(f(x, *kernel)) for f in (op, plain))
        assert theirs.any()
        assert not (theirs & ~ours).any()
        assert not exact or (ours == theirs).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_wide_3x3_convolution_hides_no_non_finite_number(bad):
    # Minimal filtering shows it in the other outputs of a 2x2 tile, too.
    op, plain, *_ = convolution(3, 1, "SAME")
    x, kernel, bias = arrays([(1, 9, 9, 32), (3, 3, 32, 32), (32,)])
    x = x.at[0, 4, 5, 1].set(bad)
    ours, theirs = (~np.isfinite(f(x, kernel, bias)) for f in (op, plain))
    assert theirs.any()
    assert not (theirs & ~ours).any()
    assert not ours[:, [0, 1, 7, 8]].any()


def test_a_max_pool_shows_non_finite_numbers_as_the_plain_one():
    op, plain = pool(3, 2, "SAME")
    x = arrays([(1, 9, 9, 2)])[0].at[0, 3, 2, 1].set(jnp.nan).at[0, 8, 8, 0].set(jnp.inf)
    x = x.at[0, :3, :3, 0].set(-jnp.inf)  # a whole window
    np.testing.assert_array_equal(op(x), plain(x))
    assert np.isneginf(op(x)).any()


def test_a_nan_gradient_survives_a_max_pool_over_a_nan():
    op, _ = pool(3, 2, "VALID")
    x = arrays([(1, 7, 7, 2)])[0].at[0, 3, 2, 1].set(jnp.nan)
    y, vjp = jax.vjp(op, x)
    assert np.isnan(vjp(y)[0]).any()


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize(("window", "stride"), POOLS)
def test_among_equal_maxima_the_first_takes_the_gradient_as_in_xla(window, stride, padding):
    op, plain = pool(window, stride, padding)
    rng = np.random.default_rng(1)
    # ReLU's output: many zeros, and few distinct values.
    x = jnp.asarray(np.maximum(rng.integers(-3, 3, (2, 11, 8, 3)), 0), jnp.float32)
    (_, ours), (_, theirs) = value_and_gradients(op, (x,)), value_and_gradients(plain, (x,))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=1e-6)
    constant = jnp.zeros((1, window, window, 1))
    (_, (dx,)) = value_and_gradients(pool(window, stride, "VALID")[0], (constant,))
    assert np.flatnonzero(dx).tolist() == [0]


@pytest.mark.parametrize("case", ["gelu", "relu", "layer_norm", "depthwise"])
def test_jit_of_vmap_changes_nothing(strict_dtypes, case):
    op, plain, shapes = ELEMENTWISE[case]
    every = tuple(range(len(shapes)))

    def over_examples(f, axes):
        total = jax.value_and_grad(lambda *args: jnp.sum(jnp.sin(f(*args))), every)
        return jax.jit(jax.vmap(total, in_axes=axes))

    # Parameters shared by the examples, then of their own.
    shared = arrays([(3, *shapes[0]), *shapes[1:]])
    own = arrays([(3, *shape) for shape in shapes])
    for args, axes in ((shared, (0, *[None] * (len(shapes) - 1))), (own, 0)):
        ours, theirs = (over_examples(f, axes)(*args) for f in (op, plain))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


@few
@given(
    extent=st.tuples(st.integers(4, 17), st.integers(4, 17)),
    size=st.integers(1, 8),
    stride=st.integers(2, 4),
    pads=st.tuples(*[st.integers(2, 3)] * 4),
    named=st.sampled_from(["SAME", None]),
)
def test_strided_convolutions_of_any_size_agree(extent, size, stride, pads, named):
    op, plain, *kernel = convolution(size, stride, named or (pads[:2], pads[2:]))
    assert_agree(op, plain, arrays([(1, *extent, 3), *kernel]))


@few
@given(
    extent=st.tuples(st.integers(4, 12), st.integers(4, 12)),
    window=st.integers(1, 4),
    stride=st.integers(1, 4),
    padding=st.sampled_from(["SAME", "VALID"]),
    seed=st.integers(0, 99),
)
def test_max_pools_of_any_window_agree_with_ties(extent, window, stride, padding, seed):
    op, plain = pool(window, stride, padding)
    values = np.random.default_rng(seed).integers(-2, 2, (1, *extent, 2))
    assert_agree(op, plain, (jnp.asarray(values, jnp.float32),))


def test_native_kernels_repeat_to_the_bit_and_are_in_the_program():
    if native.status() != "native kernels: on":
        pytest.skip("without them")
    alone = (ops.add_bias, ops.bias_relu, ops.bias_gelu)  # they have none but as parts of others
    programs = [
        (op, shapes)
        for case, (op, _, shapes) in ELEMENTWISE.items()
        if op not in alone and case != "dense_few_rows"
    ]
    stem, _, *kernel = convolution(7, 4, ((3, 3), (3, 3)))
    programs += [(stem, ((2, 40, 40, 3), *kernel)), (pool(3, 2, "SAME")[0], ((2, 9, 9, 5),))]
    programs += [(in_threes(ops.conv2d_branches), BRANCHES)]
    for op, shapes in programs:
        args = arrays(shapes)
        if shapes[1:] and shapes[1][:2] == (5, 3):  # a depthwise filter that has no kernel
            continue
        gradient = jax.grad(lambda *args, op=op: jnp.sum(op(*args)), tuple(range(len(args))))
        assert "glomjax_" in jax.jit(gradient).lower(*args).as_text()
        first, second = value_and_gradients(op, args), value_and_gradients(op, args)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_the_backward_pass_computes_again_is_not_kept():
    op, _, shapes = ELEMENTWISE["gelu_dense"]
    args = arrays(shapes)
    kept = jax.tree.leaves(jax.vjp(op, *args)[1])
    assert sorted(x.size for x in kept if x.ndim == 4) == [args[0].size]


def test_native_kernels_stay_out_where_they_do_not_serve():
    rows, bias = arrays([(3, 8), (8,)])
    assert not native.supports(rows.astype(jnp.bfloat16), bias)
    assert not native.supports(rows[:0], bias)
    with native.setting("off"):
        assert not native.supports(rows, bias)
        assert "ops.native is 'off'" in native.status()
        assert "glomjax_" not in jax.jit(ops.bias_gelu).lower(rows, bias).as_text()


def test_a_gpu_is_given_no_grouped_convolution():
    x, kernel, bias = arrays([(2, 9, 7, 5), (3, 3, 1, 5), (5,)])
    for op, convolves in ((DEPTHWISE[0], False), (DEPTHWISE[1], True)):
        gradient = jax.grad(lambda *args, op=op: jnp.sum(jnp.sin(op(*args))), (0, 1, 2))
        with native.setting("off"):  # as on a machine with a GPU, which has no native kernels
            traced = jax.jit(gradient).trace(x, kernel, bias)
        lowered = traced.lower(lowering_platforms=("cuda",))
        assert ("stablehlo.convolution" in lowered.as_text()) == convolves
