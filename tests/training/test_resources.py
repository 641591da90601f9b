"""Memory: a run that cannot fit is refused before its first step, with what would fit."""

import re

import jax
import numpy as np
import pytest
from small_runs import config_for, write_patches

from glomjax.data.examples import Examples
from glomjax.data.pipeline import DecodedImages
from glomjax.errors import UserError
from glomjax.training import phases, resources, train_and_evaluate


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    return write_patches(tmp_path_factory.mktemp("patches"))


def config(patches, **changes):
    return config_for(patches, **{"num_epochs": 1, "batch_size": 32} | changes)


@pytest.fixture(scope="module")
def needed(patches, tmp_path_factory):
    """Bytes of the step with a batch of so many images, as the run found them."""
    found = {}
    for batch in (8, 32):
        with pytest.MonkeyPatch.context() as patch:
            real = resources._step_bytes

            def noted(*arguments, batch=batch, real=real):
                found[batch] = real(*arguments)
                return found[batch]

            patch.setattr(resources, "_step_bytes", noted)
            folder = tmp_path_factory.mktemp("needed")
            train_and_evaluate(config(patches, batch_size=batch), folder, progress=False)
    return found


def test_a_step_takes_more_memory_with_more_images(needed):
    assert 0 < needed[8] < needed[32]
    image = 32 * 32 * 3
    assert needed[32] - needed[8] > 24 * image


def test_a_step_that_has_no_room_is_refused_with_the_batch_that_has(
    patches, needed, tmp_path, monkeypatch
):
    free = (needed[8] + needed[32]) // 2
    monkeypatch.setattr(resources, "free_bytes", lambda: free)
    with pytest.raises(UserError, match=r"no memory for a step with batches of 32 images") as error:
        train_and_evaluate(config(patches), tmp_path / "run", progress=False)
    batch = int(re.search(r"config.batch_size = (\d+) fits", str(error.value))[1])
    assert 8 < batch < 32
    # What it says is so, by the same rule, in the same folder; the run has written no checkpoint.
    assert not (tmp_path / "run" / "checkpoints" / "last").exists()
    fits = config(patches, batch_size=batch)
    train_and_evaluate(fits, tmp_path / "run", progress=False)


def test_where_nothing_fits_that_is_said(patches, tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "free_bytes", lambda: 1000)
    with pytest.raises(UserError, match=r"needs .* MiB and 0.000954 MiB are free; no smal"):
        train_and_evaluate(config(patches), tmp_path, progress=False)


def test_a_machine_that_does_not_tell_its_memory_is_trusted(patches, tmp_path, monkeypatch):
    for name in ("free_bytes", "free_host_bytes"):
        monkeypatch.setattr(resources, name, lambda: None)
    train_and_evaluate(config(patches), tmp_path, progress=False)


def test_images_that_would_fill_the_memory_are_refused_before_they_are_read(
    patches, tmp_path, monkeypatch
):
    images = 48 * 280 * 280 * 3
    monkeypatch.setattr(resources, "free_host_bytes", lambda: images // 2)
    monkeypatch.setattr(DecodedImages, "_decode", lambda *arguments: pytest.fail("it reads"))
    large = {"image_size": (280, 280), "data.cache_gib": 1.0}
    with pytest.raises(UserError, match=r"needs 10.8 MiB for decoded images") as error:
        train_and_evaluate(config(patches, **large), tmp_path, progress=False)
    advised = re.search(r"config.data.cache_gib = ([\d.]+) keeps fewer", str(error.value))
    assert float(advised[1]) * 2**30 < images // 2


@pytest.mark.parametrize(
    "error",
    [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")],
    ids=["of the host", "of a device"],
)
def test_memory_that_ends_within_a_step_is_a_sentence(patches, tmp_path, monkeypatch, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(phases.RunningPhase, "step", fail)
    with pytest.raises(UserError, match=r"no memory left for batches of 32 images of 32 x 32; try"):
        train_and_evaluate(config(patches), tmp_path, progress=False)


def test_another_error_of_a_step_stays_what_it_is(patches, tmp_path, monkeypatch):
    def fail(*arguments):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(phases.RunningPhase, "step", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        train_and_evaluate(config(patches), tmp_path, progress=False)


def test_kept_images_are_counted_as_the_memory_has_them():
    """Of 280 x 280 pixels an image has 235,200 bytes, for which 58 pages are given out."""
    images = np.zeros((10, 280, 280, 3), np.uint8)
    examples = Examples([str(i) for i in range(10)], np.zeros(10, int), lambda i: images[i])
    decoded = DecodedImages(examples, (280, 280), cache_bytes=5 * 58 * 4096)
    assert decoded.cache_left == 5 * 58 * 4096
    for i in range(3):
        decoded[i]
    assert decoded.cache_left == 2 * 58 * 4096
    for i in range(10):
        decoded[i]
    assert decoded.cache_left == 0
