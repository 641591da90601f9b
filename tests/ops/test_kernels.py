"""The building of the native kernels, and what happens where they cannot be built."""

import pytest

from glomjax.ops import native


@pytest.fixture
def unbuilt(tmp_path, monkeypatch):
    """A process that has built nothing yet, with a cache of its own."""
    monkeypatch.setenv("GLOMJAX_CACHE", str(tmp_path))
    native._library.cache_clear()
    yield tmp_path
    native._library.cache_clear()


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [("no-such-compiler", "there is no C++ compiler"), ("false", "failed")],
)
def test_without_a_library_the_log_says_why(unbuilt, monkeypatch, compiler, reason):
    monkeypatch.setenv("CXX", compiler)
    assert native._library()[0] == ""
    assert native.status().startswith("native kernels: off, ")
    assert reason in native.status()
    assert "more slowly" in native.status()


def test_a_cache_that_cannot_be_written_is_said(unbuilt):
    (unbuilt / "native").write_text("a file where the folder should be")
    assert native.status().startswith("native kernels: off, ")


def test_bfloat16_is_said_to_run_without_them():
    assert "float32 and not in bfloat16" in native.status("bfloat16")


def test_cxx_names_the_compiler_and_may_have_arguments(monkeypatch):
    monkeypatch.setenv("CXX", "true -g '-DA=b c'")
    path, *arguments = native._compiler()
    assert path.endswith("/true")
    assert arguments == ["-g", "-DA=b c"]


def test_unbalanced_quotes_in_cxx_are_no_crash(unbuilt, monkeypatch):
    monkeypatch.setenv("CXX", "g++ '")
    assert native.status().startswith("native kernels: off, ")
