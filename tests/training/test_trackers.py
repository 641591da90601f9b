"""What trackers are sent, and that none of them can harm a run. Both packages are fakes here."""

import json
import pathlib
import shutil
import sys
import threading
import types

import pytest
from small_runs import config_for

from glomjax.errors import UserError
from glomjax.pretrained.sources import CROSSVAL
from glomjax.training import trackers, train_and_evaluate
from glomjax.training.progress import Curves, Terminal
from glomjax.training.run_folder import RunFolder
from glomjax.training.trackers import TRACKED_RUN, Tracking

BOTH = ("mlflow", "wandb")


class Run:
    """A tracked run as its service keeps it."""

    def __init__(self, name, config=()):
        self.name, self.config = name, dict(config)
        self.rows, self.states = [], ["running"]

    def numbers(self):
        """{epoch: {metric: value}}; a number that came twice is a failure."""
        found = {}
        for epoch, metrics in self.rows:
            for key, value in metrics.items():
                assert found.setdefault(epoch, {}).setdefault(key, value) is value
        return found


class Service:
    """Both fakes, and the runs that either was sent: {id that glomjax gave: run}."""

    def __init__(self, patch):
        self.mlflow, self.wandb, service = {}, {}, self
        self.fails = self.hangs = ""  # "mlflow.start" for one
        self.goes_on = threading.Event()
        self.mode, self.has_login = "online", True  # of W&B

        class Client:
            def get_experiment_by_name(self, name):
                service.called("mlflow.start")
                return types.SimpleNamespace(experiment_id="7") if name == "Default" else None

            def search_runs(self, experiments, condition):
                assert experiments == ["7"]
                return [found(i) for i in service.mlflow if condition.endswith(f"= '{i}'")]

            def create_run(self, experiment, tags, run_name):
                (run_id,) = tags.values()
                service.mlflow[run_id] = Run(run_name)
                return found(run_id)

            def update_run(self, run_id, status):
                service.mlflow[run_id].states.append(status.lower())

            def log_batch(self, run_id, params):
                service.mlflow[run_id].config |= dict(params)

            def log_metric(self, run_id, key, value, step):
                service.called("mlflow.log")
                service.mlflow[run_id].rows.append((step, {key: value}))

            def set_terminated(self, run_id, status):
                service.called("mlflow.finish")
                service.mlflow[run_id].states.append(status.lower())

        def found(run_id):
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))

        class WandBRun:
            def __init__(self, run, resumed):
                self.run, self.resumed = run, resumed

            def log(self, metrics, step):
                service.called("wandb.log")
                self.run.rows.append((step, metrics))

            def finish(self, exit_code):
                service.called("wandb.finish")
                self.run.states.append("killed" if exit_code else "finished")

        def init(*, id, name, config, resume, reinit, settings):
            service.called("wandb.start")
            assert (resume, reinit) == ("allow", "create_new")
            assert settings["x_disable_meta"]
            assert settings["host"] == ""
            resumed = id in service.wandb
            run = service.wandb.setdefault(id, Run(name, config))
            return WandBRun(run, resumed)

        mlflow, wandb = types.ModuleType("mlflow"), types.ModuleType("wandb")
        mlflow.MlflowClient = Client
        mlflow.entities = types.SimpleNamespace(Param=lambda key, value: (key, value))
        wandb.init, wandb.Settings, wandb.run = init, dict, None
        wandb.setup = lambda: types.SimpleNamespace(settings=types.SimpleNamespace(mode=self.mode))
        wandb.login = lambda prompt, verify: self.has_login and not prompt and not verify
        patch.setitem(sys.modules, "mlflow", mlflow)
        patch.setitem(sys.modules, "wandb", wandb)

    def called(self, what):
        if what == self.fails:
            raise ConnectionError("no server\nat https://example.org")
        if what == self.hangs:
            self.goes_on.wait(30)


@pytest.fixture
def service(monkeypatch):
    service = Service(monkeypatch)
    yield service
    service.goes_on.set()


def train(patches, folder, names=BOTH, **changes):
    config = config_for(patches, **{"log.trackers": names, **changes})
    return train_and_evaluate(config, folder, progress=False)


def rows_of(folder: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_was_stopped_goes_on_in_its_tracked_run(
    small_run, tmp_path, monkeypatch, service
):
    patches, folder = small_run[0], tmp_path / "my run"

    def stop(curves):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Curves, "epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            train(patches, folder)
    assert [len(runs) for runs in (service.mlflow, service.wandb)] == [1, 1]
    metrics = train(patches, folder)
    (run_id,) = service.mlflow
    assert (folder / TRACKED_RUN).read_text() == run_id
    for runs in (service.mlflow, service.wandb):
        ((known_by, run),) = runs.items()
        assert (known_by, run.name) == (run_id, "my run")
        assert [s for s in run.states if s != "running"] == ["killed", "finished"]
        numbers = run.numbers()
        for row in rows_of(folder):
            sent = numbers[row["epoch"]]
            for key in ("loss", "accuracy", "val_loss", "val_auroc", "learning_rate"):
                assert sent[key] == row[key]
            assert sent["images_per_second"] == row["time"]["images_per_second"]
        assert numbers.keys() == {1, 2}
        assert numbers[2]["test_auroc"] == metrics["auroc"]
        assert numbers[2]["test_auroc_low"] == metrics["auroc_interval"]["low"]
        assert numbers[2]["test_auroc_high"] == metrics["auroc_interval"]["high"]
        assert not any(key.startswith("test_") for key in numbers[1])
        # Neither where the data are nor who is in them.
        assert str(run.config["image_size"]) == "[32, 32]"
        assert "data.source" not in run.config
        everything = f"{run.config} {run.rows}"
        assert str(tmp_path) not in everything
        assert str(patches.parent) not in everything
        assert "Frau" not in everything


def test_a_tracker_that_comes_later_is_given_the_epochs_before(small_run, tmp_path, service):
    patches, run = small_run
    assert not (run / TRACKED_RUN).exists()  # none by default
    folder = pathlib.Path(shutil.copytree(run, tmp_path / "run"))
    train(patches, folder, ("wandb",), num_epochs=3)
    assert not service.mlflow
    ((_, tracked),) = service.wandb.items()
    assert tracked.numbers().keys() == {1, 2, 3}


def test_services_that_fail_or_hang_are_said_once_and_harm_nothing(
    small_run, tmp_path, monkeypatch, service, caplog
):
    service.fails, service.hangs = "mlflow.start", "wandb.log"
    monkeypatch.setattr(trackers, "_PATIENCE", 0.2)
    metrics = train(small_run[0], tmp_path / "run")
    assert metrics == json.loads((small_run[1] / "test_metrics.json").read_text())
    said = [record.message for record in caplog.records if "not taken all" in record.message]
    failed, hung = sorted(said)
    assert "mlflow has" in failed
    assert "ConnectionError: no server at https://example.org; the run's folder has" in failed
    assert "wandb has" in hung
    assert "not answered for 0.2 s at the end of the run" in hung


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("fails", ["log", "finish"])
def test_a_service_that_fails_later_is_said_once(tmp_path, service, caplog, name, fails):
    service.fails = f"{name}.{fails}"
    tracking = track((name,), tmp_path)
    for epoch in (1, 2):
        tracking.epoch({"epoch": epoch, "loss": 0.5, "time": {"images_per_second": 1.0}})
    tracking.close()
    (record,) = caplog.records
    assert f"{name} has not taken all numbers of this run" in record.message


def test_without_a_login_wandb_asks_for_none_and_is_said(tmp_path, service, caplog):
    service.has_login = False
    track(("wandb",), tmp_path).close()
    assert not service.wandb
    (record,) = caplog.records
    assert "there is no login; run `wandb login`, or set WANDB_MODE=offline" in record.message
    service.mode = "offline"
    track(("wandb",), tmp_path).close()
    assert len(service.wandb) == 1


def test_a_tracker_that_asks_at_a_terminal_is_said_when_that_ends(
    tmp_path, service, monkeypatch, caplog
):
    def ask():
        raise KeyboardInterrupt  # which click makes of the end of the input

    monkeypatch.setattr(sys.modules["wandb"], "setup", ask)
    track(("wandb",), tmp_path).close()
    (record,) = caplog.records
    assert "wandb has not taken all numbers of this run" in record.message


def track(names, folder, config=None):
    """The trackers of a run in a folder, which has not trained anything yet."""
    run, terminal = RunFolder(folder), Terminal(prints=False)
    return Tracking(names, config or {}, [], run, terminal)


@pytest.mark.parametrize("name", BOTH)
def test_a_package_that_is_not_installed_is_said_before_anything_is_trained(
    small_run, tmp_path, monkeypatch, name
):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"config.log.trackers names {name}, .*install {name}"):
        train(small_run[0], tmp_path / "run", (name,))
    assert not (tmp_path / "run").exists()


def test_a_package_that_is_not_installed_is_said_before_another_run_is_removed(
    small_run, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    folder = pathlib.Path(shutil.copytree(small_run[1], tmp_path / "run"))
    config = config_for(small_run[0], **{"log.trackers": ("mlflow",)})
    with pytest.raises(UserError, match="names mlflow"):
        train_and_evaluate(config, folder, overwrite=True, progress=False)
    assert (folder / "test_metrics.json").exists()


def test_a_package_that_is_broken_is_refused_like_one_that_is_missing(tmp_path, monkeypatch):
    (tmp_path / "mlflow.py").write_text("import numpy; numpy.no_such_name")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    with pytest.raises(UserError, match=r"names mlflow, which cannot be imported .*no_such_name"):
        trackers.check_trackers(["mlflow"])


def test_each_fold_of_a_cross_validation_has_a_name_and_an_id_of_its_own(tmp_path, service):
    (tmp_path / "cv").mkdir()
    (tmp_path / "cv" / CROSSVAL).touch()
    for fold in (0, 1):
        track(BOTH, tmp_path / "cv" / "repeat_0" / f"fold_{fold}").close()
    for runs in (service.mlflow, service.wandb):
        assert [run.name for run in runs.values()] == ["cv/repeat_0/fold_0", "cv/repeat_0/fold_1"]


def test_of_sources_those_that_are_published_are_sent_and_paths_are_not(tmp_path, service):
    config = {"data": {"source": "tfds:kidney/he"}, "pretrained": {"source": "/home/me/own.h5"}}
    track(BOTH, tmp_path, config).close()
    for (run,) in (service.mlflow.values(), service.wandb.values()):
        assert run.config == {"data.source": "tfds:kidney/he"}
