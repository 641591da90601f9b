"""Each row of `docs/reliability.md` is what happens; GLOMJAX_WRITE_DOCS=1 writes it anew."""

import os
import re

import pytest

from reliability import (
    checks,
    commands,
    configuration,
    faults,
    folders,
    identities,
    images,
    runs,
    scripts,
    splits,
    tables,
    weights,
)
from reliability.document import DOCUMENT, document, row, rows_of, sentence
from reliability.situations import Answer, Case

MODULES = (identities, tables, splits, folders, images, checks)
MODULES += (configuration, commands, scripts, weights, runs, faults)
AREAS = {module.HEADING: module.CASES for module in MODULES}
CASES = [case for cases in AREAS.values() for case in cases]
WRITES = os.environ.get("GLOMJAX_WRITE_DOCS", "") == "1"
LINES = rows_of(DOCUMENT.read_text(encoding="utf-8"))
ROWS = {line.split(" | ")[0]: line for line in LINES}


def situation(case: Case) -> str:
    """The first cell of a row, as the document has it."""
    return row(case, Answer("", "")).split(" | ")[0]


@pytest.fixture(scope="module")
def answers():
    """{situation: answer} of the tests that have run."""
    found = {}
    yield found
    if WRITES and len(found) == len(CASES):
        old = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(document(AREAS, found, old), encoding="utf-8")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.situation)
def test_what_happens_is_what_the_document_says(case, tmp_path, monkeypatch, answers):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GLOMJAX_OFFLINE", "1")
    answer = answers[case.situation] = case.run(tmp_path)
    if not WRITES:
        assert row(case, answer) == ROWS[situation(case)]
    # A list may have its items on lines of their own.
    assert "\n" not in answer.text.replace("\n  ", "")
    assert not re.search("Traceback|object at 0x|site-packages", answer.text)


def test_each_situation_is_there_once():
    assert len({case.situation for case in CASES}) == len(CASES)


@pytest.mark.skipif(WRITES, reason="it is being written")
def test_the_document_has_a_row_for_each_and_no_others():
    assert [line.split(" | ")[0] for line in LINES] == list(map(situation, CASES))


@pytest.mark.skipif(WRITES, reason="it is being written")
def test_every_situation_has_an_answer_in_words():
    assert [line for line in LINES if "| raw |" in line] == []


@pytest.mark.skipif(WRITES, reason="it is being written")
def test_the_document_is_large_enough():
    assert len(LINES) >= 150
    assert len({sentence(line) for line in LINES}) >= 80
