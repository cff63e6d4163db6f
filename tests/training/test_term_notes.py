"""The notes on distillation terms: one that dominates the gradient, and one that was always zero."""

from types import SimpleNamespace

import pytest

import understudy
from understudy.files import read_rows
from understudy.training.term_notes import NoteTerms

TRAINER = SimpleNamespace(is_global_zero=True, global_step=7)


def engine(share: float | None = None, unproven: tuple[str, ...] = ()) -> SimpleNamespace:
    losses = {"total": 9.0, "classification": 1.0, "hint_feature": 4.0, "pkd_feature": 0.5}
    weights = {"hint_feature": 2.0, "pkd_feature": 0.0}
    shares = None if share is None else SimpleNamespace(distillation=share)
    return SimpleNamespace(losses=losses, term_weights=weights, shares=shares, unproven=set(unproven), silence={})


def test_the_share_of_the_distillation(tiny, trained, tmp_path, capsys):
    """Without a ramp, and with a weight so high that hardly anything else counts."""
    keys = {"teacher": trained, "schedule.epochs": 1, "log_every": 1, "optimizer.lr": 1e-6}
    methods = {"frs": {"feature_weight": 0.01, "class_weight": 1e4}}
    run = understudy.distill(tiny, run=tmp_path / "run", methods=methods, **keys)
    rows = read_rows(run / "losses.csv")
    assert 0.99 < float(rows[0]["distillation_share"]) < 1
    assert {bool(row["distillation_share"]) for row in rows[1:5]} == {False}
    first = {name: float(rows[0][name]) for name in rows[0] if name not in ("epoch", "step") and "share" not in name}
    task = first["classification"] + first["bbox_regression"] + first["bbox_ctrness"]
    assert first["total"] == pytest.approx(task + 0.01 * first["frs_feature"] + 1e4 * first["frs_class"], rel=1e-4)
    err = capsys.readouterr().err
    assert err.count("of the student's gradient comes from the distillation. Largest term: frs_class") == 1
    assert "x 1e+04 =" in err


def test_a_dominant_distillation_is_noted_once(capsys):
    notes = NoteTerms()
    notes.on_train_batch_end(TRAINER, engine(share=None))
    notes.on_train_batch_end(TRAINER, engine(share=0.95))
    assert not capsys.readouterr().err
    notes.on_train_batch_end(TRAINER, engine(share=0.97))
    expected = (
        "step 7: 97% of the student's gradient comes from the distillation. Largest term: hint_feature, 4 x 2 = 8"
    )
    assert capsys.readouterr().err.startswith(f"{expected}; sum of the student's own losses: 1.")
    resumed = NoteTerms()
    resumed.load_state_dict(notes.state_dict())
    for each in (notes, resumed):
        each.on_train_batch_end(TRAINER, engine(share=0.97))
    assert not capsys.readouterr().err


def test_terms_that_were_always_zero_are_named_at_the_end(capsys):
    NoteTerms().on_train_end(TRAINER, engine())
    assert not capsys.readouterr().err
    NoteTerms().on_train_end(TRAINER, engine(unproven=("pkd_feature", "hint_feature")))
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["hint_feature", "pkd_feature"]
    assert lines[0].endswith(
        "was exactly zero in every step since the run was started or resumed, so it had no effect on training."
    )


def test_a_negative_loss_is_named_once_and_rounding_is_not(capsys):
    notes, step = NoteTerms(), engine()
    step.losses |= {"total": -2.0, "pkd_feature": -3e-9, "classification": -0.5}
    for _ in range(2):
        notes.on_train_batch_end(TRAINER, step)
    resumed = NoteTerms()
    resumed.load_state_dict(notes.state_dict())
    resumed.on_train_batch_end(TRAINER, step)
    err = capsys.readouterr().err
    assert err.startswith("step 7: the loss classification is negative (-0.5). A distance is at least 0")
    assert err.count("negative") == 1
    NoteTerms().load_state_dict({"said": True})  # of an earlier version


def test_a_term_is_named_once_while_it_has_no_gradient(capsys):
    notes, step = NoteTerms(), engine(share=0.5)
    for count in (1, 2, 3):
        step.silence["hint_feature"] = count
        notes.on_train_batch_end(TRAINER, step)
    step.shares = None
    notes.on_train_batch_end(TRAINER, step)
    assert capsys.readouterr().err.count("the distillation term hint_feature (4) has no gradient any more") == 1
    assert step.silence["hint_feature"] > 3
