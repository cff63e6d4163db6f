"""Wrong input to every command ends in a message and an exit code, and changes nothing.

`pytest tests/faults --update-golden -n 0` rewrites the messages in tests/faults/golden; review their diff.
"""

from pathlib import Path

import pytest
from faults import commands, data_faults, file_faults
from faults.running import Case, run, sections

GOLDEN = Path(__file__).with_name("golden")
GROUPS: dict[str, list[Case]] = {**commands.GROUPS, **data_faults.GROUPS, **file_faults.GROUPS}


@pytest.mark.parametrize("group", GROUPS)
def test_wrong_input_ends_in_a_message(group, bases, request, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TORCH_HOME", "/cache/torch")  # a message names it
    monkeypatch.setattr("understudy.compare.table.with_speeds", lambda rows, device: (rows, "not measured"))
    transcripts = [run(case, tmp_path / str(number), bases) for number, case in enumerate(GROUPS[group])]
    golden = GOLDEN / f"{group}.txt"
    if request.config.getoption("--update-golden"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text("\n".join(transcripts), encoding="utf-8")
    expected, found = sections(golden.read_text(encoding="utf-8")), sections("\n".join(transcripts))
    assert found.keys() == expected.keys()
    for title, transcript in found.items():
        assert transcript == expected[title]


def test_there_are_enough_cases_and_each_has_its_own_title():
    titles = [f"{group} {case.title}" for group, cases in GROUPS.items() for case in cases]
    assert len(set(titles)) == len(titles) >= 300
