"""What a phase of a run needs: what trains, its optimizer, its step and what the step reads."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from glomjax.data.pipeline import Batches
from glomjax.inference.steps import make_predict_step
from glomjax.ops.compilation import compile_now
from glomjax.preprocessing.augmentation import Augmentation
from glomjax.preprocessing.preprocessing import Preprocessing
from glomjax.training import parameter_groups
from glomjax.training.config import RunConfig
from glomjax.training.features import cached_features
from glomjax.training.optimizers import make_optimizer
from glomjax.training.parameter_groups import FROZEN, Phase
from glomjax.training.resources import check_step
from glomjax.training.sharding import Placement
from glomjax.training.state import TrainState
from glomjax.training.steps import init_state, make_train_step


@dataclasses.dataclass
class RunningPhase:
    """A phase as the loop runs it.

    Attributes:
      number: its place in the plan.
      phase: what trains.
      batches: of training and validation: images, or the features before the head.
      on_features: whether they are features.
      augments: whether each training image has a number by which it is changed, its "draw".
      train_step: as `make_train_step` makes it.
      predict_step: (params, images or features) -> logits of validation examples.
      check: refuses a step that has no room in memory; None behind the first phase of a process,
        which has been running then.
    """

    number: int
    phase: Phase
    batches: Mapping[str, Batches]
    on_features: bool
    augments: bool
    train_step: Any
    predict_step: Any
    check: Callable[..., None] | None
    compiled: bool = False

    @property
    def note(self) -> str:
        """A line on what its steps read, "" where that is the images."""
        return (
            "only the head trains: the features before it are computed once"
            if self.on_features
            else ""
        )

    def step(self, *arguments: Any) -> Any:
        """One training step; the first one compiles.

        Raises:
          UserError: it has no room in memory.
        """
        if not self.compiled:
            compiled = compile_now(self.train_step, *arguments)
            if self.check is not None:
                self.check(self.train_step, compiled, arguments, self.batches)
            self.compiled = True
        return self.train_step(*arguments)


@dataclasses.dataclass(frozen=True)
class Phases:
    """The phases of a run and what they have in common.

    Attributes:
      config: of the run.
      model: the network without numbers.
      plan: what trains from which epoch on.
      rates, decays: {path: factor of the learning rate}, {path: weight decay}.
      batches: the images of each split.
      preprocessing: of the images, on the device.
      class_weights: of the loss, () for none.
      placement: of arrays on devices.
    """

    config: RunConfig
    model: Any
    plan: tuple[Phase, ...]
    rates: Mapping[str, float]
    decays: Mapping[str, float]
    batches: Mapping[str, Batches]
    preprocessing: Preprocessing
    class_weights: tuple[float, ...]
    placement: Placement
    _predict_steps: dict[tuple[str, bool], Any] = dataclasses.field(default_factory=dict)

    def at(self, epoch: int) -> int:
        """The number of the phase that an epoch belongs to."""
        return max(n for n, phase in enumerate(self.plan) if phase.epoch <= epoch)

    def enter(self, number: int, state: TrainState) -> RunningPhase:
        """Divides the parameters of `state` as this phase has them, with what its optimizer knows
        already of those that trained before, and makes the steps."""
        phase, config = self.plan[number], self.config
        first, unit = state.opt_state is None, self.placement.devices * config.accumulation_steps
        params = state.params
        state.trainable = {path: params[path] for path in phase.trainable}
        state.frozen = {p: v for p, v in params.items() if phase.labels[p] == FROZEN}
        groups = parameter_groups.thaw_groups(self.plan[: number + 1])
        optimizer = make_optimizer(config, groups)
        trainable, before = self.placement.fetch((state.trainable, state.opt_state))
        fresh = init_state(optimizer, trainable, ema_decay=config.ema_decay)
        state.opt_state = self.placement.put(parameter_groups.carry_over(before, fresh))

        model = nnx.clone(self.model)
        parameter_groups.disable_regularisation_in_frozen_layers(model, phase.labels)
        graphdef, _ = nnx.split(model, nnx.Param)
        augmentation = config.augment()
        augments = augmentation != Augmentation()
        # An image that is not augmented has the same features always.
        on_features = (
            phase.head_only
            and config.freeze.cache_features
            and not augments
            and self.placement.processes == 1
        )
        trains = "head" if phase.head_only else "network"
        return RunningPhase(
            number,
            phase,
            self._feature_batches(state) if on_features else self.batches,
            on_features,
            augments,
            make_train_step(
                graphdef,
                self.preprocessing,
                optimizer,
                trains="head_on_features" if on_features else trains,
                augment=_augment(augmentation, config.seed) if augments else None,
                rates=self.rates,
                decays=self.decays,
                precision=config.precision,
                label_smoothing=config.label_smoothing,
                class_weights=self.class_weights,
                accumulation_steps=config.accumulation_steps,
                ema_decay=config.ema_decay,
                constrain=self.placement.constrain,
            ),
            self.predict_step("classify" if on_features else "network"),
            functools.partial(check_step, state, unit=unit) if first else None,
        )

    def predict_step(self, part: str = "network", *, symmetries: bool = False) -> Any:
        """`make_predict_step` for this run's network, images and devices."""
        # One step for all phases: it takes whatever parameters there are, and compiles once.
        if (part, symmetries) not in self._predict_steps:
            self._predict_steps[part, symmetries] = make_predict_step(
                nnx.graphdef(self.model),
                self.preprocessing,
                part=part,
                symmetries=symmetries,
                precision=self.config.precision,
                constrain=self.placement.replicated,
            )
        return self._predict_steps[part, symmetries]

    def _feature_batches(self, state: TrainState) -> dict[str, Batches]:
        """Training and validation read what lies before the head from a cache; the test, which is
        scored once, goes through the whole network."""
        embed_step, params = self.predict_step("embed"), state.params
        about = {
            "name": self.config.model.name,
            "options": dict(self.config.model.options),
            "image_size": list(self.config.image_size),
            "preprocessing": self.preprocessing.to_dict(),
            "precision": self.config.precision,
        }

        def embed(images: np.ndarray) -> jax.Array:
            return embed_step(params, self.placement.batch({"image": images})["image"])

        return {
            split: self.batches[split].of_features(
                cached_features(embed, self.batches[split], weights=state.frozen, about=about)
            )
            for split in ("train", "validation")
        }


def stream_number(name: str) -> int:
    """The number of a random stream: a new stream shifts no other."""
    return zlib.crc32(name.encode()) & 0x7FFFFFFF


def _augment(augmentation: Augmentation, seed: int) -> Any:
    """Inside the compiled step: what becomes of an image depends on its draw alone."""

    def augment(images: jax.Array, draws: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), stream_number("augmentation"))
        return augmentation(images, jax.vmap(lambda n: jax.random.fold_in(key, n))(draws))

    return augment
