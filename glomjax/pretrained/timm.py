"""PyTorch DaViT weights in safetensors: the key layouts of timm and of the original authors.

PyTorch keeps OIHW convolutions and [out, in] linear weights; ours are HWIO and [in, out]. The
q | k | v columns and the heads inside them are in the same order. Sources: timm 1.0.31
`timm/models/davit.py`; the authors' github.com/dingmyu/davit `timm/models/davit.py`.
"""

import pathlib
import re

import numpy as np
import safetensors

from glomjax.errors import UserError, excerpt

PRESET = "msft"

_CONV = (("weight", "kernel", (2, 3, 1, 0)), ("bias", "bias", None))
_LINEAR = (("weight", "kernel", (1, 0)), ("bias", "bias", None))
_NORM = (("weight", "scale", None), ("bias", "bias", None))

# (timm's module as a regex, the authors' module, our path, leaves: (their name, ours, axes))
_OUTER = (
    (r"stem\.conv", r"patch_embeds\.0\.proj", "stem/conv", _CONV),
    (r"stem\.norm", r"patch_embeds\.0\.norm", "stem/norm", _NORM),
    (
        r"stages\.([1-9])\.downsample\.conv",
        r"patch_embeds\.([1-9])\.proj",
        r"stages/\1/downsample/conv",
        _CONV,
    ),
    (
        r"stages\.([1-9])\.downsample\.norm",
        r"patch_embeds\.([1-9])\.norm",
        r"stages/\1/downsample/norm",
        _NORM,
    ),
    (r"head\.norm", "norms", "norm", _NORM),
    (r"head\.fc", "head", "head", _LINEAR),
)
# The same inside a block: .0 is its spatial half and .1 its channel half in both layouts.
_INNER = (
    (r"cpe1\.proj", r"cpe\.0\.proj", "cpe1", _CONV),
    ("norm1", "norm1", "norm1", _NORM),
    (r"attn\.qkv", r"attn\.qkv", "attention/qkv", _LINEAR),
    (r"attn\.proj", r"attn\.proj", "attention/proj", _LINEAR),
    (r"cpe2\.proj", r"cpe\.1\.proj", "cpe2", _CONV),
    ("norm2", "norm2", "norm2", _NORM),
    (r"mlp\.fc1", r"mlp\.fc1", "mlp/fc1", _LINEAR),
    (r"mlp\.fc2", r"mlp\.fc2", "mlp/fc2", _LINEAR),
)
_MODULES = _OUTER + tuple(
    (
        rf"stages\.(\d)\.blocks\.(\d+)\.{half}\.{timm}",
        rf"main_blocks\.(\d)\.(\d+)\.{half}\.{authors}",
        rf"stages/\1/blocks/\2/{kind}/{ours}",
        leaves,
    )
    for half, kind in ((0, "spatial"), (1, "channel"))
    for timm, authors, ours, leaves in _INNER
)

# The first convolution, by which a network is found under whatever was put before its names.
STEMS = ("stem.conv.weight", "patch_embeds.0.proj.weight")

# (name in the file, our path, axes of a transpose or None): what `reading.convert` reads
RULES = tuple(
    (re.compile(rf"{module}\.{theirs}"), f"{path}/{leaf}", axes)
    for timm, authors, path, leaves in _MODULES
    for module in (timm, authors)
    for theirs, leaf, axes in leaves
)


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All tensors of a safetensors file under their own names, as stored, and its metadata.

    Raises UserError for a damaged file, and for number formats that numpy does not have.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"weight file {path} is damaged or incomplete ({excerpt(error)}); fetch it again"
        ) from error
