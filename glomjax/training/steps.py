"""The compiled training and evaluation steps."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from glomjax.inference.steps import cast
from glomjax.models import nest
from glomjax.ops import native
from glomjax.ops.compilation import compile_options, run_once
from glomjax.preprocessing.preprocessing import Preprocessing

Params = Mapping[str, jax.Array | np.ndarray]
AUXILIARY_WEIGHT = 0.3  # of each auxiliary loss (Szegedy et al. 2015, section 5)
WARMED_UP = 2**30  # steps, after which the warm-up of a moving average limits no decay


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Per example [B]: binary for one logit [B, 1], softmax for more; labels int32 [B].

    `smoothing` takes that share from the true class and spreads it over all (Szegedy et al. 2016).
    """
    logits = logits.astype(jnp.float32)
    if logits.shape[-1] == 1:
        targets = labels.astype(jnp.float32)
        targets = targets * (1.0 - smoothing) + 0.5 * smoothing if smoothing else targets
        return optax.sigmoid_binary_cross_entropy(logits[:, 0], targets)
    if not smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, smoothing))


def predictions(logits: jax.Array) -> jax.Array:
    """The predicted class [B] int32: the logit above 0, or the largest of several."""
    if logits.shape[-1] == 1:
        return (logits[:, 0] > 0).astype(jnp.int32)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def zero_sums() -> dict[str, np.ndarray]:
    """The running sums of an epoch, the first four divided by `count` at its end.

    `steps` counts its steps, `first_bad` is the first of them, from 0, whose loss was not finite,
    or -1, and `request` the largest `request` of the last batch (see `make_train_step`).
    """
    sums = {name: np.zeros((), np.float32) for name in ("loss", "total_loss", "correct", "count")}
    return {
        **sums,
        "steps": np.zeros((), np.int32),
        "first_bad": np.full((), -1, np.int32),
        "request": np.zeros((), np.int32),
    }


def init_state(
    optimizer: optax.GradientTransformation, trainable: Params, *, ema_decay: float = 0.0
) -> Any:
    """The optimizer's state as `make_train_step` takes it: with `ema_decay`, a tuple of the
    optimizer's own, {path: moving average}, which starts at the parameters, and the number of
    steps by which the average warms up, int32."""

    def state_of(trainable: Params) -> Any:
        state = optimizer.init(trainable)
        if not ema_decay:
            return state
        # Copies, since the step gives away the buffers of both.
        average = {path: jnp.array(value, copy=True) for path, value in trainable.items()}
        return state, average, jnp.zeros((), jnp.int32)

    return run_once(state_of, trainable)


def make_train_step(
    graphdef: nnx.GraphDef,
    preprocessing: Preprocessing,
    optimizer: optax.GradientTransformation,
    *,
    trains: str = "network",
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    rates: Mapping[str, float] | None = None,
    decays: Mapping[str, float] | None = None,
    precision: str = "float32",
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] = (),
    accumulation_steps: int = 1,
    ema_decay: float = 0.0,
    constrain: Callable[[Any], Any] = lambda tree: tree,
) -> Callable[..., tuple[dict[str, jax.Array], Any, dict[str, jax.Array]]]:
    """A jit-compiled `step(trainable, frozen, opt_state, sums, batch, learning_rate, key)`.

    It returns the new (trainable, opt_state, sums); the first two are donated. `optimizer`
    gives the direction (`optax.scale_by_adam` and the like), the learning rate is an argument, so
    that a schedule neither recompiles nor hides in the optimizer's state. `frozen` is an argument
    too, never differentiated, since weights closed over would be baked into the program. Masked
    examples count nowhere. `sums` has the main head's plain loss as `loss`, the optimised one (with
    0.3 of each auxiliary head's, class weights and smoothing) as `total_loss`. A batch is
    {"image", "label", "mask"}; where examples have weights of their own, "weight" float32 [B],
    which counts like that of their class; with `augment`, "draw" int32 [B], which no two draws of
    an example share; and where several processes must agree on what to do after the step,
    "request" int32 [B].

    Args:
      trains: "network"; "head", where the rest runs as in inference, without dropout; or
        "head_on_features", where `batch["image"]` holds what `model.embed` gave, float32 [B, D].
      augment: (images uint8 [B, H, W, 3], draws int32 [B]) -> float32 [B, H, W, 3] in 0..255.
      rates: {path: factor of the learning rate}, 1 where none is named.
      decays: {path: share of the parameter that a learning rate of 1 would take off each step}, as
        decoupled weight decay has it (Loshchilov and Hutter 2019), 0 where none is named.
      precision: "bfloat16" computes in it; parameters, statistics, losses and the optimizer stay
        float32.
      label_smoothing: as in `cross_entropy`.
      class_weights: the loss of each class's examples is multiplied by its weight; the mean is
        over examples, as in Keras.
      accumulation_steps: the batch goes through the network in so many parts, one after another,
        and the gradient is that of the whole.
      ema_decay: of a moving average of the parameters after each step; 0 keeps none. After step
        t, from 1, the decay is min(ema_decay, (1 + t) / (10 + t)), as in TensorFlow's
        `ExponentialMovingAverage` with `num_updates`: the average of a short run would be mostly
        its initial values otherwise. See `init_state`.
      constrain: puts a tree of arrays where it belongs on a mesh.
    """
    rates, decays = rates or {}, decays or {}

    def forward(model: Any, images: jax.Array, rngs: nnx.Rngs) -> Any:
        if trains == "network":
            inputs = cast(preprocessing(images), precision)
            return model(inputs, deterministic=False, rngs=rngs)
        if trains == "head":
            images = model.embed(cast(preprocessing(images), precision))
        return model.classify(cast(images, precision), deterministic=False, rngs=rngs)

    @native.products_in(precision)
    def step(
        trainable: Params,
        frozen: Params,
        opt_state: Any,
        sums: dict[str, jax.Array],
        batch: dict[str, jax.Array],
        learning_rate: jax.Array,
        key: jax.Array,
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        batch = dict(batch)
        request = jnp.max(batch.pop("request")) if "request" in batch else sums["request"]
        count = jnp.sum(batch["mask"])

        def loss_fn(
            trainable: Params, part: dict[str, jax.Array], key: jax.Array
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            labels, mask, images = part["label"], part["mask"], part["image"]
            images = images if augment is None else augment(images, part["draw"])
            model = nnx.merge(graphdef, nest({**trainable, **frozen}))
            outputs = forward(model, images, nnx.Rngs(dropout=key))
            logits, auxiliary = outputs if isinstance(outputs, tuple) else (outputs, ())
            plain = cross_entropy(logits, labels)
            total = cross_entropy(logits, labels, label_smoothing) if label_smoothing else plain
            for extra in auxiliary:
                total = total + AUXILIARY_WEIGHT * cross_entropy(extra, labels, label_smoothing)
            if class_weights:
                total = total * jnp.asarray(class_weights, jnp.float32)[labels]
            if "weight" in part:
                total = total * part["weight"]
            correct = (predictions(logits) == labels).astype(jnp.float32)
            metrics = jnp.sum(plain * mask), jnp.sum(correct * mask)
            return jnp.sum(total * mask) / count, metrics

        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        if accumulation_steps == 1:
            (total, metrics), grads = gradient(trainable, batch, key)
        else:

            def accumulate(running: Any, part: tuple[jax.Array, Any]) -> tuple[Any, None]:
                number, part = part
                new = gradient(trainable, part, jax.random.fold_in(key, number))
                return jax.tree.map(jnp.add, running, new), None

            # Every n-th example goes together: then a device's share of a part is its own.
            def divided(x: jax.Array) -> jax.Array:
                shape = (x.shape[0] // accumulation_steps, accumulation_steps, *x.shape[1:])
                return jnp.swapaxes(x.reshape(shape), 0, 1)

            zero = jnp.zeros((), jnp.float32)
            start = (zero, (zero, zero)), jax.tree.map(jnp.zeros_like, trainable)
            parts = jnp.arange(accumulation_steps), jax.tree.map(divided, batch)
            ((total, metrics), grads), _ = jax.lax.scan(accumulate, start, parts)
        inner, average, steps = opt_state if ema_decay else (opt_state, {}, 0)
        updates, inner = optimizer.update(grads, inner, trainable)
        updates = {
            path: -learning_rate
            * rates.get(path, 1.0)
            * (direction + decays[path] * trainable[path] if decays.get(path) else direction)
            for path, direction in updates.items()
        }
        trainable = optax.apply_updates(trainable, updates)
        steps = steps + 1
        share = jnp.maximum(1.0 - ema_decay, 9.0 / (10.0 + steps))  # 1 - (1 + t) / (10 + t)
        average = {
            path: value + share * (trainable[path] - value) for path, value in average.items()
        }
        new = {
            "loss": metrics[0],
            "total_loss": total * count,
            "correct": metrics[1],
            "count": count,
            "steps": jnp.ones((), jnp.int32),
        }
        good = jnp.isfinite(total) | (sums["first_bad"] >= 0)
        sums = {name: sums[name] + new[name] for name in new} | {
            "first_bad": jnp.where(good, sums["first_bad"], sums["steps"]),
            "request": request,
        }
        return constrain((trainable, (inner, average, steps) if ema_decay else inner, sums))

    return jax.jit(step, donate_argnums=(0, 2), compiler_options=compile_options())
