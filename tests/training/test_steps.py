"""The training step: rates, decay, losses, parts of a batch, moving averages, and bfloat16."""

import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from glomjax.inference.steps import make_predict_step
from glomjax.models import create_model, googlenet, params_of
from glomjax.ops import native
from glomjax.ops.compilation import compile_now
from glomjax.preprocessing.preprocessing import IMAGENET
from glomjax.training import default_config
from glomjax.training.optimizers import make_optimizer
from glomjax.training.parameter_groups import carry_over
from glomjax.training.steps import cross_entropy, init_state, make_train_step, zero_sums

SIZES = {"depths": (1,), "embed_dims": (8,), "num_heads": (1,), "dropout_rate": 0.5}
RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8),
    "label": np.array([0, 1, 1, 0], np.int32),
    "mask": np.ones(4, np.float32),
}
# Five of eight count, and in four parts of two each the masked ones are spread unevenly.
EIGHT = {
    "image": RNG.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8),
    "label": np.array([0, 1, 1, 0, 1, 0, 1, 1], np.int32),
    "mask": np.array([1, 1, 0, 1, 1, 0, 0, 1], np.float32),
}
COUNTED = EIGHT["mask"] > 0
RATE = np.float32(0.1)


def small_davit(**options):
    """(graphdef, numpy parameters) of a DaViT of one stage."""
    model = create_model("davit_tiny", rngs=nnx.Rngs(0), **(SIZES | options))
    graphdef, _ = nnx.split(model, nnx.Param)
    return graphdef, jax.device_get(params_of(model))


@pytest.fixture(scope="module")
def network():
    return small_davit()


def head_of(params):
    """(the head's parameters, the others)."""
    head = {path: value for path, value in params.items() if path.startswith("head/")}
    return head, {path: value for path, value in params.items() if path not in head}


@pytest.fixture(scope="module", params=[1, 3], ids=["one logit", "three logits"])
def head(request):
    """A head without dropout: (graphdef, its parameters, the others, features [8, C], class
    weights)."""
    graphdef, params = small_davit(dropout_rate=0.0, num_classes=request.param)
    mine, rest = head_of(params)
    rng = np.random.default_rng(1)
    mine = {path: rng.standard_normal(v.shape).astype(np.float32) for path, v in mine.items()}
    features = rng.standard_normal((8, 8)).astype(np.float32)
    return graphdef, mine, rest, features, (0.5, 3.0, 7.0)[: max(request.param, 2)]


def step_once(graphdef, trainable, frozen, optimizer, batch=BATCH, **options):
    step = make_train_step(graphdef, IMAGENET, optimizer, **options)
    # The step donates its arguments.
    given = {path: np.array(value) for path, value in trainable.items()}
    state = init_state(optimizer, given, ema_decay=options.get("ema_decay", 0.0))
    return step(given, frozen, state, zero_sums(), batch, RATE, jax.random.key(0))


def test_a_rate_scales_the_move_of_its_parameter_alone(network):
    graphdef, params = network
    rates = {"head/kernel": 0.5, "stem/conv/kernel": 0.0}
    plain, _, _ = step_once(graphdef, params, {}, optax.identity())
    scaled, _, _ = step_once(graphdef, params, {}, optax.identity(), rates=rates)
    for path, before in params.items():
        expected = before + rates.get(path, 1.0) * (plain[path] - before)
        np.testing.assert_allclose(scaled[path], expected, atol=1e-6, err_msg=path)
    assert np.array_equal(scaled["stem/conv/kernel"], params["stem/conv/kernel"])


def test_weight_decay_takes_its_share_beside_the_gradient(network):
    graphdef, params = network
    decays = {"head/kernel": 0.5, "stem/conv/kernel": 0.2, "head/bias": 0.0}
    after, _, _ = step_once(graphdef, params, {}, optax.set_to_zero(), decays=decays)
    for path, before in params.items():
        expected = before * (1 - RATE * decays.get(path, 0.0))
        np.testing.assert_allclose(after[path], expected, rtol=1e-6, err_msg=path)


def test_the_weight_of_an_example_counts_like_that_of_its_class(network):
    graphdef, params = network
    weights = (0.5, 3.0)
    options = {"label_smoothing": 0.1, "accumulation_steps": 2}
    adam = optax.identity()
    by_class, _, sums = step_once(graphdef, params, {}, adam, class_weights=weights, **options)
    batch = BATCH | {"weight": np.array(weights, np.float32)[BATCH["label"]]}
    by_example, _, same = step_once(graphdef, params, {}, adam, batch, **options)
    for path in params:
        np.testing.assert_allclose(by_example[path], by_class[path], atol=1e-6, err_msg=path)
    assert float(same["total_loss"]) == pytest.approx(float(sums["total_loss"]), rel=1e-6)
    assert float(same["loss"]) == pytest.approx(float(sums["loss"]), rel=1e-6)


def test_the_head_learns_the_same_from_images_and_from_their_features(network):
    graphdef, params = network
    head, rest = head_of(params)
    features = make_predict_step(graphdef, IMAGENET, part="embed")(params, BATCH["image"])
    logits = make_predict_step(graphdef, IMAGENET, part="classify")(params, features)
    whole = make_predict_step(graphdef, IMAGENET)(params, BATCH["image"])
    np.testing.assert_allclose(logits, whole, atol=1e-6)
    adam = optax.scale_by_adam()
    one, _, sums = step_once(graphdef, head, rest, adam, trains="head")
    batch = BATCH | {"image": np.asarray(features)}
    other, _, same = step_once(graphdef, head, rest, adam, batch, trains="head_on_features")
    network_step, _, _ = step_once(graphdef, head, rest, adam)
    for path in head:
        np.testing.assert_allclose(one[path], other[path], atol=1e-5)
        # The only dropout is the head's own, so the whole network says the same.
        np.testing.assert_allclose(one[path], network_step[path], atol=1e-5)
        assert not np.array_equal(one[path], head[path])
    assert float(sums["loss"]) == pytest.approx(float(same["loss"]), abs=1e-5)


def keras_loss(logits, labels, smoothing=0.0):
    """Per example, float64: BinaryCrossentropy or CategoricalCrossentropy(from_logits=True,
    label_smoothing=smoothing) of Keras 3, written out."""
    logits = np.asarray(logits, np.float64)
    if logits.shape[-1] == 1:
        target = labels * (1 - smoothing) + 0.5 * smoothing
        positive = 1 / (1 + np.exp(-logits[:, 0]))
        return -target * np.log(positive) - (1 - target) * np.log(1 - positive)
    classes = logits.shape[-1]
    target = np.eye(classes)[labels] * (1 - smoothing) + smoothing / classes
    shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    return -(target * np.log(shares)).sum(axis=-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("outputs", [1, 2, 5])
def test_the_loss_and_its_label_smoothing_are_those_of_keras(outputs, smoothing):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (6, outputs)).astype(np.float32)
    labels = rng.integers(0, max(outputs, 2), 6).astype(np.int32)
    got = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, keras_loss(logits, labels, smoothing), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_optimised_loss_is_weighted_and_smoothed_and_the_reported_one_is_not(
    head, smoothing, weighted
):
    graphdef, mine, rest, features, weights = head
    options = {"label_smoothing": smoothing, "class_weights": weights if weighted else ()}
    batch, labels = EIGHT | {"image": features}, EIGHT["label"]
    after, _, sums = step_once(
        graphdef, mine, rest, optax.identity(), batch, trains="head_on_features", **options
    )
    # As class_weight of Keras: the sum is divided by the number of examples, not by the weights'.
    factors = np.array(weights)[labels] if weighted else np.ones(8)

    def mean_loss(values):
        logits = features @ values["head/kernel"] + values["head/bias"]
        return (factors * keras_loss(logits, labels, smoothing))[COUNTED].mean()

    plain = keras_loss(features @ mine["head/kernel"] + mine["head/bias"], labels)
    assert float(sums["count"]) == 5
    assert float(sums["total_loss"]) == pytest.approx(5 * mean_loss(mine), rel=1e-5)
    assert float(sums["loss"]) == pytest.approx(plain[COUNTED].sum(), rel=1e-5)
    # The gradient is that of the optimised loss, by central differences in float64.
    exact = {path: value.astype(np.float64) for path, value in mine.items()}
    for path, value in exact.items():
        for index in np.ndindex(value.shape):
            nudge = np.zeros_like(value)
            nudge[index] = 1e-5
            high, low = (mean_loss(exact | {path: value + sign * nudge}) for sign in (1, -1))
            moved = (mine[path][index] - float(after[path][index])) / RATE
            assert moved == pytest.approx((high - low) / 2e-5, abs=1e-5)


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_has_the_gradient_and_the_sums_of_the_whole(parts):
    graphdef, params = small_davit(dropout_rate=0.0, num_classes=3)
    options = {"label_smoothing": 0.1, "class_weights": (0.5, 3.0, 7.0)}
    whole, _, sums = step_once(graphdef, params, {}, optax.identity(), EIGHT, **options)
    divided, _, same = step_once(
        graphdef, params, {}, optax.identity(), EIGHT, accumulation_steps=parts, **options
    )
    largest = 0.0
    for path, before in params.items():
        gradient, other = (np.asarray(before - new) / RATE for new in (whole[path], divided[path]))
        np.testing.assert_allclose(other, gradient, rtol=0, atol=1e-5, err_msg=path)
        largest = max(largest, float(np.abs(gradient).max()))
    assert largest > 1e-2
    for name, value in sums.items():
        np.testing.assert_allclose(same[name], value, rtol=1e-6, err_msg=name)


def test_a_batch_in_parts_is_one_step_with_other_noise_in_each_part(network):
    graphdef, params = network
    mine, rest = head_of(params)
    ones = {"image": np.ones((2, 8), np.float32), "label": np.zeros(2, np.int32)}
    batch, options = ones | {"mask": np.ones(2, np.float32)}, {"trains": "head_on_features"}
    left_out = []
    for parts in (1, 2):
        once, state, sums = step_once(
            graphdef, mine, rest, optax.scale_by_adam(), batch, accumulation_steps=parts, **options
        )
        assert (int(state.count), int(sums["steps"]), float(sums["count"])) == (1, 1, 2)
        # A kernel row stays where dropout has left its feature out of both examples.
        left_out.append(np.asarray(once["head/kernel"] == mine["head/kernel"])[:, 0])
    # Half of eight features, had both parts the same noise; a quarter otherwise.
    assert left_out[1].sum() < 4
    assert left_out[0].tolist() != left_out[1].tolist()


def test_the_moving_average_follows_its_recursion_and_touches_no_step(network):
    graphdef, params = network
    head, rest = head_of(params)
    # The warm-up has 2/11 and 3/12 first, and this from the third step on.
    adam, decay = optax.scale_by_adam(), 0.27
    batch = BATCH | {"image": RNG.standard_normal((4, 8)).astype(np.float32)}
    expected = head
    runs = {}
    for ema_decay in (0.0, decay):
        step = make_train_step(
            graphdef, IMAGENET, adam, trains="head_on_features", ema_decay=ema_decay
        )
        trainable, sums = {path: np.array(value) for path, value in head.items()}, zero_sums()
        state = init_state(adam, trainable, ema_decay=ema_decay)
        for number in range(4):
            key = jax.random.key(number)
            trainable, state, sums = step(trainable, rest, state, sums, batch, RATE, key)
            if ema_decay:
                now = (2 / 11, 3 / 12, decay, decay)[number]
                expected = {
                    path: now * value + (1 - now) * np.asarray(trainable[path])
                    for path, value in expected.items()
                }
                for path, value in expected.items():
                    np.testing.assert_allclose(state[1][path], value, rtol=1e-5, atol=1e-7)
        runs[ema_decay] = jax.device_get(trainable)
    assert state[1].keys() == head.keys()  # nothing for what is frozen
    # What thaws has been constant until now: its average goes on with that of the others.
    thawed = carry_over(jax.device_get(state), init_state(adam, params, ema_decay=decay))
    assert (int(thawed[2]), thawed[2].dtype) == (4, np.int32)
    assert thawed[1].keys() == params.keys()
    for path, value in params.items():
        np.testing.assert_array_equal(thawed[1][path], state[1].get(path, value))
    for path, value in runs[0.0].items():
        np.testing.assert_array_equal(runs[decay][path], value)
        assert np.abs(state[1][path] - value).max() > 1e-3


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_three_steps_with_decoupled_weight_decay_are_those_of_optax(network, name):
    _, params = network
    config = default_config()
    config.update({"optimizer": name, "momentum": 0.8, "clip_norm": 0.05})
    head, rest = head_of(params)
    clip = optax.clip_by_global_norm(0.05)
    if name == "adamw":
        mask = {"head/kernel": True, "head/bias": False}
        theirs = optax.chain(clip, optax.adamw(RATE, eps=1e-7, weight_decay=0.3, mask=mask))
    ours = make_optimizer(config, dict.fromkeys(head, 0))
    decays = {"head/kernel": 0.3, "head/bias": 0.0}
    still, _ = small_davit(dropout_rate=0.0)
    step = make_train_step(still, IMAGENET, ours, trains="head_on_features", decays=decays)
    features = RNG.standard_normal((4, 8)).astype(np.float32)

    def loss(head):
        logits = features @ head["head/kernel"] + head["head/bias"][None]
        return cross_entropy(logits, BATCH["label"]).mean()

    expected = {path: jnp.array(value) for path, value in head.items()}
    got = {path: np.array(value) for path, value in head.items()}
    state, sums = ours.init(got), zero_sums()
    slots = theirs.init(expected) if name == "adamw" else jax.tree.map(jnp.zeros_like, expected)
    for number in range(3):
        gradient = jax.grad(loss)(expected)
        if name == "adamw":
            updates, slots = theirs.update(gradient, slots, expected)
            expected = optax.apply_updates(expected, updates)
        else:  # momentum over the gradient alone, the decay beside it (Loshchilov and Hutter 2019)
            gradient, _ = clip.update(gradient, optax.EmptyState())
            slots = {path: 0.8 * slots[path] + value for path, value in gradient.items()}
            expected = {
                path: value - RATE * (slots[path] + decays[path] * value)
                for path, value in expected.items()
            }
        batch, key = BATCH | {"image": features}, jax.random.key(number)
        got, state, sums = step(got, rest, state, sums, batch, RATE, key)
        for path, value in expected.items():
            np.testing.assert_allclose(got[path], value, rtol=1e-4, atol=1e-6, err_msg=path)


# The smallest that keep every kind of layer: (create_model's arguments, image size).
NETWORKS = {
    "alexnet_mini": ({}, 40),
    "googlenet": ({}, 96),
    "davit_tiny": ({"depths": (1, 1), "embed_dims": (8, 16), "num_heads": (1, 2)}, 64),
}


@pytest.fixture(scope="module", params=NETWORKS)
def halves(request):
    """(graphdef, initial parameters, batch, {precision: what one step of plain descent gives})."""
    options, size = NETWORKS[request.param]
    with pytest.MonkeyPatch.context() as patch:
        # Three of the nine Inception blocks: both auxiliary heads, in a third of the compile time.
        blocks = {name: googlenet._BLOCKS[name] for name in ("3b", "4a", "4d")}
        patch.setattr(googlenet, "_BLOCKS", blocks)
        model = create_model(request.param, image_size=(size, size), rngs=nnx.Rngs(0), **options)
        graphdef, _ = nnx.split(model, nnx.Param)
        params = jax.device_get(params_of(model))
        rng = np.random.default_rng(0)
        batch = {
            "image": rng.integers(0, 256, (2, size, size, 3), dtype=np.uint8),
            "label": np.array([0, 1], np.int32),
            "mask": np.ones(2, np.float32),
        }
        taken = {
            precision: step_once(graphdef, params, {}, optax.trace(0.9), batch, precision=precision)
            for precision in ("float32", "bfloat16")
        }
        yield graphdef, params, batch, taken


def test_a_step_in_bfloat16_is_near_that_in_float32_and_keeps_float32(halves):
    _, params, _, taken = halves
    (_, exact, sums), (after, gradients, rough) = taken["float32"], taken["bfloat16"]
    for path, value in {**after, **gradients.trace}.items():
        assert value.dtype == np.float32, path
        assert np.isfinite(value).all(), path
    assert {name: v.dtype for name, v in rough.items()} == {n: v.dtype for n, v in sums.items()}
    for name in ("loss", "total_loss"):
        assert float(rough[name]) == pytest.approx(float(sums[name]), rel=0.02)
    one, other = (
        np.concatenate([np.ravel(trace[path]) for path in params]).astype(np.float64)
        for trace in (exact.trace, gradients.trace)
    )
    assert not np.array_equal(one, other)
    # Measured: 0.973 (AlexNet-mini), 0.996 and 0.9998. At the initial weights the loss is near
    # log 2 whatever the network does, so it is the gradient's direction that would show a fault.
    assert one @ other > 0.95 * np.linalg.norm(one) * np.linalg.norm(other)


def equations(jaxpr):
    """All equations of a traced program, inner ones too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_bfloat16_multiplies_in_it_and_takes_statistics_in_float32(halves):
    graphdef, params, batch, _ = halves
    step = make_predict_step(graphdef, IMAGENET, precision="bfloat16")
    with native.setting("off"):
        program = step.trace(params, batch["image"]).jaxpr
    assert [v.aval.dtype for v in program.jaxpr.outvars] == [np.float32]  # the logits
    seen = {}
    for equation in equations(program.jaxpr):
        types = {str(v.aval.dtype) for v in equation.invars}
        seen.setdefault(equation.primitive.name, set()).update(types)
    products = seen.get("dot_general", set()) | seen.get("conv_general_dilated", set())
    assert products == {"bfloat16"}
    # The exponentials of a softmax, the deviation of a normalisation, GELU's error function.
    for name in ("exp", "rsqrt", "erf", "erfc"):
        assert seen.get(name, {"float32"}) == {"float32"}, name
    if any(path.endswith("/scale") for path in params):
        assert {"exp", "rsqrt"} <= seen.keys()


def test_a_step_compiled_in_advance_is_not_compiled_again(network):
    graphdef, params = network
    given = {path: np.array(value) for path, value in params.items()}
    step = make_train_step(graphdef, IMAGENET, optax.identity())
    arguments = given, {}, optax.EmptyState(), zero_sums(), BATCH, RATE, jax.random.key(0)
    compiled = []

    def listener(event, seconds, **about):
        compiled.append(event) if event.endswith("backend_compile_duration") else None

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        compile_now(step, *arguments)
        in_advance = len(compiled)
        step(*arguments)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert in_advance > 0
    assert len(compiled) == in_advance


HOLD_AND_HAND_BACK = """
import ctypes
from glomjax.ops.compilation import hand_back_memory

def resident():
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith("VmRSS"))
    return int(line.split()[1])

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
blocks = [libc.malloc(ctypes.c_size_t(2**16)) for _ in range(3000)]
for block in blocks:
    ctypes.memset(block, 1, 2**16)
for block in blocks[:-1]:  # the last keeps the heap from shrinking by itself
    libc.free(block)
before = resident()
hand_back_memory()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is asked for memory")
def test_what_has_been_freed_is_given_back_to_the_system():
    command = [sys.executable, "-c", HOLD_AND_HAND_BACK]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 150_000  # of 187 MB, in kB
