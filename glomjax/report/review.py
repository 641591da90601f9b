"""The review of labels: one page with the patches whose labels are most doubtful.

    glomjax review runs/davit_folds

Whoever reads it decides on each patch, and downloads a manifest with the decisions, which training
takes. The page holds its images and asks for nothing.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from glomjax.data.sources import read_source
from glomjax.data.sources.manifest import LABEL_BEFORE, Patch
from glomjax.errors import UserError, argument, quoted
from glomjax.evaluation.calibration import probability_text
from glomjax.evaluation.label_errors import LabelErrors, rank_label_errors
from glomjax.evaluation.logits import probabilities
from glomjax.files import write_file
from glomjax.inference.saved_predictions import SavedPredictions, read_predictions
from glomjax.preprocessing.decoding import open_image
from glomjax.report.rendering import jpeg, jpeg_uri, rendered

PAGE, CORRECTED = "review.html", "manifest_corrected.csv"
MOST = 1000  # patches of one page
_USUAL = (20, 100)  # by default a tenth of the patches, but at least and at most so many
# What a manifest has before the further columns of the data.
_OWN = ("split", "patient", "slide", "site", "weight", "mpp")
_METHOD = (
    "Shown are the patches to whose label the network gave the least probability, each compared "
    "with those of the same label (self-confidence; Northcutt et al. 2021, J Artif Intell Res "
    "70:1373-1411). Confident learning counts {others} of all {n} patches in another class than "
    "that of their label; what the network itself gets wrong is among them. A doubtful label is "
    "often right: the patch decides, not the number."
)
_COVERS = {
    "cross-validation": "Each patch was judged by a network that {unseen}.",
    "run": "All are of the test split of one run: each was judged by a network that {unseen}.",
    "validation split": "All are of the validation split of one run.",
    "evaluation": "All are of data on which finished networks were judged.",
}
_UNSEEN = "has not seen its patient"
_UNSEEN_IMAGE = (
    "was not trained on it; no patients are known, so that it may have seen other patches of the "
    "same patient"
)


@dataclasses.dataclass(frozen=True)
class Review:
    """A page that was written: where, and what is to be known of it, a sentence each."""

    file: pathlib.Path
    sentences: tuple[str, ...]


def write_review(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    data: str | os.PathLike[str] = "",
    count: int | None = None,
    allow_outside: bool = False,
) -> Review:
    """Writes the page of the most doubtful labels.

    The decisions of whoever reads it become a manifest with all rows and columns of the data:
    changed labels, with the one before in the column `label_before`, and without the patches that
    are left out.

    Args:
      source: a cross-validation, a finished run, a folder that `evaluate` wrote, or a table of
        predictions.
      out: the file; by default `review.html` in that folder or beside that table.
      data: the folder or manifest of the images; by default where the predictions say they were.
      count: how many patches are shown; by default a tenth, 20 to 100.
      allow_outside: a manifest may list images outside its folder; as the run says by default.

    Raises:
      UserError: there are no such predictions, their images cannot be found or read, or have other
        labels now.
    """
    table = read_predictions(source)
    patches, read, root = _data_of(table, os.fspath(data), allow_outside)
    rows = _rows_of(table, patches)
    labels = np.array([table.classes.index(patches[i].label) for i in rows])
    errors = rank_label_errors(labels, table.logits)
    shown = errors.order[: _count(count, len(labels))].tolist()
    place = pathlib.Path(source).expanduser()
    folder = place if place.is_dir() else place.parent
    manifest = _manifest(patches, root)
    decisions = {
        "classes": table.classes,
        "file": CORRECTED,
        "manifest": manifest,
        "patches": [{"row": rows[i], "label": int(labels[i])} for i in shown],
    }
    digest = hashlib.sha256(json.dumps(decisions).encode()).hexdigest()
    shows = _Shown(table, patches, rows, errors, int(table.settings.get("data.bits", 0)))
    others = int((errors.counted_as != labels).sum())
    sentences = tuple(_covers(table, len(patches)))
    about = list(table.notes)
    must_know = [text for text in [_control_message(folder)] if text]
    if table.about["kind"] != "cross-validation":  # whose notes say how its folds were joined
        must_know, about = [*must_know, *about], []
    page = rendered(
        "review.html",
        title="Labels to review",
        subtitle=f"{table.source}: the {len(shown)} most doubtful of {len(labels)} patches",
        must_know=must_know,
        paragraphs=[_METHOD.format(others=others, n=len(labels)), *sentences, *about],
        classes=table.classes,
        patches=[shows.facts(i, rank, read) for rank, i in enumerate(shown, 1)],
        digest=digest,
        data={**decisions, "key": f"glomjax review {digest}"},
    )
    file = folder / PAGE if out is None else pathlib.Path(out).expanduser()
    write_file(file, page.encode())
    said = (
        f"{len(shown)} of {len(labels)} patches; confident learning counts {others} in another "
        "class than that of their label"
    )
    return Review(file, (said, *sentences, *about, *must_know))


def _count(count: int | None, n: int) -> int:
    """How many patches are shown."""
    if count is None:
        least, most = _USUAL
        return min(n, max(least, min(most, math.ceil(n / 10))))
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST:
        raise UserError(
            f"{argument('--count')} is {count!r}; it is how many patches the page shows, 1 to "
            f"{MOST}"
        )
    return min(n, count)


def _data_of(
    table: SavedPredictions, data: str, allow_outside: bool
) -> tuple[list[Patch], Callable[[str], bytes | np.ndarray], pathlib.Path]:
    """(what the data lists, a function that reads an image, the folder where paths start)."""
    if table.settings.get("data.permute_labels"):
        raise UserError(
            f"the labels of '{table.source}' were permuted on purpose, so that nothing can be said "
            "of them; name predictions of the labels as they are"
        )
    option = argument("--data")
    named = data or str(table.settings.get("data.source") or table.about.get("data") or "")
    if not named:
        raise UserError(
            f"'{table.source}' does not say where its images are; name their folder or manifest "
            f"with {option}"
        )
    if named == "synthetic" or named.startswith("tfds:"):
        raise UserError(
            f"the images of '{table.source}' are not in files of their own, which a manifest could "
            f"list, but in '{named}'; save them to class folders, and cross-validate these"
        )
    place = pathlib.Path(os.path.abspath(os.path.expanduser(named)))
    if not place.exists():
        raise UserError(
            f"the images of '{table.source}' were in '{named}', which does not exist here; say "
            f"where they are now with {option}"
        )
    outside = allow_outside or (not data and bool(table.settings.get("data.allow_outside")))
    # Columns stay what they are: training again takes them for the same.
    patches, read, _ = read_source(
        str(place),
        adopts=False,
        allow_outside=outside,
        allowing=argument("--allow-outside", True),
    )
    return patches, read, place if place.is_dir() else place.parent


def _rows_of(table: SavedPredictions, patches: Sequence[Patch]) -> list[int]:
    """Which patch each prediction is of.

    Raises:
      UserError: some are of other images, or of other labels.
    """
    number = {patch.id: i for i, patch in enumerate(patches)}
    option = argument("--data")
    if unknown := [name for name in table.ids if name not in number]:
        raise UserError(
            f"{len(unknown)} of {len(table.ids)} images of '{table.source}' cannot be found in the "
            f"data ({quoted(unknown)}); restore them, or name with {option} the folder or manifest "
            "from which they were predicted"
        )
    rows = [number[name] for name in table.ids]
    told = table.columns.get("label") or [patches[i].label for i in rows]
    pairs = zip(table.ids, rows, told, strict=True)
    other = [name for name, i, label in pairs if label != patches[i].label]
    if other or not set(told) <= set(table.classes):
        names = other or [i for i, c in zip(table.ids, told, strict=True) if c not in table.classes]
        raise UserError(
            f"{len(names)} images have other labels in the data than '{table.source}' knows "
            f"({quoted(names)}); name with {option} the data as it was then, or predict again"
        )
    if absent := [name for name in table.classes if name not in told]:
        raise UserError(
            f"no image of '{table.source}' has the label {quoted(absent)}, so that nothing tells "
            "how sure the network is of that class; name predictions of images of every class"
        )
    return rows


def _manifest(patches: Sequence[Patch], root: pathlib.Path) -> dict[str, Any]:
    """The whole data as a table whose paths hold wherever the table lies."""
    cells: dict[str, list[str]] = {
        "path": [os.path.join(root, patch.id) for patch in patches],
        "label": [patch.label for patch in patches],
    }
    for name in _OWN:
        values = [getattr(patch, name) for patch in patches]
        cells[name] = ["" if value is None else str(value) for value in values]
    for name in dict.fromkeys(name for patch in patches for name in patch.further):
        cells[name] = [patch.further.get(name, "") for patch in patches]
    before = cells.pop(LABEL_BEFORE, [""] * len(patches))
    kept = {name: column for name, column in cells.items() if any(column)}
    header = [*kept, LABEL_BEFORE]
    rows = [list(row) for row in zip(*kept.values(), before, strict=True)]
    return {"header": header, "rows": rows, "label": 1, "before": len(header) - 1}


@dataclasses.dataclass(frozen=True)
class _Shown:
    """What the page says of patches; `rows` are the places of the predictions in `patches`."""

    table: SavedPredictions
    patches: Sequence[Patch]
    rows: Sequence[int]
    errors: LabelErrors
    bits: int

    def facts(self, i: int, rank: int, read: Callable[[str], bytes | np.ndarray]) -> dict[str, Any]:
        """Of the i-th prediction."""
        patch, classes = self.patches[self.rows[i]], self.table.classes
        chances = probabilities(self.table.logits[i : i + 1])[0]
        image = open_image(read(patch.id), name=patch.id, bits=self.bits)
        return {
            "rank": rank,
            "id": patch.id,
            "label": patch.label,
            "patient": " ".join(
                f"{name} {value}"
                for name in ("patient", "slide")
                if (value := getattr(patch, name)) and (name == "patient" or not patch.patient)
            ),
            "says": classes[int(chances.argmax())],
            "chance": probability_text(float(chances.max())),
            "confidence": probability_text(float(self.errors.self_confidence[i])),
            "counted_as": classes[int(self.errors.counted_as[i])],
            "image": jpeg_uri(jpeg(image)),
        }


def _covers(table: SavedPredictions, total: int) -> list[str]:
    """Which patches were judged, by whom, and which were not."""
    known = all(table.columns.get("patient", [""]))
    said = _COVERS.get(str(table.about["kind"]), "")
    sentences = [said.format(unseen=_UNSEEN if known else _UNSEEN_IMAGE)] if said else []
    if missing := total - len(table.ids):
        sentences.append(
            f"The other {missing} of {total} patches of the data have not been judged, and keep "
            "their labels; a cross-validation judges every patch."
        )
    return sentences


def _control_message(folder: pathlib.Path) -> str:
    """That the network is not shown to be better than a negative control, where its results say
    so: then its doubts say little."""
    for name in ("metrics.json", "test_metrics.json"):
        try:
            return str(json.loads((folder / name).read_text()).get("control_message") or "")
        except (OSError, ValueError, AttributeError):
            continue
    return ""
