"""One trained network on the device."""

import copy
import dataclasses
import logging
import os
import threading
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from glomjax import pretrained
from glomjax.errors import UserError
from glomjax.inference.saliency import Explanation, make_saliency_step
from glomjax.inference.steps import make_predict_step
from glomjax.memory import is_out_of_memory
from glomjax.models import params_of
from glomjax.ops import native
from glomjax.ops.compilation import compile_now
from glomjax.pretrained.spec import NetworkSpec
from glomjax.pretrained.weight_file import tensor_digest

Source = str | os.PathLike[str]
Part = str | Explanation  # what of the network is computed: as in `make_predict_step`, or maps
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
    if info.unfinished:
        _LOG.warning("%s predict", info.unfinished)
    if spec.trained_on is not None and spec.trained_on.permuted_labels:
        _LOG.warning(
            "%s was trained on permuted labels (data.permute_labels), as a control that learns "
            "nothing: what it predicts means nothing",
            source,
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
        dataclasses.replace(spec, **changes),
        {path: chosen[path] for path in order},
        model,
    )


class Network:
    """One network: its spec, its parameters on the device, its compiled programs.

    Threads may share it.

    Attributes:
      checksum: SHA-256 of the parameters, hexadecimal: the same for a run and a file written from
        it.
    """

    def __init__(self, spec: NetworkSpec, params: dict[str, Any], model: nnx.Module):
        self.spec = spec
        self.checksum = tensor_digest(params).hexdigest()
        self.params = jax.device_put(params)
        self._graphdef = nnx.graphdef(model)
        self._programs: dict[tuple[Part, int], Any] = {}
        self._lock = threading.Lock()

    def with_params(self, params: Mapping[str, Any]) -> "Network":
        """The same network, and the same programs, with other values of some parameters."""
        other = copy.copy(self)
        other.params = jax.device_put(self.params | dict(params))
        other.checksum = tensor_digest(other.params).hexdigest()
        return other

    def run(self, images: np.ndarray, part: Part) -> jax.Array:
        """uint8 [B, H, W, 3] -> float32 [B, ...], by the program that `prepare` has made for B."""
        return self._programs[part, len(images)](self.params, images)

    def prepare(self, batch: int, part: Part) -> int:
        """Compiles the program for so many images; the bytes that it takes beside the parameters.

        Raises:
          MemoryError: the device has no room for it.
        """
        with self._lock:
            images = np.zeros((batch, *self.spec.image_size, 3), np.uint8)
            program = self._programs.get((part, batch))
            if program is None:
                program = self._compile(images, part)
                try:
                    if jax.default_backend() != "cpu":  # where memory is asked for in a run alone
                        jax.block_until_ready(program(self.params, images))
                except jax.errors.JaxRuntimeError as error:
                    if is_out_of_memory(error):
                        raise MemoryError from error
                    raise
                self._programs[part, batch] = program
            analysis = program.memory_analysis()
            if analysis is None:  # of a backend that does not tell
                return images.nbytes
            return analysis.temp_size_in_bytes + analysis.output_size_in_bytes + images.nbytes

    def _compile(self, images: np.ndarray, part: Part) -> Any:
        if isinstance(part, Explanation):
            step = make_saliency_step(self._graphdef, self.spec, part)
        else:
            step = make_predict_step(
                self._graphdef,
                self.spec.preprocessing,
                part=part,
                symmetries=self.spec.symmetries and part == "network",
                precision=self.spec.precision,
            )
        with native.setting(self.spec.native):
            return compile_now(step, self.params, images)
