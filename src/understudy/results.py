"""Several runs in one table: how good, how large, how fast, and how much of the teacher's lead a student caught up."""

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
import yaml
from rich import box
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from understudy.checkpoints import load_checkpoint
from understudy.config import DistillConfig, TrainConfig, load_config
from understudy.data import Batch, evaluation_loader, open_data
from understudy.detectors import Detector
from understudy.detectors.base import evaluating
from understudy.errors import RunError, UserError
from understudy.evaluation import Evaluation, choose_device, percent
from understudy.runs import RunFolder, read_rows
from understudy.weighting import LEAST, MOST

Role = Literal["teacher", "plain", "distilled"]

_NUMBERS = ("AP", "AP50", "AP75")
_NOT_OF_THE_RESULT = {"run", "seed", "teacher", "accelerator", "strategy", "log_every"}
"""Keys of a config in which runs may differ and still be the same experiment; ``data.workers`` is one too."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run, as its folder tells it.

    Attributes:
        folder: the run folder.
        config: its resolved config; a :class:`~understudy.config.DistillConfig` is a distilled student.
        evaluation: of its best checkpoint on the validation split.
        parameters: of the detector that was trained.
        epoch: the best one.
        train_seconds: how long the training took.
        measured_on: data set and split of the evaluation.
    """

    folder: Path
    config: TrainConfig
    evaluation: Evaluation
    parameters: int
    epoch: int
    train_seconds: float
    measured_on: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Row:
    """Runs of one experiment, which differ in the seed only.

    Attributes:
        name: what the table calls it: "teacher", "plain", or the methods of distillation.
        role: teacher, plain student, or distilled student.
        runs: one for each seed.
        plain: the plain student that a distilled one is held against, where it is among the runs.
        teacher: the teacher of a distilled student, where it is among the runs.
        images_per_second: of the first run's detector; None where it was not measured.
        speed_ratio: the same, divided by the teacher's.
    """

    name: str
    role: Role
    runs: tuple[Run, ...]
    plain: Self | None = None
    teacher: Self | None = None
    images_per_second: float | None = None
    speed_ratio: float | None = None

    @property
    def config(self) -> TrainConfig:
        """What the runs have in common (and the first one's seed and folder)."""
        return self.runs[0].config

    def values(self, number: str = "AP") -> list[float]:
        """One of COCO's 12 numbers, of each run, 0..1; nan where it is not defined."""
        return [run.evaluation.coco[number] for run in self.runs]

    def mean(self, number: str = "AP") -> float:
        """Mean over the runs, 0..1."""
        return statistics.fmean(self.values(number))

    def spread(self, number: str = "AP") -> float | None:
        """Sample standard deviation over the runs (divided by their number less one); None for a single run."""
        return statistics.stdev(self.values(number)) if len(self.runs) > 1 else None

    @property
    def gap_closed(self) -> float | None:
        """The share of the teacher's lead that distillation made up for, see :func:`gap_closed`; None if undefined."""
        if self.plain is None or self.teacher is None:
            return None
        return gap_closed(self.mean(), self.plain.mean(), self.teacher.mean())

    def to_dict(self) -> dict[str, Any]:
        """The row as plain JSON: ``AP``, ``AP50`` and ``AP75`` are means, lists hold a value a run."""
        return {
            "name": self.name,
            "role": self.role,
            "detector": self.config.detector.name,
            "folders": [str(run.folder) for run in self.runs],
            "seeds": [run.config.seed for run in self.runs],
            **{number: _none_if_nan(self.mean(number)) for number in _NUMBERS},
            "AP_spread": self.spread(),
            "AP_of_runs": [_none_if_nan(value) for value in self.values()],
            "epochs": [run.epoch for run in self.runs],
            "train_seconds": [run.train_seconds for run in self.runs],
            "parameters": self.runs[0].parameters,
            "images_per_second": self.images_per_second,
            "speed_ratio": self.speed_ratio,
            "gap_closed": self.gap_closed,
        }


@dataclass(frozen=True, slots=True)
class Table:
    """Runs compared.

    Attributes:
        rows: teacher, plain students, distilled students.
        notes: what a reader must know to judge the numbers, in plain words.
        speed: how speed was measured, in words; None where it was not.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    speed: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The table as plain JSON; None is what is not defined or was not measured."""
        return {"rows": [row.to_dict() for row in self.rows], "notes": list(self.notes), "speed": self.speed}

    def __rich__(self) -> Group:
        """The table for a terminal of at least 80 columns, with the notes below it."""
        table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        columns = self._columns()
        table.add_column("Run")
        for title in columns:
            table.add_column(title, justify="right", no_wrap=True)
        for row in self.rows:
            name = f"{row.name} ({len(row.runs)} runs)" if len(row.runs) > 1 else row.name
            first = Text.assemble((name, "bold"), "\n", (row.config.detector.name, "dim"))
            table.add_row(first, *(write(row) for write in columns.values()))
        notes = [*self.notes, *([self.speed] if self.speed else [])]
        lines = RichTable.grid(padding=(0, 1))  # a grid, so that the second line of a note is indented
        for note in notes:
            lines.add_row("-", Text(note))
        return Group(table, "", lines)

    def _columns(self) -> dict[str, Callable[[Row], str]]:
        """Title of each column, and how a row's cell is written."""
        columns: dict[str, Callable[[Row], str]] = {
            "AP": _ap_with_spread,
            "AP50": lambda row: percent(row.mean("AP50")),
            "AP75": lambda row: percent(row.mean("AP75")),
            "Params\n(M)": lambda row: f"{row.runs[0].parameters / 1e6:.2f}",
        }
        if self.speed:
            columns["Images\n/ s"] = lambda row: _written(row.images_per_second, ".1f")
            if any(row.speed_ratio is not None for row in self.rows):
                columns["vs.\nteacher"] = lambda row: _written(row.speed_ratio, ".2f", " x")
        if any(row.role == "distilled" for row in self.rows):
            columns["Gap\nclosed"] = lambda row: _written(row.gap_closed, ".0%")
        return columns


def summarise(
    run_folders: Sequence[Path | str],
    *,
    measure_speed: bool = True,
    device: torch.device | str | None = None,
) -> Table:
    """Compare finished runs.

    A run with ``teacher:`` in its config is a distilled student, the run that it names is the teacher, all others are
    plain. Runs that differ in their seed only are one row. A distilled student is held against the plain one of the
    same detector; where there are several, against the one trained most like it.

    Args:
        run_folders: in any order.
        measure_speed: load the detectors and time them; otherwise the table has no speed.
        device: on which to time; by default a GPU where there is one.

    Raises:
        UserError: a folder is no run folder, or holds no result yet; all such folders are listed.
    """
    runs = _read_runs([Path(folder) for folder in run_folders])
    rows = _rows(runs)
    notes = [_what_ap_is(rows), *_partner_notes(rows), *_budget_notes(rows), *_seed_notes(rows), *_share_notes(rows)]
    speed = None
    if measure_speed:
        try:
            rows, speed = _with_speeds(rows, choose_device(device))
        except (UserError, RunError) as error:  # weights or photos have gone since: the rest of the table still holds
            notes.append(f"Speed was not measured: {error}")
    return Table(tuple(rows), tuple(notes), speed)


def gap_closed(distilled: float, plain: float, teacher: float) -> float | None:
    """The share of the teacher's lead over the plain student that distillation made up for; 1 is all of it.

    Returns:
        (distilled - plain) / (teacher - plain); None where the teacher is not better than the plain student, or a
        number is nan: there is no gap then.
    """
    lead = teacher - plain
    return (distilled - plain) / lead if lead > 0 and not math.isnan(distilled) else None


def measured_on(config: Mapping[str, Any], result: Mapping[str, Any]) -> tuple[str, str]:
    """The data set and the split that a result was measured on: the run's own, unless the result names another."""
    path, split = result.get("measured_on") or (config["data"]["path"], config["data"]["val"])
    return str(Path(path).resolve()), split


# --- runs and their roles ---------------------------------------------------------------------------------------------


def _read_runs(folders: Sequence[Path]) -> list[Run]:
    if not folders:
        raise UserError("expected at least one run folder to summarise, got none")
    runs, faults = [], []
    seen: set[Path] = set()
    for folder in folders:
        if folder.resolve() in seen:
            faults.append(f"{folder} is given twice")
            continue
        seen.add(folder.resolve())
        try:
            runs.append(_read_run(folder))
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError.listing("these runs cannot be compared", faults)
    return runs


def _read_run(folder: Path) -> Run:
    files = RunFolder.open(folder)
    if not files.result.is_file():
        raise UserError(
            f"{folder} has no result.json: the run is not finished. `understudy resume {folder}` goes on with it"
        )
    try:
        result = json.loads(files.result.read_text(encoding="utf-8"))
        distilled = "teacher" in yaml.safe_load(files.config.read_text(encoding="utf-8"))
        return Run(
            folder=folder,
            config=load_config(DistillConfig if distilled else TrainConfig, files.config),
            evaluation=Evaluation.from_dict(result),
            parameters=result["parameters"],
            epoch=result["epoch"],
            train_seconds=result["train_seconds"],
            measured_on=measured_on(yaml.safe_load(files.config.read_text(encoding="utf-8")), result),
        )
    except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder} holds a damaged config.yaml or result.json ({error!r})") from error


def _rows(runs: Sequence[Run]) -> list[Row]:
    """The runs grouped by experiment: teachers first, then plain, then distilled students with their partners."""
    teachers = _teachers(runs)
    taught = {teacher.folder for teacher in teachers.values()}
    groups: dict[tuple[Role, str], list[Run]] = {}
    for run in runs:
        role: Role = "teacher" if run.folder in taught else "plain"
        experiment = _experiment(run)
        if isinstance(run.config, DistillConfig):
            role = "distilled"
            teacher = teachers.get(run.folder)
            experiment += _experiment(teacher) if teacher else str(run.config.teacher)
        groups.setdefault((role, experiment), []).append(run)
    rows = _with_distinct_names([Row(_name(group[0], role), role, tuple(group)) for (role, _), group in groups.items()])
    teacher_rows, plain_rows, distilled_rows = ([row for row in rows if row.role == role] for role in get_args(Role))
    paired = [
        replace(
            row,
            plain=next(iter(_plain_candidates(row, plain_rows)), None),
            teacher=next((other for other in rows if teachers.get(row.runs[0].folder) in other.runs), None),
        )
        for row in distilled_rows
    ]
    return [*teacher_rows, *plain_rows, *paired]


def _teachers(runs: Sequence[Run]) -> dict[Path, Run]:
    """The teacher among the runs of each distilled run, by the latter's folder.

    A config names the teacher's folder or a checkpoint in it. Runs may have been moved since they were made, so a
    folder of the same name serves where there is exactly one.
    """
    found = {}
    for run in runs:
        if isinstance(run.config, DistillConfig):
            named = run.config.teacher
            folder = named.parent if named.suffix == ".ckpt" else named
            same_place = [other for other in runs if other.folder.resolve() == folder.resolve()]
            same_name = [other for other in runs if other.folder.resolve().name == folder.name]
            for candidates in (same_place, same_name):
                if len(candidates) == 1 and candidates[0] is not run:
                    found.setdefault(run.folder, candidates[0])
    return found


def _experiment(run: Run) -> str:
    """Everything in a run's config that decides its result, except the seed and the teacher."""
    settings = run.config.model_dump(mode="json", exclude=_NOT_OF_THE_RESULT)
    settings["data"].pop("workers")
    return json.dumps(settings, sort_keys=True)


def _name(run: Run, role: Role) -> str:
    if not isinstance(run.config, DistillConfig):
        return role
    return " + ".join([*run.config.methods, *(["inherit"] if run.config.inherit else [])])


def _with_distinct_names(rows: Sequence[Row]) -> list[Row]:
    """Rows of the same name and detector also get the name of their first folder."""
    shown = [(row.name, row.config.detector.name) for row in rows]
    return [
        replace(row, name=f"{row.name}: {row.runs[0].folder.resolve().name}") if shown.count(pair) > 1 else row
        for row, pair in zip(rows, shown, strict=True)
    ]


def _plain_candidates(row: Row, plain_rows: Sequence[Row]) -> list[Row]:
    """Plain students of the same detector as a distilled one, those trained most like it first, then the best."""
    same = [other for other in plain_rows if other.config.detector == row.config.detector]
    return sorted(same, key=lambda other: (len(_differences(row, other)), -other.mean()))


# --- what a reader must know ------------------------------------------------------------------------------------------


def _what_ap_is(rows: Sequence[Row]) -> str:
    images = rows[0].runs[0].evaluation.images
    data, split = rows[0].runs[0].measured_on
    return f"AP in percent, at the best epoch of each run, on the {images} images of {split!r} in {data}."


def _partner_notes(rows: Sequence[Row]) -> list[str]:
    """Why a gap is not defined, or against which of several plain students it was taken."""
    notes = []
    for row in rows:
        if not isinstance(row.config, DistillConfig):
            continue
        if row.plain is None:
            notes.append(f"{row.name}: no plain student of the same detector is here, so what it brought is not known.")
        elif row.teacher is None:
            notes.append(f"{row.name}: its teacher ({row.config.teacher}) is not here, so the gap is not known.")
        elif row.gap_closed is None:
            notes.append(
                f"{row.name}: the teacher (AP {percent(row.teacher.mean())}) is not better than the plain student "
                f"({percent(row.plain.mean())}), so there is no gap to close; a stronger teacher is needed."
            )
        others = [other for other in rows if other.role == "plain" and other.config.detector == row.config.detector]
        if row.plain and len(others) > 1:
            notes.append(f"{row.name} is held against {row.plain.name}, of the plain students the one most like it.")
    return notes


def _budget_notes(rows: Sequence[Row]) -> list[str]:
    """Which runs had other data or another budget than the run that they are held against."""
    notes = []
    for row in rows:
        other = row.plain or row.teacher or rows[0]
        if not (differences := _differences(row, other)):
            continue
        listed = ", ".join(f"{what} ({mine} and {theirs})" for what, (mine, theirs) in differences.items())
        note = f"{row.name} and {other.name} differ in {listed}."
        if "validation images" in differences:
            note += " AP on different images cannot be compared."
        elif row.plain:
            note += " What separates them is not distillation alone."
        notes.append(note)
    return notes


def _differences(one: Row, other: Row) -> dict[str, tuple[Any, Any]]:
    """In what of data and budget two rows differ, in the words of the config, with both values."""
    mine, theirs = _budget(one.runs[0]), _budget(other.runs[0])
    return {what: (mine[what], theirs[what]) for what in mine if mine[what] != theirs[what]}


def _budget(run: Run) -> dict[str, Any]:
    """What two runs must share for their AP to be compared fairly."""
    config = run.config
    data, optimizer, schedule = config.data, config.optimizer, config.schedule
    return {
        "training images": f"{data.path.resolve()} {data.train}",
        "validation images": " ".join(run.measured_on),
        "shorter side": data.shorter_side,
        "longer side": data.longer_side,
        "flip": data.flip,
        "unlabelled images a step": data.unlabelled_batch or 0,
        "epochs": schedule.epochs,
        "schedule": schedule.name,
        "batch size": config.batch_size,
        "devices": config.devices,
        "machines": config.num_nodes,
        "optimizer": optimizer.name,
        "learning rate": optimizer.lr,
        "weight decay": optimizer.weight_decay,
        "precision": config.precision,
        "epochs between evaluations": config.evaluate_every,
    }


def _seed_notes(rows: Sequence[Row]) -> list[str]:
    """How far to trust the differences between distilled and plain students."""
    notes = []
    if any(len(row.runs) > 1 for row in rows):
        notes.append("± is the standard deviation over runs that differ in the seed only.")
    for row in rows:
        if row.plain is None:
            continue
        gain = 100 * (row.mean() - row.plain.mean())
        spreads = [spread for spread in (row.spread(), row.plain.spread()) if spread is not None]
        if len(spreads) < 2:
            single = " and ".join(side.name for side in (row.plain, row) if len(side.runs) == 1)
            notes.append(
                f"{row.name}: {gain:+.1f} AP against {row.plain.name}, from a single run of {single}. Another seed "
                "alone moves AP: repeat a small difference with other seeds before trusting it."
            )
        elif abs(gain) <= 100 * max(spreads):
            notes.append(f"{row.name}: {gain:+.1f} AP against {row.plain.name} is within the spread over the seeds.")
    return notes


def _share_notes(rows: Sequence[Row]) -> list[str]:
    """How much of each distilled student's gradient was the teacher's doing, and what that may explain."""
    notes = []
    for row in rows:
        shares = [share for run in row.runs for share in _gradient_shares(run.folder)]
        if not shares:
            continue
        share = statistics.median(shares)
        note = f"{row.name}: {share:.0%} of the student's gradient came from the distillation (median over the run)."
        if row.plain and row.mean() <= row.plain.mean():
            if share > MOST:
                note += " The student's own task hardly counted: lower the weights of the largest terms."
            elif share < LEAST:
                note += " It hardly counted: raise its weights."
        notes.append(note)
    return notes


def _gradient_shares(folder: Path) -> list[float]:
    """The measured shares of a distilled run, those before the weights have grown from zero left out."""
    measured = [row.get("distillation_share") for row in read_rows(RunFolder(folder).losses)]
    return [float(share) for share in measured if share and float(share) > 0]


# --- speed ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Racer:
    """A detector that is being timed, with its images."""

    detector: Detector
    batches: list[Batch]
    rates: list[float] = field(default_factory=list)  # images per second, one a round

    def lap(self, device: torch.device) -> None:
        _wait_for(device)
        started = time.perf_counter()
        for batch in self.batches:
            self.detector.detect(self.detector(batch.images, batch.image_sizes), batch.image_sizes)
        _wait_for(device)
        self.rates.append(len(self.batches) / (time.perf_counter() - started))


def _with_speeds(rows: Sequence[Row], device: torch.device) -> tuple[list[Row], str]:
    """The rows with the speed of each one's first detector, and how it was measured."""
    racers = [_racer(row.runs[0], device) for row in rows]
    rates = race(racers, device)
    teacher_rates = [rate for row, rate in zip(rows, rates, strict=True) if row.role == "teacher"]
    reference = teacher_rates[0] if len(teacher_rates) == 1 else None
    timed = [
        replace(row, images_per_second=rate, speed_ratio=rate / reference if reference else None)
        for row, rate in zip(rows, rates, strict=True)
    ]
    sizes = {f"{batch.image_sizes[0][1]}x{batch.image_sizes[0][0]}" for racer in racers for batch in racer.batches}
    threads = torch.get_num_threads()
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({threads} of its cores)"
    how = (
        f"Speed: pixels to detections, one image at a time ({' and '.join(sorted(sizes)[:3])} pixels), float32, "
        f"PyTorch on {where}; the detectors took turns, median of {len(racers[0].rates)} rounds. Reading and scaling "
        "the photo is not counted. Compare the ratios: images a second depend on the machine and on what else it does."
    )
    return timed, how


def race(racers: Sequence[_Racer], device: torch.device, *, rounds: int = 15, seconds: float = 20.0) -> list[float]:
    """Images per second of each detector, the median over rounds in which all take turns.

    They take turns so that what slows a shared machine for a while slows all of them.

    Args:
        racers: what is timed.
        device: where the detectors and their images are.
        rounds: at most; after ``seconds`` no other is begun, but three are run in any case.
        seconds: time after which it is enough.
    """
    for racer in racers:
        with evaluating(racer.detector), torch.no_grad():
            racer.lap(device)  # warms caches and picks kernels; not counted
        racer.rates.clear()
    started = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - started > seconds:
            break
        for racer in racers:
            with evaluating(racer.detector), torch.no_grad():
                racer.lap(device)
    return [statistics.median(racer.rates) for racer in racers]


def _racer(run: Run, device: torch.device, images: int = 4) -> _Racer:
    """A run's best detector with a few images, evenly spread over its validation split."""
    settings = run.config.data
    data = open_data(*run.measured_on)
    count = min(images, len(data))
    chosen = replace(data, records=tuple(data.records[i * len(data) // count] for i in range(count)))
    loader = evaluation_loader(
        chosen, batch_size=1, shorter_side=settings.shorter_side[-1], longer_side=settings.longer_side
    )
    return _Racer(load_checkpoint(run.folder).detector.to(device), [batch.to(device) for batch in loader])


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- writing ----------------------------------------------------------------------------------------------------------


def _ap_with_spread(row: Row) -> str:
    spread = row.spread()
    return percent(row.mean()) + (f" ±{100 * spread:.1f}" if spread is not None else "")


def _written(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
