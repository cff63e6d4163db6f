"""The region ablation of FRS (NeurIPS 2021, Table 4): the same student, distilled in different cells of the image."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from understudy import figures
from understudy.analysis.sweep import plain_config, refuse_keys, run_all
from understudy.compare.runs import read_runs
from understudy.config import DistillConfig, Source, TrainConfig, load_config
from understudy.config.methods import DEFAULT_METHODS
from understudy.errors import UserError
from understudy.figures import Captioned
from understudy.text import closest, percent, signed

PLAIN = "plain"

REGIONS: dict[str, tuple[str | None, str]] = {
    PLAIN: (None, "no distillation"),
    "gt": ("tp_fn", "cells of objects (TP + FN)"),
    "tp": ("tp", "detected cells of objects (TP)"),
    "tp+fp": ("tp_fp", "all detected cells (TP + FP)"),
    "tp+tn": ("tp_tn", "detected cells of objects, and undetected others (TP + TN)"),
    "soft": ("richness", "all cells, weighted by richness (FRS)"),
}
"""By name, the option ``methods.frs.region`` and its meaning. Detected: the teacher's highest class score is above the
threshold."""


@dataclass(frozen=True, slots=True)
class RegionRun:
    """One run of the ablation; AP in 0..1.

    Attributes:
        region: a key of :data:`REGIONS`.
        run: its folder.
        AP, AP50, AP75: of COCO.
        gain: AP minus that of the plain student; None without one.
    """

    region: str
    run: str
    AP: float
    AP50: float
    AP75: float
    gain: float | None


@dataclass(frozen=True, slots=True)
class RegionsResult:
    """The runs of the ablation, in the order of :data:`REGIONS`, and remarks that are needed to judge the numbers."""

    rows: tuple[RegionRun, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON."""
        return asdict(self)

    def __rich__(self) -> Group:
        """Return a table for the terminal."""
        table = Table(title="FRS by region of the mask", title_justify="left", box=None, padding=(0, 2, 0, 0))
        for name in ("region", "", "AP", "AP50", "AP75", "gain"):
            table.add_column(name, justify="left" if name in ("region", "") else "right")
        for row in self.rows:
            gain = "-" if row.gain is None else signed(row.gain)
            numbers = (percent(value) for value in (row.AP, row.AP50, row.AP75))
            table.add_row(row.region, REGIONS[row.region][1], *numbers, gain)
        return Group(table, "", *self.notes)

    def figures(self) -> dict[str, Captioned]:
        """Return the chart: a bar for each region, with the plain student as a line."""
        distilled = [row for row in self.rows if row.region != PLAIN]
        plain = next((100 * row.AP for row in self.rows if row.region == PLAIN), None)
        chart = figures.bar_chart(
            [row.region for row in distilled],
            {"AP": [100 * row.AP for row in distilled]},
            {"AP": figures.ROLE_COLOURS["distilled"]},
            x_label="cells in which the student imitates the teacher",
            y_label="AP in %",
            form=".1f",
            line=None if plain is None else ("plain student", plain),
        )
        caption = (
            "AP of the same student, distilled by FRS in different cells, with equal budgets. gt: cells of objects; "
            "tp: those that the teacher detects; tp+fp: all that it detects; tp+tn: tp and the undetected background; "
            "soft: all cells, weighted by the teacher's highest class score. After Table 4 of FRS (NeurIPS 2021)."
        )
        return {"regions": Captioned(chart, caption)}


def analyse_regions(
    output: Path,
    source: Source = None,
    overrides: Sequence[str] = (),
    methods: Sequence[str] = (),
    *,
    regions: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> RegionsResult:
    """Train a student in each region of FRS' Table 4 and compare them; finished runs in the folder are reused.

    As in the paper, only the feature term is used, unless the config gives ``methods.frs.class_weight``.

    Args:
        output: the folder of the runs, one folder for each region.
        source: a distill config, as in :func:`understudy.config.load_config`.
        overrides: ``key=value`` arguments.
        methods: names of the methods; ``frs`` must be among them.
        regions: keys of :data:`REGIONS`; empty: all.
        say: called with a line for each run.

    Raises:
        UserError: a region is unknown, the config has faults, or a folder holds another run.
        RunError: a run failed.
        KeyboardInterrupt: the user stopped; the same command continues.
    """
    if unknown := [name for name in regions if name not in REGIONS]:
        close = [f"{name}{f', did you mean {near}?' if (near := closest(name, REGIONS)) else ''}" for name in unknown]
        raise UserError(f"--region: expected {', '.join(REGIONS)}; got {'; '.join(close)}")
    refuse_keys(overrides, {"run": "--output", "methods.frs.region": "--region"})
    names = [name for name in REGIONS if name in regions or not regions]
    base = load_config(DistillConfig, source, [*overrides, f"run={output / 'soft'}"], methods)
    if base.methods == DEFAULT_METHODS:
        base = base.model_copy(update={"methods": {"frs": {}}})  # the regions are those of FRS as published
    if "frs" not in base.methods:
        raise UserError(
            f"The regions are options of the method frs; the config has {', '.join(base.methods)}: add --method frs."
        )
    folders = run_all({name: _config(base, name, output / name.replace("+", "_")) for name in names}, say)
    return _result(names, folders, base)


def _config(base: DistillConfig, name: str, run: Path) -> TrainConfig:
    """Return the config of one region."""
    if name == PLAIN:
        return plain_config(base, run)
    options = {"class_weight": 0.0} | base.methods["frs"] | {"region": REGIONS[name][0]}
    if name == "soft":
        options["threshold"] = None
    return load_config(DistillConfig, base.model_dump() | {"run": run, "methods": base.methods | {"frs": options}})


def _result(names: Sequence[str], folders: Sequence[Path], base: DistillConfig) -> RegionsResult:
    runs = dict(zip(names, read_runs(folders), strict=True))
    plain = runs[PLAIN].evaluation.coco["AP"] if PLAIN in runs else None
    rows = tuple(
        RegionRun(
            name,
            str(run.folder),
            *(run.evaluation.coco[number] for number in ("AP", "AP50", "AP75")),
            gain=None if plain is None or name == PLAIN else run.evaluation.coco["AP"] - plain,
        )
        for name, run in runs.items()
    )
    weight = base.methods["frs"].get("class_weight", 0.0)
    terms = (
        "The feature term only, as in the paper." if weight == 0 else "With the class term, unlike the paper's table."
    )
    notes = [f"{terms} One run of each region, seed {base.seed}: confirm small differences with further seeds."]
    if base.data.unlabelled is not None and PLAIN in runs:
        notes.append("The plain student was trained without the unlabelled images.")
    return RegionsResult(rows, tuple(notes))
