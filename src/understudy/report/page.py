"""The page: figures, tables and plain words put into one HTML file that needs nothing beside itself."""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from understudy.evaluation import percent
from understudy.report import figures
from understudy.report.figures import Curve
from understudy.report.views import (
    Boxes,
    ExampleView,
    RichnessView,
    RunView,
    box_mask,
    count_right,
    richness_by_place,
    share_outside,
)

_ROLE_COLOURS = {"teacher": "#8a8f98", "plain": "#2b8cd6", "distilled": "#e0651a"}
_MORE_COLOURS = ("#1ba37a", "#c25fa5", "#b8930c", "#7a6ff0", "#d14343", "#4a9aa8")
_ROLE_WORDS = {"teacher": "teacher", "plain": "plain student", "distilled": "distilled student"}
_SHOWN_RICHNESS = 4  # images with masks; the means are over all that were given


def write_report(
    page: Path,
    runs: Sequence[RunView],
    *,
    title: str,
    facts: Mapping[str, Any],
    table: Mapping[str, Any],
    examples: Sequence[ExampleView] = (),
    richness: Sequence[RichnessView] = (),
) -> None:
    """Write one self-contained HTML page about a few runs: no script, no network, no file beside it.

    Args:
        page: the file to write; its folder is made where it is absent.
        runs: the runs of the table, see :func:`understudy.report.views.view_runs`.
        title: of the page.
        facts: what else a reader must know to repeat or to judge the runs; values are text, numbers or lists of them.
        table: the comparison of the runs, ``Table.to_dict()`` of :func:`understudy.results.summarise`.
        examples: images with detections, see :func:`understudy.report.views.view_examples`.
        richness: of the teacher, see :func:`understudy.report.views.view_richness`.
    """
    colours = _group_colours(runs)
    environment = Environment(
        loader=PackageLoader("understudy.report", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.trim_blocks = environment.lstrip_blocks = True
    html = environment.get_template("page.html.j2").render(
        title=title,
        verdict=verdict(table),
        runs=[_run_section(run, colours[run.group]) for run in runs],
        table=_table_rows(table, colours),
        ap_chart=_ap_chart(runs, colours),
        loss_chart=_loss_chart(runs, colours),
        term_tables=_term_tables(runs),
        class_table=_class_table(runs),
        examples=_example_rows(examples),
        score_threshold=examples[0].score_threshold if examples else None,
        richness=[_richness_row(view) for view in richness[:_SHOWN_RICHNESS]],
        places=[(place, f"{value:.2f}") for place, value in richness_by_place(richness).items()],
        richness_images=len(richness),
        heat_floor=figures.HEAT_FLOOR,
        has_unlabelled=any(len(view.unlabelled) for view in (*examples, *richness)),
        facts=_flat(facts),
        commands=list(dict.fromkeys(run.environment["command"] for run in runs if "command" in run.environment)),
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(html, encoding="utf-8")


def verdict(table: Mapping[str, Any]) -> list[str]:
    """What a comparison shows, for each distilled student: whether it helped, and by how much.

    Args:
        table: ``Table.to_dict()`` of :mod:`understudy.results`.
    """
    distilled = [row for row in table["rows"] if row["role"] == "distilled" and row["AP"] is not None]
    if not distilled:
        return [
            "There is no distilled student with a result among these runs, so this page only sets them side by side."
        ]
    return [_judge(row, table["rows"]) for row in distilled]


def _judge(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Hold one distilled student against the best plain one of the same detector and size; AP in 0..1."""
    name, reached = row["name"], f"AP {_percent(row['AP'])}{_on_average(row)}"
    plain = [
        other for other in rows if other["role"] == "plain" and _same_network(other, row) and other["AP"] is not None
    ]
    if not plain:
        return (
            f"The student distilled with {name} reaches {reached}. There is no plain student of the same detector "
            "among these runs, so what distillation brought cannot be said."
        )
    base = max(plain, key=lambda other: other["AP"])
    gain = round(100 * row["AP"], 1) - round(100 * base["AP"], 1)  # of the numbers that are shown
    against = (
        f"{reached} against {_percent(base['AP'])}{_on_average(base)} of the same student trained without a teacher"
    )
    if gain < -0.05:
        return f"Distillation with {name} did not help here, the student became worse: {against} ({gain:+.1f})."
    if gain < 0.05:
        return f"Distillation with {name} made no difference here: {against}."
    sentence = f"Distillation with {name} helped: {against} ({gain:+.1f})."
    if row["gap_closed"] is None or len(plain) > 1:  # with several, the table may hold it against another
        return sentence
    return f"{sentence} That is {row['gap_closed']:.0%} of what the teacher was ahead."


def _same_network(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    # A name alone does not tell widths apart: a MobileNetV2 of width 1.0 is not the plain version of one of 0.35.
    return one["detector"] == other["detector"] and one["parameters"] == other["parameters"]


def _on_average(row: Mapping[str, Any]) -> str:
    return f" on average over {len(row['folders'])} runs" if len(row["folders"]) > 1 else ""


def _percent(value: float | None) -> str:
    """A number in 0..1 as it is written in papers; what was not measured as ``-``."""
    return "-" if value is None else percent(value)


def _group_colours(runs: Sequence[RunView]) -> dict[str, str]:
    """One colour per group: that of its role for the first group of each role, others for the rest."""
    colours: dict[str, str] = {}
    more = cycle(_MORE_COLOURS)
    for run in runs:
        if run.group not in colours:
            own = _ROLE_COLOURS[run.role]
            colours[run.group] = next(more) if own in colours.values() else own
    return colours


def _table_rows(table: Mapping[str, Any], colours: Mapping[str, str]) -> dict[str, Any]:
    """Titles and rows of the first table; columns that nobody has a value for are left out."""
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "AP": lambda row: _percent(row["AP"]) + ("" if row["AP_spread"] is None else f" ±{100 * row['AP_spread']:.1f}"),
        "AP50": lambda row: _percent(row["AP50"]),
        "AP75": lambda row: _percent(row["AP75"]),
        "parameters": lambda row: f"{row['parameters'] / 1e6:.2f} M",
        "images per second": lambda row: _written(row["images_per_second"], ".1f"),
        "speed, teacher = 1": lambda row: _written(row["speed_ratio"], ".2f"),
        "gap to teacher closed": lambda row: _written(row["gap_closed"], ".0%"),
    }
    texts = {title: [write(row) for row in table["rows"]] for title, write in columns.items()}
    texts = {title: cells for title, cells in texts.items() if set(cells) != {"-"}}
    rows = [
        {
            "name": row["name"],
            "role": f"{_ROLE_WORDS[row['role']]}, {row['detector']}",
            "colour": colours[row["name"]],
            "cells": [cells[number] for cells in texts.values()],
        }
        for number, row in enumerate(table["rows"])
    ]
    notes = [*table["notes"], *([table["speed"]] if table["speed"] else [])]
    return {"columns": list(texts), "rows": rows, "notes": notes}


def _written(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _ap_chart(runs: Sequence[RunView], colours: Mapping[str, str]) -> str | None:
    curves = [
        Curve(run.group, colours[run.group], run.metrics["epoch"], 100 * run.metrics["AP"])
        for run in runs
        if np.isfinite(run.metrics.get("AP", np.array([]))).any()
    ]
    return figures.as_svg(figures.curve_chart(curves, x_label="epoch", y_label="AP (of 100)")) if curves else None


def _loss_chart(runs: Sequence[RunView], colours: Mapping[str, str]) -> str | None:
    terms: dict[str, list[Curve]] = {}
    for run in runs:
        for term in run.loss_terms:
            known = np.isfinite(run.losses[term])
            if known.any():
                curve = Curve(run.group, colours[run.group], run.losses["step"][known], run.losses[term][known])
                terms.setdefault(term, []).append(curve)
    return figures.as_svg(figures.loss_charts(terms)) if terms else None


def _term_tables(runs: Sequence[RunView]) -> list[dict[str, Any]]:
    """For each distilled run its losses: raw, their weights, and what they come to."""
    return [
        {
            "name": run.name,
            "rows": [
                {
                    "name": term.name,
                    "cells": [
                        f"{term.first:.4g}",
                        f"{term.last:.4g}",
                        "1 (its own)" if term.weight is None else f"{term.weight:.4g}",
                        f"{term.weighted:.4g}",
                    ],
                }
                for term in run.terms
            ],
        }
        for run in runs
        if run.terms
    ]


def _class_table(runs: Sequence[RunView]) -> dict[str, Any]:
    """For every class its AP in every group, the mean over the group's runs; the best of the students is marked."""
    groups: dict[str, list[RunView]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    students = [group for group, members in groups.items() if members[0].role != "teacher"]
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run.result.get("per_class", {})):
        means = {group: _class_mean(members, name) for group, members in groups.items()}
        known = [mean for group in students if (mean := means[group]) is not None]
        best = max(known) if len(known) > 1 else None
        cells = [
            {"text": _percent(mean), "best": group in students and mean is not None and mean == best}
            for group, mean in means.items()
        ]
        rows.append({"name": name, "cells": cells})
    return {"columns": list(groups), "rows": rows}


def _class_mean(runs: Sequence[RunView], name: str) -> float | None:
    values = [value for run in runs if (value := run.result.get("per_class", {}).get(name)) is not None]
    return fmean(values) if values else None


def _example_rows(examples: Sequence[ExampleView]) -> list[list[dict[str, str]]]:
    """For each image the ground truth and then every run: a picture and a line of words below it."""
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
            right = count_right(found, view.truth)
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


def _richness_row(view: RichnessView) -> list[dict[str, str]]:
    """The image, the mask of its boxes, and the richness of every level."""
    height, width = view.image.shape[:2]
    blank: list[str] = [""] * len(view.boxes)
    white = ["white"] * len(view.boxes)
    marked = figures.detection_picture(view.image, view.boxes, blank, white, dashed_boxes=view.unlabelled, width=240)
    mask = box_mask(view.boxes, height, width).astype(float)
    cells = [
        {
            "image": figures.as_image(marked),
            "head": "image",
            "words": "dashed: unlabelled" if len(view.unlabelled) else "labelled boxes",
        },
        {
            "image": figures.as_image(
                figures.heat_picture(view.image, mask, 1, boxes=view.boxes, dashed_boxes=view.unlabelled)
            ),
            "head": "box mask",
            "words": "labelled boxes only",
        },
    ]
    for number, (level, stride) in enumerate(zip(view.levels, view.strides, strict=True)):
        heat = figures.heat_picture(view.image, level, stride, boxes=view.boxes, dashed_boxes=view.unlabelled)
        cells.append(
            {
                "image": figures.as_image(heat),
                "head": f"stride {stride}",
                "words": f"peak {level.max():.2f}, {share_outside(view, number):.0%} outside",
            }
        )
    return cells


def _run_section(run: RunView, colour: str) -> dict[str, Any]:
    """What is said of one run: its seed, times, versions and hardware, and its config."""
    facts: dict[str, Any] = {
        "folder": run.folder,
        "seed": run.config.get("seed"),
        "best epoch": run.result.get("epoch"),
        "training time": _duration(run.result.get("train_seconds")),
        **{name: value for name, value in run.environment.items() if name != "command"},
    }
    return {"name": run.name, "colour": colour, "facts": _flat(facts), "config": run.config_text}


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as pairs of a name and a text; what is None or empty is left out."""
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
