"""The compiled step that turns images into logits."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from glomjax.models import nest
from glomjax.ops import native
from glomjax.ops.compilation import compile_options
from glomjax.preprocessing.augmentation import symmetries as symmetric_views
from glomjax.preprocessing.preprocessing import Preprocessing

Params = Mapping[str, jax.Array | np.ndarray]


def cast(x: jax.Array, precision: str) -> jax.Array:
    """To the type that layers pass on where a network computes in `precision`."""
    return x.astype(native.activations(precision))


def make_predict_step(
    graphdef: nnx.GraphDef,
    preprocessing: Preprocessing,
    *,
    part: str = "network",
    symmetries: bool = False,
    precision: str = "float32",
    constrain: Callable[[Any], Any] = lambda tree: tree,
) -> Callable[[Params, jax.Array | np.ndarray], jax.Array]:
    """A jit-compiled `step(params, images uint8 [B, H, W, 3]) -> logits float32 [B, K]`.

    `part="embed"` stops before the head and gives float32 [B, D]; `part="classify"` goes on from
    there, `step(params, features float32 [B, D]) -> logits`. With `symmetries` the logits are the
    mean over the flips and quarter turns of each image. `precision` and `constrain` as in
    `make_train_step`.
    """

    @native.products_in(precision)
    def step(params: Params, inputs: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, nest(params))
        if symmetries:
            views = jax.lax.map(
                lambda view: model(cast(preprocessing(view), precision)),
                symmetric_views(inputs),
            )
            outputs = jnp.mean(views.astype(jnp.float32), axis=0)
        elif part == "classify":
            outputs = model.classify(cast(inputs, precision))
        elif part == "embed":
            outputs = model.embed(cast(preprocessing(inputs), precision))
        else:
            outputs = model(cast(preprocessing(inputs), precision))
        return constrain(outputs.astype(jnp.float32))

    return jax.jit(step, compiler_options=compile_options())
