"""What the names of files and folders say of a folder of patches: what is no patch, and what is no
class."""

import pathlib
import re
from collections.abc import Iterable, Sequence

from glomjax.data.classes import is_glomerulus
from glomjax.data.sources.columns import split_named
from glomjax.errors import UserError, quoted

# What systems and their shared disks keep beside files: thumbnails, deleted files, settings.
_SYSTEM = frozenset(
    [
        *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "@tmp"),
        *("@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin", "recycler"),
        *("lost+found", "system volume information", "__pycache__", "_vti_cnf", "trash"),
        *("network trash folder", "temporary items", "@__thumb", "@appdata"),
    ]
)
_MASK_WORDS = (
    "masks?|maske|labell?ed|labels?|seg|segs|segmentations?|annot|annotations?|overlays?|gt"
    "|ground[ _-]?truth|binary|contours?|outlines?|pred|preds|predictions?|heat[ _-]?maps?"
    "|grad[ _-]?cam|cam|saliency|thumb|thumbnail|preview"
)
_MASK = re.compile(
    rf"(?P<stem>.+?)[ ._-]+({_MASK_WORDS})([ ._-]*\d+)?|({_MASK_WORDS})[ ._-]+(?P<rest>.+)",
    re.IGNORECASE,
)
_MASK_FOLDER = re.compile(
    r"[_.]?(.+[ _-])?(masks?|overlays?|thumbs?|thumbnails?|previews?|heat_?maps?)([ _-].+)?",
    re.IGNORECASE,
)
_IN_CLOUD = re.compile(r"\..+\.icloud")
_TABLE = re.compile(
    r".*\.(csv|tsv|tab|xls|xlsx|xlsm|xlsb|ods|numbers|parquet|feather|arrow|rds|sav|dta|sqlite|accdb"
    r"|mdb|pkl|pickle|mat)([._-](gz|zip|bak|old|orig|tmp)|~)?"
)
_PERHAPS_TABLE = re.compile(
    r".*(csv|tsv|manifest|label|metadata|patient|clinical|annotation|split|slides).*"
    r"\.(txt|dat|json|jsonl|xml|yaml|yml|db|h5|hdf5|docx?|geojson)|manifest"
)
_MOST_CLASSES = 10  # that a folder of patients is expected to hold
# Names of classes that no patient has.
_CLASS_WORDS = frozenset(
    [
        *("0", "1", "neg", "pos", "negative", "positive", "yes", "no", "true", "false", "unsure"),
        *("benign", "malignant", "normal", "abnormal", "other", "background"),
    ]
)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's."""
    return name.startswith((".", "~$")) or name.lower() in _SYSTEM


def is_in_cloud(name: str) -> bool:
    """Whether a hidden file stands in for one that has not been downloaded."""
    return _IN_CLOUD.fullmatch(name) is not None


def is_table(path: str) -> bool:
    """Whether a file is a table that may tell patients."""
    name = path.rpartition("/")[2].lower()
    return bool(_TABLE.fullmatch(name) or _PERHAPS_TABLE.fullmatch(name))


def is_mask_folder(name: str) -> bool:
    """Whether a folder holds masks or thumbnails, and not a class."""
    return _MASK_FOLDER.fullmatch(name) is not None


def masks(images: Iterable[str]) -> set[str]:
    """The images whose names say that they are masks or thumbnails: `x-mask.png` beside `x.jpg`,
    and all in folders called so."""
    images = list(images)
    stems = {name.rpartition(".")[0] for name in images}
    found = set()
    for name in images:
        folder, _, file = name.rpartition("/")
        match = _MASK.fullmatch(file.rpartition(".")[0])
        of = match and f"{folder}/{match['stem'] or match['rest']}".lstrip("/")
        beside = of in stems
        if beside or any(map(is_mask_folder, folder.split("/"))):
            found.add(name)
    return found


def split_folders(folders: Sequence[str], source: pathlib.Path) -> dict[str, str]:
    """{folder: split} where the folders are splits, {} where they are classes.

    Raises:
      UserError: some are splits and others are not, or a split is not there or there twice.
    """
    found = {name: split for name in folders if (split := split_named(name))}
    parts = set(found.values())
    whole = len(parts) == len(found) == len(folders) > 1 and "train" in parts
    if found and not whole:
        raise UserError(
            f"'{source}' has the folders {', '.join(folders)}: give either train, validation (or "
            f"val) and test, at least train and one more, or one folder per class."
        )
    return found


def check_levels(images: Sequence[str], depth: int, source: pathlib.Path) -> None:
    """Refuses folders of patients with a folder per class in each, and splits within classes.

    Args:
      images: paths relative to the source.
      depth: of the folders that are taken for classes.

    Raises:
      UserError: the folders below these are the classes, or splits.
    """
    below: dict[str, set[str]] = {}
    for name in images:
        folders = name.split("/")[depth - 1 : -1]
        below.setdefault(folders[0], set()).add(folders[1] if len(folders) > 1 else "")
    inner = set().union(*below.values())
    if "" in inner or len(inner) < 2:
        return
    if all(map(split_named, inner)):
        raise UserError(
            f"'{source}' has the splits {quoted(sorted(inner))} within its classes: put the "
            "folders of the splits on top, with one folder per class in each."
        )
    # Patients are many, classes few, and most patients have most of the classes.
    shared = sum(map(len, below.values())) / (len(below) * len(inner)) >= 0.5
    many = len(below) >= max(2 * len(inner), 4) and len(inner) <= _MOST_CLASSES
    named = any(map(is_glomerulus, inner)) or {name.lower() for name in inner} <= _CLASS_WORDS
    numbered = _one_stem(below) and not _one_stem(inner)
    if shared and (many or named or numbered) and not any(map(is_glomerulus, below)):
        raise UserError(
            f"'{source}' has the folders {quoted(sorted(below))} with {quoted(sorted(inner))} in "
            "each: those look like the classes, and the upper ones like patients; put one folder "
            "per class on top, with the patients in it, or give a manifest with a 'patient' column."
        )


def _one_stem(names: Iterable[str]) -> bool:
    """Whether names differ in their numbers alone, as those of patients do."""
    names = list(names)
    return len({re.sub(r"\d+", "", name) for name in names}) == 1 and any(
        any(map(str.isdigit, name)) for name in names
    )
