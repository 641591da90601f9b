"""Checkpoints that count only when they are whole.

A checkpoint is a folder: `arrays/` (Orbax), `metadata.json` (everything that is not an array) and,
written last, `manifest.json` with the size and SHA-256 of every other file. Orbax restores an array
file with a flipped bit without a word, so a folder without a matching manifest does not exist.
"""

import concurrent.futures
import contextlib
import errno
import json
import logging
import os
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from glomjax.errors import UserError, same_again
from glomjax.files import checksum
from glomjax.logs import logging_left_to_scripts

PARAMS = "params/"  # in front of the paths of parameters, beside the optimizer's arrays
Arrays = Mapping[str, jax.Array | np.ndarray]


class Writer:
    """Saves in the background, one checkpoint after another, in the order asked for.

    An error of a save is raised by the next call.

    Args:
      check: is called before a checkpoint takes the place of another, and raises where it must not.

    Attributes:
      seconds: that the longest one took; 0 before the first.
    """

    def __init__(self, check: Callable[[], None] = lambda: None) -> None:
        self._check = check
        self.seconds = 0.0
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        self._running: concurrent.futures.Future[None] | None = None

    def save(
        self,
        folder: pathlib.Path,
        arrays: Mapping[str, np.ndarray],
        metadata: Mapping[str, Any],
        *,
        keep_previous: bool = False,
    ) -> None:
        """`save`, once the one before has ended; the arrays must not change any more."""
        self.wait()
        self._running = self._thread.submit(
            self._save, folder, arrays, dict(metadata), keep_previous
        )

    def _save(self, folder: pathlib.Path, arrays: Arrays, metadata: Any, previous: bool) -> None:
        if not folder.parent.is_dir():  # which must not come back with a part of a run
            raise UserError(f"'{folder.parent}' is not there any more; '{folder.name}' is lost")
        begun = time.monotonic()
        try:
            save(folder, arrays, metadata, keep_previous=previous, check=self._check)
        except Exception:
            # Where the run's folder went meanwhile, Orbax has made another one to write into.
            shutil.rmtree(_new(folder), ignore_errors=True)
            with contextlib.suppress(OSError):  # that they are not empty
                folder.parent.rmdir()
                folder.parent.parent.rmdir()
            self._check()  # says so, where Orbax says what it missed there
            raise
        self.seconds = max(self.seconds, time.monotonic() - begun)

    def wait(self) -> None:
        """Returns when everything is on the disk."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        """Waits and ends the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()


def save(
    folder: pathlib.Path,
    arrays: Arrays,
    metadata: Mapping[str, Any],
    *,
    keep_previous: bool = False,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Writes a checkpoint in place of the one in `folder`, which stays whole until the new one is.

    Args:
      arrays: flat dict of arrays.
      metadata: JSON-ready.
      keep_previous: keep the replaced one beside it, as `FOLDER.old`.
      check: is called before that, and raises where it must not be replaced any more.

    Raises:
      UserError: it cannot be written; the one in `folder` is as it was.
    """
    try:
        _save(folder, arrays, metadata, keep_previous, check)
    except OSError as error:
        # What there is of the new one takes the room that somebody has to make.
        shutil.rmtree(_new(folder), ignore_errors=True)
        raise UserError(
            f"checkpoint '{folder}' cannot be written ({error.strerror or error}); make room, and "
            f"{same_again()} goes on after the last checkpoint"
        ) from error


def _save(
    folder: pathlib.Path,
    arrays: Arrays,
    metadata: Mapping[str, Any],
    keep_previous: bool,
    check: Callable[[], None],
) -> None:
    new = _new(folder)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    host = {path: np.asarray(array) for path, array in arrays.items()}
    if sum(array.nbytes for array in host.values()) > shutil.disk_usage(new).free:
        # Orbax would say so as well, but its threads say more behind it.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with _errors_of_the_disk(), logging_left_to_scripts(), _checkpointer() as checkpointer:
        checkpointer.save(new.absolute() / "arrays", host)
    # Orbax writes the folder's absolute path into this one, which it reads on cloud storage alone.
    (new / "arrays" / "commit_success.txt").unlink(missing_ok=True)
    (new / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    manifest = json.dumps(_digests(new), indent=2) + "\n"
    (new / "manifest.json").write_text(manifest)
    check()
    old = _old(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(new, folder)
    if not keep_previous:
        shutil.rmtree(old, ignore_errors=True)


def tidy(folder: pathlib.Path) -> None:
    """Removes what lies beside the checkpoint in `folder`: the one that `keep_previous` has kept,
    and what a process that died has left of another one."""
    shutil.rmtree(_new(folder), ignore_errors=True)
    if (folder / "manifest.json").is_file():
        shutil.rmtree(_old(folder), ignore_errors=True)


def exists(folder: pathlib.Path) -> bool:
    """Whether `folder` holds a checkpoint, or its predecessor does (see `restore`)."""
    return _newest(folder) is not None


def fingerprint(folder: pathlib.Path) -> str:
    """SHA-256 of the manifest of the checkpoint in `folder`, and so of every file in it."""
    found = _existing(folder)
    return checksum(found / "manifest.json")


def restore(folder: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays, metadata) of the checkpoint in `folder`.

    Raises:
      UserError: there is none, or its files are not those that were written.
    """
    found = _existing(folder)
    return _restore(found)


def read_metadata(folder: pathlib.Path) -> dict[str, Any]:
    """The metadata of the checkpoint in `folder`, without its arrays; errors as of `restore`."""
    found = _existing(folder)
    file = found / "metadata.json"
    if not file.is_file() or _manifest(found).get(file.name) != _digest(file):
        raise _damaged(found, file.name)
    return _json(found, file.name)


def params_of(arrays: Arrays) -> dict[str, Any]:
    """{path: parameter} of what a checkpoint of a run holds."""
    return {
        name.removeprefix(PARAMS): value
        for name, value in arrays.items()
        if name.startswith(PARAMS)
    }


def restore_or_previous(
    folder: pathlib.Path,
) -> tuple[dict[str, np.ndarray], dict[str, Any], str]:
    """(arrays, metadata, note) of the checkpoint in `folder`, or of the one that it replaced where
    it is damaged; the note says so then, and is "" otherwise.

    Raises:
      UserError: there is none, or both are damaged.
    """
    previous = _old(folder)
    has_previous = folder.exists() and (previous / "manifest.json").is_file()
    try:
        if has_previous and not (folder / "manifest.json").is_file():
            raise _damaged(folder, "manifest.json")
        return *restore(folder), ""
    except UserError as error:
        if not has_previous:
            raise
        found = str(error).partition(";")[0]
        return *_restore(previous), f"{found}; going on from the one before it, '{previous}'"


def _restore(found: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    written, present = _manifest(found), _digests(found)
    damaged = [f for f in sorted(written | present) if written.get(f) != present.get(f)]
    if damaged:
        raise _damaged(found, damaged[0])
    try:
        with logging_left_to_scripts(), _checkpointer() as checkpointer:
            restored = checkpointer.restore(found.absolute() / "arrays")
        arrays = {path: np.asarray(array) for path, array in restored.items()}
    except Exception as error:  # of several libraries: damaged before its digests were taken
        raise UserError(
            f"checkpoint '{found}' cannot be read ({type(error).__name__}); restore the folder "
            "from a copy or remove it"
        ) from error
    return arrays, _json(found, "metadata.json")


@contextlib.contextmanager
def _errors_of_the_disk() -> Iterator[None]:
    """Orbax raises ValueError where a disk is full, after it has logged the same from each of its
    threads: that becomes an OSError, and nothing is logged."""
    log, hook = logging.getLogger("absl"), sys.unraisablehook

    def raised_as_well(record: logging.LogRecord) -> bool:
        return "raised an exception" not in record.getMessage()

    def of_no_closed_loop(unraisable: Any) -> None:
        # What TensorStore would still have told a coroutine that has ended by the error.
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    log.addFilter(raised_as_well)
    sys.unraisablehook = of_no_closed_loop
    try:
        yield
        sys.unraisablehook = hook  # after an error its threads may come late
    except ValueError as error:
        status = re.match(r"[A-Z_]+(?=: )", str(error))
        if status is None:
            raise
        code = re.search(r"os_error_code='(\d+)'", str(error))
        number = int(code[1]) if code else errno.EIO
        said = os.strerror(number) if code else status[0].replace("_", " ").lower()
        raise OSError(number, said) from error
    finally:
        log.removeFilter(raised_as_well)


def _checkpointer() -> Any:
    """Orbax as this process alone uses it: with several, process 0 writes and each one reads."""
    import orbax.checkpoint as ocp

    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _new(folder: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(f"{folder}.new")


def _old(folder: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(f"{folder}.old")


def _newest(folder: pathlib.Path) -> pathlib.Path | None:
    """The folder, or the old one that a kill between the two renames of `save` left behind."""
    for candidate in (folder, _old(folder)):
        if (candidate / "manifest.json").is_file():
            return candidate
    return None


def _existing(folder: pathlib.Path) -> pathlib.Path:
    """`_newest`; UserError where there is none."""
    found = _newest(folder)
    if found is None:
        raise UserError(f"'{folder}' holds no checkpoint")
    return found


def _manifest(folder: pathlib.Path) -> dict[str, str]:
    return _json(folder, "manifest.json")


def _json(folder: pathlib.Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text())
    except (FileNotFoundError, ValueError, RecursionError) as error:  # no JSON, or no text
        raise _damaged(folder, name) from error
    if not isinstance(content, dict):
        raise _damaged(folder, name)
    return content


def _damaged(folder: pathlib.Path, file: str) -> UserError:
    return UserError(
        f"checkpoint '{folder}' is damaged: file '{file}' is not what was written; "
        "restore the folder from a copy or remove it"
    )


def _digests(folder: pathlib.Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): _digest(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / "manifest.json"
    }


def _digest(file: pathlib.Path) -> str:
    return f"{file.stat().st_size}:{checksum(file)}"
