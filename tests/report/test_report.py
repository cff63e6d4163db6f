"""The report: run folders, checkpoints and data put together in one page."""

import re

import pytest
from run_folders import TEACHER, make_run

from understudy import report
from understudy.cli import main
from understudy.compare.table import summarise
from understudy.errors import UserError
from understudy.report import report_on


def test_report_on_puts_folders_checkpoints_and_data_together(drawn, tmp_path):
    star = make_run(tmp_path / "star", 0.5, data=drawn.source.parent, detector=TEACHER)
    alone = make_run(tmp_path / "alone", 0.3, data=drawn.source.parent)
    taught = make_run(tmp_path / "taught", 0.28, data=drawn.source.parent, teacher=star)
    written = report_on(tmp_path / "page.html", summarise([star, alone, taught], measure_speed=False), images=2)
    html = written.read_text(encoding="utf-8")
    assert "one seed cannot tell" in html
    assert html.count("<img") == 2 * (1 + 3) + 4 * (2 + 1)  # detections; masks of four images with one level
    assert "2 of 8 validation images" in html
    assert "differ most" in html
    assert "unlabelled look-alikes</bdi>" in html
    assert html.count("<h2>Types of errors</h2>") == html.count("<h2>Entropy of the teacher") == 1
    assert "on 8 images" in html


def test_without_its_data_set_a_page_is_refused_with_a_remedy(tmp_path):
    run = make_run(tmp_path / "alone", 0.3, data=tmp_path / "gone")
    message = f"no data set at {tmp_path / 'gone'}, where {run} has it. If it was moved, set data.path in {run}"
    with pytest.raises(UserError, match=re.escape(message)):
        report_on(tmp_path / "page.html", summarise([run], measure_speed=False))


def test_a_page_replaces_no_file_unless_forced(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "alone", 0.3)
    page = tmp_path / "page.html"
    page.write_text("mine")
    with pytest.raises(SystemExit) as stop:
        main(["compare", str(run), "--html", str(page)])
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert f"{page} exists and is not overwritten: choose another file, or replace it by --force." in said.err
    assert not said.out
    with pytest.raises(UserError, match="is not overwritten"):
        report_on(page, None)
    assert page.read_text() == "mine"
    monkeypatch.setattr(report, "view_runs", lambda table: [])
    with pytest.raises(AttributeError):  # it goes on
        report_on(page, None, force=True)
