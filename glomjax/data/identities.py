"""Names of patients, slides, sites and classes: when two of them mean the same one, and when a name
is none.

A patient under two spellings would be two patients, of which one may be trained on and the other
tested. So all doors (manifest, folder, TFDS, arrays) ask here.
"""

import decimal
import functools
import html
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from glomjax.errors import UserError, assignment, first_few, plural

# Unicode categories: controls, zero-width characters, surrogates, private and unassigned ones.
_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn")
# Joiners, fillers and selectors, which Unicode counts as marks, letters and symbols.
_ALSO_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\ufe00-\ufe0f\uffa0]")
_ALSO_SEPARATORS = "|~^`=\u00b4\u2212"  # which Unicode counts as symbols; all punctuation separates
_NUMBER = re.compile(r"\+?(\d{1,99}([.,]0*)?|\d{1,99}\.\d{1,99}e\+?\d{1,2}|\d{1,99}e\+\d{1,2})")
_DECIMAL = re.compile(r"(\d+)[.,](\d+)")
_AS_TEXT = re.compile(r"""(?:=|b)?(["'])(.*)\1""", re.DOTALL)  # ="7" of Excel, b'7' of Python
_FILE_SUFFIX = re.compile(
    r"\.(svs|ndpi|mrxs|scn|vsi|czi|bif|svslide|qptiff|zvi|lif|qpdata|isyntax|dcm|(ome\.)?tiff?|png|jpe?g|zip)$"
)
# Said in place of a value by statistics programs, databases and people, without signs around them.
_MISSING = frozenset(
    [
        *("na", "n/a", "n.a", "n_a", "n a", "n / a", "nan", "nat", "nil", "nul", "unk", "undef"),
        *("1.#ind", "1.#qnan", "1.#inf", "\\n", "n.d", "k.a", "k. a", "s/d", "s.d", "n.n", "n. n"),
        *("pd.na", "np.nan", "na_character_", "na_integer_", "na_real_", "object object", "tbd"),
    ]
)
# The same of longer words, without what stands between them.
_LACKS = (
    "available|applicable|known|recorded|given|specified|reported|provided|stated|determined"
    "|collected|assigned|disclosed|done|found"
)
_MISSING_WORDS = re.compile(
    f"(not|non|un)({_LACKS})|(no|missing|unknown|unk)(patient|id|case|subject|slide|site|value|name"
    "|data|info|information)?|(patient|id|case)(unknown|missing)|none|null|undefined|unspecified"
    "|unidentified|anonymous|redacted|withheld|pending|idem|ditto"
    "|unbekannt|nichtbekannt|keineangaben?|nichtangegeben|nichtverfugbar|entfallt|fehlt"
    "|inconnue?|nonrenseignee?|nondisponible|desconocid[oa]|nodisponible|sindatos?"
    "|sconosciut[oa]|nondisponibile|desconhecid[oa]|неизвестно|нетданных"
    "|미상|없음|모름|알수없음|불명|해당없음|不明|未知|なし"
)
_SHEET_ERROR = re.compile(r"#(n/?a|nv|n/d|null|[a-z0-9/_]+[!?])|err:\d{3}")
_LONGEST = 32  # characters, with what may be around a word
# Of one class, in singular and plural, in the languages of `classes.is_glomerulus`.
_WORD_FOR_GLOMERULUS = re.compile("(glomerul(uses|us|um|os|es|i|a|e|o)|gloms?|사구체|토리)$")
_SYNONYMS_OF_CLASSES = {
    # Programs write classes as numbers or as truth values.
    **{"true": "1", "yes": "1", "false": "0", "no": "0"},
    **{"pos": "positive", "neg": "negative"},
}
# Letters that Unicode does not take apart, and those of other alphabets that look like Latin ones.
_LOOKALIKES = str.maketrans(
    {
        **{"ł": "l", "ø": "o", "đ": "d", "ħ": "h", "æ": "ae", "œ": "oe", "\u0131": "i", "ð": "d"},
        **dict(zip("авекмнорстухі", "abekmhopctyxi", strict=True)),
        **dict(zip("αβεηικνορτυχ", "abehiknoptyx", strict=True)),
    }
)


def normal_form(name: str) -> str:
    """One spelling for all that a person would read as the same name.

    Compatibility forms, case and the accents of Latin letters are folded, invisible characters
    dropped, blanks and signs at the ends trimmed, and so is the suffix of a slide's file; runs of
    separators are one, none stands between a letter and a digit, and whole numbers are written by
    their value: `7`, `007` and `7.0` are one, and so are `P_1`, `p-01` and `P1`.
    """
    text = unicodedata.normalize("NFKC", html.unescape(name)).casefold()
    text = unicodedata.normalize("NFKC", _without_accents(_visible(text))).strip()
    latin = text.translate(_LOOKALIKES)
    if not any(c.isalpha() and not c.isascii() for c in latin):
        text = latin
    if quoted := _AS_TEXT.fullmatch(text):
        text = quoted[2].strip()
    text = _FILE_SUFFIX.sub("", text)
    if _NUMBER.fullmatch(text):
        value = decimal.Decimal(text.replace(",", "."))
        if value == value.to_integral_value():
            return str(int(value))
    if re.fullmatch(r"[-\u2212]\d{1,99}", text):
        return f"-{int(text[1:])}"
    if decimal_number := _DECIMAL.fullmatch(text):  # whose zeros count: 1.01 is not 1.1
        return f"{decimal_number[1].lstrip('0') or '0'}-{decimal_number[2]}"
    text = re.sub(r"(?<=\w)\+(?=\w)", " ", text)  # a blank in the address of a page
    parts: list[tuple[str, str]] = []  # (digits or others, text), without the separators
    separated = True
    for c in text:
        if c.isspace() or c in _ALSO_SEPARATORS or unicodedata.category(c).startswith("P"):
            separated = True
            continue
        kind = "digits" if c.isdecimal() else "others"
        c = str(unicodedata.decimal(c)) if kind == "digits" else c
        if not separated and parts[-1][0] == kind:
            parts[-1] = kind, parts[-1][1] + c
        else:
            parts.append((kind, c))
        separated = False
    written = ""
    before = ""
    for kind, part in parts:
        written += "-" if kind == before else ""
        written += part.lstrip("0") or "0" if kind == "digits" else part
        before = kind
    return written or "-"[: len(text)]


@functools.lru_cache(maxsize=2**16)  # cells repeat
def is_missing(text: str) -> bool:
    """Whether a cell is empty or holds a word for a missing value, such as `NA`, `#N/A`, `none`,
    `unknown`, `?` or dashes, in any case."""
    if len(text) > _LONGEST:
        return False
    if not text.isascii():
        text = _visible(unicodedata.normalize("NFKC", text))
    text = " ".join(text.casefold().split())
    if text in ("(blank)", "<blank>", "(empty)") or _SHEET_ERROR.fullmatch(_without_accents(text)):
        return True
    bare = text.strip("<>()[]{}'\"-?!*.,;: ")
    if not any(map(str.isalnum, bare)):
        return all(c.isspace() or unicodedata.category(c).startswith(("P", "C")) for c in bare)
    if bare in _MISSING:
        return True
    compact = re.sub(r"[\s_./-]+", "", unicodedata.normalize("NFC", _without_accents(bare)))
    # `no` alone is an answer.
    return compact != "no" and _MISSING_WORDS.fullmatch(compact) is not None


def cell(text: str) -> str:
    """A cell of a table without the blanks around it; "" for a missing value."""
    return "" if is_missing(text) else text.strip()


def name_of(value: object) -> str:
    """A name from an array: text, bytes, whole numbers and floats of whole numbers alike; "" for a
    missing value.

    Raises:
      UserError: a float that is too large to tell neighbouring numbers apart.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        try:
            return cell(value.decode())
        except UnicodeDecodeError:
            return cell(value.decode("latin-1"))
    if isinstance(value, float) and value.is_integer():
        if abs(value) >= 2**53:
            raise UserError(
                f"the name {value!r} is a float above 2^53, where several numbers become one: "
                "give names as text or whole numbers"
            )
        return str(int(value))
    return cell(str(value))


def check_spellings(
    names: Iterable[str], kind: str, where: str, *, exact: bool = False, keeping: str = ""
) -> str:
    """Sees to it that no name is there in two spellings.

    Args:
      names: "" for an unknown one.
      kind: what they name: "patient", "slide", "site", "class" or a column.
      where: what has them, for the message.
      exact: names that are spelt alike are different ones, as the user says.
      keeping: how the user says so, by default in the configuration.

    Returns:
      With `exact`, a note on the names that are kept apart by it, else "".

    Raises:
      UserError: two spellings of one name.
    """
    alike = spelt_alike(names, kind)
    if not alike:
        return ""
    if exact:
        asked = "exact names are asked for" if keeping else "data.exact_names asks"
        return f"As {asked}, these are different {plural(kind)}: {first_few(alike)}."
    raise UserError(
        f"{where} has {in_several_spellings(alike, kind)}; write each in one way, or, where they "
        f"are different ones, {keeping or assignment('data.exact_names', True)}."
    )


def spelt_alike(names: Iterable[str], kind: str) -> list[str]:
    """The names that are there in several spellings, as in `'PAS' = 'pas'`; see
    `check_spellings`."""
    spellings: dict[str, list[str]] = {}
    for name in sorted({name for name in names if name}):
        spellings.setdefault(form_of(name, kind), []).append(name)
    return [" = ".join(_shown(same)) for same in spellings.values() if len(same) > 1]


def in_several_spellings(alike: Sequence[str], kind: str) -> str:
    """What a message says of the names that `spelt_alike` found, at least one."""
    several = kind if len(alike) == 1 else plural(kind)
    return f"{len(alike)} {several} in several spellings: {first_few(alike)}"


def form_of(name: str, kind: str) -> str:
    """What is equal for all spellings of one name of this kind; see `check_spellings`."""
    if kind != "class":
        return normal_form(name)
    # Copies of a folder, as file managers call them.
    name = re.sub(r"(?i)^copy of |[ _-]+(copy|kopie)( ?\(\d+\))?$| \(\d+\)$", "", name.strip())
    form = normal_form(name)
    sign = "-" if form != name and re.search(r"\w[-\u2212\u2013]$", name) else ""
    if not any(map(str.isdigit, form)):
        form = form.replace("-", "")
    form = _WORD_FOR_GLOMERULUS.sub("glomerulus", form)
    form = _SYNONYMS_OF_CLASSES.get(form, form)
    return (
        form[:-1] if len(form) > 3 and form.endswith("s") and form != "glomerulus" else form
    ) + sign


def _shown(names: list[str]) -> list[str]:
    """Names that are spelt alike, so that a reader sees in what they differ."""
    visible = {_visible(unicodedata.normalize("NFKC", name)).strip() for name in names}
    return [ascii(name) if len(visible) < len(names) else repr(name) for name in names]


def _visible(text: str) -> str:
    text = _ALSO_INVISIBLE.sub("", text)
    return "".join(c for c in text if c.isspace() or unicodedata.category(c) not in _INVISIBLE)


def _without_accents(text: str) -> str:
    """Latin letters without their marks; elsewhere marks make other letters."""
    kept = ""
    for c in unicodedata.normalize("NFD", text):
        if not (unicodedata.category(c) == "Mn" and kept and kept[-1].isascii()):
            kept += c
    return kept
