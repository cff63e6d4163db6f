"""The page: one file, with the verdicts, tables and pictures of a comparison."""

import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from run_folders import TEACHER, make_row, make_run

from understudy import figures
from understudy.compare.table import Table, summarise
from understudy.report import page
from understudy.report.views import RunView, view_runs


def test_page_is_one_file_that_needs_no_other(tmp_path, run_view, example, richness_view):
    metrics = {"epoch": np.arange(3.0), "AP": np.array([0.1, float("nan"), 0.2])}
    losses = {"epoch": np.zeros(9), "step": np.arange(9.0), "lr": np.zeros(9), "total": np.arange(9.0)}
    versions = {"command": "understudy demo", "packages": {"torch": "2.13"}, "gpus": []}
    runs = [
        run_view("teacher", "teacher", 0.5, metrics=metrics, losses=losses, config_text="seed: 0"),
        run_view("plain", "plain", 0.3, metrics=metrics, losses=losses, environment=versions),
        run_view("frs", "distilled", 0.28, losses=losses | {"frs_feature": np.ones(9)}, environment=versions),
    ]
    teacher, plain = make_row("teacher", "teacher", 0.5), make_row("plain", "plain", 0.3)
    frs = make_row("frs", "distilled", 0.28, plain=plain, teacher=teacher)
    table = Table((teacher, plain, frs), ("A note & more.",))
    file = tmp_path / "new" / "page.html"
    facts = {"seeds": [0, 1], "odd": "<i>&"}
    views = {"examples": [example], "richness": [richness_view]}
    page.write_report(file, runs, title="A <b> page", facts=facts, table=table, **views)
    html = file.read_text(encoding="utf-8")
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]+)"', html))
    assert len(re.findall(r"<img", html)) == 2 + 4
    assert "<script" not in html
    assert "<link" not in html
    assert not re.findall(r'(?:href|url)[=(]"?(?!#|[^"]*\.dtd)https?:', html)
    assert "A &lt;b&gt; page" in html
    assert "&lt;i&gt;&amp;" in html
    assert html.count("<svg") == 2
    for words in (
        "one seed cannot tell",
        "A note &amp; more.",
        "packages: torch",
        "1 of 1 found, 1 wrong",
        "1 min 15 s",
        "-10%",
    ):
        assert words in html
    assert html.count("understudy demo") == 1
    assert "Images\n/ s" not in html  # not measured
    assert "gpus" not in html
    assert "prefers-color-scheme: dark" in html
    assert figures.INK not in html


def test_page_of_runs_that_have_nothing_to_show(tmp_path):
    run = RunView("young", "young", "plain", Path("young"), result={})
    table = Table((make_row("young", "plain", math.nan),), ())
    page.write_report(tmp_path / "page.html", [run], title="Young", facts={}, table=table)
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "young" in html
    assert "no verdict" in html
    assert "<svg" not in html
    assert "<img" not in html


def test_losses_of_a_distilled_run_are_a_table(tmp_path, run_view):
    losses = {"epoch": np.array([1.0, 2.0]), "step": np.arange(2.0), "frs_feature": np.array([300.0, 150.0])}
    losses["frs_feature_weight"] = np.array([0.01, 0.02])
    table = Table((make_row("frs", "distilled", 0.4),), ())
    page.write_report(
        tmp_path / "page.html", [run_view("frs", "distilled", losses=losses)], title="t", facts={}, table=table
    )
    html = (tmp_path / "page.html").read_text()
    assert "Losses and weights of frs" in html
    assert "<tr><th>frs_feature</th><td>300</td><td>150</td><td>0.02</td><td>3</td></tr>" in html


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


def test_runs_of_one_group_share_a_colour_and_groups_do_not(run_view):
    runs = [run_view("a", "plain", group="x"), run_view("b", "plain", group="x"), run_view("c", "plain")]
    colours = page._group_colours([*runs, run_view("t", "teacher"), run_view("d", "distilled")])
    assert list(colours) == ["x", "c", "t", "d"]
    assert len(set(colours.values())) == 4
