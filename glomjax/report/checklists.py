"""The items of two reporting guidelines, and what a result answers of them.

CLAIM 2024: Tejani et al. 2024, Radiol Artif Intell 6:e240300, 44 items. TRIPOD+AI: Collins et al.
2024, BMJ 385:e078378, 27 items, some of several parts. Numbers are theirs, words are ours.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from glomjax.report.checklist_answers import ANSWERS


@dataclasses.dataclass(frozen=True)
class Item:
    """What a guideline asks for.

    Attributes:
      number: as the guideline has it, such as "12a".
      section: of the manuscript.
      topic: what is asked for, in a few words.
      answer: what of `ANSWERS` a result says to it; "" where only an author can.
      rest: what stays the author's where a result says something.
    """

    number: str
    section: str
    topic: str
    answer: str = ""
    rest: str = ""


@dataclasses.dataclass(frozen=True)
class Answer:
    """An item with its answer, "" of one that is open."""

    number: str
    section: str
    topic: str
    text: str


@dataclasses.dataclass(frozen=True)
class Checklist:
    """A guideline.

    Attributes:
      id: a short name without blanks.
      name, about: its name, and where it is published.
      items: in its order.
    """

    id: str
    name: str
    about: str
    items: tuple[Item, ...]

    def answers(self, facts: Mapping[str, Any]) -> list[Answer]:
        """Every item, answered where the facts do; nothing is said that they do not show.

        Args:
          facts: JSON values, of which any may be missing: `kind` ("run", "evaluation" or
            "crossval"), `config` and `environment` as in the files of these names, `metrics` of
            `test_metrics.json` or `metrics.json`, `estimates` {metric: value, low, high, method,
            note}, `history` (rows of `metrics.jsonl`), `splits` (rows of `splits.csv`) and
            `summary` (the text of `summary.txt`).
        """
        found = []
        for item in self.items:
            text = _said(item.answer, facts) if item.answer else ""
            if text and item.rest:
                text += f" Open: {item.rest}."
            found.append(Answer(item.number, item.section, item.topic, text))
        return found


def _said(answer: str, facts: Mapping[str, Any]) -> str:
    say = ANSWERS[answer]
    try:
        return say(facts)
    except LookupError:  # an older result, or one that is not finished, lacks what it needs
        return ""


def _items(*rows: tuple[str, ...]) -> tuple[Item, ...]:
    """From (number, section, topic[, answer[, rest]])."""
    return tuple(Item(*row) for row in rows)


_LABELS = "who labelled the patches, and by what rules"
_STATE = "how the size was chosen beforehand"
_GROUPS = "results of clinical and demographic groups"

CLAIM = Checklist(
    "claim",
    "CLAIM 2024",
    "Checklist for Artificial Intelligence in Medical Imaging, 2024 update (Tejani et al. 2024, "
    "Radiology: Artificial Intelligence 6(4):e240300). Items in our words; the published list is "
    "what a journal asks for.",
    _items(
        ("1", "Title", "that AI was used, and of which kind"),
        ("2", "Abstract", "structured summary of design, methods, results and conclusions"),
        ("3", "Introduction", "background, intended use and clinical role"),
        ("4", "Introduction", "aims and hypotheses"),
        ("5", "Study design", "prospective or retrospective"),
        ("6", "Study design", "goal of the study", "goal", "the purpose that it is meant for"),
        ("7", "Data", "sources", "source", "where the data come from and how others get them"),
        ("8", "Data", "who and what was included and excluded"),
        ("9", "Data", "preprocessing", "preprocessing", "what was done before, such as cutting"),
        ("10", "Data", "how subsets, such as patches, were selected"),
        ("11", "Data", "de-identification"),
        ("12", "Data", "missing data", "missing", "missing clinical data"),
        ("13", "Data", "image acquisition", "acquisition", "scanner, magnification and staining"),
        ("14", "Reference standard", "definition"),
        ("15", "Reference standard", "why this one"),
        ("16", "Reference standard", "annotators and their qualifications"),
        ("17", "Reference standard", "how the test set was annotated, and with which tools"),
        ("18", "Reference standard", "variability within and between annotators"),
        ("19", "Data partitions", "how data were assigned", "partitions", "why in these shares"),
        ("20", "Data partitions", "at which level they are disjoint", "disjoint"),
        ("21", "Testing data", "intended sample size", "precision", _STATE),
        ("22", "Model", "architecture", "architecture"),
        ("23", "Model", "software and its versions", "software"),
        ("24", "Model", "initial parameters", "initialisation"),
        ("25", "Training", "training and its settings", "training"),
        ("26", "Training", "how the final model was selected", "selection"),
        ("27", "Training", "ensembles", "ensemble"),
        ("28", "Evaluation", "performance metrics", "metrics", "published models to compare with"),
        ("29", "Evaluation", "uncertainty and significance", "uncertainty"),
        ("30", "Evaluation", "robustness", "robustness", "other sensitivity analyses"),
        ("31", "Evaluation", "explainability", "explainability", "what the maps show"),
        ("32", "Evaluation", "testing on internal data", "internal"),
        ("33", "Evaluation", "testing on external data, or why not"),
        ("34", "Evaluation", "registration of a clinical trial"),
        ("35", "Results: data", "who was included, with numbers", "included", "who was excluded"),
        (
            "36",
            "Results: data",
            "characteristics of each partition",
            "characteristics",
            "demographic and clinical ones",
        ),
        ("37", "Results: model", "performance in all partitions", "performance", _GROUPS),
        ("38", "Results: model", "accuracy with intervals", "estimates"),
        ("39", "Results: model", "failures", "failures", "what they have in common"),
        ("40", "Discussion", "limitations", "limitations", "bias, and for whom the results hold"),
        ("41", "Discussion", "what it means for practice"),
        ("42", "Other", "where the full protocol is"),
        ("43", "Other", "availability of software, model and data", "code", "where they are"),
        ("44", "Other", "funding and the role of funders"),
    ),
)

TRIPOD_AI = Checklist(
    "tripod-ai",
    "TRIPOD+AI",
    "Transparent Reporting of a multivariable prediction model for Individual Prognosis Or "
    "Diagnosis (Collins et al. 2024, BMJ 385:e078378). Items in our words; the published list is "
    "what a journal asks for.",
    _items(
        ("1", "Title", "development or evaluation, population and outcome"),
        ("2", "Abstract", "by the list for abstracts"),
        ("3a", "Introduction", "clinical context, rationale and existing models"),
        ("3b", "Introduction", "target population, purpose and users"),
        ("3c", "Introduction", "known health inequalities"),
        ("4", "Introduction", "objectives"),
        ("5a", "Data", "sources", "source", "where the data come from, and how representative"),
        ("5b", "Data", "dates"),
        ("6a", "Participants", "setting, number and place of centres"),
        ("6b", "Participants", "eligibility"),
        ("6c", "Participants", "treatments"),
        ("7", "Data preparation", "preprocessing and quality checks", "preprocessing"),
        ("8a", "Outcome", "definition", "outcome", _LABELS),
        ("8b", "Outcome", "qualifications of the assessors"),
        ("8c", "Outcome", "blinding of the assessment"),
        ("9a", "Predictors", "their choice (development)", "predictors"),
        ("9b", "Predictors", "definition", "inputs", "how and when the images were taken"),
        ("9c", "Predictors", "qualifications of the assessors"),
        ("10", "Sample size", "how it was arrived at", "precision", _STATE),
        ("11", "Missing data", "handling", "missing", "missing clinical data"),
        ("12a", "Analytical methods", "use of the data (development)", "partitions"),
        ("12b", "Analytical methods", "handling of predictors (development)", "inputs"),
        ("12c", "Analytical methods", "model and its building (development)", "building"),
        ("12d", "Analytical methods", "heterogeneity across clusters", "clusters"),
        ("12e", "Analytical methods", "measures of performance", "metrics"),
        ("12f", "Analytical methods", "model updating (evaluation)", "updating"),
        (
            "12g",
            "Analytical methods",
            "how predictions were calculated (evaluation)",
            "predictions",
        ),
        ("13", "Class imbalance", "methods and recalibration", "imbalance"),
        ("14", "Fairness", "approaches and rationale"),
        ("15", "Model output", "output and thresholds (development)", "output"),
        ("16", "Training versus evaluation", "differences between the data", "differences"),
        ("17", "Ethical approval", "committee and consent"),
        ("18a", "Open science", "funding"),
        ("18b", "Open science", "conflicts of interest"),
        ("18c", "Open science", "protocol"),
        ("18d", "Open science", "registration"),
        ("18e", "Open science", "data sharing"),
        ("18f", "Open science", "code sharing", "code", "where it is"),
        ("19", "Patient and public involvement", "in design, conduct and reporting"),
        ("20a", "Results: participants", "flow and outcomes", "included", "who was excluded"),
        (
            "20b",
            "Results: participants",
            "characteristics",
            "characteristics",
            "dates, demographic and clinical ones",
        ),
        (
            "20c",
            "Results: participants",
            "comparison with the development data (evaluation)",
            "differences",
        ),
        (
            "21",
            "Results: model development",
            "participants and outcomes in each analysis",
            "included",
        ),
        ("22", "Results: model", "the full model (development)", "model", "where others get it"),
        ("23a", "Results: model", "performance with intervals", "estimates", _GROUPS),
        ("23b", "Results: model", "heterogeneity across clusters", "between_clusters"),
        ("24", "Results: model", "results of updating (evaluation)"),
        ("25", "Discussion", "interpretation and fairness"),
        ("26", "Discussion", "limitations", "limitations", "bias, and for whom the results hold"),
        ("27a", "Discussion", "poor or missing input in use (development)"),
        ("27b", "Discussion", "what users must do and know (development)"),
        ("27c", "Discussion", "next steps of research"),
    ),
)

CHECKLISTS = (CLAIM, TRIPOD_AI)
