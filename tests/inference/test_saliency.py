"""Maps point to what a network sees a class by, whatever the method, the size and the batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from glomjax import load_classifier
from glomjax.errors import UserError
from glomjax.inference.attribution import grad_cam, integrated_gradients, occlusion
from glomjax.inference.saliency import METHODS, overlay, overlay_name, randomisation_check
from glomjax.models import MODELS
from glomjax.models.layers import Conv, Dense
from glomjax.preprocessing.augmentation import symmetries, undo_symmetries
from glomjax.preprocessing.preprocessing import Preprocessing
from glomjax.pretrained import write_weights
from glomjax.pretrained.spec import NetworkSpec

SIDE = 48
COLOURS = (0, 1, 2)


class ColourNetwork(nnx.Module):
    """Cells of 4 x 4 pixels, each with its excess of red, green and blue over the other two; the
    logits are sums of these over the image. All that `create_model` asks of a network, and no more.
    """

    HEAD_PATHS = LOGITS_PATHS = r"head/.*"
    HIDDEN_OPTIONS = ()

    @classmethod
    def check(cls, options, image_size):
        del options, image_size

    def __init__(self, *, num_classes: int, image_size: tuple[int, int], rngs: nnx.Rngs):
        self.image_size = image_size
        self.conv = Conv(3, 3, 4, stride=4, padding="VALID", activation="relu", rngs=rngs)
        self.head = Dense(3, num_classes, rngs=rngs)

    def __call__(self, images, *, deterministic=True, rngs=None):
        return self.classify(self.embed(images))

    def embed(self, images):
        return self.embed_map(self.feature_map(images))

    def feature_map(self, images):
        return self.conv(images)

    def embed_map(self, x):
        return jnp.sum(x, axis=(1, 2))

    def classify(self, x):
        return self.head(x)

    def map_grids(self):
        return (1.5, 4), (1.5, 4)


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "colours", (ColourNetwork, {}))
        yield


def write_network(path, classes=("other", "glomerulus"), also_green=False, **changes):
    """The logit of class n of three is the excess of red, green or blue; of two classes the only
    logit is red's, or that of red and green."""
    outputs = 1 if len(classes) == 2 else len(classes)
    excess = np.eye(3) * 3 - 1
    params = {
        "conv/kernel": np.broadcast_to(excess / 16, (4, 4, 3, 3)),
        "conv/bias": np.zeros(3),
        "head/kernel": np.eye(3, outputs),
        "head/bias": np.zeros(outputs),
    }
    params["head/kernel"][1, 0] += also_green
    spec = NetworkSpec(
        architecture="colours",
        options={},
        outputs=outputs,
        classes=classes,
        image_size=(SIDE, SIDE),
        preprocessing=Preprocessing("standardize", (0.5,) * 3, (0.2,) * 3),
        device_batch=4,
    )
    params = {name: value.astype(np.float32) for name, value in params.items()}
    write_weights(path, params, dataclasses.replace(spec, **changes))
    return path


def patch(*squares, size=(SIDE, SIDE)) -> np.ndarray:
    """Grey, with a square of one colour each at (colour, row, column), in units of the size."""
    image = np.full((*size, 3), 127, np.uint8)
    for colour, row, column in squares:
        top, left = int(row * size[0]), int(column * size[1])
        image[top : top + size[0] // 4, left : left + size[1] // 4, colour] = 230
    return image


def inside(saliency, row, column) -> bool:
    """Whether the peak of a map [H, W] lies in the square at this place, or at most a cell beside
    it."""
    peak = np.array(np.unravel_index(saliency.argmax(), saliency.shape)) / saliency.shape
    return bool(np.all(np.abs(peak - (row + 1 / 8, column + 1 / 8)) <= 1 / 8 + 1 / 16))


@pytest.fixture(scope="module")
def red(tmp_path_factory):
    return load_classifier(write_network(tmp_path_factory.mktemp("red") / "a.safetensors"))


@pytest.fixture(scope="module")
def three_colours(tmp_path_factory):
    file = tmp_path_factory.mktemp("three") / "a.safetensors"
    return load_classifier(write_network(file, classes=("red", "green", "blue")))


@pytest.mark.parametrize("method", METHODS)
def test_each_method_points_to_what_the_logit_depends_on(red, method):
    places = [(0.1, 0.6), (0.6, 0.1), (0.4, 0.4)]
    images = np.stack([patch((0, *place), (2, 0.7, 0.7)) for place in places])
    maps = red.saliency(images, method)
    assert (maps.shape, maps.dtype) == ((3, SIDE, SIDE), np.float32)
    assert all(inside(saliency, *place) for saliency, place in zip(maps, places, strict=True))
    assert maps.min() >= 0
    np.testing.assert_array_equal(maps.max(axis=(1, 2)), 1)
    # Against the other class it speaks there, and an image of one colour has no place that differs.
    others = red.saliency(images, method, target="other")
    centres = [(int((row + 1 / 8) * SIDE), int((column + 1 / 8) * SIDE)) for row, column in places]
    assert not any(other[centre] for other, centre in zip(others, centres, strict=True))
    assert not red.saliency(patch(), method).any()


def test_of_more_classes_the_predicted_or_the_named_one_is_explained(three_colours):
    image = patch((1, 0.1, 0.1), (1, 0.1, 0.4), (2, 0.6, 0.6))
    assert three_colours.predict(image).labels == ("green",)
    (predicted,) = three_colours.saliency(image)
    (blue,) = three_colours.saliency(image, target="blue")
    assert predicted[: SIDE // 2].max() == 1
    assert inside(blue, 0.6, 0.6)


@pytest.mark.parametrize("size", [(31, 77), (48, 48), (97, 50), (12, 20)])
def test_a_map_has_the_size_of_its_image(red, size):
    (saliency,) = red.saliency(patch((0, 0.1, 0.5), size=size))
    assert saliency.shape == size
    assert saliency.max() == 1
    assert inside(saliency, 0.1, 0.5)


@pytest.mark.parametrize("resize", ["pad", "crop"])
def test_a_map_lies_where_the_network_saw_it(tmp_path, resize):
    rules = Preprocessing("standardize", (0.5,) * 3, (0.2,) * 3, resize=resize)
    file = write_network(tmp_path / "a.safetensors", preprocessing=rules)
    image = patch((0, 0.5, 0.5), size=(48, 96))
    (saliency,) = load_classifier(file).saliency(image)
    assert inside(saliency, 0.5, 0.5)
    cropped = saliency[:, :24], saliency[:, 72:]
    assert resize == "pad" or not any(part.any() for part in cropped)


def test_whatever_predict_takes_and_however_many_at_once(red, tmp_path):
    images = [patch((0, 0.1 * n, 0.5)) for n in range(6)]
    maps = red.saliency(images)
    for n, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{n}.png")
    assert red.saliency(tmp_path).tobytes() == maps.tobytes()
    one_by_one = [red.saliency(Image.fromarray(image))[0] for image in images]
    np.testing.assert_allclose(one_by_one, maps, atol=1e-5)
    grey = Image.fromarray(patch((0, 0.1, 0.1))).convert("L")
    assert red.saliency([grey]).shape == (1, SIDE, SIDE)
    assert red.saliency([]).shape == (0, SIDE, SIDE)
    with pytest.raises(UserError, match=r"'1' is 30 x 40 and those before it 48 x 48; give images"):
        red.saliency([images[0], patch(size=(30, 40))])
    sizes = [found.shape for _, found in red.iterate_saliency([images[0], patch(size=(30, 40))])]
    assert sizes == [(48, 48), (30, 40)]
    (tmp_path / "broken.png").write_bytes(b"")
    with pytest.raises(UserError, match="'broken.png' is empty"):
        red.saliency(tmp_path)


def test_an_ensemble_gives_the_mean_of_its_maps(tmp_path):
    first = write_network(tmp_path / "a.safetensors")
    second = write_network(tmp_path / "b.safetensors", also_green=True)
    image = patch((0, 0.1, 0.1), (1, 0.6, 0.6))
    each = [load_classifier(source).saliency(image) for source in (first, second)]
    assert np.abs(each[0] - each[1]).max() > 0.5
    both = load_classifier([first, second])
    mean = np.mean(each, axis=0)
    np.testing.assert_allclose(both.saliency(image), mean / mean.max(), atol=1e-6)
    with pytest.raises(UserError, match="the randomisation check takes one network"):
        randomisation_check(both, image[None])
    files = [
        write_network(tmp_path / f"{n}.safetensors", ("a", "b", "c"), also_green=bool(n))
        for n in range(2)
    ]
    with pytest.raises(
        UserError, match="explain one network, or in a script name the class as target"
    ):
        load_classifier(files).saliency(image)
    assert load_classifier(files).saliency(image, target="b").shape == (1, SIDE, SIDE)


def test_what_cannot_be_explained_is_one_sentence(red):
    with pytest.raises(UserError, match="no saliency method 'magic'; use 'grad_cam', 'integrated"):
        red.saliency(patch(), "magic")
    with pytest.raises(UserError, match="target is 'tubule'; it is one of the classes 'other'"):
        red.saliency(patch(), target="tubule")


def test_symmetries_are_explained_as_they_are_predicted(red, tmp_path):
    file = write_network(tmp_path / "a.safetensors")
    image = patch((0, 0.1, 0.6))
    averaged = load_classifier(file, symmetries=True)
    for method in METHODS[:2]:
        (saliency,) = averaged.saliency(image, method)
        assert inside(saliency, 0.1, 0.6)
        # The mean over the views turns with the image, to the last bit but rounding.
        (turned,) = averaged.saliency(np.rot90(image).copy(), method)
        np.testing.assert_allclose(turned, np.rot90(saliency), atol=1e-4)
    views = symmetries(jnp.asarray(image)[None])
    np.testing.assert_array_equal(
        undo_symmetries(views[..., 0]), np.broadcast_to(image[None, ..., 0], (8, 1, SIDE, SIDE))
    )


def _score(images):
    """[B, H, W, 3] -> [B]: nothing that is linear."""
    weights = jnp.sin(jnp.arange(images[0].size, dtype=jnp.float32)).reshape(images.shape[1:])
    return jnp.tanh(jnp.sum(images * weights[None], axis=(1, 2, 3))) + jnp.sum(
        jnp.square(images), axis=(1, 2, 3)
    )


@pytest.fixture(scope="module")
def floats():
    return jnp.asarray(np.random.default_rng(0).normal(0, 0.3, (2, 6, 5, 3)).astype(np.float32))


def test_integrated_gradients_add_up_to_the_difference_of_the_scores(floats):
    baseline = jnp.full_like(floats, 0.1)
    found = jax.jit(lambda x: integrated_gradients(_score, x, baseline, 64))(floats)
    np.testing.assert_allclose(
        jnp.sum(found, axis=(1, 2)), _score(floats) - _score(baseline), rtol=2e-3
    )


def test_occlusion_is_the_mean_fall_over_the_windows_that_cover_a_pixel(floats):
    fill = jnp.full((2, 1, 1, 3), 0.2)
    total, count = np.zeros((2, 6, 5)), np.zeros((6, 5))
    for row in (0, 1, 2, 3, 4):  # windows of 2 x 3, a pixel apart
        for column in (0, 1, 2):
            covered = np.array(floats)
            covered[:, row : row + 2, column : column + 3] = 0.2
            fall = np.asarray(_score(floats) - _score(jnp.asarray(covered)))
            total[:, row : row + 2, column : column + 3] += fall[:, None, None]
            count[row : row + 2, column : column + 3] += 1
    found = jax.jit(lambda x: occlusion(_score, x, fill, (2, 3)))(floats)
    np.testing.assert_allclose(found, total / count, atol=1e-5)


def test_grad_cam_weighs_channels_by_their_mean_gradient(floats):
    maps = np.asarray(floats)[:, ::2, ::2]  # [2, 3, 3, 3], cells at the pixels 0, 2 and 4
    gates = np.random.default_rng(1).normal(size=(3, 3, 3)).astype(np.float32)
    found = grad_cam(
        lambda images: images[:, ::2, ::2],
        lambda x: jnp.sum(x * gates[None], axis=(1, 2, 3)),
        floats,
        ((0, 2), (0, 2)),
    )
    expected = (maps - maps.mean(axis=(1, 2), keepdims=True)) @ gates.mean(axis=(0, 1))
    np.testing.assert_allclose(found[:, ::2, ::2], expected, atol=1e-6)
    np.testing.assert_allclose(found[:, 1, ::2], (expected[:, 0] + expected[:, 1]) / 2, atol=1e-6)


def test_randomised_layers_change_the_map_from_the_head_down(red):
    images = [patch((0, 0.1, 0.6)), patch((0, 0.6, 0.2))]
    before = red.saliency(images)
    found = randomisation_check(red, images)
    assert list(found) == ["head", "conv"]
    assert all(-1 <= value <= 1 for value in found.values())
    assert found["conv"] < 0.7
    assert red.saliency(images).tobytes() == before.tobytes()
    assert randomisation_check(red, images) == found


def test_an_overlay_shows_the_image_and_grows_brighter_with_the_map():
    image = patch((0, 0.2, 0.2))
    assert overlay(image, np.zeros((SIDE, SIDE))).tobytes() == image.tobytes()
    ramp = np.tile(np.linspace(0, 1, SIDE), (SIDE, 1))
    on_black = overlay(np.zeros_like(image), ramp)
    assert (on_black.shape, on_black.dtype) == (image.shape, np.uint8)
    grey = np.asarray(Image.fromarray(on_black).convert("L"))[0].astype(int)
    assert (np.diff(grey) >= 0).all()
    assert grey[-1] > 100
    assert np.abs(overlay(image, ramp).astype(int) - on_black).max() > 40  # where the map is 0


def test_names_of_overlays_neither_meet_nor_leave_their_folder():
    names = ["../../etc/x.png", "a/b.png", "a_b.png", "/", "", "x" * 500, "Präparat 1.png", "."]
    found = [overlay_name(n, name) for n, name in enumerate(names)]
    assert len(set(found)) == len(names)
    assert all("/" not in name and len(name) < 120 and name.endswith(".png") for name in found)
    assert found[1] == "000001_a_b.png"
