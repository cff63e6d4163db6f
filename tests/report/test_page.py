"""The page: one file, with the verdicts, tables and pictures of a comparison."""

import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from rich.console import Console
from run_folders import TEACHER, make_row, make_run

from understudy import figures
from understudy.compare.table import Table, summarise
from understudy.figures import Captioned
from understudy.report import page
from understudy.report.analyses import richness_section
from understudy.report.sections import DataRow, DataTable, Entry, Section
from understudy.report.views import RunView, view_runs

SCRIPT = Path(page.__file__).with_name("sort.js").read_text(encoding="utf-8")

HOSTILE = (
    "<script>alert(1)</script>",
    '"quo\'tes" & </td></table>',
    "x" * 120,
    "\N{GRINNING FACE} emoji",
    "\u05e9\u05dc\u05d5\u05dd",
    "\u202eevil",
    "$x_$ \\frac",
    "--> ]]></style>",
    "{{ 7 * 7 }}",
    "bell\x07 \ud800",
)


class Page(HTMLParser):
    """The tags, the scripts and the cells of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.scripts, self.cells, self.open = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)
        if tag == "td":
            self.cells.append((dict(attrs).get("data-numbers", ""), ""))

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, text):
        if self.open and self.open[-1] == "td":
            numbers, before = self.cells[-1]
            self.cells[-1] = numbers, before + text
        if self.open and self.open[-1] == "script":
            self.scripts.append(text.strip())


def numbers_in(value):
    """All numbers of plain JSON."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for each in value for number in numbers_in(each)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def comparison(run_view, names=("teacher", "plain", "frs")):
    """A table of three rows, and its runs."""
    epochs = np.arange(3.0)
    metrics = {"epoch": epochs, "AP": np.array([0.1, float("nan"), 0.2])}
    losses = {"epoch": np.zeros(9), "step": np.arange(9.0), "lr": np.zeros(9), "total": np.arange(9.0)}
    taught = {"frs_feature": np.ones(9), "frs_feature_weight": np.full(9, 0.5), "distillation_share": np.full(9, 0.4)}
    versions = {"command": "understudy demo", "packages": {"torch": "2.13"}, "gpus": []}
    first, second, third = names
    teacher, plain = make_row(first, "teacher", 0.5), make_row(second, "plain", 0.3, 0.33)
    frs = make_row(third, "distilled", 0.27, 0.28, plain=plain, teacher=teacher)
    runs = [
        run_view(first, "teacher", 0.5, metrics=metrics, losses=losses, config_text="seed: 0"),
        run_view(f"{second}, 0", "plain", 0.3, second, metrics=metrics, losses=losses, environment=versions),
        run_view(f"{second}, 1", "plain", 0.33, second, metrics=metrics, losses=losses, environment=versions),
        run_view(
            f"{third}, 0", "distilled", 0.27, third, metrics=metrics, losses=losses | taught, environment=versions
        ),
        run_view(
            f"{third}, 1", "distilled", 0.28, third, metrics=metrics, losses=losses | taught, environment=versions
        ),
    ]
    return runs, Table((teacher, plain, frs), ("A note & more.",))


def test_page_is_one_file_that_needs_no_other(tmp_path, run_view, richness_view):
    runs, table = comparison(run_view)
    file = tmp_path / "new" / "page.html"
    facts = {"seeds": [0, 1], "odd": "<i>&"}
    analyses = [richness_section([richness_view])]
    page.write_report(file, runs, title="A <b> page", facts=facts, table=table, analyses=analyses)
    html = file.read_text(encoding="utf-8")
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]+)"', html))
    assert len(re.findall(r"<img", html)) == 4
    assert Page(html).scripts == [SCRIPT.strip()]
    assert "<link" not in html
    assert not re.findall(r'(?:href|url)[=(]"?(?!#|[^"]*\.dtd)https?:', html)
    assert "A &lt;b&gt; page" in html
    assert "&lt;i&gt;&amp;" in html
    assert html.count("<svg") == 4  # AP, share, changes, losses
    for words in (
        "did not help",
        "A note &amp; more.",
        "packages: torch",
        "1 min 15 s",
        "-22%",
        "unlabelled look-alikes",
    ):
        assert words in html
    assert html.count("understudy demo") == 1
    assert "Images\n/ s" not in html  # not measured
    assert "gpus" not in html
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert figures.INK not in html


def test_every_number_in_a_table_is_in_the_json(tmp_path, run_view):
    runs, table = comparison(run_view)
    file = tmp_path / "page.html"
    page.write_report(file, runs, title="t", facts={}, table=table)
    parts = [
        part.to_dict()
        for section in [*page.comparison_sections(runs, table), *page.loss_sections(runs)]
        for part in section.tables
    ]
    known = numbers_in(json.loads(json.dumps(parts, allow_nan=False)))
    assert len(parts) == 5
    assert set(numbers_in(parts[0])) <= set(numbers_in(table.to_dict()))
    cat = [fmean(run.evaluation.per_class["cat"] for run in row.runs) for row in table.rows]
    assert numbers_in(parts[3]) == cat
    cells = Page(file.read_text(encoding="utf-8")).cells
    assert len(cells) == 34
    for numbers, text in cells:
        shown = [float(number) for number in re.findall(r"(?<![\d.])[+-]?\d+\.?\d*(?:e-?\d+)?", text)]
        assert len(shown) == len(numbers.split()), text
        for number, exact in zip(shown, map(float, numbers.split()), strict=True):
            assert exact in known
            scaled = [exact * scale for scale in (1, 100, 1e-6)]
            decimals = len(re.search(r"\.?(\d*)", text.partition(".")[2])[1]) if "." in text else 0
            assert any(number == pytest.approx(each, abs=0.5001 * 10**-decimals, rel=1e-3) for each in scaled), text


def write_named(file, run_view, rows, words):
    """Write a page whose rows, classes, title, sections, tables, charts and facts have these names."""
    runs, table = comparison(run_view, rows)
    for run in (run for row in table.rows for run in row.runs):
        run.evaluation.per_class.clear()
        run.evaluation.per_class.update(dict.fromkeys(words, 0.3))
    title = words[0]
    chart = figures.difference_chart(words, {title: range(len(words))}, {title: figures.Style("#123456")}, x_label="x")
    numbered = tuple(DataRow(word, (Entry(word),), word) for word in words)
    tables = [DataTable(title, (title, title), numbered, words)]
    image, boxes = np.zeros((40, 40, 3), np.uint8), np.full((len(words), 4), [0.0, 0, 20, 20])
    picture = figures.detection_picture(image, boxes, words, ["#123456"] * len(words))
    pictures = [[figures.Cell(words[0], words[1], picture)]]
    extra = Section(
        title, words, [Captioned(chart, title)], tables, dict.fromkeys(words, "#123456"), pictures, notes=words
    )
    facts = {title: words}
    page.write_report(file, runs, title=title, facts=facts, table=table, verdicts=words, sections=[extra])
    return Page(file.read_text(encoding="utf-8"))


def test_names_of_classes_rows_and_titles_can_be_anything(tmp_path, run_view):
    """They are text everywhere: no tag, no attribute and no script of the page comes from them."""
    plain = write_named(tmp_path / "plain.html", run_view, ("teacher", "plain", "frs"), "abcdefghij")
    hostile = write_named(tmp_path / "hostile.html", run_view, HOSTILE[:3], HOSTILE)
    assert len(HOSTILE) == 10
    of_drawings = {"path", "g", "use", "defs", "clippath", "text", "svg", "style", "rect"}

    def structure(parsed):
        return [(tag, list(attrs)) for tag, attrs in parsed.tags if tag not in of_drawings]

    assert structure(hostile) == structure(plain)
    assert {tag for tag, _ in hostile.tags} == {tag for tag, _ in plain.tags}
    assert hostile.scripts == [SCRIPT.strip()]
    html = (tmp_path / "hostile.html").read_text(encoding="utf-8")
    assert "\\u202eevil" in html
    assert not set("\u202e\x07") & set(html)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "alert" not in "".join(hostile.scripts)


def test_sections_of_others_follow_the_verdict_which_can_be_theirs(tmp_path, run_view):
    runs, table = comparison(run_view)
    numbers = DataTable("Differences", ("row", "AP"), (DataRow("frs", (Entry.difference(-0.03, -0.05, -0.01),)),))
    extra = Section("The study", ("Six more seeds would tell.",), tables=[numbers], notes=("Small print.",))
    page.write_report(
        tmp_path / "page.html", runs, title="t", facts={}, table=table, verdicts=["Noise."], sections=[extra]
    )
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    places = [
        html.index(words)
        for words in ("Noise.", "The study", "Six more", "-3.0 (-5.0 to -1.0)", "Small print.", "<h2>Results")
    ]
    assert places == sorted(places)
    assert "did not help" not in html
    assert 'data-numbers="-0.03 -0.05 -0.01"' in html


def test_page_of_runs_that_have_nothing_to_show(tmp_path):
    run = RunView("young", "young", "plain", Path("young"), result={})
    table = Table((make_row("young", "plain", math.nan),), ())
    page.write_report(tmp_path / "page.html", [run], title="Young", facts={}, table=table)
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "young" in html
    assert "no verdict" in html
    assert "<svg" not in html
    assert "Losses" not in html
    assert "<img" not in html


def test_page_console_and_json_give_the_same_verdict(tmp_path, run_view):
    """Several plain students of one detector: the best one was trained longer, so it is not the one to compare with."""
    teacher = make_run(tmp_path / "teacher", 0.5, detector=TEACHER)
    plain = [make_run(tmp_path / "longer", 0.45, schedule={"name": "2x"}), make_run(tmp_path / "equal", 0.3)]
    table = summarise([teacher, *plain, make_run(tmp_path / "frs", 0.4, teacher=teacher)], measure_speed=False)
    page.write_report(tmp_path / "page.html", view_runs(table), title="t", facts={}, table=table)
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(table)
    (verdict,) = table.verdicts
    assert verdict.sentence == (
        "frs: AP 40.0 against 30.0 for plain, schedule=1x (+10.0). There is only one run of plain, schedule=1x and "
        "frs, and one seed cannot tell whether a difference is due to distillation, since AP also varies with the "
        "seed. Train both with further seeds (seed=1, seed=2)."
    )
    assert (tmp_path / "page.html").read_text().count(verdict.sentence) == 1
    assert console.export_text().count(verdict.sentence) == 1
    (as_json,) = table.to_dict()["verdicts"]
    shared = {"name": "frs", "kind": "one seed", "gain": pytest.approx(0.1), "sentence": verdict.sentence}
    assert as_json == {**shared, "gains": ()}
