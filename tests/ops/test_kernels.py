"""The building of the native kernels, and what happens where they cannot be built."""

import shutil

import jax
import pytest

from glomjax.ops import native


@pytest.fixture
def unbuilt(tmp_path, monkeypatch):
    """A process that has built nothing yet, with a cache of its own."""
    monkeypatch.setenv("GLOMJAX_CACHE", str(tmp_path))
    for cached in (native._library, native._target):
        cached.cache_clear()
    yield tmp_path
    for cached in (native._library, native._target):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [("no-such-compiler", "there is no C++ compiler"), ("false", "failed")],
)
def test_without_a_library_the_log_says_why(unbuilt, monkeypatch, compiler, reason):
    monkeypatch.setenv("CXX", compiler)
    assert native._library().prefix == ""
    assert native.status().startswith("native kernels: off, ")
    assert reason in native.status()
    assert "more slowly" in native.status()


def test_a_cache_that_cannot_be_written_is_said(unbuilt):
    (unbuilt / "native").write_text("a file where the folder should be")
    assert native.status().startswith("native kernels: off, ")


@pytest.mark.parametrize("able", [True, False])
def test_how_bfloat16_is_computed_is_said(monkeypatch, able):
    library = native._Library("prefix_", bfloat16=able)
    monkeypatch.setattr(native, "_library", lambda: library)
    if jax.device_count() == 1:
        said = native.status("bfloat16")
        assert said.startswith(f"native kernels: {'on' if able else 'off'}, ")
        assert "products in bfloat16" in said
        assert native.activations("bfloat16") == ("float32" if able else "bfloat16")
    with native.setting("off"):
        assert native.activations("bfloat16") == "bfloat16"


def test_cxx_names_the_compiler_and_may_have_arguments(monkeypatch):
    monkeypatch.setenv("CXX", "true -g '-DA=b c'")
    path, *arguments = native._compiler()
    assert path.endswith("/true")
    assert arguments == ["-g", "-DA=b c"]


def test_unbalanced_quotes_in_cxx_are_no_crash(unbuilt, monkeypatch):
    monkeypatch.setenv("CXX", "g++ '")
    assert native.status().startswith("native kernels: off, ")


def test_a_build_is_announced_where_there_is_no_library_yet(unbuilt):
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    assert native.must_build()
    with native.setting("off"):
        assert not native.must_build()
    library = native._target().path
    library.parent.mkdir()
    library.touch()
    assert not native.must_build()


def test_nothing_is_announced_where_nothing_can_be_built(unbuilt, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not native.must_build()
