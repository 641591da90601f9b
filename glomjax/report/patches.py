"""The patches that a report shows: the worst errors and the least certain ones.

They are kept in the folder of a result, `report/patches`, since its images may be elsewhere, or
gone, when the report is made again.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from PIL import Image

from glomjax.data.examples import Examples
from glomjax.errors import UserError
from glomjax.evaluation.calibration import predicted_classes
from glomjax.evaluation.logits import log_odds_of
from glomjax.files import jsonable
from glomjax.inference.classifier import Classifier
from glomjax.inference.images import ImageStream, stream_examples
from glomjax.inference.saliency import overlay, randomisation_check
from glomjax.report import FOLDER as REPORT
from glomjax.report.rendering import jpeg, jpeg_uri

FOLDER, INDEX = "patches", "patches.json"
ABOUT_SALIENCY = (
    "Beside each patch the parts of it that speak for the class that is named, by Grad-CAM "
    "(Selvaraju et al. 2017), the strongest of each patch brightest, however "
    "weak it is. It shows where, not why."
)
ERRORS, UNCERTAIN = 12, 12  # how many of each are shown


@dataclasses.dataclass(frozen=True)
class Patch:
    """A kept image; both are JPEG files as data URIs, the second with the saliency laid over it,
    "" where there is none; and the class for which that speaks."""

    image: str
    saliency: str
    explained: str


@dataclasses.dataclass(frozen=True)
class KeptPatches:
    """What a result keeps of its images.

    Attributes:
      patches: {id of an image: what is kept of it}.
      about: a sentence on what the saliency shows; "" without saliency.
      randomised: {stage: rank correlation of the maps with those of a network with random weights
        from the head down to there}; empty without saliency.
    """

    patches: dict[str, Patch]
    about: str
    randomised: dict[str, float]


def worst_errors(labels: np.ndarray, logits: np.ndarray, threshold: float) -> list[int]:
    """The images whose class is another than the label, the least probable label first.

    labels int [N], logits float64 [N, K].
    """
    margins = log_odds_of(logits)[np.arange(len(labels)), labels]
    wrong = np.flatnonzero(predicted_classes(logits, threshold) != labels)
    return wrong[np.argsort(margins[wrong], kind="stable")].tolist()


def least_certain(logits: np.ndarray, threshold: float) -> list[int]:
    """All images, the nearest to the decision first: of two classes, the log-odds nearest to those
    of the threshold; of more, the two most probable classes most alike."""
    if len(logits) == 0:
        return []
    if logits.shape[1] <= 2:
        distance = np.abs(log_odds_of(logits)[:, 1] - np.log(threshold / (1 - threshold)))
    else:
        ordered = np.sort(logits, axis=1)
        distance = ordered[:, -1] - ordered[:, -2]
    return np.argsort(distance, kind="stable").tolist()


def kept_patches(folders: Iterable[pathlib.Path]) -> KeptPatches:
    """What results have kept: that of one, or of the folds of a cross-validation together.

    Raises:
      UserError: a list is not what was written.
    """
    patches: dict[str, Patch] = {}
    about = ""
    randomised: dict[str, float] = {}
    for folder in folders:
        index = folder / REPORT / FOLDER / INDEX
        if not index.is_file():
            continue
        try:
            found = json.loads(index.read_text(encoding="utf-8"))
            for row in found["patches"]:
                files = [row["image"], row["saliency"]]
                if any(pathlib.PurePath(file).name != file for file in files if file):
                    raise ValueError(f"it names {files}")
                image, saliency = (
                    jpeg_uri(index.with_name(file).read_bytes()) if file else "" for file in files
                )
                patches.setdefault(row["id"], Patch(image, saliency, str(row.get("explained", ""))))
            about = about or found["about"]
            randomised = randomised or found["randomised"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"the patches kept in '{index.parent}' are not what was written ({error}); remove "
                "that folder, and the report is made without them"
            ) from error
    return KeptPatches(patches, about, randomised)


def worst_patches(
    examples: Examples,
    logits: np.ndarray,
    threshold: float,
    classifier: Classifier | None,
    decode: Callable[..., Image.Image],
) -> dict[str, bytes]:
    """The worst errors and the least certain of the images that were judged: {path below the folder
    of the result: content} of the files that keep them.

    Args:
      examples: the images, N of them.
      logits: float [N, K] of these.
      threshold: as in `worst_errors`.
      classifier: gives their saliency, unless it is an ensemble for more than two classes; None
        leaves it out.
      decode: `decode(stored, name=name)` gives an image as those of the network were decoded.
    """
    labels, scores = examples.labels, np.asarray(logits, np.float64)
    rows = worst_errors(labels, scores, threshold)[:ERRORS]
    rows += [i for i in least_certain(scores, threshold)[:UNCERTAIN] if i not in rows]
    shown = examples.subset(rows)
    images = [np.asarray(decode(shown.read(i), name=name)) for i, name in enumerate(shown.ids)]
    files: dict[str, bytes] = {}
    listed = []
    for i, (name, image) in enumerate(zip(shown.ids, images, strict=True)):
        # A file's name says nothing of the image's, which may hold anything.
        listed.append({"id": name, "image": f"{i:02d}.jpg", "saliency": ""})
        files[f"{i:02d}.jpg"] = jpeg(Image.fromarray(image))
    content: dict[str, Any] = {"about": "", "randomised": {}, "patches": listed}
    # The networks of an ensemble may predict different ones of several classes.
    one = classifier is not None and (len(classifier.specs) == 1 or len(classifier.classes) == 2)
    if classifier is not None and one and images:
        stream = ImageStream(list(stream_examples(shown).images), len(shown))
        explained = classifier.iterate_saliency(stream)
        # Of several classes that which this network predicts; others may predict another.
        target = scores.argmax(axis=1) if scores.shape[1] > 2 else np.ones(len(labels), np.int64)
        for i, row, image, (_, found) in zip(rows, listed, images, explained, strict=True):
            if found is not None:
                row["explained"] = classifier.classes[target[i]]
                row["saliency"] = row["image"].replace(".jpg", "_saliency.jpg")
                files[row["saliency"]] = jpeg(Image.fromarray(overlay(image, found)))
        content["about"] = ABOUT_SALIENCY
        if len(classifier.specs) == 1:
            content["randomised"] = randomisation_check(classifier, stream)
    text = json.dumps(jsonable(content), indent=2, ensure_ascii=False)
    files[INDEX] = (text + "\n").encode()
    return {f"{REPORT}/{FOLDER}/{name}": data for name, data in files.items()}
