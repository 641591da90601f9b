"""What the columns of a table mean, by their names and, for splits, by their values."""

import collections
import re
import unicodedata
from collections.abc import Collection, Sequence

from glomjax.errors import UserError, quoted, shown

# What a split may be called, as a folder or in a cell, perhaps with a word such as `set` behind.
_SPLITS = {
    "train": "train training entrainement apprentissage entrenamiento addestramento treino "
    "treinamento lernen обучение 훈련 학습 训练 訓練 学習",
    "validation": "validation val valid validate dev tune tuning validierung validacion "
    "validazione validacao валидация 검증 验证 検証",
    "test": "test testing prueba teste prufung тест 시험 테스트 测试 テスト",
}
_SPLIT_NAMES = {name: split for split, names in _SPLITS.items() for name in names.split()}
# In cells alone: a folder of such a name may be a class.
_ABBREVIATED = {"tr": "train", "trn": "train", "va": "validation", "te": "test", "tst": "test"}
# Words by which people part data, in a cell of which nobody can say which split is meant.
_PARTS = frozenset(
    [
        *("train", "training", "trainval", "trainset", "test", "testing", "testset", "val"),
        *("valid", "validation", "dev", "tuning", "holdout", "heldout", "eval", "evaluation"),
        *("development", "derivation", "discovery", "learning", "learn", "fit", "modelling"),
        *("unseen", "external", "internal"),
    ]
)
_SPLIT_WORD = re.compile(r"(?<=..)(set|data|split|subset|cohort|group|images?|samples?)$")
HEADER = "path,label[,patient][,slide][,site][,split][,weight][,mpp]"
# What a column may be called, in small letters and with underscores. Where a header has the first
# of these names, columns with the other ones are no more than further columns.
COLUMN_SYNONYMS = {
    "path": (
        "path",
        "file",
        "filename",
        "file_name",
        "filepath",
        "file_path",
        "image",
        "image_path",
    ),
    "label": ("label", "class", "class_name", "target", "category"),
    "patient": ("patient", "patient_id", "case", "case_id", "subject", "subject_id"),
    "slide": ("slide", "slide_id", "wsi", "wsi_id"),
    "site": ("site", "site_id", "institution", "center", "centre", "hospital"),
    "split": ("split", "subset", "set", "partition"),
    "weight": ("weight", "sample_weight"),
    "mpp": ("mpp", "microns_per_pixel", "um_per_pixel", "pixel_size", "spacing"),
}
# The same of those by which images belong together, as people and programs write them: one of these
# words, perhaps with one for an identifier behind it.
_IDENTIFIER = (
    "(ids?|identifiers?|nos?|nr|num|numbers?|nummer|numero|name|code|key|uid|uuid|hash|pseudonym"
    "|barcode|submitterid|번호)*"
)
_BEFORE = (
    "(id|n|no|nr|num|numero|codigo|code|anon|anonymi[sz]ed|deidentified|bcr|tcga|study|medical)?"
)
_NEAR_SYNONYMS = {
    # The number that a hospital gives is a patient's.
    "patient": f"{_BEFORE}"
    "(patient(en|in|innen)?|pat|pts?|case|subject|donor|participant|individual|person|proband(en)?"
    "|fall|record|mrn|pid|nhs|nhc|pazient[ei]|pacientes?|sujet|пациент|환자|증례|患者|症例)s?"
    f"{_IDENTIFIER}|(hospital|clinic|klinik)(nos?|nr|num|numbers?|nummer|numero|번호)|anonid",
    "slide": f"(slide|wsi|wholeslideimage|objekttrager|lame|슬라이드)s?{_IDENTIFIER}",
    "site": f"(site|institution|institute?|center|centre|기관|병원)s?{_IDENTIFIER}"
    "|(hospital|clinic|klinik)s?(name)?",
}
_NEAR = {column: re.compile(words) for column, words in _NEAR_SYNONYMS.items()}
# Words of a name that say that the column tells splits, whatever it has in it.
_SPLIT_COLUMN = re.compile(
    r"((data|set|cv|my|orig(inal)?|train|test)_?)?splits?(_?(name|set|id|type|no|nr|\d))?"
    "|data_?partitions?"
)
# The same of columns that say yes or no.
_FLAG_COLUMN = re.compile(
    "(is|in|for|use)?((train|test|valid|validation|val|holdout|heldout)(ing)?(or|and)?)+"
    "(flag|set|split|data)?|tvt"
)
_FLAGS = frozenset(["0", "1", "true", "false", "yes", "no", "y", "n", "x", "t", "f"])
_FOLD_COLUMN = re.compile(r"(^|_)(k_?)?(cv_?)?folds?(_|\d*$)|^cv$")


def split_named(text: str, *, abbreviated: bool = False) -> str:
    """The split that a folder or a cell names, "" for none: `Training set` is train.

    Args:
      abbreviated: whether `tr`, `va` and `te` name splits, too.
    """
    word = _compact(text)
    found = _SPLIT_NAMES.get(word, "") or _SPLIT_NAMES.get(_SPLIT_WORD.sub("", word), "")
    return found or (_ABBREVIATED.get(word, "") if abbreviated else "")


def resembles_split(text: str) -> bool:
    """Whether a cell holds a word by which people part data: `train (70%)`, `2_val`, `hold-out`."""
    words = re.findall(r"[a-z]+", text.casefold().replace("hold-out", "holdout"))
    return any(word in _PARTS for word in words) or bool(split_named(text))


def column_name(text: str) -> str:
    """How `COLUMN_SYNONYMS` spells a column."""
    return re.sub(r"[\s-]+", "_", unicodedata.normalize("NFKC", text).strip().lower())


def near_meaning(name: str) -> str:
    """Which of patient, slide and site a column of another name tells, "" for none."""
    word = _compact(name)
    return next((column for column, known in _NEAR.items() if known.fullmatch(word)), "")


def read_header(
    header: Sequence[str], where: str, required: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """The header with our names in place of their synonyms, and notes on what was taken for what.

    Args:
      header: "" for a column that nobody should look at.
      where: whose header it is, for messages.
      required: columns that must be there.

    Raises:
      UserError: two columns of one name, or of one meaning of which none has the plain name; or a
        required column is not there.
    """
    found = [column_name(text) for text in header]
    known = {name for names in COLUMN_SYNONYMS.values() for name in names}
    repeated = [n for n, times in collections.Counter(found).items() if n and times > 1]
    if further := [name for name in repeated if name not in known]:
        times = found.count(further[0])
        raise UserError(f"{where} has {times} columns called '{further[0]}': keep one.")
    notes = []
    for column, names in COLUMN_SYNONYMS.items():
        meant = [name for name in found if name in names]
        near = [n for n in found if n and near_meaning(n) == column and n not in meant]
        taken = column if meant.count(column) == 1 else ""
        if not taken and len(candidates := meant or near) > 1:
            raise UserError(
                f"{where} has {len(candidates)} columns for the {column} "
                f"({', '.join(candidates)}): keep one, or call the right one '{column}'."
            )
        taken = taken or next(iter(meant or near), "")
        if not taken and column in required:
            raise UserError(
                f"{where} has no column '{column}' but {shown(found)}: its first line must be "
                f"{HEADER}."
            )
        others = [name for name in (*meant, *near) if name != taken]
        if others and column != "path":
            notes.append(
                f"{where} has {quoted([taken, *others])} for the {column}: '{taken}' is taken."
            )
        elif taken and not meant:
            notes.append(f"{where} has no column '{column}': '{taken}' is taken for it.")
        found = [column if name == taken and name else name for name in found]
    return found, notes


def tells_split(name: str, values: Collection[str]) -> bool:
    """Whether the name of a column says that it tells splits, perhaps by yes and no."""
    if _SPLIT_COLUMN.fullmatch(name):
        return True
    return bool(_FLAG_COLUMN.fullmatch(_compact(name))) and all(
        value.casefold() in _FLAGS for value in values
    )


def tells_fold(name: str) -> bool:
    """Whether the name of a column says that it tells folds of a cross-validation."""
    return _FOLD_COLUMN.search(name) is not None


def _compact(text: str) -> str:
    """Letters and digits alone, small and without accents."""
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text).casefold())
    kept = "".join(c for c in text if c.isalnum())
    return unicodedata.normalize("NFC", kept)
