"""Cross-validation: a run for each fold, so that every patient is tested once.

The folder holds an ordinary run for each fold, `repeat_0/fold_0` and so on, and what they say
together. Any number of processes, on machines that share the disk, may be given the same folder at
once: the lock of each run says who trains it, and whoever finds all of them finished writes the
results.
"""

import dataclasses
import json
import os
import pathlib
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from glomjax.data.examples import SPLITS, DataSplits
from glomjax.data.permuted_labels import PERMUTED_LABELS
from glomjax.errors import UserError, argument, assignment, plural
from glomjax.files import write_file
from glomjax.pretrained.sources import CROSSVAL
from glomjax.report.page import make_report
from glomjax.training.config import MAY_DIFFER, RunConfig
from glomjax.training.config_changes import ShippedConfig, changes, defaults_of, updated
from glomjax.training.config_checks import check_values, read_config
from glomjax.training.crossval_results import fold_folder, write_results
from glomjax.training.finished import check_finished
from glomjax.training.interrupts import Interrupted, TimeLimit
from glomjax.training.loop import train_and_evaluate
from glomjax.training.progress import Terminal
from glomjax.training.run_folder import RunFolder
from glomjax.training.run_lock import LOCK, RunInUse
from glomjax.training.setup import load_splits

_MOST_REPEATS = 100
_POLL_SECONDS = 5.0  # between two looks at folds that other processes train
# What may differ between the parts of a cross-validation: as of a run, but for the number of
# epochs, since folds with another one would be folds of another recipe.
_FIXED = ("num_epochs", "demo.num_epochs")


@dataclasses.dataclass(frozen=True)
class Fold:
    """One run of a cross-validation; both numbers count from 0."""

    repeat: int
    fold: int
    path: pathlib.Path
    config: RunConfig

    @property
    def run(self) -> RunFolder:
        """Its folder, which is made where it does not exist."""
        return RunFolder(self.path)


def cross_validate(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    folds: int,
    repeats: int = 1,
    progress: bool = True,
    shipped: ShippedConfig | None = None,
    max_hours: float = 0.0,
) -> dict[str, Any]:
    """Trains and tests a network for each fold, and puts their tests together.

    Of every repeat each patient is in the test split of one fold. Repeat r has r added to
    `config.seed` and to `config.data.split_seed`. The same call goes on with what is not finished;
    folds that another process trains now are passed over, and waited for at the end.

    Args:
      config: as for `train_and_evaluate`, without folds of its own.
      workdir: the folder; `metrics.json`, `report.txt`, `environment.json` and `out_of_fold.csv`
        are written there.
      folds: at least 2, and at most as many as each class has patients.
      repeats: how often all of it is done; more of them may be asked for later.
      progress, shipped: as for `train_and_evaluate`.
      max_hours: after which the call must have ended; 0 for no limit.

    Returns:
      What `metrics.json` holds.

    Raises:
      UserError: whatever the user can put right.
      Interrupted: SIGTERM or Ctrl-C came, or the time is up; everything is saved.
    """
    limit = TimeLimit(max_hours)
    if jax.process_count() > 1:
        raise UserError(
            "a cross-validation is not done by the processes of one job together; start it in each "
            "of them by itself, with the same folder, and they share its folds"
        )
    if not isinstance(workdir, (str, os.PathLike)):
        raise UserError(
            f"{argument('--workdir')} is {workdir!r}; it is the path of the cross-validation's "
            "folder, which is made where it does not exist"
        )
    _check_numbers(config, folds, repeats)
    requested = _with_folds(read_config(config), folds)
    folder = pathlib.Path(workdir).expanduser()
    requested, lines, content = _claim(folder, requested, repeats, shipped)
    terminal = Terminal(prints=progress)
    for line in lines:
        terminal.say(line)
    runs = [
        Fold(repeat, fold, fold_folder(folder, repeat, fold), _of(requested, repeat, fold))
        for repeat in range(int(repeats))
        for fold in range(int(folds))
    ]
    if all(fold.run.finished for fold in runs):
        lines = [check_finished(runs[0].run, runs[0].config, None)]
    else:
        lines = _draw(runs)
    for line in filter(None, lines):
        terminal.say(line)
    write_file(folder / CROSSVAL, content)
    _train(runs, limit, terminal, progress=progress)
    for fold in runs:
        fold.run.claim(fold.config)  # or another process has trained it otherwise
    metrics, report = write_results(
        folder, repeats, folds, requested.data.split_by, requested.decision.threshold
    )
    first = [metrics["control_message"], PERMUTED_LABELS if metrics["permuted_labels"] else ""]
    for line in report.splitlines():
        (terminal.banner if line in first else terminal.say)(line)
    if requested.report != "none":
        try:
            terminal.say(f"report: {make_report(folder)}")
        except UserError as error:  # such as patches that a fold has kept, and somebody changed
            terminal.banner(f"there is no report: {error}")
    terminal.say(f"results: {folder}")
    return metrics


def _check_numbers(config: ConfigDict, folds: int, repeats: int) -> None:
    """Raises UserError for numbers that no cross-validation has, and for a fold of its own."""
    for option, value, most in (("--folds", folds, 1000), ("--repeats", repeats, _MOST_REPEATS)):
        least = 2 if option == "--folds" else 1
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or not least <= value <= most:
            raise UserError(
                f"{argument(option)} is {value!r}; it is a whole number from {least} to {most}"
            )
    for key in ("folds", "fold"):
        if value := config.get("data", {}).get(key):
            raise UserError(
                f"{assignment(f'data.{key}')} is {value}, and a cross-validation goes through all "
                f"of its folds; leave it at 0, and say how many with {argument('--folds')}"
            )


def _with_folds(config: RunConfig, folds: int) -> RunConfig:
    """The configuration of the first fold."""
    if config.data.source == "synthetic":
        raise UserError(
            "a cross-validation divides the data itself, and the embedded data is divided already; "
            f"name a folder or a table with {assignment('data.source')}"
        )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, folds=int(folds)))
    check_values(config)
    return config


def _of(config: RunConfig, repeat: int, fold: int) -> RunConfig:
    """The configuration of one fold."""
    data = dataclasses.replace(config.data, fold=fold, split_seed=config.data.split_seed + repeat)
    return dataclasses.replace(config, seed=config.seed + repeat, data=data)


def _claim(
    folder: pathlib.Path, requested: RunConfig, repeats: int, shipped: ShippedConfig | None
) -> tuple[RunConfig, list[str], bytes]:
    """Takes the folder for a cross-validation with this configuration.

    Returns:
      The configuration that holds, whose fields are those with which it began, but for what may
      differ; lines on what differs; and what its file is to hold once the data are looked at.

    Raises:
      UserError: the folder holds something else, or a cross-validation with another configuration.
    """
    file = folder / CROSSVAL
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = [entry.name for entry in folder.iterdir()]
    except OSError as error:
        reason = "Not a directory" if folder.is_file() else error.strerror
        raise UserError(
            f"folder '{folder}' cannot be made ({reason}); name another with "
            f"{argument('--workdir')}"
        ) from error
    # Beside what another process writes there at this moment.
    others = [name for name in there if not re.fullmatch(rf"\.{CROSSVAL}\..*", name)]
    if not file.is_file() and others:
        raise UserError(
            f"folder '{folder}' is not empty and holds no cross-validation ('{min(others)}' for "
            f"one); name another with {argument('--workdir')}"
        )
    lines: list[str] = []
    stored: dict[str, Any] = {"defaults": defaults_of(shipped), "repeats": repeats}
    if goes_on := file.is_file() and _has_begun(folder):
        stored, then = _stored(file)
        changed, kept = changes(then, stored.get("defaults"), requested, shipped)
        forbidden = [
            text for key, text in changed.items() if key in _FIXED or key not in MAY_DIFFER
        ]
        if forbidden:
            raise UserError(
                f"folder '{folder}' holds a cross-validation with another configuration "
                f"({'; '.join(forbidden)}); name another folder with {argument('--workdir')}"
            )
        if repeats < stored["repeats"]:
            raise UserError(
                f"folder '{folder}' holds a cross-validation of {stored['repeats']} repeats, and "
                f"{argument('--repeats')} is {repeats}; ask for as many or more, or name another "
                f"folder with {argument('--workdir')}"
            )
        lines = [f"other than before: {', '.join(changed)}"] if changed else []
        lines += [
            f"the cross-validation keeps its own: {text} by default" for text in kept.values()
        ]
        stored, requested = stored | {"repeats": repeats}, updated(then, then, requested)
    content = stored | {"folds": requested.data.folds, "requested": requested.to_dict()}
    written = (json.dumps(content, indent=2) + "\n").encode()
    if not goes_on:
        write_file(file, written)
    return requested, lines, written


def _has_begun(folder: pathlib.Path) -> bool:
    """Whether a fold has trained something, or a process is about to."""
    paths = sorted(folder.glob("repeat_*/fold_*"))
    return any((path / LOCK).exists() or RunFolder(path).begun for path in paths)


def _stored(file: pathlib.Path) -> tuple[dict[str, Any], RunConfig]:
    try:
        stored = dict(json.loads(file.read_text(encoding="utf-8")))
        stored["repeats"] = int(stored["repeats"])
        return stored, RunConfig.from_dict(stored["requested"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"'{file}' is not what the cross-validation wrote; restore it from a copy, or name "
            f"another folder with {argument('--workdir')}"
        ) from error


def _draw(runs: list[Fold]) -> list[str]:
    """Divides the data for all folds, before any trains; a line on the folds of each repeat.

    Raises:
      UserError: the data cannot be divided so, or they are other data than those of the folds that
        have begun.
    """
    lines = []
    for repeat in range(runs[-1].repeat + 1):
        drawn = [
            (fold, load_splits(fold.config.data, None, fold.run.kept_splits()))
            for fold in runs
            if fold.repeat == repeat
        ]
        every = {name for _, splits in drawn for split in SPLITS for name in splits[split].ids}
        tests = [name for _, splits in drawn for name in splits.test.ids]
        if sorted(tests) != sorted(every):
            raise UserError(
                f"the data of the cross-validation in '{runs[0].path.parents[1]}' have changed "
                "since it began: divided as they are now, not every image would be tested once; "
                f"restore them, or name another folder with {argument('--workdir')}"
            )
        lines.append(f"repeat {repeat + 1}: {_sizes([splits for _, splits in drawn])}")
    # All folds have the same images, so that one says whether these have changed.
    finished = next((fold for fold in runs if fold.run.finished), None)
    if finished is not None:
        check_finished(finished.run, finished.config, None)
    return lines


def _sizes(folds: list[DataSplits]) -> str:
    """How even the folds are, as far as whole patients allow."""

    def span(values: Iterator[float], text: str = "{:.0f}") -> str:
        found = sorted(values)
        return " to ".join(dict.fromkeys(text.format(value) for value in (found[0], found[-1])))

    tests = [splits.test for splits in folds]
    parts = [f"{len(folds)} folds, each with {span(float(len(test)) for test in tests)} images"]
    if tests[0].patients is not None:
        kind = plural(tests[0].patient_column)
        parts.append(f"{span(float(len(set(test.patients or ()))) for test in tests)} {kind}")
    for c, name in list(enumerate(folds[0].classes))[len(folds[0].classes) == 2 :]:
        parts.append(f"{span((float((t.labels == c).mean()) for t in tests), '{:.0%}')} {name}")
    return ", ".join(parts)


def _train(runs: list[Fold], limit: TimeLimit, terminal: Terminal, *, progress: bool) -> None:
    """Returns when all runs are finished, whichever process has trained them."""
    left, in_use = list(runs), set[pathlib.Path]()
    while left:
        before = len(left)
        for fold in list(left):
            if fold.run.finished:
                left.remove(fold)
                continue
            if limit.is_up:
                raise Interrupted(0)
            if fold.path not in in_use:
                terminal.say(
                    f"fold {fold.fold + 1} of {fold.config.data.folds}, repeat {fold.repeat + 1}: "
                    f"{fold.path}"
                )
            try:
                train_and_evaluate(
                    ConfigDict(dataclasses.asdict(fold.config)),
                    fold.path,
                    progress=progress,
                    max_hours=limit.hours,
                )
                left.remove(fold)
            except RunInUse as refusal:
                if fold.path not in in_use:
                    terminal.say(f"passed over for now: {refusal}".partition(";")[0])
                in_use.add(fold.path)
        if left and len(left) == before:
            time.sleep(_POLL_SECONDS)
