"""The HTML page about a few runs. :func:`report_on` writes it; the modules of this package make its parts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from understudy.compare.table import Table
from understudy.data import Limits, open_data
from understudy.files import check_writable
from understudy.report.analyses import view_analyses
from understudy.report.examples import view_examples
from understudy.report.page import write_report
from understudy.report.views import RunView, one_of_each_role, view_run, view_runs

__all__ = ["RunView", "report_on", "view_analyses", "view_examples", "view_run", "view_runs", "write_report"]


def report_on(
    page: Path,
    table: Table,
    *,
    title: str = "Teacher and students compared",
    facts: Mapping[str, Any] | None = None,
    images: int = 6,
    device: str | torch.device = "cpu",
    force: bool = False,
) -> Path:
    """Write the page about a comparison; the best checkpoints are run on a few validation images for it.

    Types of errors are shown for one run of each role; the teacher's feature richness, entropy and ranks if it is among
    the runs.

    Args:
        page: the HTML file to write.
        table: the comparison, from :func:`understudy.compare.table.summarise`.
        title: of the page.
        facts: further facts to show.
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
    shown = one_of_each_role(runs)
    first = table.rows[0].runs[0]
    data = open_data(*first.measured_on, Limits.of(first.config.data))
    analyses = view_analyses(shown, data, device=device)
    write_report(
        page,
        runs,
        title=title,
        facts=facts or {},
        table=table,
        examples=view_examples(shown, data, count=images, device=device),
        richness=analyses.richness,
        analyses=analyses.charts,
        remarks=analyses.remarks,
    )
    return page
