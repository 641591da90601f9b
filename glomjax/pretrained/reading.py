"""What a weight source holds: its tensors under our paths, and what it says about them.

params, info = read_weights("kecam/davit_t_imagenet")
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from glomjax import checkpoints
from glomjax.errors import UserError, named
from glomjax.files import checksum
from glomjax.preprocessing.preprocessing import IMAGENET
from glomjax.pretrained import kecam, sources, timm, weight_file
from glomjax.pretrained.formats import format_of
from glomjax.pretrained.old_formats import spec_of_checkpoint
from glomjax.pretrained.spec import NetworkSpec, TrainingRecord

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
      spec: what the source says about its network; of foreign files and of the first formats of
        ours not all of it is known.
      origin: of a file of ours, the source that it was written from; else "".
      unknown: names of tensors that are none of ours.
    """

    path: pathlib.Path
    sha256: str
    layout: str
    spec: NetworkSpec
    origin: str = ""
    unknown: tuple[str, ...] = ()

    @property
    def unfinished(self) -> str:
        """A clause where the weights are the best so far of a run that has not finished, else
        ""."""
        run = self.path.absolute().parent.parent
        if not (self.path.is_dir() and (run / "config.json").is_file()):
            return ""
        finished = (run / "test_metrics.json").is_file()
        return "" if finished else f"the run in '{run}' has not finished; its best weights so far"

    @property
    def model(self) -> str:
        """The network's name; "" where the source names none."""
        return self.spec.architecture

    @property
    def preset(self) -> str:
        """The model preset that the numbers belong to; "" where the source names none."""
        return self.spec.options.get("preset", "")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of `data.classes`; () where the source names none."""
        return self.spec.classes

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What the images of its training went through, as `Preprocessing.to_dict` gives it."""
        return self.spec.preprocessing.to_dict()


def read_weights(source: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], SourceInfo]:
    """The tensors of a weight source under our paths, float32, and what it says about them.

    Values are the source's own, bit for bit: tensors are transposed, never computed with.

    Args:
      source: what `load_weights` takes.

    Raises:
      UserError: a source that cannot be read, is damaged, or holds no weights of ours.
      WeightsUnavailable: a published id that is not cached and cannot be downloaded.
    """
    path: str | os.PathLike[str] = source
    try:
        path = sources.resolve(source)
        if path.is_dir():
            params, info = _read_checkpoint(path)
        else:
            params, info = _read_file(path, sources.PUBLISHED.get(os.fspath(source)))
    except OSError as error:
        raise UserError(f"weight source {path} cannot be read ({error.strerror})") from error
    if odd := [f"{key} ({v.dtype})" for key, v in params.items() if v.dtype != np.float32]:
        raise UserError(
            f"weight source {path} holds tensors that are not float32: {named(odd)}; save it "
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


def _read_file(
    path: pathlib.Path, entry: sources.Published | None
) -> tuple[dict[str, np.ndarray], SourceInfo]:
    metadata: dict[str, str] = {}
    layout = format_of(path)
    if layout == "hdf5":
        tensors = kecam.read(path)
    else:
        tensors, metadata = timm.read(path)
    sha256 = checksum(path)
    if weight_file.METADATA_KEY in metadata:
        spec, origin = weight_file.check(path, tensors, metadata[weight_file.METADATA_KEY])
        return tensors, SourceInfo(path, sha256, "glomjax", spec, origin)
    kind = kecam if layout == "hdf5" else timm
    name = "kecam" if layout == "hdf5" else "timm"
    _check_prefix(path, tensors)
    params, unknown = convert(path, tensors, kind.RULES)
    if not tensors:
        raise UserError(f"weight file {path} holds no tensor; name another")
    if not params:
        raise UserError(
            f"weight file {path} holds no tensor of a DaViT as {name} names them (its "
            f"{len(tensors)} tensors: {named(tensors, 3)}); it is the file of another network"
        )
    head = params.get("head/bias")
    spec = NetworkSpec(
        architecture="" if entry is None else entry.model,
        options={"preset": kind.PRESET},
        outputs=0 if head is None else head.size,
        classes=(),
        # Both publish networks that were trained on 224 x 224 with ImageNet's statistics.
        image_size=(224, 224),
        preprocessing=IMAGENET,
        trained_on=None
        if entry is None
        else TrainingRecord(
            initial_weights=entry.id, license=entry.license, citation=sources.CITATION
        ),
    )
    return params, SourceInfo(path, sha256, name, spec, unknown=unknown)


def _check_prefix(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Refuses a network whose tensors have something before their names, which a wrapper put there
    (`module.`, `_orig_mod.`): which of several networks in a file is meant is for the user to say.
    """
    prefixes = {
        name.removesuffix(stem)
        for name in tensors
        for stem in timm.STEMS
        if name == stem or name.endswith(f".{stem}")
    }
    prefix = min(prefixes, key=len, default="")
    if not prefix or len(prefix) > 80:  # no wrapper writes such a one
        return
    others = [name for name in tensors if not name.startswith(prefix)]
    beside = f", beside {len(others)} other tensors ({named(others, 3)})" if others else ""
    raise UserError(
        f"weight file {path} holds a DaViT whose names begin with {prefix!r}, as a wrapper writes "
        f"them{beside}; save them without it: safetensors.numpy.save_file({{name.removeprefix("
        f"{prefix!r}): value for name, value in safetensors.numpy.load_file(OLD).items() if "
        f"name.startswith({prefix!r})}}, NEW)"
    )


def _read_checkpoint(folder: pathlib.Path) -> tuple[dict[str, np.ndarray], SourceInfo]:
    arrays, metadata = checkpoints.restore(folder)
    params = checkpoints.params_of(arrays)
    name = f"checkpoint '{folder}'"
    if "spec" in metadata:
        spec = NetworkSpec.from_dict(metadata["spec"], name)
    else:
        weights = str(metadata.get("initial_weights", "none"))
        weights = weights if weights == "none" else sources.name_of(weights)
        spec = spec_of_checkpoint(metadata, _config_of_run(folder), weights, name)
    if not params:
        raise UserError(f"checkpoint '{folder}' is not that of a run: it holds no parameters")
    return params, SourceInfo(folder, checkpoints.fingerprint(folder), "checkpoint", spec)


def _config_of_run(folder: pathlib.Path) -> dict[str, Any]:
    """What took effect in the run that a checkpoint lies in; {} where it lies elsewhere."""
    file = folder.absolute().parent.parent / "config.json"
    try:
        return dict(json.loads(file.read_text())["effective"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
