"""A whole run: data, network, weights, training, evaluation, and the folder that it leaves."""

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import time
import zlib
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from glomjax import checkpoints
from glomjax.data.examples import DataSplits
from glomjax.errors import UserError
from glomjax.evaluation import (
    classification_metrics,
    collapse_message,
    plot_history,
    prior_entropy,
    write_report,
)
from glomjax.files import jsonable
from glomjax.models import nest, params_of
from glomjax.ops import native
from glomjax.preprocessing.augmentation import Augmentation
from glomjax.training import parameter_groups
from glomjax.training.callbacks import EarlyStopping, ReduceLROnPlateau
from glomjax.training.config import MONITORS, augmentation_of, check_config
from glomjax.training.features import cached_features
from glomjax.training.inputs import (
    ArraySplits,
    create_network,
    describe_data,
    find_weights,
    load_data,
    load_initial_weights,
    prepare_inputs,
    settle_demo,
)
from glomjax.training.interrupts import NONE, SAVE, STOP, Interrupted, Interrupts
from glomjax.training.optimizers import class_weights, learning_rate, make_optimizer
from glomjax.training.progress import TensorBoard, Terminal
from glomjax.training.run_folder import RunFolder, to_json
from glomjax.training.sharding import Placement
from glomjax.training.steps import (
    compile_now,
    init_state,
    make_eval_step,
    make_train_step,
    run_once,
    zero_sums,
)
from glomjax.training.summary import summarize

Arrays = dict[str, Any]
NOT_FINITE = "not_finite.json"  # which batch had a loss that is none


def train_and_evaluate(
    config: ConfigDict, workdir: str | os.PathLike[str], *, data: ArraySplits | None = None
) -> dict[str, Any]:
    """Trains until it stops by itself, restores the best weights and scores the test split once.

    Args:
      config: as `default_config` makes it and `configs/` fill it in.
      workdir: the run's folder. A finished run in it is returned as it is; an interrupted one goes
        on where it was saved; a run with another configuration is refused.
      data: {"train": (images uint8 [N, H, W, 3], labels int [N]), "validation": ..., "test": ...}
        in place of `config.data.source`; a third array of each may name the patients.

    Returns:
      The test metrics, as in `test_metrics.json`.

    Raises:
      UserError: whatever the user can put right.
      Interrupted: SIGTERM or Ctrl-C came while it trained; everything is saved.
    """
    check_config(config)
    placement = Placement(config.devices, shard_params=config.shard_params)
    terminal = Terminal(quiet=not placement.writes)
    # None looks at the folder before process 0 has cleared it for a new run.
    placement.agree("configuration", to_json(config))
    run = RunFolder(workdir, writes=placement.writes)
    placement.agree("run folder", f"{run.begun} {run.finished}")
    if changes := run.claim(config):
        terminal.say(f"other than before: {', '.join(changes)}")
    if run.finished:
        if data is not None:
            run.check_data(load_data(config, data).digest())
        terminal.say(f"the run in '{run.path}' is finished; name another folder with --workdir")
        return json.loads((run.path / "test_metrics.json").read_text())

    requested, config = config, run.effective(config) or ConfigDict(config.to_dict())
    source = find_weights(config, data is not None, terminal)
    if data is None:
        settle_demo(config, terminal)
    splits = load_data(config, data)
    describe_data(splits, terminal)
    placement.agree("data", splits.digest())  # by now process 0 has taken the folder
    with (
        native.setting(config.ops.native),
        contextlib.closing(
            _Training(requested, config, splits, source, run, terminal, placement)
        ) as training,
    ):
        training.fit()
        return training.finish()


@dataclasses.dataclass
class _Position:
    """How far a run has come; saved in every checkpoint beside the arrays."""

    epoch: int = 0  # the next one, or the one that it is in
    batch: int = 0  # the next one in this epoch
    step: int = 0  # the next one of all
    seconds: float = 0.0  # spent in this epoch
    learning_rate: float = 0.0  # of this epoch, before warm-up and cosine
    stop: bool = False
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class _Training:
    """One run in memory: network, optimizer, callbacks and position."""

    def __init__(
        self,
        requested: ConfigDict,
        config: ConfigDict,
        splits: DataSplits,
        source: str,
        run: RunFolder,
        terminal: Terminal,
        placement: Placement,
    ):
        self.config, self.run, self.terminal = config, run, terminal
        self.placement = placement

        def create() -> nnx.Module:
            return create_network(config, len(splits.classes))

        # Shapes alone: a wrong plan ends the run before anything is computed.
        self.model = nnx.eval_shape(create)
        graphdef, _ = nnx.split(self.model, nnx.Param)
        self.phases = parameter_groups.plan_of(config, self.model)
        self.rates, self.decays = parameter_groups.rates_of(config, self.model, self.phases)
        inputs = prepare_inputs(config, splits, source, placement, terminal)
        self.splits, self.batches = inputs.splits, inputs.batches
        self.preprocessing = inputs.preprocessing
        labels = self.splits.train.labels
        self.weights = class_weights(config.class_weights, labels, len(splits.classes))
        digest = self.splits.digest()
        run.check_data(digest)
        run.write_config(requested, config, digest)
        if native.must_build():
            terminal.say("native kernels: building them, once, with this machine's C++ compiler")
        run.write_environment(config)
        if kernels := native.status(config.precision):
            terminal.say(kernels)
        run.write("splits.csv", self.splits.to_csv())
        params = jax.device_get(run_once(lambda: params_of(create())))
        if source and not checkpoints.exists(run.last):
            loaded = nnx.merge(graphdef, nest(params))
            load_initial_weights(loaded, source, splits.classes, self.preprocessing, terminal)
            params = params_of(loaded)
        self.eval_step = self._make_eval_step(graphdef)
        self.augmentation = augmentation_of(config)
        self.augments = self.augmentation != Augmentation()
        self.graphdef = graphdef
        self.key = jax.random.fold_in(jax.random.key(config.seed), _stable("dropout"))

        stopping, plateau = config.early_stopping, config.plateau
        self.stopping = EarlyStopping(
            stopping.patience, stopping.min_delta, MONITORS[stopping.monitor]
        )
        self.plateau = ReduceLROnPlateau(
            plateau.factor,
            plateau.patience,
            plateau.min_delta,
            MONITORS[plateau.monitor],
            min_lr=plateau.min_lr,
        )
        self.position = _Position(learning_rate=float(np.float32(config.learning_rate)))
        self.best: dict[str, np.ndarray] = {}
        self.writer = checkpoints.Writer()
        self.interrupts = Interrupts()
        # A CPU gains nothing by a queue of steps, ends sooner without one when it is asked to, and
        # keeps the messages of two steps to other processes apart; elsewhere two more keep the
        # device busy. More would only hold batches in memory.
        self.ahead = 0 if jax.default_backend() == "cpu" else 2

        self.trainable: Arrays = placement.put(params)
        self.frozen: Arrays = {}
        self.opt_state: Any = None
        self.compiled = False
        self.sums: Any = placement.put(zero_sums())
        text = summarize(self.model, params, self.phases[0].labels, tuple(config.image_size))
        run.write("summary.txt", text)
        terminal.say(text.splitlines()[-1])
        if checkpoints.exists(run.last):
            self._resume()
        else:
            self._enter(0)
        self.saved = time.monotonic()
        self.board = TensorBoard(run.path / "tensorboard", self.position.epoch, run.writes)

    @property
    def params(self) -> Arrays:
        return {**self.trainable, **self.frozen}

    @property
    def serving(self) -> Arrays:
        """The parameters that are evaluated and kept: the moving average where there is one."""
        average = self.opt_state[1] if self.config.ema_decay else {}
        return {**self.params, **average}

    def close(self) -> None:
        """Waits until everything is on the disk."""
        self.board.close()
        self.writer.close()

    def fit(self) -> None:
        """Epochs until early stopping or the limit; the best weights are in `self.best` then."""
        position, config = self.position, self.config
        with self.interrupts:
            while position.epoch < config.num_epochs and not position.stop:
                self._thaw()
                row = self._epoch()
                position.history.append(row)
                stop, plateau = config.early_stopping.monitor, config.plateau.monitor
                position.stop = self.stopping.update(position.epoch, row[stop])
                if config.schedule == "plateau":
                    position.learning_rate = self.plateau.update(
                        position.epoch, row[plateau], position.learning_rate
                    )
                is_best = self.stopping.best_epoch == position.epoch
                position.epoch, position.batch, position.seconds = position.epoch + 1, 0, 0.0
                self.sums = self.placement.put(zero_sums())
                # `last` first: where a kill comes between the two, it holds what `best` lacks.
                self._save_last()
                if is_best:
                    self._keep_best()
                self.run.write_history(position.history)
                self.board.epoch(row)
                left = self.stopping.patience - self.stopping.wait
                left = 0 if position.stop else min(left, config.num_epochs - position.epoch)
                self.terminal.epoch(row, config.num_epochs, left, is_best)
                if self._wish() == STOP and self.placement.processes == 1:
                    self._leave()
        reason = (
            f"no better {config.early_stopping.monitor} for {config.early_stopping.patience} epochs"
            if position.stop
            else f"the limit of {config.num_epochs} epochs"
        )
        self.terminal.say(
            f"stopped after epoch {position.epoch}: {reason}; "
            f"the best weights are those of epoch {self.stopping.best_epoch + 1}"
        )
        for phase in self.phases[self.phase + 1 :]:
            self.terminal.banner(
                f"the run ended before epoch {phase.epoch + 1}, from which freeze.unfreeze would "
                f"have thawed regime {phase.regime!r}: it was never reached"
            )

    def finish(self) -> dict[str, Any]:
        """Scores the test split with the best weights and writes the report."""
        params = self.placement.put(self.best) if self.best else self.serving
        test = self.splits.test
        if self.config.test_time_augmentation:
            self.eval_step = self._make_eval_step(self.graphdef, symmetries=True)
        logits = self._logits(params, "test")
        metrics = classification_metrics(
            test.labels, logits, self.splits.classes, groups=test.patients
        )
        metrics |= {
            "split": "test",
            "best_epoch": self.stopping.best_epoch + 1,
            "epochs": self.position.epoch,
            "patients": None if test.patients is None else len(set(test.patients)),
            "notes": list(self.splits.notes),
            "initial_weights": self.config.pretrained.source,
            "test_time_augmentation": self.config.test_time_augmentation,
        }
        if self.run.writes:
            self._report(metrics, logits)
        interval = metrics["auroc_interval"]
        self.terminal.say(
            f"test: loss {metrics['loss']:.4f}  accuracy {metrics['accuracy']:.3f}  AUROC "
            f"{metrics['auroc']:.3f} (95% {interval['low']:.3f} to {interval['high']:.3f}, "
            f"{interval['method']})  n {metrics['n']}"
        )
        if message := collapse_message(metrics):
            self.terminal.banner(message)
        self.terminal.say(f"results: {self.run.path}")
        return jsonable(metrics)

    def _report(self, metrics: dict[str, Any], logits: np.ndarray) -> None:
        test = self.splits.test
        plot_history(
            self.position.history,
            self.run.path / "history.png",
            best_epoch=self.stopping.best_epoch,
            prior_entropy=prior_entropy(self.splits.train.labels),
        )
        self.run.write_history(self.position.history)
        self.writer.wait()
        # Last, since these files say that the run is finished.
        write_report(
            self.run.path,
            metrics=metrics,
            ids=test.ids,
            labels=test.labels,
            logits=logits,
            classes=self.splits.classes,
            patients=test.patients,
        )

    def _epoch(self) -> dict[str, Any]:
        """Trains the epoch, or what is left of it, and validates; its line of `metrics.jsonl`."""
        position, batches = self.position, self.inputs["train"]
        start = time.monotonic() - position.seconds
        in_flight: collections.deque[Any] = collections.deque()
        with self.terminal.epoch_bar(position.epoch, len(batches), position.batch) as bar:
            order = self._order(position.epoch)
            for batch in batches.epoch(order, start=position.batch):
                rows = {name: batch[name] for name in ("image", "label", "mask")}
                if batches.examples.weights is not None:
                    rows["weight"] = batches.examples.weights[batch["index"]]
                if self.augments:
                    drawn = position.epoch * len(batches.examples)
                    rows["draw"] = (drawn + batch["position"]).astype(np.int32)
                if self.placement.processes > 1:
                    # All must do the same after the same step, so the step itself carries it round.
                    rows["request"] = np.full(len(rows["mask"]), self._wish(), np.int32)
                arguments = (
                    self.trainable,
                    self.frozen,
                    self.opt_state,
                    self.sums,
                    self.placement.batch(rows),
                    self._learning_rate(position.step),
                    jax.random.fold_in(self.key, position.step),
                )
                if not self.compiled:
                    compile_now(self.train_step, *arguments)
                    self.compiled = True
                self.trainable, self.opt_state, self.sums = self.train_step(*arguments)
                position.step, position.batch = position.step + 1, position.batch + 1
                position.seconds = time.monotonic() - start
                in_flight.append(self.sums)
                done = in_flight.popleft() if len(in_flight) > self.ahead else None
                if done is not None:
                    _wait(done)
                bar.advance(int(batch["mask"].sum()) * self.placement.processes)
                if self.placement.processes == 1:
                    asked = self._wish()
                else:
                    asked = NONE if done is None else int(done["request"])
                if asked:
                    self._check_finite()
                    self._save_last()
                if asked == STOP:
                    self._leave()
        totals = self._check_finite()
        position.seconds = time.monotonic() - start
        trained = position.seconds
        count = totals["count"]
        labels = self.splits.validation.labels
        logits = self._logits(self.serving, "validation", leave=True)
        validation = classification_metrics(labels, logits, self.splits.classes)
        return {
            "epoch": position.epoch,
            "step": position.step,
            "learning_rate": float(self._learning_rate(position.step - 1)),
            "loss": totals["loss"] / count,
            "total_loss": totals["total_loss"] / count,
            "accuracy": totals["correct"] / count,
            "val_loss": validation["loss"],
            "val_accuracy": validation["accuracy"],
            "val_auroc": validation["auroc"],
            "time": {
                "seconds": time.monotonic() - start,
                "images_per_second": count / trained,
                # What either would do without the other: a starved step shows.
                "step_images_per_second": count / max(trained - batches.waited, 1e-9),
                "input_images_per_second": batches.rate * self.placement.processes,
                "waited_for_input": batches.waited,
            },
        }

    def _augment(self, images: jax.Array, draws: jax.Array) -> jax.Array:
        """Inside the compiled step: what becomes of an image depends on its draw alone."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), _stable("augmentation"))
        return self.augmentation(images, jax.vmap(lambda n: jax.random.fold_in(key, n))(draws))

    def _order(self, epoch: int) -> int:
        return zlib.crc32(f"{self.config.seed}/order/{epoch}".encode())

    def _learning_rate(self, step: int) -> np.float32:
        per_epoch = len(self.inputs["train"])
        return learning_rate(self.config, self.position.learning_rate, step, per_epoch)

    def _wish(self) -> int:
        """What this process would like to do after the running step."""
        if self.interrupts.signal:
            return STOP
        due = time.monotonic() - self.saved > 60 * self.config.checkpoint_minutes
        return SAVE if due and self.placement.writes else NONE

    def _leave(self) -> None:
        self.writer.wait()
        self.terminal.say(
            f"stopped in epoch {self.position.epoch + 1} at batch {self.position.batch} and saved; "
            "the same command goes on from there"
        )
        raise Interrupted(self.interrupts.signal or signal.SIGTERM)

    def _check_finite(self) -> dict[str, float]:
        """The epoch's sums so far; where a loss was not finite, the run ends, saving nothing."""
        totals = {name: float(value) for name, value in jax.device_get(self.sums).items()}
        position = self.position
        if totals["first_bad"] < 0:
            return totals
        number = int(totals["first_bad"])
        # The running sums begin anew with each epoch, so it is the number of its batch.
        examples = self.inputs["train"].examples_of(self._order(position.epoch), number)
        step = position.step - position.batch + number
        about = {
            "epoch": position.epoch,
            "step": step,
            "learning_rate": float(self._learning_rate(step)),
            "ids": [self.splits.train.ids[i] for i in examples],
        }
        self.run.write(NOT_FINITE, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
        kept = f"; the weights before this epoch are in '{self.run.last}'" if position.epoch else ""
        raise UserError(
            f"the training loss is not finite in step {step + 1} (epoch {position.epoch + 1}) at "
            f"learning rate {about['learning_rate']:g}; lower config.learning_rate, or look at the "
            f"images of that batch, which '{self.run.path / NOT_FINITE}' names{kept}"
        )

    def _logits(self, params: Arrays, split: str, *, leave: bool = False) -> np.ndarray:
        """float32 [N, K] in the order of the split's examples; with `leave`, a signal ends it."""
        inputs = self.inputs[split]
        on_features = inputs is not self.batches[split]
        step = self.classify_step if on_features else self.eval_step
        count, size = len(inputs.examples), inputs.batch_size
        logits = []
        for number, batch in enumerate(inputs.epoch()):
            images = self.placement.batch({"image": batch["image"]})["image"]
            logits.append(step(params, images)[: min(size, count - number * size)])
            _wait(logits[max(number - self.ahead, 0)])
            if leave and self.placement.processes == 1 and self._wish() == STOP:
                self._save_last()
                self._leave()
        return np.concatenate([np.asarray(values) for values in logits])

    def _make_eval_step(
        self, graphdef: nnx.GraphDef, part: str = "network", *, symmetries: bool = False
    ) -> Any:
        return make_eval_step(
            graphdef,
            self.preprocessing,
            part=part,
            symmetries=symmetries,
            precision=self.config.precision,
            constrain=self.placement.replicated,
        )

    def _thaw(self) -> None:
        """Goes over to the next phase where its epoch has come."""
        following = self.phase + 1
        if following == len(self.phases) or self.position.epoch < self.phases[following].epoch:
            return
        self._enter(following)
        phase = self.phases[following]
        named = "" if phase.factor == 1 else f" at {phase.factor:g} times the learning rate"
        self.terminal.say(
            f"epoch {phase.epoch + 1}: regime {phase.regime}, {len(phase.trainable)} of "
            f"{len(phase.labels)} tensors train; those newly thawed{named} start with fresh moments"
        )

    def _enter(self, number: int) -> None:
        """Sets up what a phase trains, its optimizer, its step and its inputs."""
        self.phase, phase, config = number, self.phases[number], self.config
        params = self.params
        self.trainable = {path: params[path] for path in phase.trainable}
        self.frozen = {
            p: v for p, v in params.items() if phase.labels[p] == parameter_groups.FROZEN
        }
        groups = parameter_groups.thaw_groups(self.phases[: number + 1])
        optimizer = make_optimizer(config, groups)
        trainable, before = self.placement.fetch((self.trainable, self.opt_state))
        fresh = init_state(optimizer, trainable, ema_decay=config.ema_decay)
        self.opt_state = self.placement.put(parameter_groups.carry_over(before, fresh))
        model = nnx.clone(self.model)
        parameter_groups.disable_regularisation_in_frozen_layers(model, phase.labels)
        graphdef, _ = nnx.split(model, nnx.Param)
        self.inputs = dict(self.batches)
        trains = "head" if phase.head_only else "network"
        # An image that is not augmented has the same features always.
        caches = (
            config.freeze.cache_features and not self.augments and self.placement.processes == 1
        )
        if phase.head_only and caches:
            trains = "head_on_features"
            self._use_features(graphdef)
        self.train_step = make_train_step(
            graphdef,
            self.preprocessing,
            optimizer,
            trains=trains,
            augment=self._augment if self.augments else None,
            rates=self.rates,
            decays=self.decays,
            precision=config.precision,
            label_smoothing=config.label_smoothing,
            class_weights=self.weights,
            accumulation_steps=config.accumulation_steps,
            ema_decay=config.ema_decay,
            constrain=self.placement.constrain,
        )
        self.compiled = False

    def _use_features(self, graphdef: nnx.GraphDef) -> None:
        """Training and validation read what lies before the head from a cache; the test, which is
        scored once, goes through the whole network."""
        self.classify_step = self._make_eval_step(graphdef, "classify")
        embed_step, params = self._make_eval_step(graphdef, "embed"), self.params
        about = {
            **self._model_metadata(),
            "preprocessing": self.preprocessing.to_dict(),
            "precision": self.config.precision,
        }

        def embed(images: np.ndarray) -> jax.Array:
            return embed_step(params, self.placement.batch({"image": images})["image"])

        for split in ("train", "validation"):
            batches = self.batches[split]
            features = cached_features(embed, batches, weights=self.frozen, about=about)
            self.inputs[split] = batches.of_features(features)
        self.terminal.say("only the head trains: the features before it are computed once")

    def _model_metadata(self) -> dict[str, Any]:
        return {
            "name": self.config.model.name,
            "options": self.config.model.options.to_dict(),
            "image_size": list(self.config.image_size),
        }

    def _save_last(self) -> None:
        """All that the run needs to go on, in the background."""
        arrays = {f"params/{path}": value for path, value in self.params.items()}
        leaves = jax.tree.leaves(self.opt_state)
        arrays |= {f"optimizer/{i}": leaf for i, leaf in enumerate(leaves)}
        arrays |= {f"sums/{name}": value for name, value in self.sums.items()}
        self._save(self.run.last, self.placement.fetch(arrays), keep_previous=True)
        self.saved = time.monotonic()

    def _save(self, folder: pathlib.Path, arrays: Arrays, *, keep_previous: bool = False) -> None:
        metadata = {
            "model": self._model_metadata(),
            "classes": list(self.splits.classes),
            "preprocessing": self.preprocessing.to_dict(),
            "initial_weights": self.config.pretrained.source,
            "position": dataclasses.asdict(self.position),
            "early_stopping": self.stopping.state_dict(),
            "plateau": self.plateau.state_dict(),
        }
        if self.run.writes:
            self.writer.save(folder, arrays, metadata, keep_previous=keep_previous)

    def _keep_best(self) -> None:
        self.best = self.placement.fetch(self.serving)
        self._save(self.run.best, {f"params/{path}": v for path, v in self.best.items()})

    def _resume(self) -> None:
        arrays, metadata, note = checkpoints.restore_or_previous(self.run.last)
        if note:
            self.terminal.banner(note)
        self.position = position = _Position(**metadata["position"])
        # The phase that the optimizer's state belongs to.
        done = position.epoch if position.batch else max(position.epoch - 1, 0)
        number = max(n for n, phase in enumerate(self.phases) if phase.epoch <= done)
        put = self.placement.put
        self.trainable = put({path: arrays[f"params/{path}"] for path in self.params})
        self._enter(number)
        self.stopping.load_state_dict(metadata["early_stopping"])
        self.plateau.load_state_dict(metadata["plateau"])
        fresh, structure = jax.tree.flatten(self.opt_state)
        leaves = [put(arrays[f"optimizer/{i}"]) for i in range(len(fresh))]
        self.opt_state = jax.tree.unflatten(structure, leaves)
        self.sums = put({name: arrays[f"sums/{name}"] for name in self.sums})
        if self.stopping.best_epoch == position.epoch - 1 and not position.batch:
            self._keep_best()
        elif position.epoch:
            best, _ = checkpoints.restore(self.run.best)
            self.best = {path.removeprefix("params/"): value for path, value in best.items()}
        self.placement.agree("checkpoint", json.dumps(dataclasses.asdict(position)))
        within = f" and {position.batch} batches" if position.batch else ""
        self.terminal.say(
            f"resumed after {position.epoch} epochs{within} of the run in this folder"
        )


def _wait(arrays: Any) -> None:
    """Waits for a step in small naps, since Python handles signals between two of its own
    instructions alone."""
    nap = 5e-5
    while not all(array.is_ready() for array in jax.tree.leaves(arrays)):
        time.sleep(nap)
        nap = min(2 * nap, 5e-3)


def _stable(name: str) -> int:
    """The number of a random stream: a new stream shifts no other."""
    return zlib.crc32(name.encode()) & 0x7FFFFFFF
