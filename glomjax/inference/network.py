"""One trained network on the device."""

import dataclasses
import logging
import os
import threading
from typing import Any

import jax
import numpy as np
from flax import nnx

from glomjax import pretrained
from glomjax.errors import UserError
from glomjax.inference.steps import make_predict_step
from glomjax.models import params_of
from glomjax.ops import native
from glomjax.ops.compilation import compile_now
from glomjax.pretrained.spec import NetworkSpec

Source = str | os.PathLike[str]
_LOG = logging.getLogger(__name__)


def load_network(
    source: Source, device_batch: int | None = None, symmetries: bool | None = None
) -> "Network":
    """The trained network of a source, with other settings than its own where they are given; no
    initial value is computed. Arguments and errors as of `load_classifier`."""
    params, info = pretrained.read_weights(source)
    spec = info.spec
    if not spec.architecture or not spec.classes or min(spec.image_size) < 1:
        raise UserError(
            f"{source} holds weights without a classifier of named classes; name a run, one of its "
            "checkpoints, or a weight file that was converted from one"
        )
    if not spec.device_batch:
        raise UserError(
            f"{source} was written by an earlier glomjax, and what took effect in its run is not "
            "beside it; leave it in the folder of its run, and name that"
        )
    changes: dict[str, Any] = {}
    if device_batch is not None:
        changes["device_batch"] = device_batch
    if symmetries is not None:
        changes["symmetries"] = symmetries
    if spec.native == "auto":
        if native.must_build():
            _LOG.warning(native.BUILDING)
        if native.missing(spec.precision):
            kernels = native.status(spec.precision)
            _LOG.warning("%s; predictions differ from those with kernels by rounding", kernels)
    model = spec.create_model()
    chosen, _ = pretrained.select_weights(model, source, params, info)
    order = params_of(model)
    return Network(
        dataclasses.replace(spec, **changes), {path: chosen[path] for path in order}, model
    )


class Network:
    """One network: its spec, its parameters on the device, its compiled programs.

    Threads may share it.
    """

    def __init__(self, spec: NetworkSpec, params: dict[str, Any], model: nnx.Module):
        self.spec = spec
        self.params = jax.device_put(params)
        self._graphdef = nnx.graphdef(model)
        self._programs: dict[str, Any] = {}
        self._lock = threading.Lock()

    def run(self, images: np.ndarray, part: str) -> jax.Array:
        """uint8 [B, H, W, 3] -> float32 [B, ...]; every call of a part has the same B."""
        with self._lock:
            if part not in self._programs:
                self._programs[part] = self._compile(images, part)
        return self._programs[part](self.params, images)

    def _compile(self, images: np.ndarray, part: str) -> Any:
        step = make_predict_step(
            self._graphdef,
            self.spec.preprocessing,
            part=part,
            symmetries=self.spec.symmetries and part == "network",
            precision=self.spec.precision,
        )
        with native.setting(self.spec.native):
            return compile_now(step, self.params, images)
