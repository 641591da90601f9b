"""The building of the native kernels, and what happens where they cannot be built."""

import shutil

import jax
import pytest

from glomjax.files import checksum
from glomjax.ops import native


@pytest.fixture
def unbuilt(tmp_path, monkeypatch, unloaded_kernels):
    """A process that has built nothing yet, with a cache of its own."""
    monkeypatch.setenv("GLOMJAX_CACHE", str(tmp_path))
    return tmp_path


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


@pytest.fixture
def copied(monkeypatch, tmp_path, request):
    """The library of this process, which a stand-in for the compiler gives again at once; a line a
    time in the file `builds`."""
    if not native.supports(jax.numpy.ones(1)):
        pytest.skip("there are no native kernels here")
    library = native._target().path
    compiler = tmp_path / "compiler"
    compiler.write_text(
        "#!/bin/bash\n"
        'if [ "$1" = --version ]; then echo 1; exit; fi\n'
        f"echo >> {tmp_path}/builds\n"
        f'cp {library} "${{@: -1}}"\n'
    )
    compiler.chmod(0o755)
    request.getfixturevalue("unbuilt")
    monkeypatch.setenv("CXX", str(compiler))
    return library


@pytest.mark.parametrize("damage", ["truncated", "empty", "zeros", "flipped", "unchecked"])
def test_a_damaged_library_is_built_again_and_never_loaded(copied, unbuilt, damage):
    target, good = native._target(), copied.read_bytes()
    native._load(target)
    if damage == "unchecked":  # of an earlier version, or of a process that died in between
        target.path.with_suffix(".sha256").unlink()
    else:
        middle = len(good) // 2
        flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
        contents = {"truncated": good[:middle], "empty": b"", "zeros": bytes(len(good))}
        # In place of the file, which this process has loaded.
        target.path.unlink()
        target.path.write_bytes(contents.get(damage, flipped))
    assert native.must_build()
    native._load(target)
    assert (unbuilt / "builds").read_text() == "\n\n"
    assert target.path.read_bytes() == good
    assert not native.must_build()
    native._load(target)
    assert (unbuilt / "builds").read_text() == "\n\n"


def test_where_the_cache_cannot_be_written_kernels_are_built_all_the_same(copied, unbuilt):
    (unbuilt / "native").write_text("a file where the folder should be")
    assert native._load(native._target()).glomjax_bfloat16 is not None
    assert native.must_build()


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
    assert native.must_build()  # it may be a part of one
    library.with_suffix(".sha256").write_text(checksum(library))
    assert not native.must_build()


def test_nothing_is_announced_where_nothing_can_be_built(unbuilt, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not native.must_build()
