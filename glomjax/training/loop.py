"""A whole run: data, network, weights, training, evaluation, and the folder that it leaves."""

import collections
import dataclasses
import json
import math
import os
import pathlib
import time
import zlib
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from glomjax import checkpoints, pretrained
from glomjax.data.examples import SPLITS, DataSplits
from glomjax.data.pipeline import Batches
from glomjax.data.preprocessing import IMAGENET, ChannelStatistics, Preprocessing
from glomjax.errors import UserError
from glomjax.evaluation import (
    classification_metrics,
    collapse_message,
    plot_history,
    prior_entropy,
    write_report,
)
from glomjax.models import nest, params_of
from glomjax.training import freezing
from glomjax.training.callbacks import EarlyStopping, ReduceLROnPlateau
from glomjax.training.config import MONITORS, check_config
from glomjax.training.features import cached_features
from glomjax.training.inputs import (
    ArraySplits,
    create_network,
    describe_data,
    find_weights,
    load_data,
    load_initial_weights,
    settle_demo,
)
from glomjax.training.progress import Terminal
from glomjax.training.run_folder import RunFolder
from glomjax.training.steps import make_eval_step, make_train_step, zero_sums
from glomjax.training.summary import summarize

Arrays = dict[str, Any]


def train_and_evaluate(
    config: ConfigDict, workdir: str | os.PathLike[str], *, data: ArraySplits | None = None
) -> dict[str, Any]:
    """Trains until it stops by itself, restores the best weights and scores the test split once.

    Args:
      config: as `default_config` makes it and `configs/` fill it in.
      workdir: the run's folder. A finished run in it is returned as it is; an interrupted one goes
        on after its last whole epoch; a run with another configuration is refused.
      data: {"train": (images uint8 [N, H, W, 3], labels int [N]), "validation": ..., "test": ...}
        in place of `config.data.source`.

    Returns:
      The test metrics, as in `test_metrics.json`.

    Raises:
      UserError: whatever the user can put right.
    """
    check_config(config)
    terminal = Terminal()
    run = RunFolder(workdir)
    run.claim(config)
    if run.finished:
        if data is not None:
            run.check_data(load_data(config, data).digest())
        terminal.say(f"the run in '{run.path}' is finished; name another folder with --workdir")
        return json.loads((run.path / "test_metrics.json").read_text())

    requested, config = config, run.effective() or ConfigDict(config.to_dict())
    source = find_weights(config, data is not None, terminal)
    if data is None:
        settle_demo(config, terminal)
    splits = load_data(config, data)
    describe_data(splits, terminal)
    run.check_data(splits.digest())
    run.write_config(requested, config, splits.digest())
    run.write_environment(config.seed)
    training = _Training(config, splits, source, run, terminal)
    training.fit()
    return training.finish()


@dataclasses.dataclass
class _Position:
    """How far a run has come; saved in every checkpoint beside the arrays."""

    epoch: int = 0  # the next one
    step: int = 0  # the next one
    learning_rate: float = 0.0
    stop: bool = False
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class _Training:
    """One run in memory: network, optimizer, callbacks and position."""

    def __init__(
        self,
        config: ConfigDict,
        splits: DataSplits,
        source: str,
        run: RunFolder,
        terminal: Terminal,
    ):
        self.config, self.splits, self.run, self.terminal = config, splits, run, terminal
        cache = int(config.data.cache_gib * 2**30)
        self.batches = {
            split: Batches(
                splits[split],
                tuple(config.image_size),
                config.batch_size,
                stratified=config.stratified_batches,
                # Training images are read in every epoch, so they come first.
                cache_bytes=cache * (8 if split == "train" else 1) // 10,
            )
            for split in SPLITS
        }

        def create() -> nnx.Module:
            return create_network(config, len(splits.classes))

        # Shapes alone: a wrong plan ends the run before anything is computed.
        self.model = nnx.eval_shape(create)
        graphdef, _ = nnx.split(self.model, nnx.Param)
        self.phases = freezing.plan_of(config, self.model)
        self.rates, self.decays = freezing.rates_of(config, self.model, self.phases)
        self.preprocessing = self._survey(source)
        # One compiled program for all initial values: op by op, it takes longer than an epoch.
        params = jax.jit(lambda: params_of(create()))()
        if source and not checkpoints.exists(run.last):
            loaded = nnx.merge(graphdef, nest(params))
            report = load_initial_weights(loaded, source, splits.classes, terminal)
            _check_preprocessing(config.preprocessing, report)
            params = params_of(loaded)
        self.eval_step = make_eval_step(graphdef, self.preprocessing)
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

        self.trainable: Arrays = params
        self.frozen: Arrays = {}
        self.opt_state: Any = None
        text = summarize(self.model, params, self.phases[0].labels, tuple(config.image_size))
        run.write("summary.txt", text)
        terminal.say(text.splitlines()[-1])
        if checkpoints.exists(run.last):
            self._resume()
        else:
            self._enter(0)

    @property
    def params(self) -> Arrays:
        return {**self.trainable, **self.frozen}

    def fit(self) -> None:
        """Epochs until early stopping or the limit; the best weights are in `self.best` then."""
        position, config = self.position, self.config
        while position.epoch < config.num_epochs and not position.stop:
            self._thaw()
            row = self._epoch(position.epoch)
            position.history.append(row)
            position.stop = self.stopping.update(position.epoch, row[config.early_stopping.monitor])
            position.learning_rate = self.plateau.update(
                position.epoch, row[config.plateau.monitor], position.learning_rate
            )
            is_best = self.stopping.best_epoch == position.epoch
            position.epoch += 1
            # `last` first: where a kill comes between the two, it holds what `best` lacks.
            self._save(self.run.last, self._everything())
            if is_best:
                self._keep_best()
            self.run.write_history(position.history)
            left = self.stopping.patience - self.stopping.wait
            left = 0 if position.stop else min(left, config.num_epochs - position.epoch)
            self.terminal.epoch(row, config.num_epochs, left, is_best)
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
        params = self.best or self.params
        test = self.splits.test
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
        }
        plot_history(
            self.position.history,
            self.run.path / "history.png",
            best_epoch=self.stopping.best_epoch,
            prior_entropy=prior_entropy(self.splits.train.labels),
        )
        self.run.write_history(self.position.history)
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
        interval = metrics["auroc_interval"]
        self.terminal.say(
            f"test: loss {metrics['loss']:.4f}  accuracy {metrics['accuracy']:.3f}  AUROC "
            f"{metrics['auroc']:.3f} (95% {interval['low']:.3f} to {interval['high']:.3f}, "
            f"{interval['method']})  n {metrics['n']}"
        )
        if message := collapse_message(metrics):
            self.terminal.banner(message)
        self.terminal.say(f"results: {self.run.path}")
        return json.loads((self.run.path / "test_metrics.json").read_text())

    def _epoch(self, epoch: int) -> dict[str, Any]:
        start = time.monotonic()
        sums: Any = zero_sums()
        rate = np.float32(self.position.learning_rate)
        order = zlib.crc32(f"{self.config.seed}/order/{epoch}".encode())
        batches = self.inputs["train"]
        in_flight: collections.deque[Any] = collections.deque()
        with self.terminal.epoch_bar(epoch, len(batches)) as bar:
            for batch in batches.epoch(order):
                key = jax.random.fold_in(self.key, self.position.step)
                on_device = {name: batch[name] for name in ("image", "label", "mask")}
                self.trainable, self.opt_state, sums = self.train_step(
                    self.trainable, self.frozen, self.opt_state, sums, on_device, rate, key
                )
                self.position.step += 1
                # Two steps ahead keep the device busy; more would only hold batches in memory.
                in_flight.append(sums)
                if len(in_flight) > 2:
                    jax.block_until_ready(in_flight.popleft())
                bar.advance(int(batch["mask"].sum()))
        totals = {name: float(value) for name, value in jax.device_get(sums).items()}
        trained = time.monotonic()
        count = totals["count"]
        if not math.isfinite(totals["total_loss"]):
            raise UserError(
                f"the training loss is not finite in epoch {epoch + 1} at learning rate "
                f"{self.position.learning_rate:g}; lower config.learning_rate"
                + (f" (the best weights so far are in '{self.run.best}')" if epoch else "")
            )
        labels = self.splits.validation.labels
        logits = self._logits(self.params, "validation")
        validation = classification_metrics(labels, logits, self.splits.classes)
        row = {
            "epoch": epoch,
            "step": self.position.step,
            "learning_rate": self.position.learning_rate,
            "loss": totals["loss"] / count,
            "accuracy": totals["correct"] / count,
            "val_loss": validation["loss"],
            "val_accuracy": validation["accuracy"],
            "val_auroc": validation["auroc"],
            "time": {
                "seconds": time.monotonic() - start,
                "images_per_second": count / (trained - start),
            },
        }
        if totals["total_loss"] != totals["loss"]:
            row["total_loss"] = totals["total_loss"] / count
        return row

    def _logits(self, params: Arrays, split: str) -> np.ndarray:
        """float32 [N, K] in the order of the split's examples."""
        on_features = self.inputs[split] is not self.batches[split]
        step = self.classify_step if on_features else self.eval_step
        batches = self.inputs[split].epoch()
        logits = [(step(params, b["image"]), b["mask"] > 0) for b in batches]
        return np.concatenate([np.asarray(values)[real] for values, real in logits])

    def _survey(self, source: str) -> Preprocessing:
        """Reads every image once: one that cannot be read ends the run now and not after the
        training."""
        standardize = self.config.preprocessing == "standardize"
        if standardize and source:
            raise UserError(
                "preprocessing 'standardize' does not go with pretrained weights, which expect "
                "'imagenet'"
            )
        statistics = ChannelStatistics()
        for split, batches in self.batches.items():
            for batch in batches.epoch():
                if standardize and split == "train":
                    statistics.add(batch["image"][batch["mask"] > 0])
        return statistics.standardize() if standardize else IMAGENET

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
        self.frozen = {p: v for p, v in params.items() if phase.labels[p] == freezing.FROZEN}
        groups = freezing.thaw_groups(self.phases[: number + 1])
        # Keras' epsilon. Keras adds it before bias correction and optax after it, which differs
        # visibly only for gradients below about 1e-6.
        optimizer = freezing.partition(optax.scale_by_adam(eps=1e-7), groups)
        self.opt_state = freezing.carry_over(self.opt_state, optimizer.init(self.trainable))
        model = nnx.clone(self.model)
        freezing.silence_frozen(model, phase.labels)
        graphdef, _ = nnx.split(model, nnx.Param)
        self.inputs = dict(self.batches)
        trains = "head" if phase.head_only else "network"
        if phase.head_only and config.freeze.cache_features:
            trains = "head_on_features"
            self._use_features(graphdef)
        self.train_step = make_train_step(
            graphdef,
            self.preprocessing,
            optimizer,
            trains=trains,
            rates=self.rates,
            decays=self.decays,
        )

    def _use_features(self, graphdef: nnx.GraphDef) -> None:
        """Training and validation read what lies before the head from a cache; the test, which is
        scored once, goes through the whole network."""
        self.classify_step = make_eval_step(graphdef, self.preprocessing, part="classify")
        embed_step = make_eval_step(graphdef, self.preprocessing, part="embed")
        params = self.params
        about = {**self._model_metadata(), "preprocessing": self.preprocessing.to_dict()}
        for split in ("train", "validation"):
            batches = self.batches[split]
            features = cached_features(
                lambda images: embed_step(params, images),
                batches,
                weights=self.frozen,
                about=about,
            )
            self.inputs[split] = batches.of_features(features)
        self.terminal.say("only the head trains: the features before it are computed once")

    def _model_metadata(self) -> dict[str, Any]:
        return {
            "name": self.config.model.name,
            "options": self.config.model.options.to_dict(),
            "image_size": list(self.config.image_size),
        }

    def _everything(self) -> Arrays:
        leaves = jax.tree.leaves(self.opt_state)
        return {
            **{f"params/{path}": value for path, value in self.params.items()},
            **{f"optimizer/{i}": leaf for i, leaf in enumerate(leaves)},
        }

    def _save(self, folder: pathlib.Path, arrays: Arrays) -> None:
        metadata = {
            "model": self._model_metadata(),
            "classes": list(self.splits.classes),
            "preprocessing": self.preprocessing.to_dict(),
            "initial_weights": self.config.pretrained.source,
            "position": dataclasses.asdict(self.position),
            "early_stopping": self.stopping.state_dict(),
            "plateau": self.plateau.state_dict(),
        }
        checkpoints.save(folder, arrays, metadata)

    def _keep_best(self) -> None:
        self.best = jax.device_get(self.params)
        self._save(self.run.best, {f"params/{path}": v for path, v in self.best.items()})

    def _resume(self) -> None:
        arrays, metadata = checkpoints.restore(self.run.last)
        self.position = _Position(**metadata["position"])
        # The phase of the last epoch, which the optimizer's state belongs to.
        done = max(self.position.epoch - 1, 0)
        number = max(n for n, phase in enumerate(self.phases) if phase.epoch <= done)
        self.trainable = {path: arrays[f"params/{path}"] for path in self.params}
        self._enter(number)
        self.stopping.load_state_dict(metadata["early_stopping"])
        self.plateau.load_state_dict(metadata["plateau"])
        fresh, structure = jax.tree.flatten(self.opt_state)
        leaves = [arrays[f"optimizer/{i}"] for i in range(len(fresh))]
        self.opt_state = jax.tree.unflatten(structure, leaves)
        if self.stopping.best_epoch == self.position.epoch - 1:
            self._keep_best()
        else:
            best, _ = checkpoints.restore(self.run.best)
            self.best = {path.removeprefix("params/"): value for path, value in best.items()}
        self.terminal.say(f"resumed after epoch {self.position.epoch} of the run in this folder")


def _check_preprocessing(name: str, report: pretrained.LoadReport) -> None:
    """Weights of another preprocessing would load without a word and give other numbers."""
    expected = IMAGENET.to_dict() if name == "imagenet" else {}
    for key in ("mean", "std"):
        given = report.preprocessing.get(key)
        if given is not None and list(given) != expected.get(key):
            raise UserError(
                f"{report.source} was trained with the {key} {given} of its pixels and not with "
                f"that of preprocessing {name!r}; use other weights"
            )


def _stable(name: str) -> int:
    """The number of a random stream: a new stream shifts no other."""
    return zlib.crc32(name.encode()) & 0x7FFFFFFF
