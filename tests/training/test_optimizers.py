"""The optimizer's direction, the rate of each step and the weights of the classes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from glomjax.errors import UserError
from glomjax.training import default_config
from glomjax.training.optimizers import (
    check_cosine,
    class_weights,
    learning_rate,
    make_optimizer,
)

RNG = np.random.default_rng(0)
PARAMS = {
    "stem/kernel": RNG.standard_normal((3, 4)).astype(np.float32),
    "head/bias": RNG.standard_normal(4).astype(np.float32),
}
GROUPS = dict.fromkeys(PARAMS, 0)


def gradients(steps: int, scale: float = 1.0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [
        {p: (scale * rng.standard_normal(v.shape)).astype(np.float32) for p, v in PARAMS.items()}
        for _ in range(steps)
    ]


def configured(**changes):
    config = default_config()
    config.update(changes)
    return config


def directions(config, steps, groups=GROUPS):
    """What the optimizer says to each of some gradients."""
    optimizer = make_optimizer(config, groups)
    state, said = optimizer.init(PARAMS), []
    for gradient in steps:
        updates, state = optimizer.update(gradient, state, PARAMS)
        said.append(updates)
    return said


def norm(tree) -> float:
    return float(np.sqrt(sum(np.sum(np.square(v, dtype=np.float64)) for v in tree.values())))


def test_sgd_has_the_momentum_of_keras_and_pytorch():
    steps = gradients(4)
    velocity = {path: np.zeros_like(value) for path, value in PARAMS.items()}
    for step, direction in zip(
        steps, directions(configured(optimizer="sgd", momentum=0.75), steps), strict=True
    ):
        for path, gradient in step.items():
            # The velocity itself is the direction: no damping, no Nesterov.
            velocity[path] = 0.75 * velocity[path] + gradient
            np.testing.assert_allclose(direction[path], velocity[path], rtol=1e-6)


def test_sgd_without_momentum_is_the_gradient():
    steps = gradients(2)
    for step, direction in zip(
        steps, directions(configured(optimizer="sgd", momentum=0.0), steps), strict=True
    ):
        for path, gradient in step.items():
            np.testing.assert_array_equal(direction[path], gradient)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam_has_the_defaults_of_keras(optimizer):
    first = {path: np.zeros_like(value) for path, value in PARAMS.items()}
    second = {path: np.zeros_like(value) for path, value in PARAMS.items()}
    steps = gradients(3, scale=1e-3)
    said = directions(configured(optimizer=optimizer), steps)
    for number, (step, direction) in enumerate(zip(steps, said, strict=True), start=1):
        for path, gradient in step.items():
            first[path] = 0.9 * first[path] + 0.1 * gradient
            second[path] = 0.999 * second[path] + 0.001 * gradient**2
            root = np.sqrt(second[path] / (1 - 0.999**number))
            expected = first[path] / (1 - 0.9**number) / (root + 1e-7)
            np.testing.assert_allclose(direction[path], expected, rtol=2e-5)


def test_the_norm_is_clipped_over_all_parameters_in_all_thaw_groups_together():
    (gradient,) = gradients(1)
    whole = norm(gradient)
    groups = {"stem/kernel": 0, "head/bias": 1}
    plain = {"optimizer": "sgd", "momentum": 0.0}
    (direction,) = directions(configured(clip_norm=0.5, **plain), [gradient], groups)
    assert norm(direction) == pytest.approx(0.5, rel=1e-6)
    expected, _ = optax.clip_by_global_norm(0.5).update(gradient, optax.EmptyState())
    for path, value in gradient.items():
        np.testing.assert_allclose(direction[path], expected[path], rtol=1e-6)
        # PyTorch's clip_grad_norm_, whose 1e-6 keeps it from dividing by zero.
        torch = value * min(0.5 / (whole + 1e-6), 1.0)
        np.testing.assert_allclose(direction[path], torch, rtol=1e-5)
    (direction,) = directions(configured(clip_norm=1.01 * whole, **plain), [gradient], groups)
    for path, value in gradient.items():
        np.testing.assert_array_equal(direction[path], value)


def test_what_is_clipped_is_the_gradient_and_not_adams_direction():
    steps = gradients(3, scale=10.0)
    clipped = [{p: g * np.float32(0.1 / norm(step)) for p, g in step.items()} for step in steps]
    for ours, theirs in zip(
        directions(configured(clip_norm=0.1), steps),
        directions(configured(), clipped),
        strict=True,
    ):
        for path, value in theirs.items():
            np.testing.assert_allclose(ours[path], value, rtol=1e-4)


def test_a_gradient_of_zero_is_not_divided_by_its_norm():
    (direction,) = directions(
        configured(optimizer="sgd", clip_norm=0.1), [jax.tree.map(jnp.zeros_like, PARAMS)]
    )
    assert all(not value.any() for value in direction.values())


BASE = 0.25  # a float32 that divides without rounding
PER_EPOCH = 5


def rates(config, base=BASE):
    """The rate of each step of the run, which is a float32 throughout."""
    said = [
        learning_rate(config, base, step, PER_EPOCH)
        for step in range(config.num_epochs * PER_EPOCH)
    ]
    assert {type(rate) for rate in said} == {np.float32}
    return np.array(said)


@pytest.mark.parametrize("schedule", ["plateau", "constant", "cosine"])
def test_warm_up_rises_linearly_to_the_base_rate_at_its_last_step(schedule):
    got = rates(configured(schedule=schedule, warmup_epochs=2, num_epochs=6))
    np.testing.assert_allclose(got[:10], BASE * np.arange(1, 11) / 10, rtol=1e-6)
    assert got[9] == BASE
    if schedule != "cosine":
        assert set(got[10:].tolist()) == {BASE}


@pytest.mark.parametrize("warmup", [0, 2])
def test_a_cosine_begins_with_the_base_rate_and_ends_next_to_0(warmup):
    got = rates(configured(schedule="cosine", warmup_epochs=warmup, num_epochs=6))
    start, total = warmup * PER_EPOCH, 6 * PER_EPOCH
    assert got[start] == BASE
    steps = np.arange(start, total)
    expected = BASE * 0.5 * (1 + np.cos(np.pi * (steps - start) / (total - start)))
    np.testing.assert_allclose(got[start:], expected, rtol=1e-5, atol=1e-8)
    assert np.all(np.diff(got[start:]) < 0)
    assert got[start + (total - start) // 2] == pytest.approx(BASE / 2)
    assert 0 < got[-1] < 0.01 * BASE
    config = configured(schedule="cosine", warmup_epochs=warmup, num_epochs=6)
    for beyond in (total, total + 100):
        assert learning_rate(config, BASE, beyond, PER_EPOCH) == 0


def cosine(num_epochs, patience, warmup=0, schedule="cosine"):
    config = configured(schedule=schedule, num_epochs=num_epochs, warmup_epochs=warmup)
    config.early_stopping.patience = patience
    return config


def test_a_cosine_that_has_no_time_to_fall_is_named():
    note = check_cosine(cosine(1000, 7))
    assert "num_epochs, 1000, and early stopping (patience 7)" in note
    assert "after 70 epochs the learning rate is still 98.8% of its first value" in note
    assert "\n" not in note
    # Of 100 epochs the twentieth has 0.905 of the rate, of 95 it has 0.894.
    assert check_cosine(cosine(100, 2))
    assert not check_cosine(cosine(95, 2))
    # A warm-up comes before both.
    assert check_cosine(cosine(105, 2, warmup=5))
    assert not check_cosine(cosine(100, 2, warmup=5))
    assert not check_cosine(cosine(1000, 7, schedule="plateau"))
    assert not check_cosine(cosine(30, 7))


@pytest.mark.parametrize(
    ("size", "step", "ratio"), [(1e-5, 1, 1.30), (1e-5, 10, 1.09), (1e-4, 1, 1.03)]
)
def test_adam_differs_from_keras_where_gradients_are_small_and_steps_few(size, step, ratio):
    gradient = {path: np.full_like(value, size) for path, value in PARAMS.items()}
    ours = directions(configured(), [gradient] * step)[-1]["head/bias"][0]
    first, second = 1 - 0.9**step, 1 - 0.999**step
    # Keras adds its epsilon to the root of the second moment as it is.
    keras = size * first * (np.sqrt(second) / first) / (size * np.sqrt(second) + 1e-7)
    assert float(ours) / keras == pytest.approx(ratio, abs=0.005)


@pytest.mark.parametrize("schedule", ["plateau", "constant"])
def test_plateau_and_constant_hand_the_base_rate_through(schedule):
    config = configured(schedule=schedule)
    for base in (1e-3, float(np.float32(3e-5)), 0.0):
        for step in (0, 1, 10**7):
            rate = learning_rate(config, base, step, PER_EPOCH)
            assert rate == np.float32(base)
            assert rate.dtype == np.float32


def test_the_warm_up_multiplies_what_the_plateau_schedule_says():
    config = configured(warmup_epochs=2)
    assert learning_rate(config, BASE / 2, 4, PER_EPOCH) == BASE / 4


def test_a_warm_up_as_long_as_the_run_never_divides_by_zero():
    got = rates(configured(schedule="cosine", warmup_epochs=6, num_epochs=6))
    np.testing.assert_allclose(got, BASE * np.arange(1, 31) / 30, rtol=1e-6)


LABELS = np.array([0] * 6 + [1] * 3 + [2], np.int32)


def test_balanced_weights_give_each_class_the_same_total_and_a_mean_of_1():
    weights = class_weights("balanced", LABELS, 3)
    of_examples = np.array(weights)[LABELS]
    totals = [of_examples[label == LABELS].sum() for label in range(3)]
    np.testing.assert_allclose(totals, 10 / 3, rtol=1e-12)
    assert of_examples.mean() == pytest.approx(1, rel=1e-12)
    assert weights == pytest.approx((10 / 18, 10 / 9, 10 / 3))
    assert {type(weight) for weight in weights} == {float}


def test_balanced_weights_of_balanced_classes_are_1():
    assert class_weights("balanced", np.array([0, 1, 1, 0]), 2) == (1.0, 1.0)


def test_weights_are_taken_in_the_order_of_the_classes():
    assert class_weights("1,2.5,0", LABELS, 3) == (1.0, 2.5, 0.0)
    assert class_weights("none", LABELS, 3) == ()


@pytest.mark.parametrize("text", ["1,2", "1,2,3,4", "0,0,0", "0.0,0,0"])
def test_weights_for_other_classes_than_the_data_has_are_refused(text):
    with pytest.raises(UserError, match=rf"class_weights is '{text}'.* 3 classes") as error:
        class_weights(text, LABELS, 3)
    assert "\n" not in str(error.value)
