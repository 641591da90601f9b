"""Weights into a model, strictly: everything fits and is loaded, or nothing is touched.

report = load_weights(model, "kecam/davit_t_imagenet", exclude=("head/.*",))
print(report)
"""

import dataclasses
import difflib
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from glomjax.errors import UserError
from glomjax.models import params_of, set_params
from glomjax.pretrained import kecam, native, sources, timm

_LISTED = 10  # names of each kind of difference that an error spells out
# ImageNet statistics as both kecam ("torch" mode) and timm use them.
IMAGENET_PREPROCESSING = {
    "range": [0.0, 1.0],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}

Rules = Iterable[
    tuple[re.Pattern[str], str | Callable[[re.Match[str]], str], tuple[int, ...] | None]
]


@dataclasses.dataclass(frozen=True)
class SourceInfo:
    """What a weight file says about itself.

    Attributes:
      path: the file read.
      sha256: of the whole file, hexadecimal.
      layout: "kecam", "timm" (also for the original authors' keys) or "glomjax".
      preset: the model preset that the numbers belong to; "" where the file names none.
      preprocessing: {"range": [low, high] that pixels 0..255 are scaled to, "mean" and "std": the
        RGB values subtracted and divided by afterwards}; {} where the file names none.
      unknown: names of tensors that are none of ours.
    """

    path: pathlib.Path
    sha256: str
    layout: str
    preset: str
    preprocessing: dict[str, Any]
    unknown: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What was loaded from where; `str(report)` is one line.

    Attributes:
      source: path or id as it was given.
      preset, preprocessing, sha256: of the file, as in `SourceInfo`.
      loaded: our paths of the tensors written.
      excluded: our paths of the model's tensors that kept their initial value.
      num_parameters: numbers in the loaded tensors.
    """

    source: str
    preset: str
    preprocessing: dict[str, Any]
    loaded: tuple[str, ...]
    excluded: tuple[str, ...]
    sha256: str
    num_parameters: int

    def __str__(self) -> str:
        kept = f", left at their initial value: {_some(self.excluded)}" if self.excluded else ""
        return (
            f"{self.source} (preset {self.preset or 'unnamed'}, sha256 {self.sha256[:12]}): "
            f"{len(self.loaded)} tensors, {self.num_parameters:,} parameters loaded{kept}"
        )


def load_weights(
    model: nnx.Module,
    source: str | os.PathLike[str],
    *,
    exclude: tuple[str, ...] = (),
    preset_mismatch: str = "error",
) -> LoadReport:
    """Writes published or converted weights into `model`, or raises and leaves it untouched.

    Args:
      model: as `create_model` makes it.
      source: a `.h5` file of kecam, a `.safetensors` file (timm's keys, the original authors' or
        our own), or a published id such as "kecam/davit_t_imagenet".
      exclude: regexes, each matched in full against our paths; what they match keeps its initial
        value, whatever the file holds there.
      preset_mismatch: "allow" loads weights of another preset on purpose; "error" refuses them.

    Raises:
      UserError: tensors missing, unexpected or of another shape (all in one message), non-finite
        values, an exclude that matches nothing, another preset, a damaged file, an unknown source.
      WeightsUnavailable: a published id that is not cached and cannot be downloaded.
    """
    if preset_mismatch not in ("error", "allow"):
        raise UserError(f"preset_mismatch is {preset_mismatch!r}; it is 'error' or 'allow'")
    params, info = read_weights(source)
    name = str(getattr(model, "name", type(model).__name__))
    preset = str(getattr(model, "preset", ""))
    if info.preset and preset and info.preset != preset and preset_mismatch == "error":
        raise UserError(
            f"{source} holds weights of preset {info.preset!r} and the model {name} has preset "
            f"{preset!r}: the tensors would fit, but the outputs would differ from the published "
            f"ones; create the model with preset={info.preset!r}, or say preset_mismatch='allow'"
        )
    initial = params_of(model)
    excluded = _excluded(exclude, initial, params)
    wanted = {path: leaf.shape for path, leaf in initial.items() if path not in excluded}
    given = {path: value for path, value in params.items() if path not in excluded}
    _check_fit(f"{source} does not fit {name}", wanted, given, info.unknown)
    if bad := [path for path, value in given.items() if not np.isfinite(value).all()]:
        raise UserError(
            f"{source} holds values that are not finite (NaN or infinity) in {_some(bad)}; "
            "weights like these cannot be used"
        )
    set_params(model, {path: jnp.asarray(given[path]) for path in wanted})
    return LoadReport(
        source=str(source),
        preset=info.preset,
        preprocessing=info.preprocessing,
        loaded=tuple(wanted),
        excluded=tuple(path for path in initial if path in excluded),
        sha256=info.sha256,
        num_parameters=sum(given[path].size for path in wanted),
    )


def read_weights(source: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], SourceInfo]:
    """The tensors of a weight file under our paths, float32, and what the file says about them.

    Values are the file's own, bit for bit: tensors are transposed, never computed with.
    Raises UserError for a file that cannot be read or is no weight file of ours.
    """
    path = sources.resolve(source)
    metadata: dict[str, str] = {}
    try:
        layout = _format_of(path)
        if layout == "hdf5":
            tensors = kecam.read(path)
        else:
            tensors, metadata = timm.read(path)
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"weight file {path} cannot be read ({error.strerror})") from error
    if native.METADATA_KEY in metadata:
        preset, preprocessing = native.check(path, tensors, metadata[native.METADATA_KEY])
        info = SourceInfo(path, sha256, "glomjax", preset, preprocessing)
        params = tensors
    else:
        kind = kecam if layout == "hdf5" else timm
        params, unknown = convert(path, tensors, kind.RULES)
        name = "kecam" if layout == "hdf5" else "timm"
        info = SourceInfo(path, sha256, name, kind.PRESET, dict(IMAGENET_PREPROCESSING), unknown)
        if not params:
            raise UserError(
                f"weight file {path} holds no tensor of a DaViT as {name} names them (its "
                f"{len(tensors)} tensors: {_some(tensors)}); it is the file of another network"
            )
    if odd := [f"{key} ({v.dtype})" for key, v in params.items() if v.dtype != np.float32]:
        raise UserError(
            f"weight file {path} holds tensors that are not float32: {_some(odd)}; save it again "
            "in float32"
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


def _excluded(
    exclude: tuple[str, ...], initial: Mapping[str, Any], params: Mapping[str, Any]
) -> set[str]:
    paths = {*initial, *params}
    excluded = set()
    for text in (exclude,) if isinstance(exclude, str) else exclude:
        try:
            pattern = re.compile(text)
        except re.error as error:
            raise UserError(f"exclude {text!r} is not a regular expression ({error})") from error
        matched = {path for path in paths if pattern.fullmatch(path)}
        if not matched:
            near = _nearest(text, sorted(paths))
            raise UserError(f"exclude {text!r} matches none of the {len(paths)} tensors{near}")
        excluded |= matched
    return excluded


def _check_fit(
    what: str,
    wanted: Mapping[str, tuple[int, ...]],
    given: Mapping[str, np.ndarray],
    unknown: tuple[str, ...],
) -> None:
    """One error with every tensor that is missing, unexpected or of another shape."""
    missing = [path for path in wanted if path not in given]
    unexpected = [*(path for path in given if path not in wanted), *unknown]
    shapes = [path for path in wanted if path in given and given[path].shape != wanted[path]]
    parts = []
    if missing:
        near = [path + _nearest(path, unexpected) for path in missing[:_LISTED]]
        parts.append(f"{len(missing)} missing: {_some(near, len(missing))}")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected: {_some(unexpected)}")
    if shapes:
        pairs = [f"{p} is {given[p].shape} and should be {wanted[p]}" for p in shapes[:_LISTED]]
        parts.append(f"{len(shapes)} of another shape: {_some(pairs, len(shapes))}")
    if not parts:
        return
    hint = ""
    if any(path.startswith("head/") for path in [*shapes, *unexpected]):
        hint = "; to keep the model's own head (another number of classes), exclude 'head/.*'"
    raise UserError(f"{what}: {'; '.join(parts)}{hint}")


def _nearest(name: str, candidates: list[str]) -> str:
    plain = {re.sub(r"[/_]", ".", candidate): candidate for candidate in candidates}
    near = difflib.get_close_matches(re.sub(r"[/_]", ".", name), plain, n=1, cutoff=0.6)
    return f" (nearest: {plain[near[0]]})" if near else ""


def _some(names: Iterable[str], total: int = 0) -> str:
    """The first of `names`, and how many more there are of `total` (default: all of `names`)."""
    names = list(names)
    more = max(total, len(names)) - len(names[:_LISTED])
    return ", ".join(names[:_LISTED]) + (f", and {more} more" if more else "")
