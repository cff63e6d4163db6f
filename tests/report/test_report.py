"""The report: run folders, checkpoints and data put together in one page."""

from run_folders import TEACHER, make_run

from understudy.compare.table import summarise
from understudy.report import report_on


def test_report_on_puts_folders_checkpoints_and_data_together(drawn, tmp_path):
    star = make_run(tmp_path / "star", 0.5, data=drawn.source.parent, detector=TEACHER)
    alone = make_run(tmp_path / "alone", 0.3, data=drawn.source.parent)
    taught = make_run(tmp_path / "taught", 0.28, data=drawn.source.parent, teacher=star)
    written = report_on(tmp_path / "page.html", summarise([star, alone, taught], measure_speed=False), images=2)
    html = written.read_text(encoding="utf-8")
    assert "did not help" in html
    assert html.count("<img") == 2 * (1 + 3) + 4 * (2 + 1)  # detections; masks of four images with one level
    assert "the first 2 validation images" in html.lower()
    assert "unlabelled look-alikes <strong>" in html
    assert html.count("<h2>Types of errors</h2>") == html.count("<h2>Entropy of the teacher") == 1
    assert "The analyses are on 8 validation images" in html
