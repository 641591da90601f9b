"""The folder that a run leaves: what was requested, on what it ran, what came out."""

import contextlib
import csv
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from glomjax import checkpoints
from glomjax.environment import ENVIRONMENT, Usage, describe_environment, in_parts, parts_of
from glomjax.errors import UserError, argument, assignment
from glomjax.files import flatten, jsonable, write_file
from glomjax.report import FOLDER as REPORT
from glomjax.training.config import MAY_DIFFER, RunConfig
from glomjax.training.config_changes import (
    ShippedConfig,
    changes,
    defaults_of,
    updated,
)
from glomjax.training.progress import RUN_LOG
from glomjax.training.run_lock import LOCK, RunLock


class RunFolder:
    """Paths and plain files of one run.

    Args:
      path: the folder, made where it does not exist.
      writes: False for all but one of several processes: they only read.

    Attributes:
      lock: of the process that trains here; it is not taken yet.

    Raises:
      UserError: the folder cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, writes: bool = True):
        self.path = pathlib.Path(path).expanduser()
        self.writes = writes
        self.best = self.path / "checkpoints" / "best"
        self.last = self.path / "checkpoints" / "last"
        self.lock = RunLock(self.path)
        self._usage = Usage()
        self._environments: list[dict[str, Any]] = []  # of the parts of the run; the last is this
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = "Not a directory" if self.path.is_file() else error.strerror
            raise UserError(
                f"run folder '{self.path}' cannot be made ({reason}); "
                f"name another with {argument('--workdir')}"
            ) from error

    @property
    def finished(self) -> bool:
        """Whether a run has ended here: the test metrics are its last file."""
        return (self.path / "test_metrics.json").is_file()

    @property
    def test_evaluations(self) -> int:
        """How often the test split was judged before the run went on with more epochs."""
        return len(list(self.path.glob("test_metrics_after_*_epochs.json")))

    @property
    def begun(self) -> bool:
        """Whether something has been trained here."""
        return self.finished or checkpoints.exists(self.last)

    def effective(self) -> RunConfig:
        """What took effect in the run that has begun here."""
        return self._config("effective")

    def check_own(self) -> None:
        """Refuses a folder that holds something else than a run; and one of whose run the
        checkpoint is gone that it would go on from, since it would begin anew over the best one."""
        if not (self.path / "config.json").exists():
            # With what a process that was killed leaves of those that it was writing.
            ours = re.compile(rf"checkpoints|{RUN_LOG}|{LOCK}|\.(config\.json|{LOCK})\..*")
            leftovers = [f for f in self.path.iterdir() if not ours.fullmatch(f.name)]
            if self.begun:
                raise UserError(
                    f"'{self.path / 'config.json'}' of the run in this folder is gone; restore it "
                    f"from a copy, or name another folder with {argument('--workdir')}"
                )
            if leftovers and self.writes:
                raise UserError(
                    f"folder '{self.path}' is not empty and holds no run ('{leftovers[0].name}' "
                    f"for one); name another with {argument('--workdir')}"
                )
        begun = checkpoints.exists(self.best) and not self.finished
        if begun and not checkpoints.exists(self.last):
            raise UserError(
                f"'{self.last}', from which the run in '{self.path}' would go on, is not there any "
                f"more; restore it from a copy, begin another run in another folder with "
                f"{assignment('pretrained.source', str(self.best))}, or replace this one with "
                f"{argument('--overwrite', True)}"
            )

    def claim(self, requested: RunConfig, shipped: ShippedConfig | None = None) -> list[str]:
        """Takes the folder for this configuration, or refuses one that holds another's run.

        A field whose default has changed is no difference: the run keeps what it began with.

        Args:
          shipped: the configuration of this package that `requested` began as.

        Returns:
          Lines on what differs from the run so far.
        """
        self.check_own()
        self.best.parent.mkdir(exist_ok=True)
        if not (self.path / "config.json").exists():
            changed, kept = dict[str, str](), dict[str, str]()
        else:
            stored = self._stored().get("defaults")
            changed, kept = changes(self._config("requested"), stored, requested, shipped)
        if not self.begun:
            # Nothing was trained with another one that stands here: a mistake that was put right.
            self.write_config(requested, requested, defaults=defaults_of(shipped))
            return []
        # A cosine over the epochs is another one when their number is.
        may_differ = set(MAY_DIFFER)
        if requested.schedule == "cosine":
            may_differ -= {"num_epochs", "demo.num_epochs"}
        if forbidden := [text for key, text in changed.items() if key not in may_differ]:
            raise UserError(
                f"folder '{self.path}' holds a run with another configuration "
                f"({'; '.join(forbidden)}); name another folder with {argument('--workdir')}, or "
                f"replace the run with {argument('--overwrite', True)}"
            )
        changed.pop("report", None)  # pages are no part of what is trained
        # A field that is set on the command line takes that of `demo` with it.
        told = [key for key in changed if not key.startswith("demo.")] or list(changed)
        lines = [f"other than before: {', '.join(told)}"] if told else []
        return lines + [f"the run keeps its own: {text} by default" for text in kept.values()]

    def going_on(self, requested: RunConfig) -> tuple[RunConfig, RunConfig] | None:
        """(requested, settled) configuration of the run that goes on here, with what may differ as
        it is requested now; None where none has begun."""
        if not checkpoints.exists(self.last):
            return None
        then = self._config("requested")
        effective = self._config("effective")
        return updated(then, then, requested), updated(effective, then, requested)

    def kept_splits(self) -> dict[str, str] | None:
        """{id: split} of the run that goes on here, None where none has begun."""
        file = self.path / "splits.csv"
        if not self.begun or not file.is_file():
            return None
        try:
            with open(file, newline="", encoding="utf-8") as stream:
                return {row["path"]: row["split"] for row in csv.DictReader(stream)}
        except (KeyError, OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(
                f"'{file}' is not the table that the run wrote ({type(error).__name__}: {error}); "
                f"restore it, or name another folder with {argument('--workdir')}"
            ) from error

    def write_splits(self, table: str) -> None:
        """`splits.csv`: who is in which split; a run that goes on keeps its own."""
        if not (self.begun and (self.path / "splits.csv").is_file()):
            self.write("splits.csv", table)

    def read_json(self, name: str) -> dict[str, Any]:
        """A file that the run wrote; UserError where it is not that any more."""
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self.path / name).read_text())
            if isinstance(found, dict) and found:
                return found
        raise self._not_written_so(name)

    def _not_written_so(self, name: str) -> UserError:
        return UserError(
            f"'{self.path / name}' is not what the run wrote; restore it from a copy, or remove "
            "it, so that it is written anew"
        )

    def _stored(self) -> dict[str, Any]:
        file = self.path / "config.json"
        try:
            stored = dict(json.loads(file.read_text()))
            checksum = _checksum(stored)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise self._no_run() from error
        if stored.get("checksum", checksum) != checksum:  # runs of earlier versions have none
            raise UserError(
                f"'{file}' is not what the run wrote; restore it from a copy, or name another "
                f"folder with {argument('--workdir')}"
            )
        return stored

    def _no_run(self) -> UserError:
        return UserError(
            f"'{self.path / 'config.json'}' is not the configuration of a run; name another folder "
            f"with {argument('--workdir')}"
        )

    def _config(self, which: str) -> RunConfig:
        """The requested or the effective configuration in `config.json`; fields that did not exist
        when it was written have their defaults."""
        try:
            return RunConfig.from_dict(self._stored()[which])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise self._no_run() from error

    def check_data(self, digest: str, source: str) -> None:
        """Refuses other data than those of the run that has begun here: a redrawn split would leak
        training patients.

        Args:
          digest: of the data, as `DataSplits.digest` gives it.
          source: where they were read now.
        """
        before = self._stored().get("data", digest)
        if before != digest and self.begun:
            then = self._config("requested").data.source
            moved = "" if then == source else f" from {source!r}, and the run read {then!r}"
            raise UserError(
                f"the images, labels, patients, classes or splits, as they are read now{moved}, "
                f"are not those of the run in '{self.path}'; restore them or name another folder "
                f"with {argument('--workdir')}"
            )

    def reopen(self) -> None:
        """A finished run goes on: its results stay under other names, since they are not those of
        the weights that are kept from now on."""
        epochs = self.read_json("test_metrics.json").get("epochs", 0)
        tables = "predictions.csv", "predictions_validation.csv"
        # The metrics last: until then the run is finished, and this is done again.
        for name in (REPORT, *tables, "test_metrics.json"):
            file = self.path / name
            kept = file.with_stem(f"{file.stem}_after_{epochs}_epochs")
            try:
                if file.is_dir() and kept.is_dir():  # of the time before
                    shutil.rmtree(kept)
                if file.exists():
                    os.replace(file, kept)
            except OSError as error:
                raise UserError(
                    f"'{file}' cannot be renamed ({error.strerror}), and the run does not go on "
                    "over it; make its folder writable"
                ) from error

    def tidy_checkpoints(self) -> None:
        """A finished run needs no second checkpoint to go on from."""
        if self.writes:
            checkpoints.tidy(self.last)
            checkpoints.tidy(self.best)

    def write_config(
        self,
        requested: RunConfig,
        effective: RunConfig,
        *,
        data: str | None = None,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        """`config.json`: what was requested, what was taken where that left it open, a digest of
        the data, and the defaults of the time, where none are given those that stand there."""
        stored = self._stored().get("defaults") if defaults is None else defaults
        both: dict[str, Any] = {
            "requested": requested.to_dict(),
            "effective": effective.to_dict(),
        }
        if data is not None:
            both["data"] = data
        if stored is not None:
            both["defaults"] = stored
        both["checksum"] = _checksum(both)
        self.write("config.json", json.dumps(both, indent=2) + "\n")

    def write_environment(self, config: RunConfig) -> None:
        """`environment.json`: versions, machine, native kernels, git commit, command and seed, when
        the run began, and what it takes, which `write_usage` brings up to date.

        Where a run goes on, perhaps on another machine, the first environment stays, and the list
        `resumed` has the later ones.
        """
        parts = []
        if self.begun and (self.path / ENVIRONMENT).is_file():
            try:
                parts = parts_of(self.read_json(ENVIRONMENT))
            except ValueError as error:
                raise self._not_written_so(ENVIRONMENT) from error
        here = describe_environment(config.precision) | {"seed": config.seed}
        self._environments = [*parts, here | self._usage.to_dict()]
        self.write(ENVIRONMENT, self._environment())

    def write_usage(self) -> None:
        """Brings time and memory in `environment.json` up to date. No run ends for these: where
        the disk is full or the folder gone, the checkpoints say so."""
        self._environments[-1] |= self._usage.to_dict()
        with contextlib.suppress(UserError):
            self.write(ENVIRONMENT, self._environment())

    def _environment(self) -> str:
        return json.dumps(in_parts(self._environments), indent=2) + "\n"

    def write_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """`metrics.jsonl`: a line an epoch."""
        self.write("metrics.jsonl", "".join(json.dumps(jsonable(row)) + "\n" for row in history))

    def write(self, name: str, content: str | bytes) -> None:
        """A file of the run, whole or not at all; errors as of `RunLock.check`."""
        if self.writes:
            self.lock.check()
            write_file(self.path / name, content.encode() if isinstance(content, str) else content)


def _checksum(config: Mapping[str, Any]) -> str:
    """Of what takes effect, but for what may differ from one part of the run to the next: a digit
    that has changed on the disk would train another network. A field that has its default counts
    for nothing, as one that did not exist when the file was written."""
    effective = flatten(config.get("effective") or {})
    defaults = flatten((config.get("defaults") or {}).get("package") or {})
    decides = {
        key: value
        for key, value in effective.items()
        if key not in MAY_DIFFER and (key not in defaults or value != defaults[key])
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def clear(path: str | os.PathLike[str]) -> None:
    """Removes a run, so that another can take its folder.

    Raises:
      UserError: the folder exists, is not empty and holds no run, or another process trains in
        it: it is left as it is. Or something in it cannot be removed.
    """
    folder = pathlib.Path(path).expanduser()
    try:
        if not folder.exists():
            return
        if folder.is_dir() and all(entry.name == LOCK for entry in folder.iterdir()):
            return  # of a process that has just begun, or has died then
        holds_run = "requested" in dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, TypeError):
        holds_run = False
    if not holds_run:
        raise UserError(
            f"'{folder}' holds no run, so {argument('--overwrite', True)} leaves it alone; name "
            f"another with {argument('--workdir')}"
        )
    try:
        with RunLock(folder):
            # The folder itself may be a link to another disk. The file that says what it holds
            # goes last: where something stops this, the same command can be tried again.
            for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == "config.json"):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry.name != LOCK:
                    entry.unlink()
    except OSError as error:
        raise UserError(
            f"the run in '{folder}' cannot be removed ({error.strerror or error}); name another "
            f"folder with {argument('--workdir')}"
        ) from error
