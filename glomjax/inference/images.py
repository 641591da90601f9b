"""Images of every form, one after another: found, named, and prepared for networks."""

import contextlib
import dataclasses
import numbers
import os
import pathlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
from PIL import Image

from glomjax.data.sources.folder import list_images
from glomjax.data.sources.manifest import MANIFEST_SUFFIXES, MAX_MPP, MIN_MPP, read_manifest
from glomjax.data.threads import THREADS, map_ordered
from glomjax.errors import UserError, quoted
from glomjax.preprocessing.decoding import own_copy
from glomjax.preprocessing.preprocessing import SAME_SPACING, Preprocessing
from glomjax.pretrained.spec import NetworkSpec


@dataclasses.dataclass(frozen=True)
class NamedImage:
    """One image that has not been read yet.

    Attributes:
      id: a path, or its number among those given.
      open: gives it as 8-bit RGB in its own size, decoded as a network's images were; raises
        UserError where it cannot be read.
      mpp: microns per pixel as it is stored, None where unknown.
    """

    id: str
    open: Callable[[Preprocessing], Image.Image]
    mpp: float | None = None


def iterate_images(images: Any) -> tuple[Iterator[NamedImage], int | None]:
    """(the images in their order, how many there are, None where that is not known).

    Args:
      images: the path of an image, of a folder (with or without class folders, and with or without
        a manifest) or of a manifest (with or without labels); a PIL image; uint8 [H, W, 3] or
        [N, H, W, 3]; or an iterable of paths of images, PIL images and uint8 [H, W, 3].

    Raises:
      UserError: there is no such path, or images of another form.
    """
    if isinstance(images, (str, os.PathLike)):
        if not os.fspath(images):
            raise UserError("the path of the images is empty; give an image or a folder")
        found = _below(pathlib.Path(images).expanduser())
        return iter(found), len(found)
    if isinstance(images, Image.Image):
        return iter([_named(images, 0)]), 1
    if hasattr(images, "__array__"):  # also those of other libraries
        images = np.asarray(images)
        if images.ndim == 1 and images.dtype.kind in "OU":  # a column of paths
            return iterate_images(images.tolist())
        _check_array(images)
        stack = images if images.ndim == 4 else images[None]
        return (_named(image, i) for i, image in enumerate(stack)), len(stack)
    if isinstance(images, Iterable) and not isinstance(images, (bytes, bytearray, Mapping)):
        # What an iterator gives may change with its next image: one buffer that is filled again,
        # or a file that is closed.
        reused = not isinstance(images, Sequence)
        count = len(images) if isinstance(images, Sized) else None
        return (_named(image, i, reused=reused) for i, image in enumerate(images)), count
    raise UserError(
        f"images are of type {type(images).__name__}; give a path, a PIL image, uint8 arrays "
        "[H, W, 3] or [N, H, W, 3], or an iterable of these"
    )


def prepare_images(
    images: Iterator[NamedImage], specs: Sequence[NetworkSpec], mpp: float | None
) -> Iterator[tuple[str, list[np.ndarray] | UserError]]:
    """(id, what each of the networks sees of the image, uint8 [H, W, 3], or why it cannot be read),
    prepared ahead by threads, in their order.

    Args:
      mpp: microns per pixel of the images that have no spacing of their own; None: unknown.

    Raises:
      UserError: a spacing that no image has, or none where a network's images were resampled.
    """
    number = isinstance(mpp, numbers.Real) and not isinstance(mpp, bool)
    if mpp is not None and not (number and MIN_MPP <= mpp <= MAX_MPP):
        raise UserError(
            f"mpp is {mpp!r}; it is in microns per pixel, {MIN_MPP} to {MAX_MPP:g}, or not given"
        )
    resampled = max(spec.preprocessing.target_mpp or 0.0 for spec in specs)
    # (spacing, that of training) where they differ; threads add to it.
    otherwise: list[tuple[float, float]] = []

    def with_spacing() -> Iterator[tuple[NamedImage, float | None]]:
        for image in images:
            spacing = mpp if image.mpp is None else image.mpp
            if resampled and spacing is None:
                raise UserError(
                    f"the spacing of image '{image.id}' is not known, and the network's images "
                    f"were resampled to {resampled:g} microns per "
                    "pixel: give it as mpp, or in a manifest's 'mpp' column"
                )
            yield image, spacing

    def prepare(
        given: tuple[NamedImage, float | None],
    ) -> tuple[str, list[np.ndarray] | UserError]:
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
            return image.id, error
        if spacing is not None:
            (size, *_) = (picture.size[::-1] for picture in opened.values())
            otherwise.extend(_other_spacings(specs, size, spacing))
        return image.id, seen

    # So many wait in memory that a batch is ready when the one before it is done.
    yield from map_ordered(prepare, with_spacing(), ahead=specs[0].device_batch + 2 * THREADS)
    if otherwise:
        seen, trained = min(otherwise)
        warnings.warn(
            f"{len(otherwise)} times an image was seen at another spacing than those of the "
            f"training, such as {seen:.3g} in place of {trained:.3g} microns per pixel; its "
            "prediction means little: resample the images, or train with target_mpp",
            stacklevel=2,
        )


def _below(path: pathlib.Path) -> list[NamedImage]:
    if not path.exists():
        raise UserError(f"'{path}' does not exist; give an image, a folder or a manifest")
    if path.is_dir():
        names = list_images(path)
        manifests = [f for f in path.iterdir() if f.stem.lower() == "manifest"]
        manifests = [f for f in manifests if f.suffix.lower() in MANIFEST_SUFFIXES]
        if not manifests:
            if not names:
                raise UserError(f"folder '{path}' holds no image; name the folder of the patches")
            return [_file(name, path / name) for name in names]
        (manifest, *_) = sorted(manifests)
        listed = _listed(manifest, path)
        if unlisted := sorted(set(names) - {image.id for image in listed}):
            raise UserError(
                f"{manifest} does not list {quoted(unlisted)}; add rows for them, move them away, "
                "or name the manifest itself"
            )
        return listed
    if path.suffix.lower() in MANIFEST_SUFFIXES:
        return _listed(path, path.parent)
    return [_file(str(path), path)]


def _listed(manifest: pathlib.Path, folder: pathlib.Path) -> list[NamedImage]:
    root = pathlib.Path(os.path.abspath(folder))
    patches, _ = read_manifest(manifest, root, labelled=False)
    return [_file(patch.id, root / patch.id, patch.mpp) for patch in patches]


def _file(name: str, path: pathlib.Path, mpp: float | None = None) -> NamedImage:
    def read(preprocessing: Preprocessing) -> Image.Image:
        if path.exists() and not path.is_file():  # a folder, or a pipe that would never end
            raise UserError(f"Image '{name}' is no file: name the image itself.")
        try:
            encoded = path.read_bytes()
        except OSError as error:
            raise UserError(f"Image '{name}' cannot be read ({error.strerror}).") from error
        return preprocessing.open(encoded, name=name)

    return NamedImage(name, read, mpp)


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
    return NamedImage(
        str(number), lambda preprocessing: preprocessing.open(image, name=str(number))
    )


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


def _other_spacings(
    specs: Sequence[NetworkSpec], size: tuple[int, int], mpp: float
) -> list[tuple[float, float]]:
    """(spacing at which a network sees an image, that of its training) where they differ."""
    found = []
    for spec in specs:
        preprocessing = spec.preprocessing
        if preprocessing.seen_mpp:
            seen = preprocessing.seen_spacing(size, spec.image_size, mpp)
            ratio = seen / preprocessing.seen_mpp
            if not 1 / SAME_SPACING <= ratio <= SAME_SPACING:
                found.append((seen, preprocessing.seen_mpp))
    return found
