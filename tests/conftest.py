"""Settings that every test runs under."""

import contextlib
import functools
import gc
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import hypothesis
import jax
import pytest
from flax import nnx
from quick_programs import FEW_BLOCKS
from small_runs import config_for, write_patches

from glomjax.files import cache_dir
from glomjax.models import create_model, googlenet
from glomjax.ops import native
from glomjax.pretrained import spec
from glomjax.training import scoring, train_and_evaluate

# How long an example takes says nothing on a shared machine.
hypothesis.settings.register_profile("glomjax", deadline=None)
hypothesis.settings.load_profile("glomjax")
# A test that adds [B] to [B, 1] by accident fails instead of broadcasting.
jax.config.update("jax_numpy_rank_promotion", "raise")
# One warm compilation cache for the whole suite, also across runs.
jax.config.update("jax_compilation_cache_dir", str(cache_dir("jit-tests")))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
# Traced programs are many small objects that live on: collecting rarely spares a tenth of the time.
gc.freeze()
gc.set_threshold(50_000, 20, 50)


# The files that take longest begin first: at the end one worker would go through them alone.
_LONGEST = (
    "test_stress_runs.py",
    "test_processes.py",
    "test_sharding.py",
    "test_loop.py",
    "test_ops.py",
    "test_docs.py",
    "test_tutorial.py",
    "test_faults.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the longest files to the front; the others keep their order."""
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


_history_png = scoring.history_png
_SCRYPT = dict(spec._SCRYPT)


@pytest.fixture(scope="session", autouse=True)
def quick_runs() -> Iterator[None]:
    """Runs in this process draw curves once for all, and hash names fast: both take longer than the
    rest of a small run. `drawn_curves` is for tests of the curves."""
    drawn = functools.cache(
        lambda: _history_png([{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5}])
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "history_png", lambda *_, **__: drawn())
        patch.setitem(spec._SCRYPT, "n", 2)
        yield


@pytest.fixture
def slow_hashes(monkeypatch) -> None:
    """Names are hashed as slowly as they are outside the tests."""
    monkeypatch.setattr(spec, "_SCRYPT", _SCRYPT)


@contextlib.contextmanager
def _drawing_curves() -> Iterator[None]:
    """Runs within it draw their own curves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "history_png", _history_png)
        yield


@pytest.fixture(scope="module")
def drawn_curves(quick_runs) -> Iterator[None]:
    """Each run draws its own curves."""
    with _drawing_curves():
        yield


@pytest.fixture
def unloaded_kernels() -> Iterator[None]:
    """A process that has neither built nor loaded the native kernels yet."""

    def forget() -> None:
        native._library.cache_clear()
        native._target.cache_clear()

    forget()
    yield
    forget()


@pytest.fixture
def strict_dtypes():
    """float32 stays float32: an implicit promotion is an error."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real kidney patches named by GLOMJAX_REAL_DATA; skips without it."""
    folder = os.environ.get("GLOMJAX_REAL_DATA", "")
    if not folder:
        pytest.skip("GLOMJAX_REAL_DATA is not set")
    return pathlib.Path(folder)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    """(a folder of patches, a run of two epochs on it, which its limit has ended); not to be
    changed."""
    folder = tmp_path_factory.mktemp("small")
    patches = write_patches(folder / "patches")
    with _drawing_curves():
        train_and_evaluate(config_for(patches), folder / "run", progress=False)
    return patches, folder / "run"


# (create_model's arguments, image size): the smallest that keep every kind of layer, dropout on.
_SMALL_NETWORKS: dict[str, tuple[dict[str, Any], int]] = {
    "alexnet_mini": ({"name": "alexnet_mini", "dropout_rate": 0.5}, 64),
    "googlenet": ({"name": "googlenet"}, 96),
    "davit": (
        {
            "name": "davit_tiny",
            "depths": (1, 1),
            "embed_dims": (8, 16),
            "num_heads": (1, 2),
            "drop_path_rate": 0.3,
            "dropout_rate": 0.3,
        },
        64,
    ),
}


@pytest.fixture(scope="module", params=_SMALL_NETWORKS)
def small_network(request) -> Iterator[tuple[nnx.Module, int]]:
    """(network without numbers, image size) of each kind.

    GoogLeNet has three of its nine Inception blocks: both auxiliary heads, in a third of the
    compile time.
    """
    options, size = _SMALL_NETWORKS[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(googlenet, "_BLOCKS", FEW_BLOCKS)
        yield (
            nnx.eval_shape(
                lambda: create_model(**options, image_size=(size, size), rngs=nnx.Rngs(0))
            ),
            size,
        )
