"""DaViT: its tensors, its options and its stochastic depth. Golden numbers: tests/pretrained."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quick_programs import quickly

from glomjax.errors import UserError
from glomjax.models import create_model, params_of, set_params
from glomjax.models.layers import DropPath

FOUR_STAGES = {"depths": (1, 1, 2, 1), "embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 3, 4)}
# Two stages hold every kind of layer and compile in half the time.
TWO_STAGES = {"depths": (1, 1), "embed_dims": (8, 16), "num_heads": (1, 2)}


def abstract_model(name: str = "davit_tiny", **options) -> nnx.Module:
    """The network without numbers."""
    return nnx.eval_shape(lambda: create_model(name, **options, rngs=nnx.Rngs(0)))


def count(model: nnx.Module) -> int:
    return sum(math.prod(leaf.shape) for leaf in params_of(model).values())


def small(**options) -> nnx.Module:
    """A small DaViT whose weights depend on their path's position and shape alone."""
    model = abstract_model(**TWO_STAGES, **options)
    rng = np.random.default_rng(0)
    weights = {}
    for path, leaf in params_of(model).items():
        values = rng.standard_normal(leaf.shape)
        if path.endswith("kernel"):
            values = values * math.sqrt(2 / math.prod(leaf.shape[:-1]))
        weights[path] = jnp.asarray(values, jnp.float32)
    set_params(model, weights)
    return model


def images_of(height=96, width=64, batch=2) -> jax.Array:
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.standard_normal((batch, height, width, 3)), jnp.float32)


def compiled(function):
    return jax.jit(function, compiler_options=quickly())


def run(function, model, *args, compile=compiled):
    """function(model, *args) as one program, the weights an argument."""
    graphdef, state = nnx.split(model)
    return compile(lambda state, *args: function(nnx.merge(graphdef, state), *args))(state, *args)


def infer(model, images):
    return run(lambda model, images: model(images), model, images)


def train(model, images, seed=0):
    def call(model, images, key):
        return model(images, deterministic=False, rngs=nnx.Rngs(dropout=key))

    return run(call, model, images, jax.random.key(seed))


def shape_of(function, model, *shape):
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    return run(function, model, image, compile=lambda f: partial(jax.eval_shape, f)).shape


@pytest.mark.parametrize("preset", ["kecam", "msft"])
def test_tiny_has_the_212_tensors_and_27_591_937_parameters_of_both_sources(preset):
    model = abstract_model(preset=preset)
    assert (len(params_of(model)), count(model)) == (212, 27_591_937)
    assert all(leaf.dtype == jnp.float32 for leaf in params_of(model).values())


@pytest.mark.parametrize(
    ("size", "millions"),
    [
        ("tiny", 28.36),
        ("small", 49.75),
        ("base", 87.95),
        ("large", 196.8),
        ("huge", 348.9),
        ("giant", 1406),
    ],
)
def test_every_size_has_its_published_parameters(size, millions):
    # With 1000 classes, as timm counts them.
    digits = 2 if millions < 100 else 1 if millions < 1000 else 0
    assert round(count(abstract_model(f"davit_{size}", num_classes=1000)) / 1e6, digits) == millions


def test_the_presets_differ_by_window_size_and_head_norm_first_alone():
    images = images_of(96, 96)  # kecam's window is 3 x 3 here
    kecam, msft = infer(small(preset="kecam"), images), infer(small(preset="msft"), images)
    as_kecam = infer(small(preset="msft", window_size=3, head_norm_first=True), images)
    np.testing.assert_allclose(as_kecam, kecam, rtol=0, atol=1e-5)
    # Each of the two alone changes the logits of the same weights.
    only_window = infer(small(preset="kecam", window_size=7), images)
    for a, b in ((kecam, msft), (only_window, kecam), (only_window, msft)):
        assert np.abs(a - b).min() > 1e-4


@pytest.mark.parametrize(
    ("options", "size", "window"),
    [
        ({"preset": "kecam"}, (280, 280), (9, 9)),
        ({"preset": "kecam"}, (65, 31), (3, 1)),
        ({"preset": "msft"}, (65, 31), (7, 7)),
        ({"preset": "kecam", "window_size": 5}, (280, 280), (5, 5)),
        ({"preset": "msft", "window_size": (3, 2)}, (280, 280), (3, 2)),
        ({"window_size": [3, 2]}, (280, 280), (3, 2)),
    ],
)
def test_the_window_follows_the_images_in_the_kecam_preset_alone(options, size, window):
    assert abstract_model(**TWO_STAGES, **options).window(size) == window


def test_a_window_of_height_and_width_is_that_of_a_preset_for_such_images():
    images = images_of(96, 64)
    preset = infer(small(preset="kecam"), images)
    np.testing.assert_array_equal(infer(small(window_size=(3, 2)), images), preset)
    assert np.abs(infer(small(window_size=(2, 3)), images) - preset).min() > 1e-4


@pytest.mark.parametrize("preset", ["kecam", "msft"])
@pytest.mark.parametrize("size", [(1, 1), (33, 130), (97, 65), (224, 31)])
def test_any_image_size_works_and_rounds_up(preset, size):
    model = abstract_model(preset=preset, **FOUR_STAGES)
    rows, columns = (math.ceil(extent / 32) for extent in size)
    features = shape_of(lambda model, x: model.features(x), model, 2, *size, 3)
    assert features == (2, rows, columns, 32)
    assert shape_of(lambda model, x: model(x), model, 2, *size, 3) == (2, 1)


@pytest.mark.parametrize("preset", ["kecam", "msft"])
def test_no_classes_gives_the_features_that_the_head_sees(preset):
    whole, body = small(preset=preset, num_classes=3), small(preset=preset, num_classes=0)
    params = params_of(whole)
    kernel, bias = params.pop("head/kernel"), params.pop("head/bias")
    assert params.keys() == params_of(body).keys()
    set_params(body, params)
    features = infer(body, images_of())
    assert features.shape == (2, 16)
    expected = features @ kernel + bias[None]
    np.testing.assert_allclose(infer(whole, images_of()), expected, rtol=0, atol=1e-5)


def test_dropout_acts_on_the_pooled_features_in_training_only():
    model, plain = small(num_classes=0, dropout_rate=0.5), small(num_classes=0)
    features = np.asarray(infer(plain, images_of()))
    np.testing.assert_array_equal(infer(model, images_of()), features)
    dropped = np.asarray(train(model, images_of()))
    gone = dropped == 0
    assert 0.2 < gone.mean() < 0.8
    np.testing.assert_allclose(dropped[~gone], 2 * features[~gone], rtol=1e-5)
    np.testing.assert_array_equal(train(model, images_of()), dropped)
    assert not np.array_equal(train(model, images_of(), seed=1), dropped)


def test_drop_path_rates_rise_linearly_from_0_to_the_given_rate():
    model = abstract_model(**FOUR_STAGES, drop_path_rate=0.4)
    pairs = [pair for stage in model.stages for pair in stage.blocks]
    for kind in ("spatial", "channel"):
        rates = [getattr(pair, kind).drop_path.rate for pair in pairs]
        np.testing.assert_allclose(rates, [0.0, 0.1, 0.2, 0.3, 0.4])


def test_drop_path_is_ignored_in_a_deterministic_call():
    model, plain = small(drop_path_rate=0.5), small()
    np.testing.assert_array_equal(infer(model, images_of()), infer(plain, images_of()))
    assert np.abs(train(model, images_of()) - infer(plain, images_of())).max() > 1e-3


def test_drop_path_drops_whole_examples_and_keeps_the_expectation():
    x = jnp.ones((4000, 2, 3))
    y = np.asarray(DropPath(0.25)(x, deterministic=False, rngs=nnx.Rngs(dropout=0)))
    assert (y == y[:, :1, :1]).all()
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
    # Six standard errors of a mean of 4000.
    assert abs(y.mean() - 1) < 6 * math.sqrt(0.25 / 0.75 / 4000)


def test_drop_path_without_random_numbers_is_an_error():
    with pytest.raises(ValueError, match="rngs"):
        DropPath(0.25)(jnp.ones((1, 2)), deterministic=False, rngs=None)


def test_a_dropped_branch_leaves_the_residual():
    block = small(drop_path_rate=0.9).stages[1].blocks[0].spatial
    x = jnp.asarray(np.random.default_rng(2).standard_normal((32, 3, 2, 16)), jnp.float32)

    def call(block, x, key):
        encoded = block.cpe2(block.cpe1(x))
        rngs = nnx.Rngs(dropout=key)
        return encoded, block(x, (3, 3), deterministic=False, rngs=rngs)

    encoded, y = run(call, block, x, jax.random.key(0))
    difference = np.abs(y - encoded).max(axis=(1, 2, 3))
    # Both branches are dropped in 81 of 100 examples; what remains of a branch is 10 times larger.
    assert 16 < (difference < 1e-4).sum() < 32
    assert ((difference < 1e-4) | (difference > 1e-1)).all()


def test_no_two_branches_share_a_mask_in_one_call(monkeypatch):
    model, masks = small(drop_path_rate=0.5), []
    original = DropPath.__call__

    def spy(self, x, **options):
        y = original(self, x, **options)
        if self.rate:
            masks.append(jnp.any(y != 0, axis=(1, 2, 3)))
        return y

    monkeypatch.setattr(DropPath, "__call__", spy)

    def call(model, images, key):
        masks.clear()
        model(images, deterministic=False, rngs=nnx.Rngs(dropout=key))
        return jnp.stack(masks)

    kept = np.asarray(run(call, model, images_of(32, 32, batch=64), jax.random.key(0)))
    assert kept.shape == (4, 64)  # two branches in both blocks of the second pair
    assert len({mask.tobytes() for mask in kept}) == 4


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("davit_mini", {}, "'davit_mini'.*davit_tiny"),
        ("davit_tiny", {"windowsize": 7}, "windowsize"),
        ("davit_tiny", {"preset": "timm"}, "'timm'.*'kecam'.*'msft'"),
        ("davit_tiny", {"depths": (1, 1, 1)}, "depths"),
        ("davit_tiny", {"num_heads": (5, 6, 12, 24)}, "num_heads"),
        ("davit_tiny", {"drop_path_rate": 1.0}, "drop_path_rate"),
        ("davit_tiny", {"dropout_rate": 1.5}, "dropout_rate"),
        ("davit_tiny", {"window_size": -7}, "window_size is -7"),
        ("davit_tiny", {"window_size": (7, 0)}, r"window_size is \(7, 0\)"),
        ("davit_tiny", {"window_size": (7, 7, 7)}, r"window_size.*int \| tuple\[int, int\]"),
        ("davit_tiny", {"window_size": (7, 7.0)}, r"window_size.*int \| tuple\[int, int\]"),
        ("davit_tiny", {"window_size": True}, r"window_size.*int \| tuple\[int, int\]"),
        ("davit_tiny", {"head_norm_first": 1}, r"head_norm_first.*bool \| None"),
        ("davit_tiny", {"depths": 4}, r"depths.*tuple\[int, ...\]"),
        ("davit_tiny", {"dropout_rate": "0.5"}, "dropout_rate.*float"),
        ("davit_tiny", {"num_classes": -1}, "num_classes"),
    ],
)
def test_a_wrong_name_or_option_is_named(name, options, named):
    with pytest.raises(UserError, match=named):
        abstract_model(name, **options)
