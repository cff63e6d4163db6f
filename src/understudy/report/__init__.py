"""The HTML page about a few runs: :func:`report_on` makes all of it, the modules below let one make it from parts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from understudy.data import open_data
from understudy.report.page import write_report
from understudy.report.views import RunView, one_of_each_role, view_examples, view_richness, view_run, view_runs
from understudy.results import measured_on, summarise

__all__ = ["RunView", "report_on", "view_examples", "view_richness", "view_run", "view_runs", "write_report"]


def report_on(
    page: Path,
    folders: Sequence[Path],
    *,
    title: str = "Teacher and students compared",
    facts: Mapping[str, Any] | None = None,
    table: Mapping[str, Any] | None = None,
    images: int = 6,
    device: str | torch.device = "cpu",
) -> Path:
    """Read run folders, run their best checkpoints on a few validation images, and write the page about them.

    The teacher is the run that another names as its teacher; its feature richness is shown where it is among the runs.

    Args:
        page: the HTML file to write.
        folders: run folders of finished runs.
        title: of the page.
        facts: what else a reader should know.
        table: ``Table.to_dict()`` of :func:`understudy.results.summarise` for these folders, where it is made already.
        images: how many validation images to show.
        device: on which the detectors run.

    Returns:
        The page.

    Raises:
        UserError: a folder is not that of a finished run, or its checkpoint or its data cannot be read.
    """
    table = table or summarise(folders, device=device).to_dict()
    runs = view_runs(table)
    shown = one_of_each_role(runs)
    data = open_data(*measured_on(runs[0].config, runs[0].result))
    teachers = [run for run in shown if run.role == "teacher"]
    write_report(
        page,
        runs,
        title=title,
        facts=facts or {},
        table=table,
        examples=view_examples(shown, data, count=images, device=device),
        richness=view_richness(teachers[0], data, device=device) if teachers else (),
    )
    return page
