"""The page: verdicts, tables, charts and images in one HTML file that needs no other."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from understudy import figures
from understudy.analysis.richness import RichnessView, richness_by_place, richness_cells
from understudy.analysis.shown import Boxes
from understudy.compare.table import Table
from understudy.figures import MORE_COLOURS, ROLE_COLOURS, Captioned, Curve
from understudy.files import write_atomically
from understudy.report.examples import ExampleView, count_found
from understudy.report.tables import class_table, results_table, term_tables
from understudy.report.views import RunView

_SHOWN_RICHNESS = 4  # images with masks; the means are over all images


def write_report(
    page: Path,
    runs: Sequence[RunView],
    *,
    title: str,
    facts: Mapping[str, Any],
    table: Table,
    examples: Sequence[ExampleView] = (),
    richness: Sequence[RichnessView] = (),
    analyses: Sequence[tuple[str, Captioned]] = (),
    remarks: Sequence[str] = (),
) -> None:
    """Write one self-contained HTML page about a few runs: no script, no network access, no second file.

    Args:
        page: the file to write; its folder is created if needed.
        runs: the runs of the table, from :func:`understudy.report.views.view_runs`.
        title: of the page.
        facts: further facts that are needed to repeat or judge the runs; values are text, numbers or lists of them.
        table: the comparison of the runs, from :func:`understudy.compare.table.summarise`.
        examples: images with detections, from :func:`understudy.report.examples.view_examples`.
        richness: of the teacher, from :func:`understudy.report.analyses.view_analyses`.
        analyses: further charts, each with the title of its section; a title is shown once.
        remarks: on analyses, among others why one is missing.
    """
    colours = _group_colours(runs)
    environment = Environment(
        loader=PackageLoader("understudy.report", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.trim_blocks = environment.lstrip_blocks = True
    html = environment.get_template("page.html.j2").render(
        title=title,
        verdicts=[verdict.sentence for verdict in table.verdicts],
        runs=[_run_section(run, colours[run.group]) for run in runs],
        table=results_table(table, colours),
        ap_chart=_ap_chart(runs, colours),
        loss_chart=_loss_chart(runs, colours),
        term_tables=term_tables(runs),
        class_table=class_table(runs),
        examples=_example_rows(examples),
        score_threshold=examples[0].score_threshold if examples else None,
        richness=[_pictures(richness_cells(view)) for view in richness[:_SHOWN_RICHNESS]],
        places=[(place, f"{value:.2f}") for place, value in richness_by_place(richness).items()],
        richness_images=len(richness),
        analyses=[(title, figures.as_svg(each.figure), each.caption) for title, each in analyses],
        remarks=list(dict.fromkeys(remarks)),
        heat_floor=figures.HEAT_FLOOR,
        has_unlabelled=any(len(view.unlabelled) for view in (*examples, *richness)),
        facts=_flat(facts),
        commands=list(dict.fromkeys(run.environment["command"] for run in runs if "command" in run.environment)),
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, html.encode())


def _group_colours(runs: Sequence[RunView]) -> dict[str, str]:
    """Choose a colour for each group: that of its role for the first group of a role, others for the rest."""
    colours: dict[str, str] = {}
    more = cycle(MORE_COLOURS)
    for run in runs:
        if run.group not in colours:
            own = ROLE_COLOURS[run.role]
            colours[run.group] = next(more) if own in colours.values() else own
    return colours


def _ap_chart(runs: Sequence[RunView], colours: Mapping[str, str]) -> str | None:
    curves = [
        Curve(run.group, colours[run.group], run.metrics["epoch"], 100 * run.metrics["AP"])
        for run in runs
        if np.isfinite(run.metrics.get("AP", np.array([]))).any()
    ]
    return figures.as_svg(figures.curve_chart(curves, x_label="epoch", y_label="AP in %")) if curves else None


def _loss_chart(runs: Sequence[RunView], colours: Mapping[str, str]) -> str | None:
    terms: dict[str, list[Curve]] = {}
    for run in runs:
        for term in run.loss_terms:
            known = np.isfinite(run.losses[term])
            if known.any():
                curve = Curve(run.group, colours[run.group], run.losses["step"][known], run.losses[term][known])
                terms.setdefault(term, []).append(curve)
    return figures.as_svg(figures.loss_charts(terms)) if terms else None


def _example_rows(examples: Sequence[ExampleView]) -> list[list[dict[str, str]]]:
    """Return, for each image, the cells of ground truth and every run: a picture with a caption."""
    names = dict.fromkeys(name for view in examples for name in view.truth.names)
    names |= dict.fromkeys(name for view in examples for found in view.detections.values() for name in found.names)
    colour_of = {
        name: figures.CLASS_COLOURS[number % len(figures.CLASS_COLOURS)] for number, name in enumerate(sorted(names))
    }
    rows = []
    for view in examples:
        truth = _picture(view, view.truth, colour_of, view.unlabelled)
        cells = [{"head": "ground truth", "image": truth, "words": _count_words(view)}]
        for run, found in view.detections.items():
            right = count_found(found, view.truth)
            words = f"{right} of {len(view.truth.names)} found, {len(found.names) - right} wrong"
            cells.append({"head": run, "image": _picture(view, found, colour_of, None), "words": words})
        rows.append(cells)
    return rows


def _picture(view: ExampleView, shown: Boxes, colour_of: Mapping[str, str], dashed: np.ndarray | None) -> str:
    scores = [f" {score:.2f}" for score in shown.scores] or [""] * len(shown.names)
    captions = [f"{name}{score}" for name, score in zip(shown.names, scores, strict=True)]
    colours = [colour_of[name] for name in shown.names]
    return figures.as_image(figures.detection_picture(view.image, shown.boxes, captions, colours, dashed_boxes=dashed))


def _count_words(view: ExampleView) -> str:
    count = len(view.truth.names)
    words = f"{count} object{'' if count == 1 else 's'}"
    return f"{words}, {len(view.unlabelled)} unlabelled" if len(view.unlabelled) else words


def _pictures(cells: Sequence[figures.Cell]) -> list[dict[str, str]]:
    return [{"image": figures.as_image(cell.figure), "head": cell.head, "words": cell.words} for cell in cells]


def _run_section(run: RunView, colour: str) -> dict[str, Any]:
    """Return seed, times, versions, hardware and config of one run."""
    facts: dict[str, Any] = {
        "folder": run.folder,
        "seed": run.config.get("seed"),
        "best epoch": run.result.get("epoch"),
        "training time": _duration(run.result.get("train_seconds")),
        **{name: value for name, value in run.environment.items() if name != "command"},
    }
    return {"name": run.name, "colour": colour, "facts": _flat(facts), "config": run.config_text}


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested facts into pairs of name and text; None and empty values are left out."""
    pairs: list[tuple[str, str]] = []
    for name, value in facts.items():
        label = f"{prefix}{str(name).replace('_', ' ')}"
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{label}: ")
        elif isinstance(value, list | tuple):
            pairs += [(label, ", ".join(map(str, value)))] if value else []
        elif value is not None:
            pairs.append((label, str(value)))
    return pairs


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
