"""The page of a study: its numbers are those of results.json."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from understudy.studies.page import cost_table, difference_table, write_page
from understudy.studies.results import StudyResult
from understudy.studies.running import Study, StudyFolder


def numbers_in(value: Any) -> Iterator[float]:
    """All numbers of a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from numbers_in(each)
    elif isinstance(value, int | float):
        yield float(value)


@pytest.fixture(scope="module")
def result(study, plan) -> StudyResult:
    """The results, whose page is beside them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("understudy.studies.running.write_page", write_page)
        return Study(StudyFolder(study), plan).summarise()


def test_every_number_of_its_tables_is_in_the_results(study, plan, result):
    known = {round(number, 9) for number in numbers_in(json.loads((study / "results.json").read_text()))}
    page = (study / "report.html").read_text()
    shown = 0
    for table in (difference_table(result), cost_table(result)):
        for row in table.rows:
            for entry in row.entries:
                assert entry.text in page
                for number in entry.numbers:
                    assert round(number, 9) in known | {float(len(plan.seeds))}, (row.name, entry)
                    shown += 1
    assert shown > 20


def test_it_has_the_names_and_the_sentences(study, result):
    page = (study / "report.html").read_text()
    found = json.loads((study / "results.json").read_text())
    for words in ("frs ramp_steps=0", "Against the plain student, with 95 % intervals", found["sentences"][1]):
        assert words in page
