"""Settings that every test runs under."""

import os
import pathlib

import hypothesis
import jax
import pytest

from glomjax.cache import cache_dir

# How long an example takes says nothing on a shared machine.
hypothesis.settings.register_profile("glomjax", deadline=None)
hypothesis.settings.load_profile("glomjax")
# A test that adds [B] to [B, 1] by accident fails instead of broadcasting.
jax.config.update("jax_numpy_rank_promotion", "raise")
# One warm compilation cache for the whole suite, also across runs.
jax.config.update("jax_compilation_cache_dir", str(cache_dir("jit-tests")))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


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
