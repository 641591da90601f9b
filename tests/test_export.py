"""The steps of every network lower for GPUs and TPUs on a machine that has neither."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import export

from glomjax.inference.steps import make_predict_step
from glomjax.models import params_of
from glomjax.ops import native
from glomjax.preprocessing.preprocessing import IMAGENET
from glomjax.training.steps import make_train_step, zero_sums

PLATFORMS = ("cuda", "tpu")
ADAM = optax.scale_by_adam()
BATCH = 4
# The condition of `ops.boundary.isolated`, which is one on a CPU alone, takes the bits of a number;
# no other part of a step does.
BOUNDARY = r"bitcast_convert %\S+ : \(tensor<f32>\) -> tensor<ui32>"


@pytest.fixture(scope="module")
def network(small_network):
    """(graphdef, shapes of the parameters, image size)."""
    model, size = small_network
    params = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for path, leaf in params_of(model).items()
    }
    return nnx.graphdef(model), params, size


def arguments_of(params: Any, size: int) -> tuple[Any, ...]:
    """The shapes of a training step's arguments."""
    batch = {
        "image": jax.ShapeDtypeStruct((BATCH, size, size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((BATCH,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((BATCH,), jnp.float32),
    }
    state = jax.eval_shape(ADAM.init, params)
    sums = jax.eval_shape(lambda: {name: jnp.asarray(x) for name, x in zero_sums().items()})
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return params, {}, state, sums, batch, rate, key


def shapes(tree):
    """(shape, dtype) of each leaf."""
    return [(leaf.shape, np.dtype(leaf.dtype)) for leaf in jax.tree.leaves(tree)]


def lowered(step: Any, platform: str, *arguments: Any) -> tuple[export.Exported, str]:
    """The exported program and its text."""
    exported = export.export(step, platforms=[platform])(*arguments)
    assert exported.platforms == (platform,)
    return exported, str(exported.mlir_module())


def assert_for_accelerators(text: str, precision: str) -> None:
    assert not re.search(BOUNDARY, text)
    products = [
        line
        for line in text.splitlines()
        if "stablehlo.convolution" in line or "stablehlo.dot_general" in line
    ]
    assert products
    in_bfloat16 = sum("bf16" in line for line in products)
    if precision == "float32":
        assert in_bfloat16 == 0
    else:
        assert in_bfloat16 > 0.8 * len(products)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_steps_lower_for_accelerators(network, precision, platform):
    graphdef, params, size = network
    arguments = arguments_of(params, size)
    _, _, state, sums, batch, _, _ = arguments

    train_step = make_train_step(graphdef, IMAGENET, ADAM, precision=precision)
    with native.setting("off"):  # this machine's CPU has no say in another's precision
        exported, text = lowered(train_step, platform, *arguments)
    assert_for_accelerators(text, precision)
    # Parameters, optimizer and sums come back as they went in, float32 whatever the precision.
    assert shapes(exported.out_avals) == shapes((params, state, sums))
    assert {dtype for _, dtype in shapes(params)} == {np.dtype(np.float32)}

    eval_step = make_predict_step(graphdef, IMAGENET, precision=precision)
    with native.setting("off"):
        exported, text = lowered(eval_step, platform, params, batch["image"])
    assert_for_accelerators(text, precision)
    assert shapes(exported.out_avals) == [((BATCH, 1), np.dtype(np.float32))]


def test_a_program_for_a_cpu_does_have_the_boundary_that_the_others_lack(network):
    graphdef, params, size = network
    step = make_train_step(graphdef, IMAGENET, ADAM)
    with native.setting("off"):  # a program that leaves the machine cannot call its kernels
        _, text = lowered(step, "cpu", *arguments_of(params, size))
    assert re.search(BOUNDARY, text)
