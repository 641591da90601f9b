"""Keras weight files of keras_cv_attention_models (kecam): which tensor is which of ours.

Keras keeps HWIO convolutions and [in, out] dense kernels as we do; depthwise kernels alone are
[3, 3, C, 1] there and [3, 3, 1, C] here. In kecam a stage's blocks are numbered through, odd ones
with window (spatial) and even ones with channel attention: two of its blocks are one of ours.
Source: `keras_cv_attention_models/davit/davit.py`, version 1.4.3.
"""

import math
import pathlib
import re
from collections.abc import Callable

import h5py
import numpy as np

from glomjax.errors import UserError, excerpt
from glomjax.pretrained.formats import KERAS_3

PRESET = "kecam"
_MAX_COMPRESSION = 100  # of a chunk; weights hardly compress at all

_CONV = (("kernel", "kernel", None), ("bias", "bias", None))
_DENSE = _CONV
_DEPTHWISE = (
    ("depthwise_kernel", "kernel", (0, 1, 3, 2)),
    ("kernel", "kernel", (0, 1, 3, 2)),  # as Keras 3 calls it
    ("bias", "bias", None),
)
_NORM = (("gamma", "scale", None), ("beta", "bias", None))

_BLOCK = r"stack(?P<stack>[1-9])_block(?P<block>\d+)_"
_SPATIAL = r"stack(?P<stack>[1-9])_block(?P<block>\d*[13579])_"
_CHANNEL = r"stack(?P<stack>[1-9])_block(?P<block>\d*[02468])_channel_"

# (layer name as a regex, our path, leaves: (Keras' name, ours, axes of a transpose))
_LAYERS = (
    ("stem_conv", "stem/conv", _CONV),
    ("stem_ln", "stem/norm", _NORM),
    (r"stack(?P<stack>[1-9])_downsample_ln", "stages/{stage}/downsample/norm", _NORM),
    (r"stack(?P<stack>[1-9])_downsample_conv", "stages/{stage}/downsample/conv", _CONV),
    (_BLOCK + "pre_attn_cpe_dw_conv", "stages/{stage}/blocks/{pair}/{kind}/cpe1", _DEPTHWISE),
    (_BLOCK + "attn_ln", "stages/{stage}/blocks/{pair}/{kind}/norm1", _NORM),
    (_SPATIAL + "attn_qkv", "stages/{stage}/blocks/{pair}/spatial/attention/qkv", _DENSE),
    (_SPATIAL + "attn_output", "stages/{stage}/blocks/{pair}/spatial/attention/proj", _DENSE),
    (_CHANNEL + "attn_qkv", "stages/{stage}/blocks/{pair}/channel/attention/qkv", _DENSE),
    (_CHANNEL + "attn_output", "stages/{stage}/blocks/{pair}/channel/attention/proj", _DENSE),
    (_BLOCK + "pre_ffn_cpe_dw_conv", "stages/{stage}/blocks/{pair}/{kind}/cpe2", _DEPTHWISE),
    (_BLOCK + "mlp_ln", "stages/{stage}/blocks/{pair}/{kind}/norm2", _NORM),
    (_BLOCK + "mlp_Dense_0", "stages/{stage}/blocks/{pair}/{kind}/mlp/fc1", _DENSE),
    (_BLOCK + "mlp_Dense_1", "stages/{stage}/blocks/{pair}/{kind}/mlp/fc2", _DENSE),
    ("pre_output_ln", "norm", _NORM),
    ("predictions", "head", _DENSE),
)


def _path_of(template: str) -> Callable[[re.Match[str]], str]:
    """The function that turns a match of a layer name into our path."""

    def path(match: re.Match[str]) -> str:
        numbers = match.groupdict()
        stage = int(numbers.get("stack") or 1) - 1
        pair, odd = divmod(int(numbers.get("block") or 1) - 1, 2)
        return template.format(stage=stage, pair=pair, kind=("spatial", "channel")[odd])

    return path


# (name in the file, our path, axes of a transpose or None): what `reading.convert` reads
RULES = tuple(
    (re.compile(f"{layer}/{theirs}"), _path_of(f"{template}/{ours}"), axes)
    for layer, template, leaves in _LAYERS
    for theirs, ours, axes in leaves
)


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a Keras `.h5` file under the names `layer/weight`, as stored.

    Both layouts found in the wild are read: `save_weights` (layers at the root) and a whole model
    (layers below `model_weights`). Raises UserError for a damaged file.
    """
    size = path.stat().st_size
    tensors: dict[str, np.ndarray] = {}
    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            datasets: list[tuple[str, h5py.Dataset]] = []
            root.visititems(
                lambda name, item: (
                    datasets.append((name, item)) if isinstance(item, h5py.Dataset) else None
                )
            )
            if any(re.search(r"(^|/)vars/\d+$", name) for name, _ in datasets):
                raise UserError(f"weight file {path} is a Keras 3 weight file{KERAS_3}")
            for name, dataset in datasets:
                key = "/".join(name.removesuffix(":0").split("/")[-2:])
                if key in tensors:
                    raise UserError(f"weight file {path} holds the tensor {excerpt(key)!r} twice.")
                shape, chunk, kind = dataset.shape, dataset.chunks, dataset.dtype
                if shape is None or kind.kind not in "fiub":
                    raise OSError(f"{name} holds no numbers")
                # A damaged header can claim any shape: never allocate more than the file holds. In
                # Python's integers, since h5py's product of a shape can overflow.
                claimed = max(math.prod(shape), math.prod(chunk or (0,))) * kind.itemsize
                stored = dataset.id.get_storage_size()
                most = stored * (1 if chunk is None else _MAX_COMPRESSION)
                if stored > size or claimed > most:
                    raise OSError(f"{name} claims {claimed} bytes and {stored} are stored")
                tensors[key] = dataset[()]
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        raise UserError(
            f"weight file {path} is damaged or incomplete ({excerpt(error)}); fetch it again"
        ) from error
    return tensors
