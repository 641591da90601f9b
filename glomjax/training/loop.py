"""A whole run: data, network, weights, training, evaluation, and the folder that it leaves."""

import collections
import contextlib
import dataclasses
import functools
import json
import os
import signal
import time
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from glomjax.data.pipeline import Batches
from glomjax.data.sources import ArraySplits
from glomjax.errors import UserError, argument, same_again
from glomjax.evaluation.calibration import Decision, apply_temperature
from glomjax.evaluation.metrics import metrics_of_network
from glomjax.inference.prediction import predict_batches, steps_ahead, wait
from glomjax.ops import native
from glomjax.report.page import has_report, make_report
from glomjax.training.config import RunConfig
from glomjax.training.config_changes import ShippedConfig
from glomjax.training.config_checks import read_config
from glomjax.training.finished import check_finished, has_epochs_left
from glomjax.training.interrupts import (
    NONE,
    SAVE,
    STOP,
    TIME_IS_UP,
    Interrupted,
    Interrupts,
    TimeLimit,
)
from glomjax.training.optimizers import learning_rate
from glomjax.training.phases import RunningPhase, stream_number
from glomjax.training.processes import Watch
from glomjax.training.progress import Curves, TensorBoard, Terminal
from glomjax.training.resources import disk_errors, memory_errors
from glomjax.training.run_folder import RunFolder, clear
from glomjax.training.scoring import (
    choose_decision,
    describe_end,
    draw_history,
    epoch_row,
    report_test,
)
from glomjax.training.setup import RunSetup, prepare_run
from glomjax.training.sharding import Placement
from glomjax.training.state import Arrays
from glomjax.training.steps import zero_sums
from glomjax.training.trackers import Tracking, check_trackers

_LONG = 20.0  # seconds of a validation before which several processes save what was trained
NOT_FINITE = "not_finite.json"  # which batch had a loss that is NaN or infinite


def train_and_evaluate(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    data: ArraySplits | None = None,
    overwrite: bool = False,
    progress: bool = True,
    shipped: ShippedConfig | None = None,
    max_hours: float = 0.0,
) -> dict[str, Any]:
    """Trains until it stops by itself, restores the best weights and scores the test split once.

    Args:
      config: as `default_config` makes it and `configs/` fill it in.
      workdir: the run's folder. A finished run in it is returned as it is, unless its epoch limit
        ended it and is larger now; an interrupted one goes on where it was saved; a run with
        another configuration or on other data is refused.
      data: {"train": (images uint8 [N, H, W, 3], labels int [N]), "validation": ..., "test": ...}
        in place of `config.data.source`; a third array of each may name the patients.
      overwrite: replace the run that the folder holds, as `clear` does.
      progress: False prints nothing; warnings go to standard error, or where the script's logging
        sends those of the logger `glomjax`. The folder's `run.log` has every line in any case.
      shipped: name and content of the configuration of this package that `config` began as: where
        a later version of it has other defaults, a run that has begun keeps those it began with.
      max_hours: after which the call must have ended, as a queue demands it; 0 for no limit.

    Returns:
      The test metrics, as in `test_metrics.json`.

    Raises:
      UserError: whatever the user can put right.
      Interrupted: SIGTERM or Ctrl-C came, or the time is up; everything is saved.
    """
    with contextlib.ExitStack() as lock, Watch(at_end=lock.close) as watch:
        interrupts = Interrupts(TimeLimit(max_hours), can_save=False)

        def end() -> None:
            watch.say_failed()
            lock.close()

        interrupts.at_end = end
        if not isinstance(workdir, (str, os.PathLike)):
            raise UserError(
                f"{argument('--workdir')} is {workdir!r}; it is the path of the run's folder, "
                "which is made where it does not exist"
            )
        requested = read_config(config)
        placement = Placement(requested.devices, shard_params=requested.shard_params)
        terminal = Terminal(prints=progress, speaks=placement.writes)
        with terminal.recording_failure(), disk_errors(workdir), interrupts:
            placement.agree("configuration", json.dumps(requested.to_dict(), sort_keys=True))
            if placement.writes:
                check_trackers(requested.log.trackers)  # before a run is removed for this one
            run, goes_on = _open(requested, workdir, placement, lock, data, overwrite)
            differences = run.claim(requested, shipped)
            if goes_on:
                terminal.keep_in(run.path)
            for line in differences:
                terminal.say(line)
            if not goes_on:
                metrics = run.read_json("test_metrics.json")
                if note := check_finished(run, requested, data):
                    terminal.banner(note)
                if placement.writes and requested.report != "none" and not has_report(run.path):
                    # The run was ended before it was made, or is of an earlier version.
                    try:
                        make_report(run.path)
                    except UserError as error:
                        terminal.say(f"there is no report: {error}")
                terminal.say(
                    f"the run in '{run.path}' is finished; name another folder with "
                    f"{argument('--workdir')}, or replace the run with "
                    f"{argument('--overwrite', True)}"
                )
                return metrics
            setup = prepare_run(requested, run, placement, terminal, data)
            if run.finished and placement.writes:
                run.reopen()  # nothing refuses it any more
            with (
                memory_errors(setup.config),
                native.setting(setup.config.ops.native),
                Trainer(setup, setup.phase, interrupts) as trainer,
            ):
                trainer.fit()
                return trainer.finish()


def _open(
    requested: RunConfig,
    workdir: str | os.PathLike[str],
    placement: Placement,
    lock: contextlib.ExitStack,
    data: ArraySplits | None,
    overwrite: bool,
) -> tuple[RunFolder, bool]:
    """(the folder, whether a run begins or goes on in it), for which process 0 takes it."""
    if placement.writes:
        # Where it cannot, the others, which wait for it below, end with it.
        if overwrite:
            clear(workdir)
        run = RunFolder(workdir, writes=True)
        run.check_own()
        if not run.finished or has_epochs_left(run, requested, data):
            lock.enter_context(run.lock)
    # No process looks at the folder before process 0 has it for itself, cleared for a new run.
    placement.agree("run folder", f"{overwrite}")
    if not placement.writes:
        run = RunFolder(workdir, writes=False)
    # Also where another process has finished it just before it was taken.
    goes_on = not run.finished or has_epochs_left(run, requested, data)
    if goes_on and placement.writes and not run.lock.is_held:
        lock.enter_context(run.lock)
    placement.agree("run folder", f"{run.begun} {run.finished} {goes_on}")
    return run, goes_on


@dataclasses.dataclass
class Trainer:
    """Context manager for the epochs of a run, and what is scored at its end.

    Attributes:
      setup: the run before its first step; its parts have names of their own here.
      phase: what trains now.
      interrupts: the signals that have come, and the time that is left.
      key: of the random stream of dropout.
      board, curves: the numbers of the epochs for TensorBoard, and as a figure.
      tracking: the same for the trackers of the configuration.
    """

    setup: RunSetup
    phase: RunningPhase
    interrupts: Interrupts

    def __post_init__(self) -> None:
        setup = self.setup
        self.config, self.state, self.run = setup.config, setup.state, setup.run
        self.terminal, self.placement = setup.terminal, setup.placement
        self.checkpoints = setup.checkpoints
        self.validated = 0.0  # seconds, the last time
        self.key = jax.random.fold_in(jax.random.key(self.config.seed), stream_number("dropout"))
        self.board = TensorBoard(
            self.run.path / "tensorboard", self.state.position.epoch + 1, self.run.writes
        )
        self.curves = Curves(functools.partial(draw_history, setup))
        self.tracking = Tracking(
            self.config.log.trackers,
            self.config.to_dict(),
            self.state.position.history,
            self.run,
            self.terminal,
        )

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        """Waits until everything is on the disk."""
        self.board.close()
        try:
            self.checkpoints.close()
        except UserError:
            if kind is None:  # or else what ended it first is what is said
                raise
        finally:
            self.tracking.close()

    def fit(self) -> None:
        """Epochs until early stopping or the limit; the best weights are in `state.best` then."""
        state, position, config = self.state, self.state.position, self.config
        self.checkpoints.saved = time.monotonic()
        if self.placement.processes == 1 and self.interrupts.limit.is_up:
            raise Interrupted(0, saved=False)
        while position.epoch < config.num_epochs and not position.stop:
            self._thaw()
            row = self._epoch()
            position.history.append(row)
            position.stop = state.stopping.update(
                position.epoch, row[config.early_stopping.monitor]
            )
            if config.schedule == "plateau":
                position.learning_rate = state.plateau.update(
                    position.epoch, row[config.plateau.monitor], position.learning_rate
                )
            is_best = state.stopping.best_epoch == position.epoch
            position.epoch, position.batch, position.seconds = position.epoch + 1, 0, 0.0
            state.sums = self.placement.put(zero_sums())
            # `last` first: where a kill comes between the two, it holds what `best` lacks.
            self.checkpoints.save_last(state)
            if is_best:
                self.checkpoints.keep_best(state)
            self.run.write_history(position.history)
            self.run.write_usage()
            self.board.epoch(row)
            self.tracking.epoch(row)
            left = state.stopping.patience - state.stopping.wait
            left = 0 if position.stop else min(left, config.num_epochs - position.epoch)
            self.terminal.epoch(row, config.num_epochs, left, is_best)
            if self._stops_now():
                self._leave(self._pending_request())
            self.curves.epoch()
        self.curves.draw()
        self.terminal.say(describe_end(config, state))
        for phase in self.setup.phases.plan[self.phase.number + 1 :]:
            self.terminal.banner(
                f"the run ended before epoch {phase.epoch + 1}, from which freeze.unfreeze would "
                f"have thawed regime {phase.regime!r}: it was never reached"
            )

    def finish(self) -> dict[str, Any]:
        """Scores validation and test split with the best weights and writes the report."""
        self.interrupts.can_save = True
        step = self.setup.phases.predict_step(symmetries=self.config.test_time_augmentation)
        best = self.state.best
        params = self.placement.put(best) if best else self.state.evaluated
        decision, logits = Decision(), {}
        for split in ("validation", "test"):
            batches = self.setup.phases.batches[split]
            logits[split] = self._predict(step, params, batches, should_stop=self._stops_now)
            if self._stops_now():
                self._leave(self._pending_request())
            if split == "validation":  # before the test split is predicted, which counts in nothing
                decision = choose_decision(self.setup, logits[split])
                self.checkpoints.keep_decision(self.state, decision)
            logits[split] = apply_temperature(logits[split], decision.temperature)
        self.checkpoints.wait()
        # A signal from here on finds the report written, which takes less time than to leave.
        metrics = report_test(self.setup, logits["test"], logits["validation"], decision)
        self.tracking.test(metrics)
        self.run.tidy_checkpoints()
        return metrics

    def _epoch(self) -> dict[str, Any]:
        """Trains the epoch, or what is left of it, and validates; its line of `metrics.jsonl`."""
        state, position, batches = self.state, self.state.position, self.phase.batches["train"]
        weights, draws = batches.examples.weights, position.epoch * len(batches.examples)
        start = time.monotonic() - position.seconds
        last = None  # when the step before this one was done
        in_flight: collections.deque[Any] = collections.deque()
        with self.terminal.epoch_bar(position.epoch + 1, len(batches), position.batch) as bar:
            for batch in batches.epoch(self._order(position.epoch), start=position.batch):
                rows = {name: batch[name] for name in ("image", "label", "mask")}
                if weights is not None:
                    rows["weight"] = weights[batch["index"]]
                if self.phase.augments:
                    rows["draw"] = (draws + batch["position"]).astype(np.int32)
                if self.placement.processes > 1:
                    # All must do the same after the same step, so the step itself carries it round.
                    rows["request"] = np.full(len(rows["mask"]), self._pending_request(), np.int32)
                state.trainable, state.opt_state, state.sums = self.phase.step(
                    state.trainable,
                    state.frozen,
                    state.opt_state,
                    state.sums,
                    self.placement.batch(rows),
                    self._learning_rate(position.step),
                    jax.random.fold_in(self.key, position.step),
                )
                self.interrupts.can_save = True
                position.step, position.batch = position.step + 1, position.batch + 1
                position.seconds = time.monotonic() - start
                in_flight.append(state.sums)
                done = in_flight.popleft() if len(in_flight) > steps_ahead() else None
                if done is not None:
                    wait(done)
                bar.advance(int(batch["mask"].sum()) * self.placement.processes)
                now = time.monotonic()
                if last is not None:  # the first one also compiles
                    self.interrupts.limit.took("step", now - last)
                last = now
                if self.placement.processes == 1:
                    request = self._pending_request()
                else:
                    request = NONE if done is None else int(done["request"])
                if request:
                    self._check_finite()
                    self.checkpoints.save_last(state)
                    self.run.write_usage()
                if request >= TIME_IS_UP:
                    self._leave(request)
        totals = self._check_finite()
        position.seconds = trained = time.monotonic() - start
        if self.placement.processes > 1 and self.validated > _LONG:
            self.checkpoints.save_last(state)  # since they do not stop before validation has ended
        splits = self.setup.splits
        logits = self._predict(
            self.phase.predict_step,
            state.evaluated,
            self.phase.batches["validation"],
            should_stop=self._stops_now,
        )
        self.validated = time.monotonic() - start - trained
        if self.placement.processes > 1:
            self.interrupts.limit.took("validation", self.validated)
        if self._stops_now():
            self.checkpoints.save_last(state)
            self._leave(self._pending_request())
        return epoch_row(
            position,
            totals,
            metrics_of_network(splits.validation.labels, logits, splits.classes, intervals=False),
            learning_rate=float(self._learning_rate(position.step - 1)),
            seconds=time.monotonic() - start,
            trained=trained,
            waited=batches.waited,
            input_rate=batches.rate * self.placement.processes,
        )

    def _predict(
        self,
        step: Any,
        params: Arrays,
        batches: Batches,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> np.ndarray:
        """float32 [N, K] in the order of the examples; fewer where `should_stop` ends it."""

        def logits_of(images: np.ndarray) -> jax.Array:
            return step(params, self.placement.batch({"image": images})["image"])

        parts = list(predict_batches(logits_of, batches.in_order(), should_stop=should_stop))
        return np.concatenate(parts or [np.zeros((0, 1), np.float32)])

    def _order(self, epoch: int) -> int:
        return zlib.crc32(f"{self.config.seed}/order/{epoch}".encode())

    def _learning_rate(self, step: int) -> np.float32:
        per_epoch = len(self.phase.batches["train"])
        return learning_rate(self.config, self.state.position.learning_rate, step, per_epoch)

    def _pending_request(self) -> int:
        """What this process would like to do after the running step."""
        self.interrupts.limit.took("save", self.checkpoints.seconds)
        if request := self.interrupts.request:
            return request
        due = time.monotonic() - self.checkpoints.saved > 60 * self.config.checkpoint_minutes
        return SAVE if due and self.placement.writes else NONE

    def _stops_now(self) -> bool:
        """Whether to stop between two steps; several processes only do so together, in a step."""
        return self.placement.processes == 1 and self._pending_request() >= TIME_IS_UP

    def _leave(self, request: int) -> None:
        self.checkpoints.wait()
        self.run.write_usage()
        position = self.state.position
        where = f"in epoch {position.epoch + 1} at batch {position.batch}"
        if position.stop or position.epoch == self.config.num_epochs:
            where = f"after the last epoch, {position.epoch}, before the test"
        why = " since its time is up" if request == TIME_IS_UP else ""
        self.terminal.say(f"stopped{why} {where} and saved; {same_again()} goes on from there")
        # Another process may be the one that a signal has reached.
        raise Interrupted(self.interrupts.signal or signal.SIGTERM if request == STOP else 0)

    def _check_finite(self) -> dict[str, float]:
        """The epoch's sums so far; where a loss was not finite, the run ends, saving nothing."""
        totals = {name: float(value) for name, value in jax.device_get(self.state.sums).items()}
        position = self.state.position
        if totals["first_bad"] < 0:
            return totals
        number = int(totals["first_bad"])
        # The running sums begin anew with each epoch, so it is the number of its batch.
        examples = self.phase.batches["train"].examples_of(self._order(position.epoch), number)
        step = position.step - position.batch + number
        about = {
            "epoch": position.epoch + 1,
            "step": step + 1,
            "learning_rate": float(self._learning_rate(step)),
            "ids": [self.setup.splits.train.ids[i] for i in examples],
        }
        self.run.write(NOT_FINITE, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
        kept = f"; the weights before this epoch are in '{self.run.last}'" if position.epoch else ""
        raise UserError(
            f"the training loss is not finite in step {step + 1} (epoch {position.epoch + 1}) at "
            f"learning rate {about['learning_rate']:g}; lower config.learning_rate, or look at the "
            f"images of that batch, which '{self.run.path / NOT_FINITE}' names{kept}"
        )

    def _thaw(self) -> None:
        """Goes over to the next phase where its epoch has come."""
        following, phases = self.phase.number + 1, self.setup.phases
        if following == phases.at(self.state.position.epoch):
            self.phase = phases.enter(following, self.state)
            self.terminal.say(phases.plan[following].describe_thaw())
