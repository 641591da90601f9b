"""The names of the classes, and which of two is the positive one."""

import re
from collections.abc import Collection, Sequence

from glomjax.data.identities import check_spellings, is_missing, normal_form
from glomjax.errors import UserError, assignment

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
