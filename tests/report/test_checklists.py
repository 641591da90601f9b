"""The items of guidelines are complete, and no answer says what the facts do not show."""

import copy
import re

import pytest

from glomjax.report.checklist_answers import ANSWERS
from glomjax.report.checklists import CHECKLISTS, CLAIM, TRIPOD_AI
from glomjax.training.config import RunConfig

ESTIMATE = {
    "value": 0.8123,
    "low": 0.7011,
    "high": 0.9022,
    "method": "newcombe by patient",
    "note": "indicative: 6 patients",
}
METRICS = {
    "n": 4,
    "classes": ["other", "glomerulus"],
    "positive_class": "glomerulus",
    "class_prior": {"other": 0.5, "glomerulus": 0.5},
    "confusion_matrix": [[1, 1], [0, 2]],
    "estimates": {
        "auroc": ESTIMATE,
        "accuracy": ESTIMATE,
        "loss": {"value": 0.5, "low": None, "high": None, "method": "none", "note": "why"},
    },
    "patients": 2,
    "clustered_by": "patient",
    "threshold": 0.25,
    "threshold_rule": "youden",
    "notes": ["A note of the run."],
    "control_message": "The network is not shown to be better.",
    "controls": {"file facts": {"auroc": 0.5}},
    "patients_needed": {
        "kind": "patient",
        "patients": 2,
        "correlation": 0.3,
        "effective_patches": 3.2,
        "expected_width": {"1": 0.5, "2": 0.4, "4": 0.3, "8": 0.2},
    },
}
SPLITS = [
    {
        "path": f"{i}.png",
        "label": ("other", "glomerulus")[i % 2],
        "split": split,
        "patient": f"P{i // 2}",
        "stain": ("PAS", "HE")[i % 2],
    }
    for i, split in enumerate(["train"] * 4 + ["validation"] * 2 + ["test"] * 4)
]
ENVIRONMENT = {
    "packages": {"glomjax": "0.1.0", "jax": "0.10.2"},
    "python": "3.11.7",
    "platform": "Linux",
    "devices": ["cpu", "cpu"],
    "git": {"commit": "abc", "uncommitted_changes": False},
}
RUN = {
    "kind": "run",
    "config": {"effective": RunConfig().to_dict()},
    "environment": ENVIRONMENT,
    "metrics": {**METRICS, "best_epoch": 2, "epochs": 3, "test_evaluations": 1},
    "history": [{"epoch": e, "accuracy": 0.9, "val_accuracy": 0.8} for e in (1, 2, 3)],
    "splits": SPLITS,
    "summary": "a table\n2 of 2 tensors, 10 parameters train\n",
}
EVALUATION = {
    "kind": "evaluation",
    "metrics": {
        **METRICS,
        "data": "/secret/folder/hospital",
        "unreadable": 0,
        "unlike_training": 1,
        "seen_in_training": None,
        "glomjax_version": "0.1.0",
        "networks": [{"architecture": "googlenet", "sha256": "0123456789abcdef"}] * 2,
    },
}
CROSSVAL = {
    "kind": "crossval",
    "config": RunConfig().to_dict(),
    "environment": ENVIRONMENT,
    "metrics": {
        **{name: METRICS[name] for name in ("n", "classes", "clustered_by", "threshold")},
        "threshold_rule": "youden",
        "clusters": 2,
        "folds": 5,
        "repeats": 3,
        "between_repeats": {"auroc": 0.0123},
        "between_patients": {
            "auroc": {"patients": 2, "median": 0.7, "quartiles": [0.6, 0.8]},
            "about": "words",
        },
        "pooled_recalibrated": {"estimates": METRICS["estimates"], "repeats": [METRICS]},
    },
}
FACTS = (RUN, EVALUATION, CROSSVAL)


def _answered(checklist, facts):
    return {a.number: a.text for a in checklist.answers(facts) if a.text}


def test_claim_has_its_44_items():
    assert [item.number for item in CLAIM.items] == [str(n) for n in range(1, 45)]


def test_tripod_ai_has_its_27_items_with_their_parts():
    numbers = [item.number for item in TRIPOD_AI.items]
    assert len(numbers) == len(set(numbers)) == 52
    whole = [int(re.match(r"\d+", number)[0]) for number in numbers]
    assert whole == sorted(whole)
    assert set(whole) == set(range(1, 28))
    for number in set(whole):
        parts = [
            n.removeprefix(str(number)) for n in numbers if re.match(r"\d+", n)[0] == str(number)
        ]
        assert parts in ([""], list("abcdefg"[: len(parts)]))


def test_every_answer_is_used_and_every_item_has_one_that_exists():
    used = {item.answer for checklist in CHECKLISTS for item in checklist.items} - {""}
    assert used == set(ANSWERS)


@pytest.mark.parametrize("facts", [{}, *({"kind": facts["kind"]} for facts in FACTS)])
def test_nothing_is_said_without_facts(facts):
    assert [_answered(checklist, facts) for checklist in CHECKLISTS] == [{}, {}]


def _paths(values, above=()):
    for name, value in values.items():
        yield (*above, name)
        if isinstance(value, dict):
            yield from _paths(value, (*above, name))


@pytest.mark.parametrize("facts", FACTS)
def test_anything_may_be_missing(facts):
    for *above, name in _paths(facts):
        less = copy.deepcopy(facts)
        part = less
        for step in above:
            part = part[step]
        del part[name]
        for checklist in CHECKLISTS:
            for answer in checklist.answers(less):
                assert "None" not in answer.text, (above, name)


@pytest.mark.parametrize("facts", FACTS)
def test_what_only_authors_know_stays_open(facts):
    claim, tripod = _answered(CLAIM, facts), _answered(TRIPOD_AI, facts)
    for number in ("1", "2", "3", "4", "5", "8", "11", "14", "16", "33", "34", "41", "42", "44"):
        assert number not in claim
    for number in ("1", "3c", "5b", "6b", "8b", "14", "17", "18a", "18b", "19", "25", "27a"):
        assert number not in tripod
    assert "external" not in " ".join([*claim.values(), *tripod.values()])


def test_a_run_says_how_it_came_about():
    claim, tripod = _answered(CLAIM, RUN), _answered(TRIPOD_AI, RUN)
    assert "280 x 280" in claim["9"]
    assert "train 4 (40%), validation 2 (20%), test 4 (40%)" in claim["19"]
    assert claim["20"] == "No patient of 5 is in two splits."
    assert "10 parameters train" in claim["22"]
    assert "jax 0.10.2" in claim["23"]
    assert "2 x cpu" in claim["23"]
    assert "random values" in claim["24"]
    assert "3 epochs of at most 1000" in claim["25"]
    assert "epoch 2 was best" in claim["26"]
    assert "judged once" in claim["26"]
    assert "AUROC 0.812 (0.701 to 0.902)" in claim["38"]
    assert "none for log loss" in claim["29"]
    assert "1 of 2 other were taken for glomerulus" in claim["39"]
    assert "not shown to be better" in claim["40"]
    assert "positive above 0.25 (rule: youden)" in tripod["15"]
    assert "HE 2 train, 1 validation, 2 test" in tripod["20b"]
    assert {"12f", "12g", "20c"}.isdisjoint(tripod)  # of evaluations
    turned = RUN | {"metrics": {**RUN["metrics"], "test_time_augmentation": True}}
    assert "flips and quarter turns" in _answered(CLAIM, turned)["27"]


def test_patients_in_two_splits_are_counted_and_not_denied():
    shared = [{**row, "patient": "P0"} for row in SPLITS]
    assert _answered(CLAIM, RUN | {"splits": shared})["20"] == (
        "1 of 1 patients are in more than one split."
    )
    unknown = [{**row, "patient": ""} for row in SPLITS]
    assert "disjoint by image" in _answered(CLAIM, RUN | {"splits": unknown})["20"]


def test_an_evaluation_says_what_it_knows_of_the_training():
    claim, tripod = _answered(CLAIM, EVALUATION), _answered(TRIPOD_AI, EVALUATION)
    assert "/secret" not in " ".join([*claim.values(), *tripod.values()])
    assert "'hospital'" in claim["7"]
    assert "As far as could be compared" in claim["20"]
    assert claim["27"] == "The probabilities of 2 networks were averaged."
    assert "1 of 4 patches do not resemble" in tripod["16"]
    assert "32" not in claim  # whether these are internal data, nobody has said
    metrics = {**EVALUATION["metrics"], "seen_in_training": {"images": ["a.png"]}}
    assert "were seen in training" in _answered(CLAIM, EVALUATION | {"metrics": metrics})["20"]


def test_a_cross_validation_says_its_folds_and_its_spread():
    claim, tripod = _answered(CLAIM, CROSSVAL), _answered(TRIPOD_AI, CROSSVAL)
    assert "5 folds, 3 times" in claim["19"]
    assert "same fold" in claim["20"]
    assert "0.012" in claim["30"]
    assert "pooled 0.812" in claim["32"]
    assert "0.25 for the ensemble" in tripod["15"]
    assert "AUROC of 2 patients: median 0.700" in tripod["23b"]
