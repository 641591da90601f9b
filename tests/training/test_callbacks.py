"""Early stopping and the plateau schedule: Keras 3.15's outcome in every golden case."""

import json
import math
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glomjax.errors import UserError
from glomjax.training import EarlyStopping, ReduceLROnPlateau

GOLDEN = json.loads(
    (pathlib.Path(__file__).parents[1] / "data" / "keras_callbacks.json").read_text()
)
# A few values only, so that ties and plateaus are common.
VALUES = st.lists(
    st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5, float("nan"), float("inf")]),
    min_size=1,
    max_size=25,
)


def same(a: float | None, b: float | None) -> bool:
    """Equal, with NaN equal to NaN."""
    return a == b or (a is not None and b is not None and math.isnan(a) and math.isnan(b))


def test_early_stopping_agrees_with_keras_in_every_golden_case():
    cases = GOLDEN["early_stopping"]
    assert len(cases) == 150
    for number, case in enumerate(cases):
        options = dict(case["config"])
        restores = options.pop("restore_best_weights")
        stopping = EarlyStopping(**options)
        stopped_epoch = None
        for last_epoch, value in enumerate(case["losses"]):
            if stopping.update(last_epoch, value):
                stopped_epoch = last_epoch
                break
        expected = case["expect"]
        assert stopped_epoch == expected["stopped_epoch"], number
        assert stopping.best_epoch == expected["best_epoch"], number
        assert same(stopping.best, expected["best"]), number
        assert stopping.wait == expected["wait"], number
        weights_epoch = stopping.best_epoch if restores else last_epoch
        assert weights_epoch == expected["weights_epoch"], number


def test_the_plateau_schedule_agrees_with_keras_after_every_epoch_of_every_golden_case():
    cases = GOLDEN["reduce_lr_on_plateau"]
    assert len(cases) == 150
    for number, case in enumerate(cases):
        plateau, rate, rates = ReduceLROnPlateau(**case["config"]), case["initial_lr"], []
        for epoch, value in enumerate(case["losses"]):
            rate = plateau.update(epoch, value, rate)
            rates.append(rate)
        assert rates == case["expect_lr_after_epoch"], number


def test_early_stopping_stops_after_patience_epochs_without_improvement():
    stopping = EarlyStopping(patience=2)
    assert [stopping.update(i, v) for i, v in enumerate([0.5, 0.4, 0.4, 0.41])] == [
        False,
        False,
        False,
        True,
    ]
    assert (stopping.best_epoch, stopping.best) == (1, 0.4)


def test_a_nan_first_becomes_the_best_value_and_is_never_improved_on():
    stopping = EarlyStopping(patience=2)
    assert [stopping.update(i, v) for i, v in enumerate([float("nan"), 0.1, 0.05])] == [
        False,
        False,
        True,
    ]
    assert stopping.best_epoch == 0


@settings(max_examples=60, deadline=None)
@given(
    values=VALUES,
    data=st.data(),
    mode=st.sampled_from(["min", "max"]),
    baseline=st.sampled_from([None, 0.25]),
    start=st.integers(0, 3),
)
def test_early_stopping_goes_on_from_its_saved_state_as_if_nothing_happened(
    values, data, mode, baseline, start
):
    cut = data.draw(st.integers(0, len(values)))
    whole, first, second = (
        EarlyStopping(3, min_delta=0.05, mode=mode, baseline=baseline, start_from_epoch=start)
        for _ in range(3)
    )
    expected = [whole.update(i, v) for i, v in enumerate(values)]
    got = [first.update(i, v) for i, v in enumerate(values[:cut])]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    got += [second.update(i, v) for i, v in enumerate(values[cut:], start=cut)]
    assert got == expected
    assert str(second.state_dict()) == str(whole.state_dict())  # as text, NaN equals NaN


@settings(max_examples=60, deadline=None)
@given(
    values=VALUES,
    data=st.data(),
    mode=st.sampled_from(["min", "max"]),
    cooldown=st.integers(0, 3),
)
def test_the_plateau_schedule_goes_on_from_its_saved_state_as_if_nothing_happened(
    values, data, mode, cooldown
):
    cut = data.draw(st.integers(0, len(values)))

    def run(plateau, epochs, rate):
        rates = [rate := plateau.update(i, values[i], rate) for i in epochs]
        return rates, rate

    whole, first, second = (
        ReduceLROnPlateau(0.5, 2, mode=mode, cooldown=cooldown, min_lr=1e-3) for _ in range(3)
    )
    expected, _ = run(whole, range(len(values)), 1.0)
    before, rate = run(first, range(cut), 1.0)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    after, _ = run(second, range(cut, len(values)), rate)
    assert before + after == expected


@pytest.mark.parametrize(
    "make", [lambda m: EarlyStopping(3, mode=m), lambda m: ReduceLROnPlateau(0.5, 3, mode=m)]
)
def test_an_unknown_mode_is_refused_by_name(make):
    with pytest.raises(UserError, match=r"'auto'.*'min' or 'max'"):
        make("auto")


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_a_factor_that_never_lowers_the_rate_is_refused(factor):
    with pytest.raises(UserError, match=f"{factor}.*below 1"):
        ReduceLROnPlateau(factor, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EarlyStopping("7"), "patience is '7'; it is a whole number of epochs"),
        (lambda: EarlyStopping(7.0), "patience is 7.0; it is a whole number of epochs"),
        (lambda: EarlyStopping(-1), "patience is -1; it is a whole number of epochs, at least 0"),
        (lambda: EarlyStopping(True), "patience is True"),
        (lambda: EarlyStopping(3, min_delta="x"), "min_delta is 'x'; it is a number"),
        (lambda: EarlyStopping(3, min_delta=math.nan), "min_delta is nan; it is a finite number"),
        (
            lambda: EarlyStopping(3, baseline=[0.1, 0.2]),
            r"baseline is \[0.1, 0.2\]; it is a number",
        ),
        (
            lambda: EarlyStopping(3, start_from_epoch=None),
            "start_from_epoch is None; it is a whole",
        ),
        (lambda: EarlyStopping(3, mode=["min"]), r"mode is \['min'\]; it is 'min' or 'max'"),
        (lambda: EarlyStopping(3).update(0, "0.1"), "value is '0.1'; it is a number"),
        (lambda: EarlyStopping(3).update(0, None), "value is None; it is a number"),
        (lambda: EarlyStopping(3).update("1", 0.1), "epoch is '1'; it is a whole number"),
        (lambda: ReduceLROnPlateau("0.5", 3), "factor is '0.5'; it is a number"),
        (lambda: ReduceLROnPlateau(-0.5, 3), "factor is -0.5; it must be at least 0 and below 1"),
        (lambda: ReduceLROnPlateau(0.5, 3, cooldown=1.5), "cooldown is 1.5; it is a whole number"),
        (lambda: ReduceLROnPlateau(0.5, 3, min_lr=None), "min_lr is None; it is a number"),
        (
            lambda: ReduceLROnPlateau(0.5, 3).update(0, 0.1, "x"),
            "learning_rate is 'x'; it is a num",
        ),
        (lambda: ReduceLROnPlateau(0.5, 3).update(0, {}, 0.1), "value is {}; it is a number"),
    ],
)
def test_an_argument_of_another_kind_is_refused_by_name(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    "value", [np.float32(0.5), np.float64(0.5), jnp.float32(0.5), jnp.bfloat16(0.5), [0.5]]
)
def test_a_number_of_any_library_is_a_number(value):
    stopping = EarlyStopping(np.int64(2))
    assert not stopping.update(np.int32(0), value)
    assert (type(stopping.best), stopping.best) == (float, 0.5)
