"""What a run takes of memory and disk, against what there is: said before the first step, and not
by a process that is killed in the middle of one."""

import contextlib
import errno
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from glomjax.data.pipeline import Batches, batches_ahead
from glomjax.errors import UserError, assignment, same_again
from glomjax.files import NO_ROOM
from glomjax.inference.prediction import steps_ahead
from glomjax.memory import free_bytes, free_host_bytes, is_out_of_memory
from glomjax.ops.compilation import compile_now
from glomjax.training.config import RunConfig
from glomjax.training.state import TrainState

_GIB = 2**30
# What compiling validation's step takes of the host. With it, a step of DaViT-T with 8 images of
# 280 x 280 was to take 1.83 GiB and took 1.88; one of AlexNet-mini with 32, 0.77 and 0.68.
_LATER_PROGRAMS = 192 * 2**20


def size_of(tree: Any) -> int:
    """Bytes of the arrays of a tree, or of what they are the shapes of."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def check_cache(config: RunConfig, images: int, params: Mapping[str, Any]) -> None:
    """Refuses decoded images that leave no room for training.

    Args:
      images: how many there are.
      params: the parameters, or their shapes.

    Raises:
      UserError: it is more than is free.
    """
    free = free_host_bytes()
    if free is None:
        return
    height, width = config.image_size
    kept = min(config.data.cache_gib * _GIB, images * height * width * 3)
    # Where the host computes: parameters, gradients and two moments.
    state = 4 * size_of(params) if jax.default_backend() == "cpu" else 0
    if kept + state <= free:
        return
    advice = "end other programs, or take another machine"
    if state < free:
        fewer = math.floor(90 * (free - state) / _GIB) / 100
        advice = f"{assignment('data.cache_gib', fewer)} keeps fewer images, which takes longer"
    raise UserError(
        f"there is no memory for this run: it needs {_amount(kept)} for decoded images and "
        f"{_amount(state)} for the parameters of the network and what trains them, and "
        f"{_amount(free)} are free; {advice}"
    )


def check_step(
    state: TrainState,
    step: Any,
    compiled: jax.stages.Compiled,
    arguments: tuple[Any, ...],
    batches: Mapping[str, Batches],
    unit: int,
) -> None:
    """Refuses a step that does not fit into memory, with the size of a batch that would.

    Args:
      state: of the run.
      step: the `jax.jit` function.
      compiled: of it, for these `arguments`: those of `make_train_step`'s step.
      batches: that the run reads.
      unit: of which the rows of a batch are a multiple.

    Raises:
      UserError: it needs more than is free.
    """
    free = free_bytes()
    needed = _step_bytes(compiled, arguments, batches)
    if free is None or needed is None:
        return
    free += size_of(state.best) if jax.default_backend() == "cpu" else 0  # which is there already
    if needed <= free:
        return
    rows = len(arguments[4]["label"])
    if jax.process_count() > 1:  # which would have to compile together
        advice = f"set {assignment('batch_size')} smaller"
    elif fitting := _fitting_rows(step, arguments, batches, (rows, needed), free, unit):
        advice = f"{assignment('batch_size', fitting)} fits"
    else:
        advice = "no smaller batch was found to fit: end other programs, or take another machine"
    raise UserError(
        f"there is no memory for a step with batches of {rows} images: it needs "
        f"{_amount(needed)} and {_amount(free)} are free; {advice}"
    )


def _step_bytes(
    compiled: jax.stages.Compiled, arguments: tuple[Any, ...], batches: Mapping[str, Batches]
) -> int | None:
    """What a run takes beside what it holds before its first step; None of a backend that does not
    tell."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    needed = (
        analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    )
    devices = arguments[4]["label"].sharding.num_devices
    needed += steps_ahead() * size_of(arguments[4]) / devices
    if jax.default_backend() == "cpu":
        needed *= min(devices, jax.local_device_count())  # which have one memory together
        trainable, frozen, opt_state = arguments[:3]
        # What is saved is copied before, Orbax holds it while it writes, and the best parameters
        # are kept.
        params = size_of((trainable, frozen))
        needed += 3 * params + 2 * size_of(opt_state) + _LATER_PROGRAMS
        needed += (batches_ahead() + 1) * size_of(arguments[4])
        needed += sum(part.cache_left for part in batches.values())
    return int(needed)


def _fitting_rows(
    step: Any,
    arguments: tuple[Any, ...],
    batches: Mapping[str, Batches],
    known: tuple[int, int],
    free: int,
    unit: int,
) -> int:
    """The rows of the largest batch that is found to fit, 0 where none does. What a step takes
    grows with its rows; a line through two of them tells which fits, and that one is tried."""

    def needed(rows: int) -> int:
        batch = {
            name: jax.ShapeDtypeStruct(
                (rows, *value.shape[1:]), value.dtype, sharding=value.sharding
            )
            for name, value in arguments[4].items()
        }
        changed = (*arguments[:4], batch, *arguments[5:])
        return _step_bytes(compile_now(step, *changed), changed, batches) or 0

    rows, most = known
    fewer = max(rows // (4 * unit), 1) * unit
    if fewer >= rows:
        return 0
    few = needed(fewer)
    slope = max((most - few) / (rows - fewer), 1)
    found = min(int(fewer + (free - few) / slope), rows - unit) // unit * unit
    for _ in range(3):  # each compiles a program
        if found < unit:
            break
        if (few if found == fewer else needed(found)) <= free:
            return found
        found = found * 3 // 4 // unit * unit
    return fewer if few <= free else 0


@contextlib.contextmanager
def memory_errors(config: RunConfig) -> Iterator[None]:
    """Memory that ends while a network trains or predicts in here is a UserError."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        where = "this machine" if jax.default_backend() == "cpu" else "the device"
        raise UserError(
            f"{where} has no memory left for batches of {config.batch_size} images of "
            f"{config.image_size[0]} x {config.image_size[1]}; try "
            f"{assignment('batch_size', max(config.batch_size // 2, 1))}, or "
            f"{assignment('accumulation_steps', 2 * config.accumulation_steps)}, which takes the "
            "same batch in parts"
        ) from error


@contextlib.contextmanager
def disk_errors(folder: str | os.PathLike[str]) -> Iterator[None]:
    """A disk in here that is full, or that cannot be written, is a UserError, whoever writes."""
    try:
        yield
    except OSError as error:
        if error.errno not in (*NO_ROOM, errno.EROFS, errno.EIO, errno.ESTALE):
            raise
        raise UserError(
            f"the run in '{os.fspath(folder)}' cannot be written ({error.strerror}); make room "
            f"there, or make it writable, and {same_again()} goes on after the last checkpoint"
        ) from error


def describe_disk(folder: pathlib.Path, whole: int, params: int) -> tuple[str, bool]:
    """(a line on what the checkpoints of a run take, whether there is room for them).

    Args:
      folder: of the checkpoints.
      whole: bytes of all that a run needs to go on; the one before it is kept, too, and a third one
        is there while it is written.
      params: bytes of the parameters, of which the best are kept.
    """
    most, least = 3 * whole + params, whole + params
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    free = shutil.disk_usage(folder).free
    has_room = most - there <= free
    line = (
        f"checkpoints: up to {_amount(most)} while it trains and {_amount(least)} once it is "
        f"finished; {_amount(free)} are free{'' if has_room else ', which is too little'}"
    )
    return line, has_room


def _amount(count: float) -> str:
    """Of memory or disk."""
    return f"{count / _GIB:.2f} GiB" if count >= _GIB else f"{count / 2**20:.3g} MiB"
