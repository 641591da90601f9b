"""Images of every form, one after another: found, named, and prepared for networks."""

import contextlib
import dataclasses
import functools
import numbers
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
from PIL import Image

from glomjax.data.examples import Examples
from glomjax.data.sources import read_source
from glomjax.data.sources.folder import list_images
from glomjax.data.sources.grouping import NAMED
from glomjax.data.sources.manifest import (
    MANIFEST_SUFFIXES,
    MAX_MPP,
    MIN_MPP,
    Patch,
    read_manifest,
)
from glomjax.data.threads import map_ordered
from glomjax.errors import UserError, argument, printable, quoted
from glomjax.inference.resemblance import differences
from glomjax.preprocessing.decoding import own_copy
from glomjax.preprocessing.preprocessing import Preprocessing
from glomjax.pretrained.spec import NetworkSpec


@dataclasses.dataclass(frozen=True)
class NamedImage:
    """One image that has not been read yet.

    Attributes:
      id: a path, or its number among those given.
      open: gives it as 8-bit RGB in its own size, decoded as a network's images were; raises
        UserError where it cannot be read.
      mpp: microns per pixel as it is stored, None where unknown.
      columns: what else its source says of it: `label`, `patient`, `slide`, ...
    """

    id: str
    open: Callable[[Preprocessing], Image.Image]
    mpp: float | None = None
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class PreparedImage:
    """One image as networks see it.

    Attributes:
      id: as in `NamedImage`.
      pixels: of each network uint8 [H, W, 3]; () where it cannot be read.
      problem: why it cannot be read, "" where it can.
      unlike: in what it does not resemble the training images; see `differences`.
      size: (height, width) of the image itself.
      mpp: its microns per pixel, None where unknown.
    """

    id: str
    pixels: tuple[np.ndarray, ...] = ()
    problem: str = ""
    unlike: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)
    mpp: float | None = None


@dataclasses.dataclass(frozen=True)
class ImageStream:
    """Images in their order, each made when it is asked for.

    Attributes:
      images: the images.
      count: how many there are, None where that is not known.
      columns: what a source says of its images, by name; see `NamedImage.columns`.
      notes: on files that are left out and columns that are taken for others.
    """

    images: Iterable[NamedImage]
    count: int | None = None
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def iterate_images(images: Any, *, allow_outside: bool = False) -> ImageStream:
    """The images of whatever a person calls images.

    Args:
      images: the path of an image, of a folder (with or without class folders, and with or without
        a manifest) or of a manifest (with or without labels); `tfds:NAME` or `synthetic`, as in
        training; a PIL image; uint8 [H, W, 3] or [N, H, W, 3]; or an iterable of paths of images,
        PIL images and uint8 [H, W, 3].
      allow_outside: a manifest may list images that lie outside its folder.

    Raises:
      UserError: there is no such path, or images of another form.
    """
    if isinstance(images, ImageStream):
        return images
    if isinstance(images, (str, os.PathLike)):
        name = os.fspath(images)
        if not name:
            raise UserError("the path of the images is empty; give an image or a folder")
        if printable(name) != name:
            raise UserError(f"the path '{printable(name)}' is no plain text; rename it")
        if name.startswith("tfds:") or name == "synthetic":
            patches, read, notes = read_source(name, adopts=False)
            return _of_patches(patches, read, notes)
        return _below(pathlib.Path(name).expanduser(), allow_outside)
    if isinstance(images, Image.Image):
        return ImageStream([_named(images, 0)], 1)
    if hasattr(images, "__array__"):  # also those of other libraries
        images = np.asarray(images)
        if images.ndim == 1 and images.dtype.kind in "OU":  # a column of paths
            return iterate_images(images.tolist())
        _check_array(images)
        stack = images if images.ndim == 4 else images[None]
        return ImageStream((_named(image, i) for i, image in enumerate(stack)), len(stack))
    if isinstance(images, Iterable) and not isinstance(images, (bytes, bytearray, Mapping)):
        # What an iterator gives may change with its next image: one buffer that is filled again,
        # or a file that is closed.
        reused = not isinstance(images, Sequence)
        count = len(images) if isinstance(images, Sized) else None
        return ImageStream(
            (_named(image, i, reused=reused) for i, image in enumerate(images)), count
        )
    raise UserError(
        f"images are of type {type(images).__name__}; give a path, a PIL image, uint8 arrays "
        "[H, W, 3] or [N, H, W, 3], or an iterable of these"
    )


def stream_examples(examples: Examples) -> ImageStream:
    """The images of a table of labelled ones, in its order."""
    mpp = [None] * len(examples) if examples.mpp is None else examples.mpp.tolist()
    images = (
        NamedImage(name, _opener(name, functools.partial(examples.read, i)), mpp[i])
        for i, name in enumerate(examples.ids)
    )
    return ImageStream(images, len(examples))


def checked_mpp(mpp: float | None) -> None:
    """Raises UserError for a spacing that no image has; None is one that is not known."""
    number = isinstance(mpp, numbers.Real) and not isinstance(mpp, bool)
    if mpp is not None and not (number and MIN_MPP <= mpp <= MAX_MPP):
        raise UserError(
            f"{argument('--mpp')} is {mpp!r}; it is in microns per pixel, {MIN_MPP} to "
            f"{MAX_MPP:g}, or not given"
        )


def prepare_images(
    images: Iterable[NamedImage],
    specs: Sequence[NetworkSpec],
    mpp: float | None,
    *,
    ahead: int,
) -> Iterator[PreparedImage]:
    """What the networks see of images, prepared ahead by threads, in their order.

    Args:
      specs: of the networks.
      mpp: microns per pixel of the images that have no spacing of their own; None: unknown.
      ahead: so many wait in memory.

    Raises:
      UserError: no spacing where a network's images were resampled.
    """
    resampled = max(spec.preprocessing.target_mpp or 0.0 for spec in specs)

    def with_spacing() -> Iterator[tuple[NamedImage, float | None]]:
        for image in images:
            spacing = mpp if image.mpp is None else image.mpp
            if resampled and spacing is None:
                raise UserError(
                    f"the spacing of image '{image.id}' is not known, and the network's images "
                    f"were resampled to {resampled:g} microns per "
                    f"pixel: give it as {argument('--mpp')}, or in a manifest's 'mpp' column"
                )
            yield image, spacing

    def prepare(given: tuple[NamedImage, float | None]) -> PreparedImage:
        image, spacing = given
        # Networks of one ensemble may have seen 16-bit images by different rules.
        opened: dict[tuple[int, int], Image.Image] = {}
        seen = []
        try:
            for spec in specs:
                preprocessing = spec.preprocessing
                rules = preprocessing.decoding, preprocessing.bits
                if rules not in opened:
                    opened[rules] = image.open(preprocessing)
                seen.append(preprocessing.prepare(opened[rules], spec.image_size, spacing))
        except UserError as error:
            return PreparedImage(image.id, problem=str(error))
        (picture, *_) = opened.values()
        return PreparedImage(
            image.id,
            tuple(seen),
            unlike=differences(specs, picture, spacing),
            size=(picture.height, picture.width),
            mpp=spacing,
        )

    yield from map_ordered(prepare, with_spacing(), ahead=ahead)


def _below(path: pathlib.Path, allow_outside: bool) -> ImageStream:
    if not path.exists():
        raise UserError(f"'{path}' does not exist; give an image, a folder or a manifest")
    if path.is_dir():
        names, notes = list_images(path)
        manifests = [f for f in path.iterdir() if f.stem.lower() == "manifest"]
        manifests = [f for f in manifests if f.suffix.lower() in MANIFEST_SUFFIXES]
        if not manifests:
            if not names:
                raise UserError(f"folder '{path}' holds no image; name the folder of the patches")
            images = (_file(name, path / name) for name in names)
            return ImageStream(images, len(names), notes=tuple(notes))
        (manifest, *_) = sorted(manifests)
        patches, more = _listed(manifest, path, allow_outside)
        notes += more
        if unlisted := sorted(set(names) - {patch.id for patch in patches}):
            raise UserError(
                f"{manifest} does not list {quoted(unlisted)}; add rows for them, move them away, "
                "or name the manifest itself"
            )
    elif path.suffix.lower() in MANIFEST_SUFFIXES:
        patches, notes = _listed(path, path.parent, allow_outside)
        path = path.parent
    else:
        return ImageStream([_file(str(path), path)], 1)
    root = pathlib.Path(os.path.abspath(path))
    return _of_patches(patches, lambda name: _read_file(name, root / name), notes)


def _listed(
    manifest: pathlib.Path, folder: pathlib.Path, allow_outside: bool
) -> tuple[list[Patch], list[str]]:
    return read_manifest(
        manifest,
        pathlib.Path(os.path.abspath(folder)),
        labelled=False,
        allow_outside=allow_outside,
        allowing=argument("--allow-outside", True),
    )


def _of_patches(
    patches: Sequence[Patch], read: Callable[[str], bytes | np.ndarray], notes: Sequence[str]
) -> ImageStream:
    def cells(patch: Patch) -> dict[str, str]:
        own = {name: getattr(patch, name) for name in ("label", "split", *NAMED)}
        return {name: cell for name, cell in {**own, **patch.further}.items() if cell}

    columns = dict.fromkeys(name for patch in patches for name in cells(patch))
    images = (
        NamedImage(
            patch.id,
            _opener(patch.id, functools.partial(read, patch.id)),
            patch.mpp,
            cells(patch),
        )
        for patch in patches
    )
    return ImageStream(images, len(patches), tuple(columns), tuple(notes))


def _file(name: str, path: pathlib.Path) -> NamedImage:
    return NamedImage(name, _opener(name, functools.partial(_read_file, name, path)))


def _opener(
    name: str, read: Callable[[], bytes | np.ndarray]
) -> Callable[[Preprocessing], Image.Image]:
    return lambda preprocessing: preprocessing.open(read(), name=name)


def _read_file(name: str, path: pathlib.Path) -> bytes:
    if path.exists() and not path.is_file():  # a folder, or a pipe that would never end
        raise UserError(f"Image '{name}' is no file: name the image itself.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"Image '{name}' cannot be read ({error.strerror}).") from error


def _named(image: Any, number: int, *, reused: bool = False) -> NamedImage:
    """An image of an iterable, called by its path or its number; `reused`: a copy of its pixels."""
    if isinstance(image, (str, os.PathLike)):
        return _file(os.fspath(image), pathlib.Path(image).expanduser())
    if isinstance(image, Image.Image):
        # Pillow reads its file when pixels are first needed, and no two threads may do that.
        with contextlib.suppress(Exception):  # opening the image says what is wrong with it
            image = own_copy(image, name=str(number))
    elif hasattr(image, "__array__"):
        given = np.asarray(image)
        _check_array(given, number)
        image = given.copy() if reused else given
    else:
        raise UserError(
            f"image {number} is of type {type(image).__name__}; give paths, PIL images or uint8 "
            "arrays [H, W, 3]"
        )
    return NamedImage(str(number), lambda rules: rules.open(image, name=str(number)))


def _check_array(images: np.ndarray, number: int | None = None) -> None:
    """Raises UserError for values without a defined range or another shape: not the fault of a
    file, so no image is passed over for it."""
    ranks = (3, 4) if number is None else (3,)
    if images.dtype != np.uint8 or images.ndim not in ranks or images.shape[-1] != 3:
        what = "images are an array" if number is None else f"image {number} is an array"
        raise UserError(
            f"{what} of {images.dtype} {list(images.shape)}; give uint8 [H, W, 3]"
            + (" or [N, H, W, 3]" if number is None else "")
        )
