"""From a configuration to a run that can take its first step, in the order in which things must
happen: whatever is wrong is said before anything is computed that would be lost."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from glomjax.data.examples import SPLITS, DataSplits
from glomjax.data.permuted_labels import permute_labels
from glomjax.data.pipeline import Batches
from glomjax.data.preparation import prepare_data
from glomjax.data.sources import ArraySplits, load_source
from glomjax.data.survey import Survey
from glomjax.errors import assignment
from glomjax.models import create_model, num_logits, params_of
from glomjax.ops import native
from glomjax.preprocessing.decoding import DECODING_VERSION
from glomjax.preprocessing.preprocessing import IMAGENET
from glomjax.training import parameter_groups
from glomjax.training.artefact import (
    check_not_seen,
    check_threshold_rule,
    describe_network,
    record_training,
)
from glomjax.training.callbacks import EarlyStopping, ReduceLROnPlateau
from glomjax.training.checkpointing import RunCheckpoints, SavedRun, restore_run
from glomjax.training.config import MONITORS, DataConfig, RunConfig
from glomjax.training.config_checks import check_values
from glomjax.training.initial_weights import load_initial, read_source, settle_source
from glomjax.training.optimizers import check_cosine, class_weights
from glomjax.training.phases import Phases, RunningPhase
from glomjax.training.progress import Terminal, describe_viewing
from glomjax.training.resources import check_cache, describe_disk, size_of
from glomjax.training.run_folder import RunFolder
from glomjax.training.sharding import Placement
from glomjax.training.state import Position, TrainState
from glomjax.training.steps import zero_sums
from glomjax.training.summary import summarize


@dataclasses.dataclass(frozen=True)
class RunSetup:
    """A run before its first step.

    Attributes:
      config: as it took effect.
      run, terminal, placement: where it writes, talks and computes.
      splits: the examples.
      survey: what their images are like.
      phases, phase: what trains when, and how; the one that it begins with or goes on in.
      state: all that changes.
      checkpoints: what it writes.
    """

    config: RunConfig
    run: RunFolder
    terminal: Terminal
    placement: Placement
    splits: DataSplits
    survey: Survey
    phases: Phases
    phase: RunningPhase
    state: TrainState
    checkpoints: RunCheckpoints


def prepare_run(
    requested: RunConfig,
    run: RunFolder,
    placement: Placement,
    terminal: Terminal,
    arrays: ArraySplits | None,
) -> RunSetup:
    """Everything up to the first step of a run in a folder that it has claimed.

    Raises:
      UserError: whatever the user can put right.
    """
    # 1. What takes effect: a run that has begun keeps what it began with.
    going_on = run.going_on(requested)
    requested, config = going_on or (requested, requested)
    if going_on is None:
        config, note = settle_source(config, has_arrays=arrays is not None)
        config = config.settle()
        if note:
            terminal.banner(note)
    settings = demo_settings(requested, config, arrays)
    if settings:
        config = dataclasses.replace(config, **settings)
        check_values(config)
        told = ", ".join(f"{key} {value}" for key, value in settings.items())
        terminal.say(
            f"demo data: the settings of config.demo take effect ({told}); "
            f"{assignment('demo')}.KEY changes them, and a field that is set itself comes first"
        )

    if note := check_cosine(config):
        terminal.banner(note)

    with native.setting(config.ops.native):
        return _prepare(requested, config, run, placement, terminal, arrays)


def demo_settings(
    requested: RunConfig, config: RunConfig, arrays: ArraySplits | None
) -> dict[str, Any]:
    """What takes the place of fields of a settled configuration on the embedded demo data."""
    takes = arrays is None and config.takes_demo_settings
    return requested.demo_settings() if takes else {}


def _prepare(
    requested: RunConfig,
    config: RunConfig,
    run: RunFolder,
    placement: Placement,
    terminal: Terminal,
    arrays: ArraySplits | None,
) -> RunSetup:
    # 2. The network, in shapes alone, and the plan of what trains: a wrong one ends the run here.
    model: Any = nnx.eval_shape(functools.partial(create_network, config, 2))
    freeze = config.freeze
    plan = parameter_groups.plan(
        model,
        freeze.regime,
        until=freeze.until,
        rules=freeze.rules,
        unfreeze=freeze.unfreeze,
    )
    rates, decays = parameter_groups.rates_and_decays(
        model,
        plan,
        learning_rate_rules=config.learning_rate_rules,
        layer_decay=config.layer_decay,
        weight_decay=config.weight_decay,
        weight_decay_rules=config.weight_decay_rules,
    )

    # 3. The data, listed; a begun run keeps its own division.
    splits = load_splits(config.data, arrays, run.kept_splits())
    for line in splits.describe():
        terminal.say(line)
    for note in splits.notes:
        terminal.banner(note)
    check_threshold_rule(config.decision.threshold, splits)
    placement.agree("data", splits.digest())  # by now process 0 has taken the folder
    create = functools.partial(create_network, config, len(splits.classes))
    if len(splits.classes) != 2:  # the same parameters but for the shape of the last
        model = nnx.eval_shape(create)

    # 4. The weights, which bring mean and deviation of pixels; a run that goes on has its own.
    saved, note = restore_run(run)
    if note:
        terminal.banner(note)
    weights = None if saved else read_source(config)
    origin = saved.spec if saved else weights.info.spec if weights else None
    own = origin is not None and config.preprocessing == "auto"

    check_cache(config, sum(len(splits[split]) for split in SPLITS), params_of(model))

    # 5. The images, each read once; a run that goes on keeps the rules by which it decoded them.
    prepared = prepare_data(
        splits,
        **config.preparation_options(),
        normalization=origin.preprocessing if origin is not None and own else IMAGENET,
        decoding=DECODING_VERSION if saved is None else saved.decoding,
        cache_bytes=int(config.data.cache_gib * 2**30),
        shard=placement.shard,
        total=placement.total,
    )
    for message in prepared.messages:
        terminal.say(message)
    for note in prepared.splits.notes[len(splits.notes) :]:
        terminal.banner(note)
    splits = prepared.splits
    factors = class_weights(config.class_weights, splits.train.labels, len(splits.classes))
    record = None if saved is None else saved.training_record
    record = record or record_training(config, prepared, weights)
    seen_notes = check_not_seen(record, prepared, allowed=config.pretrained.allow_seen)
    for note in seen_notes:
        terminal.banner(note)
    splits = dataclasses.replace(splits, notes=(*splits.notes, *seen_notes))

    # 6. The folder is this run's now.
    digest = splits.digest()
    run.check_data(digest, config.data.source)
    run.write_config(requested, config, data=digest)
    if native.must_build():
        terminal.say(native.BUILDING)
    run.write_environment(config)
    if kernels := native.status(config.precision):
        terminal.say(kernels)
    run.write_splits(splits.to_csv())

    # 7. The parameters: where the run goes on, no initial value is computed.
    if saved is None:
        initial = load_initial(create, weights, splits.classes, prepared.preprocessing)
        for message in initial.messages:
            terminal.say(message)
        for note in initial.notes:
            terminal.banner(note)
        params = jax.device_get(initial.params)
    else:
        params = saved.params
    text = summarize(model, params, plan[0].labels, config.image_size)
    run.write("summary.txt", text)
    terminal.say(text.splitlines()[-1])

    # 8. What changes while it trains.
    position = Position(learning_rate=float(np.float32(config.learning_rate)))
    state = TrainState(
        trainable=placement.put(params),
        frozen={},
        opt_state=None,
        sums=placement.put(zero_sums()),
        position=position if saved is None else saved.position,
        stopping=EarlyStopping(
            config.early_stopping.patience,
            config.early_stopping.min_delta,
            MONITORS[config.early_stopping.monitor],
        ),
        plateau=ReduceLROnPlateau(
            config.plateau.factor,
            config.plateau.patience,
            config.plateau.min_delta,
            MONITORS[config.plateau.monitor],
            min_lr=config.plateau.min_lr,
        ),
        averages=config.ema_decay > 0,
    )
    placement.agree("checkpoint", json.dumps(dataclasses.asdict(state.position)))
    # One that no split fills would be padding.
    batch_size = min(config.batch_size, max(map(len, prepared.images.values())))
    batches = {
        split: Batches(
            images,
            batch_size,
            stratified=config.stratified_batches,
            multiple=placement.devices * config.accumulation_steps,
            shard=placement.shard,
        )
        for split, images in prepared.images.items()
    }
    phases = Phases(
        config, model, plan, rates, decays, batches, prepared.preprocessing, factors, placement
    )
    spec = describe_network(config, prepared, batches["test"].rows // placement.devices)
    spec = dataclasses.replace(spec, trained_on=record)
    writer = RunCheckpoints(run, placement, spec, config)

    # 9. The phase that it begins with or goes on in.
    if saved is None:
        phase = phases.enter(0, state)
    else:
        phase = _continue(saved, phases, state, placement)
        if note := writer.restore_best(state):
            terminal.banner(note)
        within = f" and {state.position.batch} batches" if state.position.batch else ""
        terminal.say(
            f"resumed after {state.position.epoch} epochs{within} of the run in this folder"
        )
    if phase.note:
        terminal.say(phase.note)
    if run.writes:
        parts = size_of(state.params), size_of((state.opt_state, state.sums))
        line, has_room = describe_disk(run.best.parent, sum(parts), parts[0])
        (terminal.say if has_room else terminal.banner)(line)
    terminal.say(describe_viewing(run.path))
    return RunSetup(
        config, run, terminal, placement, splits, prepared.survey, phases, phase, state, writer
    )


def _continue(
    saved: SavedRun, phases: Phases, state: TrainState, placement: Placement
) -> RunningPhase:
    """The phase that the optimizer's saved state belongs to, entered with that state."""
    position = state.position
    done = position.epoch if position.batch else max(position.epoch - 1, 0)
    phase = phases.enter(phases.at(done), state)
    saved.continue_in(state, placement)
    return phase


def create_network(config: RunConfig, classes: int) -> nnx.Module:
    """The network that a configuration describes, with one logit for two classes."""
    return create_model(
        config.model.name,
        num_classes=num_logits(classes),
        image_size=config.image_size,
        rngs=nnx.Rngs(config.seed),
        **config.model.options,
    )


def load_splits(
    data: DataConfig, arrays: ArraySplits | None = None, kept: Mapping[str, str] | None = None
) -> DataSplits:
    """The data set that a configuration (or a script's arrays) describes, divided."""
    source = data.source if arrays is None else arrays
    splits = load_source(source, **data.source_options(), kept=kept)
    return permute_labels(splits, data.split_seed) if data.permute_labels else splits
