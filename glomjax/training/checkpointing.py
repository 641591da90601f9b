"""What a run writes into its checkpoints, and how it goes on from them."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from glomjax import checkpoints
from glomjax.errors import UserError
from glomjax.evaluation.calibration import Decision
from glomjax.pretrained.spec import NetworkSpec, TrainingRecord
from glomjax.training.config import RunConfig
from glomjax.training.run_folder import RunFolder
from glomjax.training.sharding import Placement
from glomjax.training.state import Position, TrainState
from glomjax.training.steps import WARMED_UP


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """What `last` holds of a run that goes on."""

    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any]

    @property
    def params(self) -> dict[str, np.ndarray]:
        return checkpoints.params_of(self.arrays)

    @property
    def spec(self) -> NetworkSpec | None:
        """That of the network; None where an earlier version wrote the checkpoint."""
        stored = self.metadata.get("spec")
        return None if stored is None else NetworkSpec.from_dict(stored, "the run")

    @property
    def training_record(self) -> TrainingRecord | None:
        return None if self.spec is None else self.spec.trained_on

    @property
    def decoding(self) -> int:
        """The version of the rules by which its files became pixels."""
        return 1 if self.spec is None else self.spec.preprocessing.decoding

    @property
    def position(self) -> Position:
        position = Position(**self.metadata["position"])
        if position.history and position.history[0]["epoch"] == 0:
            # An earlier version counted the epochs in `metrics.jsonl` from 0.
            position.history = [row | {"epoch": row["epoch"] + 1} for row in position.history]
        return position

    def continue_in(self, state: TrainState, placement: Placement) -> None:
        """Gives a state that has entered the same phase the optimizer's numbers, the sums of the
        epoch and the callbacks' memory."""
        state.stopping.load_state_dict(self.metadata["early_stopping"])
        state.plateau.load_state_dict(self.metadata["plateau"])
        fresh, structure = jax.tree.flatten(state.opt_state)
        arrays = self.arrays
        if state.averages and f"optimizer/{len(fresh) - 1}" not in arrays:
            # An earlier version averaged without a warm-up and counted no steps for it.
            arrays = {**arrays, f"optimizer/{len(fresh) - 1}": np.array(WARMED_UP, np.int32)}
        leaves = [placement.put(arrays[f"optimizer/{i}"]) for i in range(len(fresh))]
        state.opt_state = jax.tree.unflatten(structure, leaves)
        state.sums = placement.put({name: self.arrays[f"sums/{name}"] for name in state.sums})


def restore_run(run: RunFolder) -> tuple[SavedRun | None, str]:
    """(what `last` holds, or None where nothing is saved; a note where the one before it had to
    take its place).

    Raises:
      UserError: what is there is damaged.
    """
    if not checkpoints.exists(run.last):
        return None, ""
    arrays, metadata, note = checkpoints.restore_or_previous(run.last)
    return SavedRun(arrays, metadata), note


class RunCheckpoints:
    """Writes `last` and `best` of a run, in the background.

    Args:
      run: the folder.
      placement: of the arrays.
      spec: of the network, which every checkpoint carries.
      config: says by which metric an epoch is the best, and how many there may be.

    Attributes:
      saved: when `last` was written last, or training began, by `time.monotonic`.
      seconds: that `last` took the longest time, from the device to the disk; 0 before the first.
    """

    def __init__(self, run: RunFolder, placement: Placement, spec: NetworkSpec, config: RunConfig):
        self._run, self._placement, self._spec = run, placement, spec
        self._monitor, self._num_epochs = config.early_stopping.monitor, config.num_epochs
        self._writer = checkpoints.Writer(run.lock.check)
        self.saved = time.monotonic()
        self._fetched = 0.0

    @property
    def seconds(self) -> float:
        return self._fetched + self._writer.seconds

    def save_last(self, state: TrainState) -> None:
        """All that the run needs to go on."""
        arrays = {checkpoints.PARAMS + path: value for path, value in state.params.items()}
        leaves = jax.tree.leaves(state.opt_state)
        arrays |= {f"optimizer/{i}": leaf for i, leaf in enumerate(leaves)}
        arrays |= {f"sums/{name}": value for name, value in state.sums.items()}
        begun = time.monotonic()
        fetched = self._placement.fetch(arrays)
        self._fetched = max(self._fetched, time.monotonic() - begun)
        self._save(self._run.last, fetched, state, keep_previous=True)
        self.saved = time.monotonic()

    def keep_best(self, state: TrainState) -> None:
        """The evaluated parameters, in `state.best` and on the disk."""
        state.best = self._placement.fetch(state.evaluated)
        arrays = {checkpoints.PARAMS + path: value for path, value in state.best.items()}
        self._save(self._run.best, arrays, state)

    def keep_decision(self, state: TrainState, decision: Decision) -> None:
        """What was chosen on the validation split joins the best parameters on the disk, where
        whoever predicts with them finds it. A run that is killed after that chooses the same
        again."""
        decided = dataclasses.replace(
            self._spec,
            temperature=decision.temperature,
            threshold=decision.threshold,
            threshold_rule=decision.rule,
        )
        if decided != self._spec:
            best = state.best or self._placement.fetch(state.evaluated)
            arrays = {checkpoints.PARAMS + path: value for path, value in best.items()}
            self._save(self._run.best, arrays, state, spec=decided)

    def restore_best(self, state: TrainState) -> str:
        """Reads the best parameters back, or keeps those that a kill left unwritten.

        Returns:
          A sentence on what is lost where they are damaged, "" otherwise.
        """
        position, stopping = state.position, state.stopping
        if stopping.best_epoch == position.epoch - 1 and not position.batch:
            self.keep_best(state)
        elif position.epoch and stopping.best is not None:
            lost = ""
            try:
                best, metadata = checkpoints.restore(self._run.best)
                state.best = checkpoints.params_of(best)
                lost = self._another_best(state, metadata)
            except UserError as error:
                lost = str(error).partition(";")[0]
            # Process 0 is about to write others: all must have read, and then do the same.
            if self._placement.total(np.array([float(bool(lost))]))[0]:
                return self._do_without_best(state, lost or "another process cannot read them")
        return ""

    def _another_best(self, state: TrainState, metadata: dict[str, Any]) -> str:
        """Why the weights in `best` are not those that `last` takes for the best, "" where they
        are, or are of a later epoch, which is then trained again to the same."""
        position = state.position
        kept, reached = metadata["early_stopping"]["best_epoch"], metadata["position"]["epoch"]
        if kept == state.stopping.best_epoch or position.epoch < reached <= self._num_epochs:
            return ""
        return f"'{self._run.best}' holds those of epoch {kept + 1}"

    def _do_without_best(self, state: TrainState, reason: str) -> str:
        """The parameters of the last epoch take the place of the best ones; in the middle of an
        epoch, when they have changed already, those that this one will have."""
        position, stopping = state.position, state.stopping
        lost = f"of epoch {stopping.best_epoch + 1} ({self._monitor} {stopping.best:.4f})"
        stopping.best, stopping.wait, position.stop = None, 0, False
        if position.batch:
            kept = f"those of epoch {position.epoch + 1}, in which it goes on, take their place"
        else:
            stopping.update(position.epoch - 1, position.history[-1][self._monitor])
            kept = f"those of epoch {position.epoch}, the last one, take their place"
        note = f"The best weights, {lost}, are lost: {reason}; {kept} until there are better ones."
        position.notes.append(note)
        # `last` first, as after an epoch: it knows from now on that the best ones are others.
        self.save_last(state)
        if not position.batch:
            self.keep_best(state)
        return note

    def wait(self) -> None:
        """Returns when everything is on the disk."""
        self._writer.wait()

    def close(self) -> None:
        """Waits and ends the writing thread."""
        self._writer.close()

    def _save(
        self,
        folder: Any,
        arrays: dict[str, Any],
        state: TrainState,
        *,
        keep_previous: bool = False,
        spec: NetworkSpec | None = None,
    ) -> None:
        if not self._run.writes:
            return
        self._run.lock.check()
        metadata = {
            "spec": (spec or self._spec).to_dict(),
            "position": dataclasses.asdict(state.position),
            "early_stopping": state.stopping.state_dict(),
            "plateau": state.plateau.state_dict(),
        }
        self._writer.save(folder, arrays, metadata, keep_previous=keep_previous)
