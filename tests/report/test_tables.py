"""The tables of the page: their numbers, and what is marked."""

import math

import numpy as np
import pytest
from run_folders import make_row

from understudy.compare.table import Table
from understudy.report.sections import DataRow, DataTable, Entry
from understudy.report.tables import NUMBERS, change_table, part_tables, results_table, term_tables


def row(name, role, *classes, **options):
    """A row with one run for each dict of AP by class."""
    made = make_row(name, role, *(0.1 * (number + 2) for number in range(len(classes))), **options)
    for run, aps in zip(made.runs, classes, strict=True):
        run.evaluation.per_class.clear()
        run.evaluation.per_class.update(aps)
    return made


def test_every_column_of_the_comparison_has_its_numbers():
    teacher = make_row("teacher", "teacher", 0.5)
    plain = make_row("plain", "plain", 0.3, 0.4)
    frs = make_row("frs", "distilled", 0.4, plain=plain, teacher=teacher)
    table = Table((teacher, plain, frs), (), speed="measured")
    shown = results_table(table, dict.fromkeys(("teacher", "plain", "frs"), "#123456"))
    assert set(shown.columns[1:]) <= set(NUMBERS)
    entries = dict(zip(shown.columns[1:], shown.rows[1].entries, strict=True))
    assert entries["AP"].text == "35.0 ±7.1"
    assert entries["AP"].numbers == pytest.approx((0.35, 0.0707), abs=1e-4)
    assert shown.rows[1].detail == "plain student, retinanet_mobilenet_v2, 2 runs"
    assert shown.rows[2].entries[-1] == Entry("33%", (pytest.approx(1 / 3),))


def test_best_student_of_a_class_is_marked_and_never_the_teacher():
    teacher = row("t", "teacher", {"cat": 0.5, "dog": 0.2, "owl": math.nan})
    plain = row("p", "plain", *({"cat": ap, "dog": 0.2, "owl": math.nan} for ap in (0.2, 0.6)))
    distilled = row("d", "distilled", {"cat": 0.3, "dog": 0.2, "owl": math.nan})
    sizes, classes = part_tables(Table((teacher, plain, distilled), ()))
    assert classes.columns == ("class", "t", "p", "d")
    cat, dog, owl = classes.rows
    assert [entry.text for entry in cat.entries] == ["50.0", "40.0", "30.0"]
    assert [entry.best for entry in cat.entries] == [False, True, False]
    assert [entry.best for entry in dog.entries] == [False, True, True]
    assert [entry.text for entry in owl.entries] == ["-", "-", "-"]
    assert [entry.text for entry in sizes.rows[0].entries] == ["-", "-", "-"]  # no small objects
    assert [entry.text for entry in sizes.rows[1].entries] == ["20.0", "25.0", "20.0"]


def test_changes_are_of_means_sorted_and_only_where_both_are_defined():
    plain = row("p", "plain", {"cat": 0.2, "dog": 0.4, "owl": math.nan}, {"cat": 0.4, "dog": 0.4, "owl": 0.3})
    one = row("a", "distilled", {"cat": 0.5, "dog": 0.3, "owl": 0.3}, plain=plain)
    other = row("b", "distilled", {"cat": 0.4, "dog": 0.4, "new": 0.3}, plain=plain)
    table = change_table(Table((plain, one, other), ()))
    assert table is not None
    assert [row.name for row in table.rows] == [
        "class cat",
        "class owl",
        "medium objects",
        "large objects",
        "class dog",
    ]
    shown = {row.name: [entry.text for entry in row.entries] for row in table.rows}
    assert shown["class cat"] == ["+20.0", "+10.0"]
    assert shown["class dog"] == ["-10.0", "0.0"]
    assert shown["class owl"] == ["0.0", "-"]
    assert change_table(Table((plain,), ())) is None


def test_losses_of_a_row_are_means_over_its_runs(run_view):
    def run(name, first, last):
        losses = {"epoch": np.array([1.0, 2.0]), "step": np.arange(2.0), "frs_feature": np.array([first, last])}
        losses |= {"frs_feature_weight": np.array([0.01, 0.02]), "classification": np.array([2.0, 1.0])}
        return run_view(name, "distilled", 0.4, group="frs", losses=losses)

    (table,) = term_tables([run("0", 300.0, 150.0), run("1", 500.0, 250.0), run_view("plain", "plain")])
    assert table.title == "Losses and weights of frs"
    assert {row.name: [entry.text for entry in row.entries] for row in table.rows} == {
        "frs_feature": ["400", "200", "0.02", "4"],
        "classification": ["2", "1", "1 (its own)", "1"],
    }


def test_a_table_has_an_entry_for_every_column_and_its_json_has_the_unrounded_numbers():
    entry = Entry.difference(0.01234, -0.00001, 0.03)
    table = DataTable("t", ("run", "difference"), (DataRow("a", (entry,)),), ("a note",))
    assert table.to_dict() == {
        "title": "t",
        "columns": ["run", "difference"],
        "rows": [{"name": "a", "entries": [{"text": "+1.2 (0.0 to +3.0)", "numbers": [0.01234, -0.00001, 0.03]}]}],
        "notes": ["a note"],
    }
    with pytest.raises(ValueError, match=r"rows \['a'\] do not have 2 entries"):
        DataTable("t", ("run", "x", "y"), (DataRow("a", (entry,)),))


@pytest.mark.parametrize("value", [None, math.nan])
def test_what_is_not_defined_is_a_dash_without_numbers(value):
    assert Entry.of(value) == Entry.percent(value) == Entry.difference(value) == Entry("-")
