"""The tables of the page."""

from understudy.report.tables import class_table


def test_best_student_of_a_class_is_marked_and_never_the_teacher(run_view):
    runs = [run_view("t", "teacher", 0.5)]
    runs += [run_view(f"p{seed}", "plain", ap, group="p") for seed, ap in enumerate((0.2, 0.6))]
    runs += [run_view("d", "distilled", 0.3)]
    classes = class_table(runs)
    assert classes["columns"] == ["t", "p", "d"]
    cat, dog, owl = classes["rows"]
    assert [cell["text"] for cell in cat["cells"]] == ["50.0", "40.0", "30.0"]
    assert [cell["best"] for cell in cat["cells"]] == [False, True, False]
    assert [cell["best"] for cell in dog["cells"]] == [False, True, True]
    assert [cell["text"] for cell in owl["cells"]] == ["-", "-", "-"]
