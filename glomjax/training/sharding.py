"""One mesh for every machine: a CPU, eight GPUs, a TPU pod, several hosts differ in it alone."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from glomjax.errors import UserError, same_again

_MIN_SHARDED = 2**14  # smaller arrays cost more in messages than they save in memory


class Placement:
    """Where arrays live: examples divided over all devices, parameters whole or divided as well.

    Args:
      devices: how many of this process's devices to use; 0 for all. Several processes use all.
      shard_params: divide large parameters and the optimizer's state too, so that each device keeps
        a part and fetches the rest as it goes (fully sharded data parallelism).

    Raises:
      UserError: more devices than there are.
    """

    def __init__(self, devices: int = 0, *, shard_params: bool = False):
        self.processes = jax.process_count()
        available = jax.devices()
        if devices > len(available) or (devices and self.processes > 1):
            raise UserError(
                f"devices is {devices}, but this job has {len(available)} in {self.processes} "
                "process(es); use 0 for all of them"
            )
        # Each process's devices side by side, as its rows of a batch are: on a TPU pod, their
        # numbers may run across hosts.
        available = sorted(available, key=lambda device: (device.process_index, device.id))
        chosen = np.array(available[: devices or None])
        self.mesh = Mesh(chosen, ("data",))
        self.shard_params = shard_params
        self._rows = NamedSharding(self.mesh, PartitionSpec("data"))
        self._whole = NamedSharding(self.mesh, PartitionSpec())
        self._gather = jax.jit(lambda tree: tree, out_shardings=self._whole)

    @property
    def devices(self) -> int:
        """How many devices there are in all."""
        return self.mesh.size

    @property
    def shard(self) -> tuple[int, int]:
        """(process_index, process_count), as `Batches` takes it."""
        return jax.process_index(), self.processes

    @property
    def writes(self) -> bool:
        """Whether this process writes files and talks: process 0 alone does."""
        return jax.process_index() == 0

    def batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """This host's rows as arrays over all devices."""
        return {
            name: jax.make_array_from_process_local_data(self._rows, rows)
            for name, rows in batch.items()
        }

    def put(self, tree: Any) -> Any:
        """Host arrays, the same in every process, as arrays on the devices, none of them shared
        with the caller."""

        def put(value: Any) -> jax.Array:
            array = np.array(value)
            sharding = self._of(array.shape)
            if self.processes == 1:
                return jax.device_put(array, sharding, may_alias=False)
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

        return jax.tree.map(put, tree)

    def constrain(self, tree: Any) -> Any:
        """Inside a compiled step: keeps parameters and state where they are."""
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, self._of(x.shape)), tree)

    def replicated(self, tree: Any) -> Any:
        """Inside a compiled step: the whole of each array on every device."""
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, self._whole), tree)

    def fetch(self, tree: Any) -> Any:
        """Whole copies on the host, in every process. All processes call it together."""
        if self.processes > 1 and self.shard_params:
            tree = self._gather(tree)
        return jax.tree.map(lambda x: np.array(x), tree)

    def agree(self, what: str, value: str) -> None:
        """Raises UserError where the processes do not all see the same, such as one run folder."""
        if self.processes == 1:
            return
        try:
            digest = hashlib.sha256(value.encode()).digest()
            multihost_utils.assert_equal(np.frombuffer(digest, np.uint8))
        except AssertionError as error:
            raise UserError(
                f"the processes of this job do not see the same {what}; give all of them "
                f"{same_again()}, the same data and one run folder on a shared disk"
            ) from error

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum over all processes of float64 [N]."""
        if self.processes == 1:
            return values
        # As whole words, since jax would round float64 to float32 on the way.
        words = multihost_utils.process_allgather(values.view(np.uint32))
        return np.asarray(words).reshape(self.processes, -1).view(np.float64).sum(axis=0)

    def _of(self, shape: tuple[int, ...]) -> NamedSharding:
        if not self.shard_params or np.prod(shape, dtype=int) < _MIN_SHARDED:
            return self._whole
        axes = [axis for axis, size in enumerate(shape) if size % self.devices == 0]
        if not axes:
            return self._whole
        largest = max(axes, key=lambda axis: shape[axis])
        return NamedSharding(
            self.mesh, PartitionSpec(*("data" if a == largest else None for a in range(len(shape))))
        )
