"""Checkpoints: bit-exact, and either whole or refused."""

import errno
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from glomjax import checkpoints
from glomjax.errors import UserError

ARRAYS = {
    "params/stages/0/kernel": np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32),
    "params/odd": np.array([np.nan, np.inf, -0.0, 1e-45], np.float32),
    "params/half": jnp.arange(7, dtype=jnp.bfloat16) / 3,
    "optimizer/0": np.array(12, np.int32),
}
METADATA = {"classes": ["other", "glomerulus"], "position": {"epoch": 3, "rate": 1e-3}}


def files_of(folder: pathlib.Path) -> list[str]:
    return sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints" / "best"
    checkpoints.save(folder, ARRAYS, METADATA)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """A checkpoint that a test may damage."""
    return pathlib.Path(shutil.copytree(saved, tmp_path / "best"))


def test_a_checkpoint_comes_back_bit_for_bit(saved):
    assert checkpoints.exists(saved)
    arrays, metadata = checkpoints.restore(saved)
    assert metadata == METADATA
    assert arrays.keys() == ARRAYS.keys()
    for path, array in ARRAYS.items():
        expected = np.asarray(array)
        assert (arrays[path].dtype, arrays[path].shape) == (expected.dtype, expected.shape), path
        assert arrays[path].tobytes() == expected.tobytes(), path


def test_a_flipped_bit_in_any_file_is_found_and_the_file_named(copy):
    for name in files_of(copy):
        file = copy / name
        content = file.read_bytes()
        if not content:
            continue
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        file.write_bytes(flipped)
        with pytest.raises(UserError, match=r"is damaged: file '.*' is not what was written") as e:
            checkpoints.restore(copy)
        if name != "manifest.json":
            assert f"'{name}'" in str(e.value)
        file.write_bytes(content)
    checkpoints.restore(copy)


@pytest.mark.parametrize("name", ["metadata.json", "arrays/_METADATA"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"file '{name}' is not what was written"):
        checkpoints.restore(copy)


@pytest.mark.parametrize("name", ["notes.txt", "arrays/manifest.json"])
def test_a_file_that_was_not_written_is_named(copy, name):
    (copy / name).write_text("{}")
    with pytest.raises(UserError, match=f"file '{name}' is not what was written"):
        checkpoints.restore(copy)


@pytest.mark.parametrize("content", [b"", b'{"metadata.json": "12', b"[1]", b"\xff\xfe"])
def test_a_damaged_manifest_is_refused(copy, content):
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"file 'manifest.json' is not what was written"):
        checkpoints.restore(copy)


def test_a_folder_without_a_manifest_is_no_checkpoint(copy, tmp_path):
    (copy / "manifest.json").unlink()
    assert not checkpoints.exists(copy)
    for folder in (copy, tmp_path / "nothing"):
        with pytest.raises(UserError, match=f"'{folder}' holds no checkpoint"):
            checkpoints.restore(folder)


def test_saving_again_replaces_the_checkpoint_and_leaves_nothing_else(copy):
    checkpoints.save(copy, {"x": np.ones(2, np.float32)}, {"new": True})
    arrays, metadata = checkpoints.restore(copy)
    assert (list(arrays), metadata) == (["x"], {"new": True})
    assert [f.name for f in copy.parent.iterdir()] == [copy.name]


def test_a_kill_between_the_two_renames_leaves_the_old_checkpoint(copy, monkeypatch):
    replace = checkpoints.os.replace

    def killed(source, target):
        if str(source).endswith(".new"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(checkpoints.os, "replace", killed)
    for _ in range(2):  # the second kill must not cost the one copy that is left
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(copy, {"x": np.ones(2, np.float32)}, {})
        assert not copy.exists()
        assert checkpoints.exists(copy)
        assert checkpoints.restore(copy)[1] == METADATA
    monkeypatch.undo()
    checkpoints.save(copy, {"x": np.ones(2, np.float32)}, {})
    assert list(checkpoints.restore(copy)[0]) == ["x"]
    assert [f.name for f in copy.parent.iterdir()] == [copy.name]


def test_a_full_disk_is_one_sentence_and_the_former_checkpoint_stays(copy, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "_digests", full)
    with pytest.raises(UserError, match=r"best' cannot be written \(No space left on device\)"):
        checkpoints.save(copy, {"params/a": np.zeros(2)}, {})
    monkeypatch.undo()
    assert checkpoints.restore(copy)[1] == METADATA
