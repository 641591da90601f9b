"""The compiled training and evaluation steps."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from glomjax.data.preprocessing import Preprocessing
from glomjax.models import nest

Params = Mapping[str, jax.Array | np.ndarray]
AUXILIARY_WEIGHT = 0.3  # of each auxiliary loss (Szegedy et al. 2015, section 5)

# Dots through Eigen rather than YNNPACK: 188 to 210 GFLOP/s against 132 to 203 on two Zen 4 cores.
CPU_OPTIONS: dict[str, Any] = {"xla_cpu_experimental_ynn_fusion_type": ""}


def compile_options() -> dict[str, Any] | None:
    """XLA options of both steps for the current backend."""
    return CPU_OPTIONS if jax.default_backend() == "cpu" else None


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Per example [B]: binary for one logit [B, 1], softmax for more; labels int32 [B]."""
    logits = logits.astype(jnp.float32)
    if logits.shape[-1] == 1:
        targets = labels.astype(jnp.float32)
        return optax.sigmoid_binary_cross_entropy(logits[:, 0], targets)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def predictions(logits: jax.Array) -> jax.Array:
    """The predicted class [B] int32: the logit above 0, or the largest of several."""
    if logits.shape[-1] == 1:
        return (logits[:, 0] > 0).astype(jnp.int32)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def zero_sums() -> dict[str, np.ndarray]:
    """The running sums of an epoch, divided by `count` at its end."""
    return {name: np.zeros((), np.float32) for name in ("loss", "total_loss", "correct", "count")}


def make_train_step(
    graphdef: nnx.GraphDef,
    preprocessing: Preprocessing,
    optimizer: optax.GradientTransformation,
    *,
    trains: str = "network",
    rates: Mapping[str, float] | None = None,
    decays: Mapping[str, float] | None = None,
) -> Callable[..., tuple[dict[str, jax.Array], Any, dict[str, jax.Array]]]:
    """A jit-compiled `step(trainable, frozen, opt_state, sums, batch, learning_rate, key)`.

    It returns the new (trainable, opt_state, sums); the first two are donated. `optimizer`
    gives the direction (`optax.scale_by_adam` and the like), the learning rate is an argument, so
    that a schedule neither recompiles nor hides in the optimizer's state. `frozen` is an argument
    too, never differentiated, since weights closed over would be baked into the program. Masked
    examples count nowhere. `sums` has the main head's loss as `loss`, the optimised one (with 0.3
    of each auxiliary head's) as `total_loss`.

    Args:
      trains: "network"; "head", where the rest runs as it serves, without dropout; or
        "head_on_features", where `batch["image"]` holds what `model.embed` gave, float32 [B, D].
      rates: {path: factor of the learning rate}, 1 where none is named.
      decays: {path: share of the parameter that a learning rate of 1 would take off each step}, as
        decoupled weight decay has it (Loshchilov and Hutter 2019), 0 where none is named.
    """
    rates, decays = rates or {}, decays or {}

    def forward(model: Any, images: jax.Array, rngs: nnx.Rngs) -> Any:
        if trains == "network":
            return model(preprocessing(images), deterministic=False, rngs=rngs)
        features = images if trains == "head_on_features" else model.embed(preprocessing(images))
        return model.classify(features, deterministic=False, rngs=rngs)

    def step(
        trainable: Params,
        frozen: Params,
        opt_state: Any,
        sums: dict[str, jax.Array],
        batch: dict[str, jax.Array],
        learning_rate: jax.Array,
        key: jax.Array,
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        labels, mask = batch["label"], batch["mask"]
        count = jnp.sum(mask)

        def loss_fn(trainable: Params) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            model = nnx.merge(graphdef, nest({**trainable, **frozen}))
            outputs = forward(model, batch["image"], nnx.Rngs(dropout=key))
            logits, auxiliary = outputs if isinstance(outputs, tuple) else (outputs, ())
            losses = total = cross_entropy(logits, labels)
            for extra in auxiliary:
                total = total + AUXILIARY_WEIGHT * cross_entropy(extra, labels)
            return jnp.sum(total * mask) / count, (losses, logits)

        (total, (losses, logits)), grads = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
        updates, opt_state = optimizer.update(grads, opt_state, trainable)
        updates = {
            path: -learning_rate
            * rates.get(path, 1.0)
            * (direction + decays[path] * trainable[path] if decays.get(path) else direction)
            for path, direction in updates.items()
        }
        trainable = optax.apply_updates(trainable, updates)
        correct = (predictions(logits) == labels).astype(jnp.float32)
        new = {
            "loss": jnp.sum(losses * mask),
            "total_loss": total * count,
            "correct": jnp.sum(correct * mask),
            "count": count,
        }
        return trainable, opt_state, {name: sums[name] + new[name] for name in sums}

    return jax.jit(step, donate_argnums=(0, 2), compiler_options=compile_options())


def make_eval_step(
    graphdef: nnx.GraphDef, preprocessing: Preprocessing, *, part: str = "network"
) -> Callable[[Params, jax.Array | np.ndarray], jax.Array]:
    """A jit-compiled `step(params, images uint8 [B, H, W, 3]) -> logits float32 [B, K]`.

    `part="embed"` stops before the head and gives float32 [B, D]; `part="classify"` goes on from
    there, `step(params, features float32 [B, D]) -> logits`.
    """

    def step(params: Params, inputs: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, nest(params))
        if part == "classify":
            outputs = model.classify(inputs)
        elif part == "embed":
            outputs = model.embed(preprocessing(inputs))
        else:
            outputs = model(preprocessing(inputs))
        return outputs.astype(jnp.float32)

    return jax.jit(step, compiler_options=compile_options())
