"""The names of the classes, and which of two is the positive one."""

import re
from collections.abc import Collection, Sequence

from glomjax.data.identities import check_spellings, form_of, is_missing, normal_form
from glomjax.errors import UserError, argument, assignment, quoted

# Glomerulus, glomeruli, glomérule, glomérulo, glomerolo and their short forms; and in Korean.
_GLOMERULUS = re.compile("glom|사구체|토리")
_NEGATION = re.compile(
    r"\b(no|non|not|without|sans|sin|senza|kein|keine|ohne|absent|minus|anti)|non?glom|^un"
)


def is_glomerulus(name: str) -> bool:
    """Whether the name of a class begins like glomerulus in English, German, French, Spanish,
    Italian or Korean, in singular or plural."""
    unnumbered = normal_form(name).lstrip("0123456789-")  # `1_glomerulus`
    return _GLOMERULUS.match(unnumbered) is not None


def _affirms_glomerulus(name: str) -> bool:
    """Whether a name says glomerulus somewhere, with no word of negation before it."""
    form = normal_form(name)
    return _GLOMERULUS.search(form) is not None and not _NEGATION.search(form)


def class_names(
    found: Collection[str], asked: Sequence[str], source: str, *, exact: bool = False
) -> tuple[tuple[str, ...], list[str]]:
    """The classes in their order, of two (negative, positive), and notes on them.

    Args:
      found: what the labels say.
      asked: the names in the order that the user gives, () to let the names decide.
      source: for messages.
      exact: as in `check_spellings`.

    Raises:
      UserError: other classes than those that are asked for, fewer than two, a label that is a word
        for a missing value, one class in several spellings, or two that could be the positive one.
    """
    names = sorted(found)
    unknown = [name for name in names if is_missing(name) and name not in asked]
    if unknown:
        rest = tuple(name for name in names if not is_missing(name))
        raise UserError(
            f"'{source}' has the label '{unknown[0]}', a word for a missing value: label those "
            f"images, leave them out, or, if it is a class, say so with "
            f"{assignment('data.classes', (unknown[0], *rest))}."
        )
    if asked and sorted(asked) != names:
        raise UserError(
            f"data.classes is {list(asked)}, but '{source}' has {names}: give just these, the "
            f"positive one last."
        )
    notes = [check_spellings(names, "class", f"'{source}'", exact=exact)]
    if len(names) < 2:
        raise UserError(f"'{source}' has the class {names} alone: at least two are needed.")
    if asked or len(names) > 2:
        return tuple(asked or names), [note for note in notes if note]
    alike = [name for name in names if is_glomerulus(name)]
    if len(alike) == 2:
        raise UserError(
            f"'{source}' has the classes '{names[0]}' and '{names[1]}', and either could be the "
            f"positive one: name both, the positive one last, as in "
            f"{assignment('data.classes', tuple(names))}."
        )
    names.sort(key=is_glomerulus)  # stable
    if not alike:
        why = "the last one by the alphabet"
        if len(affirmed := [name for name in names if _affirms_glomerulus(name)]) == 1:
            names.sort(key=_affirms_glomerulus)
            why = f"by the glomerulus in '{affirmed[0]}'"
        swapped = assignment("data.classes", (names[1], names[0]))
        notes.append(f"The positive class is '{names[1]}', {why}; {swapped} makes it '{names[0]}'.")
    return tuple(names), [note for note in notes if note]


def match_classes(
    labels: Collection[str],
    classes: Sequence[str],
    rename: Sequence[tuple[str, str]],
    source: str,
) -> tuple[dict[str, str], list[str]]:
    """Which of a network's classes each label of other data is.

    A label is the network's class of that name, or of that name in another spelling, or what
    `rename` says. A pair of it may be given either way round; where both of its names are the
    network's and the data's, it alone does not say which takes which place.

    Args:
      labels: of the data.
      classes: of the network.
      rename: pairs of a label and the class that it is.
      source: for messages.

    Returns:
      {label: class}, and notes.

    Raises:
      UserError: a label that is none of the classes, or pairs that do not say what is meant.
    """
    flag = argument("--rename")
    names = sorted(labels)
    both = f"the network has {quoted(classes)}, and '{source}' has {quoted(names)}"
    meant: dict[str, str] = {}
    for first, second in rename:
        forward = first in labels and second in classes
        backward = second in labels and first in classes
        if not forward and not backward:
            raise UserError(
                f"{flag} {first}={second} names no class of the data and of the network: {both}"
            )
        if forward and backward and first != second and (second, first) not in rename:
            raise UserError(
                f"{flag} {first}={second} can be meant in two ways, since {both}; to exchange "
                f"them, give {second}={first} as well"
            )
        label, name = (first, second) if forward else (second, first)
        if meant.setdefault(label, name) != name:
            raise UserError(f"{flag} makes '{label}' both '{meant[label]}' and '{name}'; say one")
    for label in names:
        alike = [name for name in classes if form_of(name, "class") == form_of(label, "class")]
        if label in classes:
            meant.setdefault(label, label)
        elif len(alike) == 1:
            meant.setdefault(label, alike[0])
    if unknown := [label for label in names if label not in meant]:
        raise UserError(
            f"{both}; say what '{unknown[0]}' is, as in {flag} '{unknown[0]}={classes[0]}'"
        )
    if rename and len(names) > 1 and len(set(meant.values())) == 1:
        raise UserError(
            f"{flag} makes all classes of the data '{meant[names[0]]}', so that there is nothing "
            f"to tell apart: {both}"
        )
    notes = [
        f"The class '{label}' of the data is taken for the network's '{name}'."
        for label, name in sorted(meant.items())
        if label != name
    ]
    if absent := [name for name in classes if name not in meant.values()]:
        notes.append(f"The data has no image of the network's class {quoted(absent)}.")
    return meant, notes
