"""The HTML page about a few runs. :func:`report_on` writes it; the modules of this package make its parts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from understudy.compare.table import Table
from understudy.data import Limits, as_paths, open_data
from understudy.errors import UserError
from understudy.figures import Captioned
from understudy.files import check_writable
from understudy.report.analyses import view_analyses
from understudy.report.page import comparison_sections, loss_sections, write_report
from understudy.report.sections import DataRow, DataTable, Entry, Section
from understudy.report.views import RunView, shown_runs, view_run, view_runs
from understudy.text import listed
from understudy.training.folder import RunFolder

__all__ = [
    "Captioned",
    "DataRow",
    "DataTable",
    "Entry",
    "RunView",
    "Section",
    "comparison_sections",
    "loss_sections",
    "report_on",
    "shown_runs",
    "view_analyses",
    "view_run",
    "view_runs",
    "write_report",
]


def report_on(
    page: Path,
    table: Table,
    *,
    title: str = "Teacher and students compared",
    facts: Mapping[str, Any] | None = None,
    verdicts: Sequence[str] | None = None,
    sections: Sequence[Section] = (),
    images: int = 6,
    device: str | torch.device = "cpu",
    force: bool = False,
) -> Path:
    """Write the page about a comparison; a few best checkpoints are run on a sample of validation images for it.

    Detections and types of errors are shown for the best distilled row, its plain student and its teacher; the
    teacher's feature richness, entropy and ranks if it is among the runs.

    Args:
        page: the HTML file to write.
        table: the comparison, from :func:`understudy.compare.table.summarise`.
        title: of the page.
        facts: further facts to show.
        verdicts: sentences at the top of the page; None: the verdicts of the table.
        sections: further sections, which follow the verdict.
        images: number of validation images to show.
        device: on which the detectors run.
        force: whether the page may replace an existing file.

    Returns:
        The page.

    Raises:
        UserError: the page exists, or a run folder, its checkpoint or its data cannot be read.
    """
    check_writable(page, force)
    runs = view_runs(table)
    first = next((run for row in table.rows for run in row.runs if run.kind == "run"), table.rows[0].runs[0])
    if missing := [path for path in as_paths(first.measured_on[0]) if not path.exists()]:
        raise UserError(
            f"{page} was not written, since it shows images: no data set at {listed(missing)}, where {first.folder} "
            f"has it. If it was moved, set data.path in {RunFolder(first.folder).config} to its new place."
        )
    data = open_data(*first.measured_on, Limits.of(first.config.data))
    write_report(
        page,
        runs,
        title=title,
        facts=facts or {},
        table=table,
        verdicts=verdicts,
        sections=sections,
        analyses=view_analyses(shown_runs(table, runs), data, shown=images, device=device),
    )
    return page
