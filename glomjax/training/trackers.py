"""Experiment trackers that a run reports to while it trains: MLflow and Weights & Biases.

`config.log.trackers` names them; by default there are none, and nothing is sent. Each is given the
name of the run's folder (of a fold, with those of its cross-validation), the configuration without
paths, the numbers of each epoch, and at the end those of the test split with the ends of their
intervals. Names of patients and images, paths, users, hosts, commands, lines of the terminal,
pictures and weights are not sent. Where it goes, the environment says as the tracker documents it:
`MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`, `WANDB_MODE`, `WANDB_PROJECT` and others.

The run's folder keeps the id of its tracked run, in which a run that is resumed goes on. Each
tracker has a thread of its own: one that fails or hangs is said once, and the run goes on without.
"""

import importlib
import math
import os
import pathlib
import queue
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from glomjax.errors import UserError, assignment, excerpt
from glomjax.files import flatten
from glomjax.pretrained.sources import CROSSVAL, PUBLISHED
from glomjax.training.progress import Terminal
from glomjax.training.run_folder import RunFolder

TRACKED_RUN = "tracked_run.txt"  # in the folder of a run: the id by which trackers know it
_PATIENCE = 20.0  # seconds at the end of a run in which a tracker has to take what is left
_ID_TAG = "glomjax_run_id"


class Tracker(Protocol):
    """A service that keeps the numbers of runs. What its methods raise ends the tracking alone."""

    def start(self, name: str, config: Mapping[str, Any], run_id: str) -> bool:
        """Begins the tracked run with an id, or goes on with it; whether it has begun."""

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """The numbers of an epoch, counted from 1."""

    def finish(self, complete: bool) -> None:
        """Ends the tracked run, for good or until it goes on."""


class MLflow:
    """By its client: the functions of the module would send user, command and path as well, and go
    to a run that a script may have open."""

    def start(self, name: str, config: Mapping[str, Any], run_id: str) -> bool:
        import mlflow

        self._client = mlflow.MlflowClient()
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        found = self._client.get_experiment_by_name(title)
        experiment = found.experiment_id if found else self._client.create_experiment(title)
        # MLflow gives each run an id of its own, and finds it again by a tag.
        known = self._client.search_runs([experiment], f"tags.{_ID_TAG} = '{run_id}'")
        if known:
            self._id = known[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return False
        run = self._client.create_run(experiment, tags={_ID_TAG: run_id}, run_name=name)
        self._id = run.info.run_id
        params = [mlflow.entities.Param(key, str(value)) for key, value in config.items()]
        self._client.log_batch(self._id, params=params)
        return True

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        for key, value in metrics.items():
            self._client.log_metric(self._id, key, value, step=epoch)

    def finish(self, complete: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if complete else "KILLED")


class WandB:
    """With everything off that it collects by itself. A version that does not know one of these
    settings refuses them, and nothing is sent."""

    def start(self, name: str, config: Mapping[str, Any], run_id: str) -> bool:
        import wandb

        # Without a login `init` would ask for one at the terminal, between the lines of the run.
        online = wandb.run is None and wandb.setup().settings.mode == "online"
        if online and not wandb.login(prompt=False, verify=False):
            raise PermissionError("there is no login; run `wandb login`, or set WANDB_MODE=offline")
        settings = wandb.Settings(
            host="",
            program="glomjax",
            console="off",
            disable_code=True,
            disable_git=True,
            init_timeout=_PATIENCE,  # or the process would wait 90 s for a server at its exit
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            id=run_id,
            name=name,
            config=dict(config),
            resume="allow",
            reinit="create_new",  # a run that a script has open stays its own
            settings=settings,
        )
        return not self._run.resumed

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        self._run.log(dict(metrics), step=epoch)

    def finish(self, complete: bool) -> None:
        self._run.finish(exit_code=0 if complete else 1)


_TRACKERS: dict[str, type[Tracker]] = {"mlflow": MLflow, "wandb": WandB}


def check_trackers(names: Iterable[str]) -> None:
    """Raises UserError where the package of a tracker cannot be imported."""
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # of a package that does not fit another, of any kind
            raise UserError(
                f"{assignment('log.trackers')} names {name}, which cannot be imported "
                f"({excerpt(error)}): pip install {name}, or leave it out"
            ) from error


class Tracking:
    """The trackers of one run, which only the process that writes its folder has.

    Args:
      names: of `config.log.trackers`, which `check_trackers` has seen.
      config: JSON-ready, as `RunConfig.to_dict` gives it.
      history: the lines of `metrics.jsonl` so far, for a tracked run that begins later.
    """

    def __init__(
        self,
        names: Sequence[str],
        config: Mapping[str, Any],
        history: Iterable[Mapping[str, Any]],
        run: RunFolder,
        terminal: Terminal,
    ):
        self._terminal = terminal
        self._feeds: list[_Feed] = []
        if names and run.writes:
            about = _name_of(run.path), _without_paths(config), _id_of(run)
            earlier = [(_numbers_of(row), row["epoch"]) for row in history]
            self._feeds = [_Feed(name, _TRACKERS[name](), about, earlier) for name in names]

    def epoch(self, row: Mapping[str, Any]) -> None:
        """A line of `metrics.jsonl`."""
        for feed in self._feeds:
            feed.log(_numbers_of(row), row["epoch"])
        self._say_failures()

    def test(self, metrics: Mapping[str, Any]) -> None:
        """What `test_metrics.json` holds: the run is complete."""
        for feed in self._feeds:
            feed.log(_numbers_of_test(metrics), metrics["epochs"])
            feed.complete = True

    def close(self) -> None:
        """Returns when the trackers have everything, or have had their time for it."""
        for feed in self._feeds:
            feed.end()
        deadline = time.monotonic() + _PATIENCE
        for feed in self._feeds:
            feed.wait(max(0.0, deadline - time.monotonic()))
        self._say_failures()

    def _say_failures(self) -> None:
        for feed in [feed for feed in self._feeds if feed.failure]:
            self._feeds.remove(feed)
            self._terminal.banner(
                f"{feed.name} has not taken all numbers of this run, and is given no more: "
                f"{feed.failure}; the run's folder has them all"
            )


class _Feed:
    """A thread that passes on to a tracker what it is given, so that no step waits for a server.

    Attributes:
      failure: why it has ended early, "" where it has not.
      complete: whether the run is.
    """

    def __init__(
        self,
        name: str,
        tracker: Tracker,
        about: tuple[str, Mapping[str, Any], str],
        earlier: Iterable[tuple[Mapping[str, float], int]],
    ):
        self.name, self.failure, self.complete = name, "", False
        self._rows: queue.SimpleQueue[tuple[Mapping[str, float], int] | None] = queue.SimpleQueue()

        def feed() -> None:
            try:
                if tracker.start(*about):
                    for row in earlier:
                        tracker.log(*row)
                while (next_row := self._rows.get()) is not None:
                    tracker.log(*next_row)
                tracker.finish(self.complete)
            except BaseException as error:  # whatever a library makes of its server or terminal
                self.failure = excerpt(f"{type(error).__name__}: {error}")

        self._thread = threading.Thread(target=feed, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        self._rows.put((metrics, epoch))

    def end(self) -> None:
        """Nothing comes any more."""
        self._rows.put(None)

    def wait(self, seconds: float) -> None:
        """Returns when everything is passed on, at the latest after so many seconds."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self.failure = f"it has not answered for {_PATIENCE:g} s at the end of the run"


def _name_of(folder: pathlib.Path) -> str:
    """Of a run's folder: `davit`, or of a fold `davit/repeat_0/fold_1`."""
    path = folder.resolve()
    is_fold = len(path.parts) > 3 and (path.parents[1] / CROSSVAL).is_file()
    return "/".join(path.parts[-3:]) if is_fold else path.name


def _id_of(run: RunFolder) -> str:
    """The id of the tracked run, which the folder keeps from the first time on."""
    try:
        return uuid.UUID((run.path / TRACKED_RUN).read_text()).hex
    except (OSError, ValueError):  # there is none yet, or it is damaged
        run_id = uuid.uuid4().hex
        run.write(TRACKED_RUN, run_id)
        return run_id


def _without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """{"section.field": value} but for sources that are files or folders of the user's."""
    public = {"synthetic", "none", "auto", *PUBLISHED}
    return {
        key: value
        for key, value in flatten(config).items()
        if key not in ("data.source", "pretrained.source")
        or value in public
        or value.startswith("tfds:")
    }


def _numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Of a line of `metrics.jsonl`."""
    return _finite({**row, "images_per_second": row["time"]["images_per_second"]})


def _numbers_of_test(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Of each metric, such as `test_auroc`, and of its interval `test_auroc_low` and
    `test_auroc_high`."""
    values = {"test_temperature": metrics["temperature"]}
    for name, estimate in metrics["estimates"].items():
        ends = {f"test_{name}_{end}": estimate[end] for end in ("low", "high")}
        values |= {f"test_{name}": estimate["value"], **ends}
    return _finite(values)


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {k: v for k, v in values.items() if isinstance(v, float) and math.isfinite(v)}
