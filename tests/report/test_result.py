"""The page of a result: the tables and lines of the terminal, the figures and the command."""

from markupsafe import escape
from rich.table import Table

from understudy import figures
from understudy.figures import Captioned
from understudy.report.result import as_data, report_on_result
from understudy.training.environment import environment


def test_the_page_has_what_the_terminal_shows_the_figures_and_the_command(tmp_path):
    table = Table("run", "AP", title="Runs & rows")
    table.add_row("<plain>", "31.5")
    chart = figures.bar_chart(["a"], {"AP": [1.0]}, {"AP": "#2b8cd6"}, x_label="run", y_label="AP in %")
    report_on_result(
        tmp_path / "new" / "swap.html", "Swap", [table, "", "A note."], {"swap": Captioned(chart, "Bars.")}
    )
    page = (tmp_path / "new" / "swap.html").read_text()
    for part in ("<h1", "Swap", "<svg", "Bars.", "Runs &amp; rows", "&lt;plain&gt;", "31.5", "A note."):
        assert part in page
    assert str(escape(environment()["command"])) in page
    assert 'class="verdict"' not in page


def test_numbers_of_the_terminal_are_sorted_as_numbers():
    table = Table("run", "AP", "share", "note")
    table.add_row("a", "9.5", "12%", "-")
    ((ap, share, note),) = (row.entries for row in as_data(table).rows)
    assert (ap.numbers, share.numbers, note.numbers) == ((9.5,), (12.0,), ())
