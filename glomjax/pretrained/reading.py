"""What a weight source holds: its tensors under our paths, and what it says about them.

params, info = read_weights("kecam/davit_t_imagenet")
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from glomjax import checkpoints
from glomjax.errors import UserError, first_few
from glomjax.files import checksum
from glomjax.preprocessing.preprocessing import IMAGENET
from glomjax.pretrained import kecam, native, sources, timm

# Options that change what the same tensors compute, beside the preset.
SETTINGS = ("window_size", "head_norm_first")

Rules = Iterable[
    tuple[re.Pattern[str], str | Callable[[re.Match[str]], str], tuple[int, ...] | None]
]


@dataclasses.dataclass(frozen=True)
class SourceInfo:
    """What a weight source says about itself.

    Attributes:
      path: the file or checkpoint folder read.
      sha256: of the whole file, hexadecimal; of a checkpoint's manifest, which covers its files.
      layout: "kecam", "timm" (also for the original authors' keys), "glomjax" or "checkpoint".
      preset: the model preset that the numbers belong to; "" where the source names none.
      preprocessing: as `Preprocessing.to_dict` gives it: "name", and of each channel "mean" and
        "std" in units of the full range (pixel / 255).
      model: the network's name; "" where the source names none.
      classes: names of the classes, in the order of `data.classes`; () where the source names none.
      settings: those of `SETTINGS` that the weights were trained with, as far as they are named.
      origin: of a file of ours, the source that it was written from; else "".
      unknown: names of tensors that are none of ours.
    """

    path: pathlib.Path
    sha256: str
    layout: str
    preset: str
    preprocessing: dict[str, Any]
    model: str = ""
    classes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    origin: str = ""
    unknown: tuple[str, ...] = ()


def read_weights(source: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], SourceInfo]:
    """The tensors of a weight source under our paths, float32, and what it says about them.

    Values are the source's own, bit for bit: tensors are transposed, never computed with.

    Args:
      source: what `load_weights` takes.

    Raises:
      UserError: a source that cannot be read, is damaged, or holds no weights of ours.
      WeightsUnavailable: a published id that is not cached and cannot be downloaded.
    """
    path = pathlib.Path(source)
    try:
        path = sources.resolve(source)
        if path.is_dir():
            params, info = _read_checkpoint(path)
        else:
            entry = sources.PUBLISHED.get(os.fspath(source))
            params, info = _read_file(path, model="" if entry is None else entry.model)
    except OSError as error:
        raise UserError(f"weight source {path} cannot be read ({error.strerror})") from error
    if odd := [f"{key} ({v.dtype})" for key, v in params.items() if v.dtype != np.float32]:
        raise UserError(
            f"weight source {path} holds tensors that are not float32: {first_few(odd)}; save it "
            "again in float32"
        )
    return params, info


def convert(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], rules: Rules
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Foreign tensors under our paths, and the names that no rule knows.

    A rule is (regex of the whole foreign name, our path as `re.sub` takes it, axes of a transpose
    or None). A tensor of another rank stays as it is, for the check of shapes to report.
    """
    params: dict[str, np.ndarray] = {}
    unknown = []
    for name, value in tensors.items():
        for pattern, target, axes in rules:
            if pattern.fullmatch(name):
                ours = pattern.sub(target, name)
                if ours in params:
                    raise UserError(f"weight file {path} holds {ours} under two names")
                turn = axes is not None and value.ndim == len(axes)
                params[ours] = value.transpose(axes) if turn else value
                break
        else:
            unknown.append(name)
    return params, tuple(unknown)


def _read_file(path: pathlib.Path, model: str) -> tuple[dict[str, np.ndarray], SourceInfo]:
    metadata: dict[str, str] = {}
    layout = _format_of(path)
    if layout == "hdf5":
        tensors = kecam.read(path)
    else:
        tensors, metadata = timm.read(path)
    sha256 = checksum(path)
    if native.METADATA_KEY in metadata:
        about = native.check(path, tensors, metadata[native.METADATA_KEY])
        return tensors, SourceInfo(path, sha256, "glomjax", **about)
    kind = kecam if layout == "hdf5" else timm
    name = "kecam" if layout == "hdf5" else "timm"
    params, unknown = convert(path, tensors, kind.RULES)
    if not params:
        raise UserError(
            f"weight file {path} holds no tensor of a DaViT as {name} names them (its "
            f"{len(tensors)} tensors: {first_few(tensors)}); it is the file of another network"
        )
    # Both publish networks that were trained with ImageNet's statistics.
    about = {"preset": kind.PRESET, "preprocessing": IMAGENET.to_dict(), "model": model}
    return params, SourceInfo(path, sha256, name, **about, unknown=unknown)


def _read_checkpoint(folder: pathlib.Path) -> tuple[dict[str, np.ndarray], SourceInfo]:
    arrays, metadata = checkpoints.restore(folder)
    prefix = "params/"
    params = {
        name.removeprefix(prefix): value
        for name, value in arrays.items()
        if name.startswith(prefix)
    }
    try:
        options = metadata["model"]["options"]
        info = SourceInfo(
            folder,
            checkpoints.fingerprint(folder),
            "checkpoint",
            preset=options.get("preset", ""),
            preprocessing=metadata["preprocessing"],
            model=metadata["model"]["name"],
            classes=tuple(metadata["classes"]),
            settings={name: options[name] for name in SETTINGS if name in options},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"checkpoint '{folder}' is not that of a run: its metadata.json does not name model, "
            "classes and preprocessing"
        ) from error
    if not params:
        raise UserError(f"checkpoint '{folder}' is not that of a run: it holds no parameters")
    return params, info


def _format_of(path: pathlib.Path) -> str:
    """ "hdf5" or "safetensors" by the first bytes; a name can lie and a pickle can run code."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(9)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if head[8:] == b"{":
        header = int.from_bytes(head[:8], "little")
        if header > size - 8:
            raise UserError(
                f"weight file {path} is damaged or incomplete (its header claims {header} bytes, "
                f"the file has {size}); fetch it again"
            )
        return "safetensors"
    if head.startswith(b"PK") or (head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5"):
        raise UserError(
            f"weight file {path} is a pickle (a PyTorch checkpoint or the like), which can run "
            "code when it is read: convert it to .safetensors where you trust it"
        )
    what = "is empty" if size == 0 else "is neither an HDF5 nor a safetensors file"
    raise UserError(f"weight file {path} {what}; fetch it again, or name another")
