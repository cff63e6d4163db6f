"""The notes below the table: budgets, undefined gaps, and the share of the gradient that distillation had."""

import pytest
from run_folders import STUDENT, TEACHER, make_run

from understudy.compare.differences import unnamed
from understudy.compare.runs import read_runs
from understudy.compare.table import summarise
from understudy.config import DataConfig, DistillConfig, dump_config, load_config


@pytest.mark.parametrize(
    ("ap", "share", "said"),
    [
        (0.29, 0.97, "97% of the student's gradient came from distillation (median over the run). The student's own"),
        (0.29, 0.01, "Distillation had almost no effect: raise its weights."),
        (0.40, 0.97, "(median over the run)."),
    ],
)
def test_the_distillations_share_of_the_gradient_is_told(tmp_path, ap, share, said):
    teacher = make_run(tmp_path / "teacher", 0.5, detector=TEACHER)
    frs = make_run(tmp_path / "frs", ap, teacher=teacher)
    rows = "".join(f"{step},{value}\n" for step, value in ((1, 0.0), (2, ""), (51, share), (52, ""), (101, share)))
    (frs / "losses.csv").write_text("step,distillation_share\n" + rows)
    notes = summarise([teacher, make_run(tmp_path / "plain", 0.3), frs], measure_speed=False).notes
    (note,) = [note for note in notes if "gradient" in note]
    assert said in note
    assert ("weights" in note) == (ap < 0.3)


def test_unequal_budgets_are_named(tmp_path):
    teacher = make_run(tmp_path / "teacher", 0.5, detector=TEACHER, batch_size=4)
    plain = make_run(tmp_path / "plain", 0.3, batch_size=4)
    frs = make_run(
        tmp_path / "frs", 0.4, teacher=teacher, batch_size=8, schedule={"name": "1x", "epochs": 24}, precision="bf16"
    )
    (note,) = [note for note in summarise([teacher, plain, frs], measure_speed=False).notes if "differ in" in note]
    assert "frs and plain differ in" in note
    for difference in ("epochs (24 and 12)", "batch size (8 and 4)", "precision (bf16 and 32)"):
        assert difference in note
    assert "not due to distillation alone" in note
    other = make_run(tmp_path / "other", 0.3, data="elsewhere", batch_size=4)
    assert any("AP on different images" in n for n in summarise([plain, other], measure_speed=False).notes)


def test_gap_is_undefined_and_said_so(tmp_path, printed):
    weak = make_run(tmp_path / "weak", 0.2, detector=TEACHER)
    plain = make_run(tmp_path / "plain", 0.3)
    frs = make_run(tmp_path / "frs", 0.31, teacher=weak)
    for folders, reason in [
        ([weak, plain, frs], "the teacher (AP 20.0) is not better than the plain student (30.0)"),
        ([plain, frs], f"its teacher ({weak}) is not among these runs"),
        ([weak, frs], "no plain student of the same detector is among these runs"),
    ]:
        table = summarise(folders, measure_speed=False)
        assert table.rows[-1].gap_closed is None
        (verdict,) = table.verdicts
        assert any(reason in text for text in (verdict.sentence, *table.notes))
        assert reason in " ".join(printed(table, 400).split())


def test_a_plain_student_with_other_anchors_is_named_with_the_keys(tmp_path):
    teacher = make_run(tmp_path / "teacher", 0.5, detector=TEACHER)
    plain = make_run(tmp_path / "plain", 0.3)
    frs = make_run(tmp_path / "frs", 0.4, teacher=teacher, detector={**STUDENT, "anchor_scale": 3.0})
    table = summarise([teacher, plain, frs], measure_speed=False)
    assert "no plain student of the same detector" in table.verdicts[0].sentence
    (note,) = [note for note in table.notes if "not the same detector" in note]
    assert "detector.anchor_scale (3.0 and null)" in note
    assert note.endswith("Train a plain student with detector.anchor_scale=3.0.")
    as_well = make_run(tmp_path / "as_well", 0.3, detector={**STUDENT, "anchor_scale": 3.0})
    assert not any("same detector" in note for note in summarise([plain, as_well, frs], measure_speed=False).notes)


@pytest.mark.parametrize(("ap", "told"), [(0.29, True), (0.30, True), (0.34, False)])
def test_the_command_that_says_why_is_named(tmp_path, ap, told):
    teacher, plain = make_run(tmp_path / "teacher", 0.5, detector=TEACHER), make_run(tmp_path / "plain", 0.3)
    frs = make_run(tmp_path / "frs", ap, teacher=teacher)
    notes = summarise([teacher, plain, frs], measure_speed=False).notes
    assert (f"To find out why frs is no better than plain: understudy doctor {frs} {plain}" in notes) is told


def test_variants_for_the_teachers_cache_are_no_difference_to_a_plain_student(tmp_path):
    teacher = make_run(tmp_path / "teacher", 0.5, detector=TEACHER)
    plain = make_run(tmp_path / "plain", 0.3)
    runs = {}
    for variants in (4, 8):
        data = {"path": "unused", "shorter_side": [64], "longer_side": 96, "workers": 2, "variants": variants}
        runs[variants] = make_run(tmp_path / f"frs{variants}", 0.4, teacher=teacher)
        config = load_config(DistillConfig, runs[variants] / "config.yaml")
        (runs[variants] / "config.yaml").write_text(dump_config(config.model_copy(update={"data": DataConfig(**data)})))
    notes = summarise([teacher, plain, *runs.values()], measure_speed=False).notes
    assert not [note for note in notes if "keys of the config" in note or "1 key of" in note]
    (name,) = [key for key in unnamed(*read_runs(list(runs.values()))) if key.startswith("data.")]
    assert name == "data.variants"
