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
) -> Callable[..., tuple[dict[str, jax.Array], Any, dict[str, jax.Array]]]:
    """A jit-compiled `step(trainable, frozen, opt_state, sums, batch, learning_rate, key)`.

    It returns the new (trainable, opt_state, sums); the first two are donated. `optimizer`
    gives the direction (`optax.scale_by_adam` and the like), the learning rate is an argument, so
    that a schedule neither recompiles nor hides in the optimizer's state. `frozen` is an argument
    too, never differentiated, since weights closed over would be baked into the program. Masked
    examples count nowhere. `sums` has the main head's loss as `loss`, the optimised one (with 0.3
    of each auxiliary head's) as `total_loss`.
    """

    def step(
        trainable: Params,
        frozen: Params,
        opt_state: Any,
        sums: dict[str, jax.Array],
        batch: dict[str, jax.Array],
        learning_rate: jax.Array,
        key: jax.Array,
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        images = preprocessing(batch["image"])
        labels, mask = batch["label"], batch["mask"]
        count = jnp.sum(mask)

        def loss_fn(trainable: Params) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            model = nnx.merge(graphdef, nest({**trainable, **frozen}))
            outputs = model(images, deterministic=False, rngs=nnx.Rngs(dropout=key))
            logits, auxiliary = outputs if isinstance(outputs, tuple) else (outputs, ())
            losses = total = cross_entropy(logits, labels)
            for extra in auxiliary:
                total = total + AUXILIARY_WEIGHT * cross_entropy(extra, labels)
            return jnp.sum(total * mask) / count, (losses, logits)

        (total, (losses, logits)), grads = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
        updates, opt_state = optimizer.update(grads, opt_state, trainable)
        updates = jax.tree.map(lambda u: -learning_rate * u, updates)
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
    graphdef: nnx.GraphDef, preprocessing: Preprocessing
) -> Callable[[Params, jax.Array | np.ndarray], jax.Array]:
    """A jit-compiled `step(params, images uint8 [B, H, W, 3]) -> logits float32 [B, K]`."""

    def step(params: Params, images: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, nest(params))
        return model(preprocessing(images)).astype(jnp.float32)

    return jax.jit(step, compiler_options=compile_options())
