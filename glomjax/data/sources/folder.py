"""Labelled patches from a folder, with or without a manifest, or from a manifest alone."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

from glomjax.data.sources import layout
from glomjax.data.sources.manifest import LABEL_BEFORE, MANIFEST_SUFFIXES, Patch, read_manifest
from glomjax.errors import UserError, quoted

_OTHER_SUFFIXES = (".gif", ".jp2", ".j2k", ".jpx", ".heic", ".heif", ".avif", ".ppm", ".pgm")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".tif", ".tiff", ".bmp", ".webp")


def read_folder(
    source: pathlib.Path, *, allow_outside: bool = False, allowing: str = ""
) -> tuple[list[Patch], Callable[[str], bytes], list[str]]:
    """What a folder or a manifest lists; no image is opened yet.

    A folder holds one folder per class, or the folders train, validation (or val) and test, of
    which one of the last two may be missing, with one folder per class in each; images may lie
    deeper, and the folders below that of the class are the column `folder` then. Its
    `manifest.csv` or `manifest.tsv`, where there is one, gives the labels and must list exactly
    the images. `source` may also be a manifest itself, with image paths that are absolute or
    relative to its folder. `allow_outside` and `allowing` are those of `read_manifest`.

    Returns:
      The patches, with paths relative to the source as ids; a function that gives the bytes of the
      file with an id; and notes on files that were left out.

    Raises:
      UserError: the folder or the manifest is not as described.
    """
    source = pathlib.Path(os.path.abspath(os.path.expanduser(source)))
    root = source if os.path.isdir(source) else source.parent
    read = functools.partial(read_manifest, allow_outside=allow_outside, allowing=allowing)
    patches, notes = _list(source, read)
    # An absolute id replaces the root.
    return patches, lambda name: _read_bytes(root / name), notes


def _list(
    source: pathlib.Path,
    read: Callable[[pathlib.Path, pathlib.Path], tuple[list[Patch], list[str]]],
) -> tuple[list[Patch], list[str]]:
    """What is there; `read` reads a manifest."""
    if not os.path.exists(source):
        raise UserError(
            f"'{source}' does not exist: give a folder of patches or a CSV or TSV manifest."
        )
    if not os.path.isdir(source):
        if source.suffix.lower() not in MANIFEST_SUFFIXES:
            raise UserError(
                f"'{source}' is not a folder: give a folder of patches or a .csv or .tsv file."
            )
        return read(source, source.parent)

    images, others, away = _sorted_files(source)
    manifests = [n for n in others if n.lower() in [f"manifest{s}" for s in MANIFEST_SUFFIXES]]
    if len(manifests) > 1:
        raise UserError(f"'{source}' has {' and '.join(sorted(manifests))}: keep one of them.")
    manifest = source / manifests[0] if manifests else None
    patches, notes = read(manifest, source) if manifest else ([], [])
    listed = {patch.id for patch in patches}

    masks = layout.masks(images) - listed
    folders = sorted(
        f.name
        for f in source.iterdir()
        if f.is_dir() and not layout.is_hidden(f.name) and not layout.is_mask_folder(f.name)
    )
    split_folders = layout.split_folders(folders, source)
    depth = 2 if split_folders else 1  # of the class folder
    inside = {name for name in images if name.count("/") >= depth and name not in masks}
    if manifest:
        if unlisted := sorted(inside - listed):
            raise UserError(
                f"{manifest} does not list {quoted(unlisted)}: add rows for them or move them away."
            )
        patches = [_placed(patch, inside, split_folders, manifest) for patch in patches]
    else:
        if not inside:
            raise UserError(
                f"'{source}' has no image in class folders: put patches "
                f"({', '.join(IMAGE_SUFFIXES)}) into one folder per class."
            )
        if empty := sorted(set(folders) - {name.split("/")[0] for name in inside}):
            raise UserError(f"Folder '{source / empty[0]}' has no image: fill it or remove it.")
        layout.check_levels(sorted(inside), depth, source)
        patches = _of_folders(inside, depth, split_folders)
        listed = inside

    foreign = [name for name in others if name.count("/") >= depth and name not in listed]
    if foreign:
        notes.append(_left_out(foreign))
    outside = [n for n in images if n.count("/") < depth and n not in listed and n not in masks]
    if outside:
        notes.append(
            f"{len(outside)} image(s) outside the class folders are left out, for example "
            f"'{min(outside)}'."
        )
    if masks:
        notes.append(
            f"{len(masks)} image(s) look like masks or thumbnails of others by their names and are "
            f"left out, for example '{min(masks)}'; a manifest.csv can list them."
        )
    if away:
        notes.append(_left_out_in_cloud(away))
    tables = [name for name in others if layout.is_table(name)]
    if not manifests and tables:
        notes.append(
            f"{quoted(tables)} {'is' if len(tables) == 1 else 'are'} not read: patients and other "
            f"columns are taken from a "
            f"manifest.csv alone."
        )
    return patches, notes


def _of_folders(names: set[str], depth: int, split_folders: dict[str, str]) -> list[Patch]:
    """The patches of images that their folders describe."""
    patches = []
    for name in names:
        folders = name.split("/")[:-1]
        below = "/".join(folders[depth:])
        split = split_folders.get(folders[0], "")
        patches.append(Patch(name, folders[depth - 1], split, further={"folder": below}))
    if any(patch.further["folder"] for patch in patches):
        return patches
    return [dataclasses.replace(patch, further={}) for patch in patches]


def list_images(folder: pathlib.Path) -> tuple[list[str], list[str]]:
    """The paths of all images below a folder, relative to it with `/`, sorted; and notes on files
    that are left out."""
    images, others, away = _sorted_files(folder)
    # Pictures in a format that is not read are images that cannot be read, and not left out.
    images += [name for name in others if name.lower().endswith(_OTHER_SUFFIXES)]
    others = [name for name in others if name not in images and not layout.is_table(name)]
    notes = [_left_out(others)] if others else []
    return sorted(images), [*notes, *([_left_out_in_cloud(away)] if away else [])]


def _sorted_files(folder: pathlib.Path) -> tuple[list[str], list[str], list[str]]:
    """The images below a folder, the other files, and the images that are in a cloud."""
    images: list[str] = []
    others: list[str] = []
    away: list[str] = []
    for file in _files_below(folder, set()):
        name = file.relative_to(folder).as_posix()
        if layout.is_in_cloud(file.name):
            away.append(name)
        else:
            (images if file.suffix.lower() in IMAGE_SUFFIXES else others).append(name)
    return images, others, away


def _left_out(names: Sequence[str]) -> str:
    return (
        f"{len(names)} file(s) among the patches are no images and are left out, for example "
        f"'{min(names)}'."
    )


def _left_out_in_cloud(names: Sequence[str]) -> str:
    return (
        f"{len(names)} image(s) are in a cloud and not on this disk, and are left out, for "
        f"example '{min(names)}': download them first."
    )


def _files_below(folder: pathlib.Path, seen: set[str]) -> Iterator[pathlib.Path]:
    """Every file that is not hidden, and the stand-ins of those that are in a cloud; links to
    folders are followed, each folder once."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    try:
        entries = [(entry, entry.is_dir()) for entry in sorted(folder.iterdir())]
    except OSError as error:
        raise UserError(f"Folder '{folder}' cannot be read ({error.strerror}).") from error
    for entry, is_dir in entries:
        if layout.is_hidden(entry.name) and not layout.is_in_cloud(entry.name):
            continue
        try:
            entry.name.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"The file name {os.fsencode(entry.name)!r} in '{folder}' is not UTF-8: rename it."
            ) from error
        if is_dir:
            yield from _files_below(entry, seen)
        else:
            yield entry


def _placed(
    patch: Patch, inside: set[str], split_folders: dict[str, str], manifest: pathlib.Path
) -> Patch:
    """The patch with the split of its folder; its folders must agree with the manifest."""
    folders = patch.id.split("/")[:-1]
    if patch.id in inside:
        class_folder = folders[1 if split_folders else 0]
        if class_folder not in (patch.label, patch.further.get(LABEL_BEFORE)):
            raise UserError(
                f"{manifest}: '{patch.id}' has the label '{patch.label}', but lies in the class "
                f"folder '{class_folder}': correct one of them, or give the manifest itself as the "
                f"source if its folders are not classes."
            )
    if not split_folders:
        return patch
    split = split_folders.get(folders[0] if folders else "", patch.split)
    if not split or patch.split not in ("", split):
        raise UserError(
            f"{manifest}: '{patch.id}' has the split '{patch.split}', but lies in "
            f"{'the folder of split ' + repr(split) if split else 'no split folder'}: make them "
            f"agree."
        )
    return dataclasses.replace(patch, split=split)


def _read_bytes(file: pathlib.Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"Image '{file}' cannot be read ({error.strerror}).") from error
