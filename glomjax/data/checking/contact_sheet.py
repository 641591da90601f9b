"""What a check leaves in a folder: its text, and sheets of small pictures of some patches of each
class and split, and of what augmentation does."""

import os
import pathlib

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from glomjax.data.checking.measuring import Images
from glomjax.errors import UserError, printable
from glomjax.files import write_file
from glomjax.preprocessing.decoding import decode_image

CONTACT_SHEET = "contact_sheet.png"
AUGMENTED_SHEET = "augmented.png"
TEXT = "check.txt"
_COLUMNS = 8
_TILE, _GAP, _LINE = 160, 8, 20  # px: the side of a picture, between pictures, of a line of text
_WRITER = "glomjax check-data"  # in each file, so that nobody else's is overwritten

_Row = tuple[str, list[tuple[Image.Image, str]]]  # heading; pictures and their captions


def prepare_folder(
    folder: str | os.PathLike[str], source: str | os.PathLike[str], preset: str = ""
) -> None:
    """Makes the folder for the text and the sheets of a source, before the work that they need.

    Args:
      preset: of the augmented sheet, "" for none.

    Raises:
      UserError: the folder cannot be written, lies in the source, or has a file of the same name
        that is none of ours; or there is no such preset.
    """
    folder, root = pathlib.Path(folder), pathlib.Path(source)
    if preset:
        from glomjax.preprocessing.augmentation import (
            PRESETS,  # loads JAX, which only this sheet needs
        )

        if preset not in PRESETS:
            raise UserError(
                f"There is no augmentation '{preset}': choose one of {', '.join(PRESETS)}."
            )
    if root.is_dir() and folder.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"'{folder}' lies in the source '{root}', where sheets would be taken for patches: "
            "choose another folder."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"'{folder}' cannot be made ({error.strerror}): choose another folder."
        ) from error
    for path in [folder / n for n in (TEXT, CONTACT_SHEET, *([AUGMENTED_SHEET] if preset else []))]:
        if os.path.lexists(path) and not _is_ours(path):
            raise UserError(
                f"'{path}' is there already and was not written by check-data: move it away, or "
                "choose another folder."
            )


def write_sheets(
    folder: str | os.PathLike[str], images: Images, classes: tuple[str, ...], preset: str = ""
) -> list[pathlib.Path]:
    """Draws random patches over their patients (or ids).

    `contact_sheet.png` shows eight of each class and split; `augmented.png`, for an augmentation
    preset, two of each class in the training split, each as it is and in seven random versions.

    Args:
      folder: that `prepare_folder` has made.

    Returns:
      The paths of the sheets.

    Raises:
      UserError: a file cannot be written.
    """
    folder = pathlib.Path(folder)
    sheets = [_write(folder / CONTACT_SHEET, _contact_rows(images, classes))]
    if preset:
        sheets.append(_write(folder / AUGMENTED_SHEET, _augmented_rows(images, classes, preset)))
    return sheets


def write_text(folder: str | os.PathLike[str], text: str) -> None:
    """Keeps the text of a check as `check.txt`; UserError where it cannot be written."""
    write_file(pathlib.Path(folder) / TEXT, f"{_WRITER}\n\n{text}\n".encode())


def _contact_rows(images: Images, classes: tuple[str, ...]) -> list[_Row]:
    rows = []
    for label, name in enumerate(classes):
        for split in dict.fromkeys(images.splits.tolist()):
            members = np.flatnonzero((images.labels == label) & (images.splits == split))
            tiles = [
                (Image.fromarray(_pixels(images, i, (_TILE, _TILE), "pad")), _caption(images, i))
                for i in _drawn(members, _COLUMNS)
            ]
            if tiles:
                rows.append((f"{name} | {split} | {len(members)} images", tiles))
    return rows


def _augmented_rows(images: Images, classes: tuple[str, ...], preset: str) -> list[_Row]:
    import jax

    from glomjax.preprocessing.augmentation import PRESETS

    augment = jax.jit(PRESETS[preset])
    training = images.splits == ("train" if "train" in images.splits else images.splits[0])
    rows = []
    for label, name in enumerate(classes):
        for i in _drawn(np.flatnonzero((images.labels == label) & training), 2):
            image = _pixels(images, i, images.image_size, images.preprocessing.resize)
            keys = jax.random.split(jax.random.key(i), _COLUMNS - 1)
            drawn = np.asarray(augment(np.stack([image] * len(keys)), keys))  # float32, 0..255
            versions = [image, *np.rint(drawn).astype(np.uint8)]
            tiles = [
                (Image.fromarray(version), f"{preset} {n}" if n else "as it is")
                for n, version in enumerate(versions)
            ]
            rows.append((f"{name} | {_caption(images, i)}", tiles))
    return rows


def _drawn(members: np.ndarray, count: int) -> list[int]:
    return sorted(np.random.default_rng(0).permutation(members)[:count].tolist())


def _pixels(images: Images, i: int, size: tuple[int, int], resize: str) -> np.ndarray:
    examples = images.examples
    bits = images.preprocessing.bits
    return decode_image(examples.read(i), size, name=examples.ids[i], resize=resize, bits=bits)


def _caption(images: Images, i: int) -> str:
    examples = images.examples
    return examples.patients[i] if examples.patients else pathlib.PurePath(examples.ids[i]).stem


def _write(path: pathlib.Path, rows: list[_Row]) -> pathlib.Path:
    """Draws the rows below each other."""
    fonts = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    bold = ImageFont.truetype(fonts / "DejaVuSans-Bold.ttf", 14)
    plain = ImageFont.truetype(fonts / "DejaVuSans.ttf", 12)
    height = 2 * _LINE + _TILE + _GAP
    sheet = Image.new("RGB", (_COLUMNS * (_TILE + _GAP) + _GAP, len(rows) * height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for n, (heading, tiles) in enumerate(rows):
        top = n * height + _GAP
        draw.text((_GAP, top), _fitted(heading, bold, sheet.width - 2 * _GAP), "black", font=bold)
        for column, (picture, caption) in enumerate(tiles):
            left = _GAP + column * (_TILE + _GAP)
            picture.thumbnail((_TILE, _TILE), Image.Resampling.LANCZOS)
            sheet.paste(picture, (left, top + _LINE))
            place = (left, top + _LINE + _TILE + 2)
            draw.text(place, _fitted(caption, plain, _TILE), "black", font=plain)
    note = PngImagePlugin.PngInfo()
    note.add_text("Software", _WRITER)
    try:
        sheet.save(path, pnginfo=note)
    except OSError as error:
        raise UserError(
            f"'{path}' cannot be written ({error.strerror}): give a folder that can be written."
        ) from error
    return path


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text on one line, without which it cannot be drawn, and cut at its start where it is too
    long: names differ at their ends."""
    fitted = text = printable(text)
    while font.getlength(fitted) > width:
        text = text[1:]
        fitted = f"…{text}"
    return fitted


def _is_ours(path: pathlib.Path) -> bool:
    try:
        if path.name == TEXT:
            return path.read_bytes().startswith(_WRITER.encode())
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("Software") == _WRITER
    except (OSError, SyntaxError, ValueError):
        return False
