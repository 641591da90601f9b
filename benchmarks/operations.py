"""Every operation of glomjax.ops at DaViT-T's and GoogLeNet's shapes, value and gradient.

    python benchmarks/operations.py --batch 8 --repeats 7 --only depthwise channel_attention

Three programs of each, in turn in every repeat: with native kernels, without, and the plain
definition as XLA compiles it, all with the options of a training step. Prints the best milliseconds
of each, and, where the operation is a product, the GFLOP/s of the native one, counted as the plain
definition multiplies.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glomjax import ops
from glomjax.ops import native
from glomjax.ops.activation import plain_bias_gelu, plain_bias_relu
from glomjax.ops.attention import plain_channel_attention, plain_window_attention
from glomjax.ops.compilation import compile_options
from glomjax.ops.convolution import (
    plain_conv2d,
    plain_conv2d_branches,
    plain_residual_depthwise_conv2d,
)
from glomjax.ops.dense import plain_dense, plain_gelu_dense, plain_layer_norm_dense
from glomjax.ops.normalization import plain_layer_norm
from glomjax.ops.pooling import plain_max_pool

Operation = tuple[Callable[..., Any], Callable[..., Any], tuple[tuple[int, ...], ...], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="+", default=[""], help="what their names begin with")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    print(native.status() or f"on {jax.default_backend()}, which has no native kernels")
    print(f"{'operation':<44}{'native':>9}{'off':>9}{'plain':>9}{'GFLOP/s':>9}")
    for name, (op, plain, shapes, flops) in operations(args.batch).items():
        if not name.startswith(tuple(args.only)):
            continue
        for way, count in (("value", flops), ("gradient", 3 * flops)):
            programs = (
                compiled(op, shapes, args.dtype, "auto", way),
                compiled(op, shapes, args.dtype, "off", way),
                compiled(plain, shapes, args.dtype, "off", way),
            )
            best = [min(times) for times in zip(*measure(programs, args.repeats), strict=True)]
            rate = f"{count / best[0] / 1e9:9.0f}" if flops else ""
            print(f"{name + ', ' + way:<44}" + "".join(f"{1e3 * t:9.2f}" for t in best) + rate)


def operations(batch: int) -> dict[str, Operation]:
    """{name: (operation, plain definition, shapes of the arguments, flops of its products)}."""
    table: dict[str, Operation] = {}
    for side, width in ((70, 96), (35, 192), (18, 384), (9, 768)):
        x = (batch, side, side, width)
        where = f"{side}x{side}x{width}"
        rows = batch * side * side
        heads, qkv = width // 32, (*x[:3], 3 * width)
        table[f"layer_norm {where}"] = ops.layer_norm, plain_layer_norm, (x, (width,), (width,)), 0
        depthwise = ops.residual_depthwise_conv2d, plain_residual_depthwise_conv2d
        table[f"depthwise {where}"] = *depthwise, (x, (3, 3, 1, width), (width,)), 0
        table[f"dense {where}"] = (
            *(ops.dense, plain_dense),
            (x, (width, width), (width,)),
            2 * rows * width**2,
        )
        table[f"layer_norm_dense {where}"] = (
            *(ops.layer_norm_dense, plain_layer_norm_dense),
            (x, (width,), (width,), (width, 4 * width)),
            8 * rows * width**2,
        )
        table[f"gelu_dense {where}"] = (
            *(ops.gelu_dense, plain_gelu_dense),
            ((*x[:3], 4 * width), (4 * width,), (4 * width, width), (width,)),
            8 * rows * width**2,
        )
        for window in (9, 7):
            table[f"window_attention of {window} {where}"] = (
                partial(ops.window_attention, heads=heads, window=(window, window)),
                partial(plain_window_attention, heads=heads, rows=window, columns=window),
                (qkv, (3 * width,)),
                0,
            )
        table[f"channel_attention {where}"] = (
            partial(ops.channel_attention, heads=heads),
            partial(plain_channel_attention, heads=heads),
            ((batch, side * side, 3 * width), (3 * width,)),
            0,
        )
    for side, inputs, outputs, size, stride in (
        (280, 3, 96, 7, 4),
        (280, 3, 96, 13, 3),
        (45, 96, 256, 5, 1),
        (69, 192, 192, 3, 1),
        (22, 384, 384, 3, 1),
        (34, 256, 128, 1, 1),
    ):
        options: dict[str, Any] = {"stride": stride, "relu": True}
        table[f"conv2d {size}x{size}/{stride} {side}x{side}x{inputs} to {outputs}"] = (
            partial(ops.conv2d, **options),
            partial(plain_conv2d, **options),
            ((batch, side, side, inputs), (size, size, inputs, outputs), (outputs,)),
            2 * batch * (-(-side // stride)) ** 2 * size**2 * inputs * outputs,
        )
    # Inception 3b: what its four last convolutions read, by widths and filters.
    branches = ((256, 128, 1), (128, 192, 3), (32, 96, 5), (256, 64, 1))
    shapes: tuple[tuple[int, ...], ...] = ()
    for inputs, outputs, size in branches:
        shapes += (batch, 34, 34, inputs), (size, size, inputs, outputs), (outputs,)
    table["conv2d_branches of Inception 3b"] = (
        _in_threes(ops.conv2d_branches),
        _in_threes(plain_conv2d_branches),
        shapes,
        sum(2 * batch * 34 * 34 * i * o * size**2 for i, o, size in branches),
    )
    table["bias_relu 69x69x192"] = (
        *(ops.bias_relu, plain_bias_relu),
        ((batch, 69, 69, 192), (192,)),
        0,
    )
    table["bias_gelu 70x70x384"] = (
        *(ops.bias_gelu, plain_bias_gelu),
        ((batch, 70, 70, 384), (384,)),
        0,
    )
    for side, width, stride in ((69, 192, 2), (34, 256, 1)):
        table[f"max_pool 3x3/{stride} {side}x{side}x{width}"] = (
            # By position: which arguments are differentiated is told that way.
            lambda x, stride=stride: ops.max_pool(x, 3, stride, "SAME"),
            lambda x, stride=stride: plain_max_pool(x, 3, stride, "SAME"),
            ((batch, side, side, width),),
            0,
        )
    return table


def _in_threes(operation: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arrays: operation(*(arrays[i : i + 3] for i in range(0, len(arrays), 3)))


def compiled(
    op: Callable[..., Any], shapes: tuple[tuple[int, ...], ...], dtype: str, setting: str, way: str
) -> Callable[[], None]:
    """A call of the compiled operation, or of it and its gradients, that waits for the result."""
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
    g = jnp.asarray(rng.standard_normal(jax.eval_shape(op, *arrays).shape), dtype)

    # A function of its own for each: jax.jit keeps what it has traced of one.
    def function(*arrays: jax.Array) -> Any:
        if way == "value":
            return op(*arrays)
        y, backward = jax.vjp(op, *arrays)
        return y, backward(g)

    with native.setting(setting):
        program = jax.jit(function, compiler_options=compile_options()).lower(*arrays).compile()
    return lambda: jax.block_until_ready(program(*arrays))


def measure(programs: tuple[Callable[[], None], ...], repeats: int) -> list[list[float]]:
    """Seconds of each program in each repeat, after one to warm up."""
    seconds = []
    for _ in range(repeats + 1):
        turn = []
        for program in programs:
            begun = time.perf_counter()
            program()
            turn.append(time.perf_counter() - begun)
        seconds.append(turn)
    return seconds[1:]


if __name__ == "__main__":
    main()
