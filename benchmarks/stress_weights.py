"""Damaged weight files and checkpoints for `stress.py`.

A small DaViT is written in every form that `read_weights` takes, and as Keras 3 writes it, which
is refused. What is damaged is read, and loaded into a network of the same sizes. Where a checksum
covers the contents, what is accepted must be what was written, to the last bit, or else the damage
was not noticed: a silent load.

Nobody's accident damages a file and makes its checksum right again; such files are here all the
same, since every reader behind the checksum meets them: "spec" edits the spec in a file of ours,
"resaved" a checkpoint's files, "old run" the metadata and the configuration of the first format.
"""

import dataclasses
import functools
import hashlib
import io
import json
import pathlib
import random
import shutil
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import h5py
import numpy as np
import safetensors.numpy
from flax import nnx
from stress_files import Case, drawn
from stress_weight_damage import BYTES, HEADER, TEXTS, edit_json

from glomjax import checkpoints
from glomjax.errors import UserError
from glomjax.models import create_model, params_of, settled_options
from glomjax.preprocessing.appearance import Appearance
from glomjax.preprocessing.preprocessing import IMAGENET
from glomjax.preprocessing.stain_normalization import StainNormalizer
from glomjax.pretrained import kecam, timm, write_weights
from glomjax.pretrained.loading import select_weights
from glomjax.pretrained.reading import read_weights
from glomjax.pretrained.spec import NetworkSpec, SplitRecord, TrainingRecord
from glomjax.pretrained.weight_file import METADATA_KEY, tensor_digest

_OPTIONS: dict[str, Any] = {"depths": (1, 1), "embed_dims": (8, 16), "num_heads": (1, 2)}
_SIZE = (64, 64)
_SETTLED = settled_options("davit_tiny", _SIZE, _OPTIONS)
_NETWORK = ("davit_tiny", 1, _SIZE, repr(_SETTLED))
_RUN = pathlib.PurePath("checkpoints/best")
Files = dict[str, bytes]


class SilentLoad(Exception):
    """A damage that a checksum covers was accepted."""


@dataclasses.dataclass(frozen=True)
class _Source:
    """A good source: its files, what damages them, and whether a checksum covers them."""

    files: Files
    damage: Callable[[Files, random.Random], list[str]]
    covered: bool = False
    refused: bool = False


def weight_cases(folder: pathlib.Path, count: int, seed: int) -> list[Case]:
    """Each source, damaged once to three times."""
    sources = _good_sources(folder)
    network = _network()
    for name, source in sources.items():
        _write(folder / name, source.files)
        if not source.refused:
            _read(folder / name, network, None)
    good = {name: read_weights(folder / name) for name, source in sources.items() if source.covered}

    def case(name: str, own: int) -> Case:
        run = functools.partial(_try, folder / name, sources[name], network, good.get(name), own)
        return f"{name}: case {own:016x}", run

    def draw(generator: random.Random) -> Case:
        return case(generator.choice(list(sources)), generator.getrandbits(64))

    return drawn([], draw, count or 10_000, seed)


def _try(
    path: pathlib.Path,
    source: _Source,
    network: nnx.Module,
    good: tuple[Mapping[str, np.ndarray], Any] | None,
    own: int,
) -> None:
    generator, files = random.Random(own), dict(source.files)
    names = source.damage(files, generator)
    _write(path, files)
    try:
        _read(path, network, good)
    except UserError:
        raise
    except Exception as error:
        error.add_note(", ".join(names))
        raise


def _read(
    path: pathlib.Path,
    network: nnx.Module,
    good: tuple[Mapping[str, np.ndarray], Any] | None,
) -> None:
    """Reads what is damaged as `load_weights` and `load_classifier` do."""
    params, info = read_weights(path)
    if good is not None:
        written, about = good
        if params.keys() != written.keys():
            raise SilentLoad(f"tensors {params.keys() ^ written.keys()}")
        for name, value in params.items():
            same = (value.dtype, value.shape) == (written[name].dtype, written[name].shape)
            if not same or value.tobytes() != written[name].tobytes():
                raise SilentLoad(f"the values of {name}")
        if (info.spec, info.origin) != (about.spec, about.origin):
            raise SilentLoad("what the file says of its network")
        return
    select_weights(network, path.name, params, info, preset_mismatch="allow")
    spec = info.spec
    network_of = (spec.architecture, spec.outputs, spec.image_size, repr(spec.options))
    if info.layout in ("glomjax", "checkpoint") and network_of != _NETWORK:
        spec.create_model()  # which takes a tenth of a second


def _write(path: pathlib.Path, files: Files) -> None:
    """The files of a source, in a folder where they are several."""
    if list(files) == [""]:
        path.write_bytes(files[""])
        return
    shutil.rmtree(path, ignore_errors=True)
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


# --- good sources


def _network() -> Any:
    return nnx.eval_shape(
        lambda: create_model("davit_tiny", image_size=_SIZE, rngs=nnx.Rngs(0), **_OPTIONS)
    )


def _good_sources(folder: pathlib.Path) -> dict[str, _Source]:
    rng = np.random.default_rng(0)
    params = {
        path: rng.standard_normal(leaf.shape).astype(np.float32)
        for path, leaf in params_of(_network()).items()
    }
    spec = NetworkSpec(
        architecture="davit_tiny",
        options=_SETTLED,
        outputs=1,
        classes=("other", "glomerulus"),
        image_size=_SIZE,
        preprocessing=dataclasses.replace(IMAGENET, stain=StainNormalizer("reinhard", (0.5,) * 6)),
        appearance=Appearance(((0.5,) * 3), ((1.0,) * 3,) * 3, (), (1.0,) * 4, (1.0, 1.0), 0.1, 3),
        trained_on=TrainingRecord(train=SplitRecord(images=3, patients=1), regime="full"),
    )
    write_weights(folder / "ours", params, spec, source="run")
    ours = (folder / "ours").read_bytes()
    by_timm = {_timm_name(path): _turned(path, v, _TIMM_AXES) for path, v in params.items()}
    by_keras = {_kecam_name(path): _turned(path, v, _KECAM_AXES) for path, v in params.items()}
    arrays = {f"params/{path}": value for path, value in params.items()}
    run = _checkpoint(folder / "written", arrays, {"spec": spec.to_dict()})
    first = {
        "model": {"name": spec.architecture, "options": _OPTIONS, "image_size": _SIZE},
        "classes": spec.classes,
        "preprocessing": {"name": "imagenet", "mean": [0.5] * 3, "std": [0.2] * 3, "mpp": 0.5},
        "initial_weights": "none",
    }
    old_run = _checkpoint(folder / "written", arrays, first)
    old_run["config.json"] = json.dumps(
        {
            "effective": {
                "batch_size": 32,
                "accumulation_steps": 2,
                "target_mpp": 0.5,
                "precision": "float32",
                "ops": {"native": "auto"},
                "test_time_augmentation": True,
                "freeze": {"regime": "full"},
            }
        }
    ).encode()
    safe = {**BYTES, **HEADER}
    hdf5 = {**BYTES, "structure 2": BYTES["structure"], "structure 3": BYTES["structure"]}
    keras_3 = _hdf5({f"layers/conv2d/vars/{i}": v for i, v in enumerate(by_keras.values())})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("metadata.json", "config.json"):
            file.writestr(name, "{}")
        file.writestr("model.weights.h5", keras_3)
    layers = {f"{name.partition('/')[0]}/{name}:0": value for name, value in by_keras.items()}
    whole = {f"model_weights/{name}": value for name, value in layers.items()}
    return {
        "glomjax": _Source({"": ours}, _of_bytes(safe), covered=True),
        "spec": _Source({"": ours}, _of_spec),
        "timm": _Source({"": safetensors.numpy.save(by_timm)}, _of_bytes(safe)),
        "kecam .h5": _Source({"": _hdf5(layers)}, _of_bytes(hdf5)),
        "whole .h5": _Source({"": _hdf5(whole)}, _of_bytes(hdf5)),
        "packed .h5": _Source({"": _hdf5(layers, packed=True)}, _of_bytes(hdf5)),
        "latest .h5": _Source({"": _hdf5(layers, libver="latest")}, _of_bytes(hdf5)),
        ".weights.h5": _Source({"": keras_3}, _of_bytes(hdf5), refused=True),
        ".keras": _Source({"": archive.getvalue()}, _of_bytes(hdf5), refused=True),
        "checkpoint": _Source(run, _of_folder, covered=True),
        "resaved": _Source(run, _of_resaved),
        "old run": _Source(old_run, _of_resaved),
    }


def _checkpoint(folder: pathlib.Path, arrays: checkpoints.Arrays, metadata: Any) -> Files:
    """The files of a run's folder with a checkpoint."""
    shutil.rmtree(folder, ignore_errors=True)
    checkpoints.save(folder / _RUN, arrays, metadata)
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def _hdf5(tensors: Mapping[str, np.ndarray], *, packed: bool = False, **options: Any) -> bytes:
    """A file as Keras writes it: groups with attributes of names; packed with chunks and gzip."""
    content = io.BytesIO()
    with h5py.File(content, "w", **options) as file:
        for name, value in tensors.items():
            ways: dict[str, Any] = {"compression": "gzip", "shuffle": True} if packed else {}
            file.create_dataset(name, data=value, **ways)
        root = file.get("model_weights", file)
        root.attrs["layer_names"] = [name.encode() for name in root]
        root.attrs["backend"] = "tensorflow"
        for name, group in root.items():
            leaves = [f"{name}/{leaf}".encode() for leaf in group.get(name, ())]
            group.attrs["weight_names"] = leaves or np.zeros(0)
    return content.getvalue()


# What turns our axes into theirs.
_TIMM_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}
_KECAM_AXES = {4: (0, 1, 3, 2)}  # of depthwise kernels alone


def _turned(path: str, value: np.ndarray, axes: Mapping[int, tuple[int, ...]]) -> np.ndarray:
    plain = axes is _KECAM_AXES and "cpe" not in path
    turn = None if plain else axes.get(value.ndim)
    return np.ascontiguousarray(value if turn is None else value.transpose(turn))


def _timm_name(path: str) -> str:
    names = {"spatial": "0", "channel": "1", "attention": "attn", "kernel": "weight"}
    names |= {"scale": "weight", "cpe1": "cpe1.proj", "cpe2": "cpe2.proj"}
    name = ".".join(names.get(part, part) for part in path.split("/"))
    name = f"head.{name}" if name.startswith("norm.") else name
    name = name.replace("head.", "head.fc.") if path.startswith("head/") else name
    assert any(rule[0].fullmatch(name) for rule in timm.RULES), name
    return name


def _kecam_name(path: str) -> str:
    *modules, leaf = path.split("/")
    leaf = {"scale": "gamma"}.get(leaf, leaf)
    if leaf == "bias" and "norm" in modules[-1]:
        leaf = "beta"
    if leaf == "kernel" and modules[-1].startswith("cpe"):
        leaf = "depthwise_kernel"
    if modules[0] == "stages":
        stack = int(modules[1]) + 1
        inner = {"downsample/norm": "downsample_ln", "downsample/conv": "downsample_conv"}
        names = {"cpe1": "pre_attn_cpe_dw_conv", "norm1": "attn_ln", "norm2": "mlp_ln"}
        names |= {"attention/qkv": "attn_qkv", "attention/proj": "attn_output"}
        names |= {"cpe2": "pre_ffn_cpe_dw_conv", "mlp/fc1": "mlp_Dense_0", "mlp/fc2": "mlp_Dense_1"}
        if modules[2] == "blocks":
            half = modules[4]
            block = 2 * int(modules[3]) + (1 if half == "spatial" else 2)
            channel = "channel_" if half == "channel" and modules[5] == "attention" else ""
            layer = f"stack{stack}_block{block}_{channel}{names['/'.join(modules[5:])]}"
        else:
            layer = f"stack{stack}_{inner['/'.join(modules[2:])]}"
    else:
        outer = {"stem/conv": "stem_conv", "stem/norm": "stem_ln", "norm": "pre_output_ln"}
        layer = (outer | {"head": "predictions"})["/".join(modules)]
    assert any(rule[0].fullmatch(f"{layer}/{leaf}") for rule in kecam.RULES), f"{layer}/{leaf}"
    return f"{layer}/{leaf}"


# --- what damages them


def _of_bytes(damages: Mapping[str, Any]) -> Callable[[Files, random.Random], list[str]]:
    def damage(files: Files, generator: random.Random) -> list[str]:
        names = [generator.choice(list(damages)) for _ in range(generator.choice((1, 1, 2, 3)))]
        for name in names:
            files[""] = damages[name](files[""], generator)
        return names

    return damage


def _of_spec(files: Files, generator: random.Random) -> list[str]:
    """The metadata is edited, and its checksum is right."""
    tensors = safetensors.numpy.load(files[""])
    size = int.from_bytes(files[""][:8], "little")
    about = json.loads(json.loads(files[""][8 : 8 + size])["__metadata__"][METADATA_KEY])
    del about["sha256"]
    text, names = edit_json(json.dumps(about), generator)
    try:
        about = json.loads(text)
        begun = json.dumps(about, sort_keys=True).encode()
        digest = tensor_digest(tensors, begun).hexdigest()
        text = json.dumps(about | {"sha256": digest})
    except (ValueError, TypeError, RecursionError):
        pass  # the text itself is what is wrong
    files[""] = safetensors.numpy.save(tensors, {METADATA_KEY: text})
    return names


def _of_folder(files: Files, generator: random.Random) -> list[str]:
    """Files of a checkpoint are damaged, gone, exchanged, or more."""
    return [_damage_a_file(files, generator) for _ in range(generator.choice((1, 1, 2, 3)))]


def _of_resaved(files: Files, generator: random.Random) -> list[str]:
    """The same, and the manifest says so, too; or the metadata is edited."""
    metadata, manifest = f"{_RUN}/metadata.json", f"{_RUN}/manifest.json"
    edited = [metadata, *(["config.json"] if "config.json" in files else [])]
    if generator.random() < 0.6:
        name = generator.choice(edited)
        text, names = edit_json(files[name].decode(), generator)
        files[name] = text.encode("utf-8", "replace")
    else:
        names = [_damage_a_file(files, generator)]
    digests = {
        pathlib.PurePath(name).relative_to(_RUN).as_posix(): (
            f"{len(content)}:{hashlib.sha256(content).hexdigest()}"
        )
        for name, content in files.items()
        if name.startswith(f"{_RUN}/") and name != manifest
    }
    files[manifest] = json.dumps(digests).encode()
    return names


def _damage_a_file(files: Files, generator: random.Random) -> str:
    # Small ones as often as large ones; Orbax's names are others each time.
    name = generator.choice(sorted(files, key=lambda name: (len(files[name]), name)))
    what = generator.choice(("damage", "damage", "damage", "gone", "exchanged", "more"))
    if what == "gone":
        del files[name]
    elif what == "exchanged":
        files[name] = files[generator.choice(sorted(files))]
    elif what == "more":
        files[f"{name}.1"] = files[name]
    else:
        damages = {**BYTES, **TEXTS} if name.endswith((".json", "METADATA")) else BYTES
        what = generator.choice(list(damages))
        files[name] = damages[what](files[name], generator)
    return f"{what} {pathlib.PurePath(name).name}"
