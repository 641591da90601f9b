"""What training refuses or notes, by its own rules: images that cannot be read or are unlike
tissue, copies, spacings."""

from collections.abc import Iterable

from glomjax.data import anomalies
from glomjax.data.checking.measuring import Images
from glomjax.data.checking.report import Report
from glomjax.data.duplicates import exact_duplicates, near_duplicates
from glomjax.data.examples import SPLITS
from glomjax.data.overlaps import overlap_note
from glomjax.data.survey import (
    duplicate_notes,
    padding_note,
    seen_spacing,
    size_note,
)
from glomjax.errors import UserError, assignment, first_few


def check_unreadable(report: Report, images: Images, *, skipped: bool) -> None:
    """An error with a line for every image that cannot be read, or a warning where training leaves
    these out."""
    if reasons := images.unreadable.values():
        skip = assignment("data.skip_unreadable", True)
        text = f"{len(reasons)} of {len(images.examples) + len(reasons)} images cannot be read"
        text += (
            " and are left out."
            if skipped
            else f": restore them, remove them, or train with {skip}, which leaves them out."
        )
        level = "warning" if skipped else "error"
        report.add(level, "unreadable", "\n  ".join([text, *reasons]))


def check_anomalies(report: Report, images: Images) -> None:
    """A warning on images that may be damaged or no tissue, a note on colour profiles."""
    for kind, text in anomalies.notes(images.anomalies).items():
        report.add("note" if kind == "colour profile" else "warning", kind, text)


def check_copies(report: Report, images: Images) -> None:
    """Fills in the duplicates: an error across splits, else a warning or a note."""
    ids, splits, labels = images.examples.ids, images.splits, images.labels
    try:
        duplicate_notes(*images.as_in_training(report.classes))
    except UserError as error:
        report.add("error", "duplicates", str(error))
    groups = exact_duplicates(images.contents)
    near = near_duplicates(images.hashes, images.contents, splits).tolist()
    report.exact_duplicates = [tuple(ids[i] for i in group) for group in groups]
    report.near_duplicates = [(ids[i], ids[j], bits) for i, j, bits in near]

    def add(level: str, text: str, groups: Iterable[Iterable[int]], sign: str = "=") -> None:
        named = [f" {sign} ".join(f"'{ids[i]}' ({splits[i]})" for i in group) for group in groups]
        if named:
            report.add(level, "duplicates", f"{len(named)} {text.format(first_few(named))}")

    contrary = [group for group in groups if len(set(labels[group])) > 1]
    add("warning", "image(s) have copies of another class: {}; correct them.", contrary)
    text = (
        "pair(s) of nearly the same image lie in different splits, so a test may be too good: {}."
    )
    add("warning", text, [pair[:2] for pair in near], "~")
    within = [group for group in groups if len(set(splits[group])) == 1]
    add("note", "image(s) occur more than once within a split: {}.", within)
    if blank := int((images.contents == 0).sum()):
        report.add("note", "duplicates", f"{blank} image(s) are blank: one colour throughout.")


def check_overlaps(report: Report, images: Images) -> None:
    """A warning on patches of different splits that overlap by their coordinates."""
    splits, survey = images.as_in_training(report.classes)
    if text := overlap_note({split: splits[split] for split in SPLITS}, survey.sizes):
        report.add("warning", "duplicates", text)


def check_spacing(report: Report, images: Images, target_mpp: float) -> None:
    """An error where images would be seen at different spacings, or cannot be resampled."""
    splits, survey = images.as_in_training(report.classes)
    resize = images.preprocessing.resize
    if images.examples.mpp is None and target_mpp:
        text = (
            f"The target spacing is {target_mpp:g} microns per pixel, but '{report.source}' does "
            f"not tell the spacing of its images: set {assignment('data.mpp')}, or fill in an "
            "'mpp' column."
        )
        report.add("error", "spacing", text)
    elif images.examples.mpp is None:
        if text := size_note(survey.sizes, images.image_size):
            report.add("warning", "spacing", text)
    elif target_mpp:
        if text := padding_note(splits, survey.sizes, images.image_size, target_mpp):
            report.add("warning", "spacing", text)
    else:
        try:
            seen_spacing(splits, survey.sizes, images.image_size, resize)
        except UserError as error:
            report.add("error", "spacing", str(error))
