"""Differences between runs: images by content, every key of the config, and what the note names and counts."""

import csv
import json
import shutil

import pytest
from run_folders import TEACHER, make_run

from understudy.cli import main
from understudy.compare.differences import as_arguments, differences
from understudy.compare.runs import read_runs, same_data, same_images
from understudy.compare.table import summarise


def digest(run, value, key="data_digest"):
    """State the digest of the validation images in the result of a run."""
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {key: value}))
    return run


def test_a_copy_of_the_images_is_the_same_and_others_at_the_same_place_are_not(tmp_path):
    one, copy, other = (
        digest(make_run(tmp_path / name, 0.3, data=data), value)
        for name, data, value in (("one", "a", "x" * 32), ("copy", "b", "x" * 32), ("other", "a", "y" * 32))
    )
    runs = read_runs([one, copy, other])
    assert [same_images(runs[0], run) for run in runs] == [True, True, False]
    assert "validation images" not in differences(runs[0], runs[1])
    found = differences(runs[0], runs[2])["validation images"]
    assert all(f"a val, digest {letter * 8}" in text for text, letter in zip(found, "xy", strict=True))
    notes = summarise([one, other], measure_speed=False).notes
    assert any("AP on different images cannot be compared" in note for note in notes)
    assert not any("compared by path" in note for note in notes)


def test_results_without_a_digest_are_compared_by_path_and_that_is_said(tmp_path):
    old, new = make_run(tmp_path / "old", 0.3), digest(make_run(tmp_path / "new", 0.3, seed=1), "x" * 32)
    assert same_images(*read_runs([old, new]))
    (note,) = [note for note in summarise([old, new], measure_speed=False).notes if "compared by path" in note]
    assert str(old) in note
    assert str(new) not in note


def test_a_run_has_the_digest_of_its_fingerprints(trained, scenes, tmp_path):
    """A trained run, the same without the digest in its result, and its evaluation on a copy of the data."""
    (run,) = read_runs([trained])
    older = shutil.copytree(trained, tmp_path / "older")
    digest(older, None)
    assert read_runs([older])[0].evaluation.data_digest == run.evaluation.data_digest != ""
    copy = shutil.copytree(scenes, tmp_path / "copy")
    moved = shutil.copytree(trained, tmp_path / "moved")
    (moved / "config.yaml").write_text((moved / "config.yaml").read_text().replace(str(scenes), str(copy)))
    assert same_data(run, read_runs([moved])[0])
    from understudy.evaluation import evaluate

    assert evaluate(trained, copy, device="cpu").data_digest == run.evaluation.data_digest
    (row,) = summarise([trained, moved], measure_speed=False).rows  # one experiment
    assert len(row.runs + row.repeated) == 2


def test_balanced_classes_are_a_difference_from_earlier_runs_and_their_absence_is_none(tmp_path):
    older, without, balanced = (
        make_run(tmp_path / f"run{value}", 0.3, **({} if value is None else {"class_balance": value}))
        for value in (None, False, True)
    )
    runs = read_runs([older, without, balanced])
    assert differences(runs[0], runs[1]) == {}
    assert differences(runs[0], runs[2]) == {"balanced classes": (False, True)}


def test_every_key_is_in_json_and_the_note_counts_what_it_does_not_name(tmp_path):
    teacher = make_run(tmp_path / "teacher", 0.5, detector=TEACHER)
    plain = make_run(tmp_path / "plain", 0.3)
    changed = {"optimizer": {"momentum": 0.8, "lr": 0.1}, "compile": True, "batch_size": 4}
    table = summarise(
        [teacher, plain, make_run(tmp_path / "frs", 0.4, teacher=teacher, **changed)], measure_speed=False
    )
    row = table.to_dict()["rows"][-1]
    assert row["compared_with"] == "plain"
    assert row["differences"]["optimizer.momentum"] == (0.8, 0.9)
    assert row["differences"]["teacher"] == (str(teacher), None)
    assert {"compile", "batch_size", "optimizer.lr"} < set(row["differences"])
    (note,) = [note for note in table.notes if note.startswith("frs and plain differ")]
    assert (
        "batch size (4 and 16), learning rate (0.1 and 0.002), 2 more keys of the config (--json lists them)." in note
    )


def test_json_and_csv(three, tmp_path, capsys):
    file = tmp_path / "table.csv"
    with pytest.raises(SystemExit) as stop:
        main(["compare", *map(str, three), "--json", "--csv", str(file)])
    assert not stop.value.code
    said = json.loads(capsys.readouterr().out)
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [row["name"] for row in rows] == [row["name"] for row in said["rows"]] == ["teacher", "plain", "frs"]
    assert float(rows[2]["gain"]) == said["verdicts"][0]["gain"] == pytest.approx(0.1)
    assert rows[0]["gain"] == rows[0]["AP_spread"] == rows[0]["APs"] == ""
    with pytest.raises(SystemExit) as stop:
        main(["compare", *map(str, three), "--csv", str(file)])
    assert stop.value.code == 2
    assert "is not overwritten" in capsys.readouterr().err


def test_differences_of_detectors_as_arguments():
    long = [0.123456789] * 9
    unequal = {
        "detector.image_mean": (long, None),
        "detector.settings.octaves": (None, 2),
        "detector.norm": (None, "batch"),
    }
    assert (
        as_arguments(unequal)
        == f"'detector.image_mean={long}' detector.norm=null and without detector.settings.octaves"
    )
    assert as_arguments({"detector.settings.octaves": (None, 2)}) == "without detector.settings.octaves"
