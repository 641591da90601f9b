"""When two names of a patient, a slide or a site mean the same one."""

import math
import re
import unicodedata

_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn")  # of Unicode: controls, zero-width, unassigned
_SEPARATORS = re.compile(r"[\s_\-./\\:,;|\u2010-\u2015\u2212]+")
_NUMBER = re.compile(r"[+]?\d+(\.0*)?")


def normal_form(name: str) -> str:
    """One spelling for all that a person would read as the same name.

    Compatibility forms and case are folded, invisible characters dropped, blanks at the ends
    trimmed, runs of separators made one, and a whole number written by its value: `7`, `007` and
    `7.0` are one, and so are `P_1` and `p-1`.
    """
    text = unicodedata.normalize("NFKC", name).casefold()
    text = unicodedata.normalize("NFKC", text)
    kept = (c for c in text if c.isspace() or unicodedata.category(c) not in _INVISIBLE)
    text = "".join(kept).strip()
    if _NUMBER.fullmatch(text) and math.isfinite(value := float(text)):
        return str(int(text.lstrip("+").partition(".")[0])) if value >= 2**53 else str(int(value))
    return _SEPARATORS.sub("-", text).strip("-") or text
