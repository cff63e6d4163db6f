"""Rows of a study: how they are written, and what is refused."""

import pytest

from understudy.errors import UserError
from understudy.studies.rows import faults_of_rows, read_row


@pytest.mark.parametrize(
    ("text", "name", "methods", "overrides"),
    [
        ("none", "none", (), ()),
        ("frs", "frs", ("frs",), ()),
        ("default", "default", ("default",), ()),
        ("rank_mimicking+pfi", "rank_mimicking+pfi", ("rank_mimicking", "pfi"), ()),
        ("dist2  strategies=[N2N, B2B]", None, None, None),
        (
            "dist2 'strategies=[N2N, B2B]'",
            "dist2 'strategies=[N2N, B2B]'",
            ("dist2",),
            ("methods.dist2.strategies=[N2N, B2B]",),
        ),
        ("my own: pkg.mod:Own x=1", "my own", ("pkg.mod:Own",), ("methods.pkg.mod:Own.x=1",)),
        ("wide: none detector.width_mult=0.5", "wide", (), ("detector.width_mult=0.5",)),
        (
            "frs inherit=true data.train=a+b",
            "frs inherit=true data.train=a+b",
            ("frs",),
            ("inherit=true", "data.train=a+b"),
        ),
    ],
)
def test_what_a_row_says(text, name, methods, overrides):
    if name is None:
        with pytest.raises(UserError, match='got "B2B]"'):
            read_row(text)
        return
    row = read_row(text)
    assert (row.name, row.methods, row.overrides) == (name, methods, overrides)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected a method, or none"),
        ("frs +", "expected a method after +"),
        ("+ frs", "expected a method beside each +"),
        ("frs pfi", 'got "pfi"'),
        ("feature_weight=1", 'got "feature_weight=1"'),
        ("none + frs", "cannot be combined"),
        ("none power=1", "none has no options"),
        ("hint + default", "cannot be combined"),
        ("default threshold=0.1", "default has no options"),
        ("frs 'x", "No closing quotation"),
    ],
)
def test_no_row(text, reason):
    with pytest.raises(UserError, match="row ") as stop:
        read_row(text)
    assert reason in str(stop.value)


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["frs", "frs"], "given twice"),
        (["frs", "other: frs"], "are the same"),
        (["a b: frs", "a-b: pkd"], "has the folder name of another row, a_b"),
        (["none, as long in time: frs"], "a study adds itself"),
        (["teacher: frs"], "a study adds itself"),
    ],
)
def test_rows_that_do_not_go_together(texts, reason):
    assert any(reason in fault for fault in faults_of_rows([read_row(text) for text in texts]))
    assert not list(faults_of_rows([read_row("frs"), read_row("light: frs feature_weight=1"), read_row("pkd")]))
