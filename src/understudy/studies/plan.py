"""What a study trains: rows, seeds, teachers, the budget, and the config that all runs share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import yaml

from understudy.config import DistillConfig, Source, TrainConfig, flat, load_config
from understudy.config.methods import DEFAULT_METHODS
from understudy.config.yaml_text import read_config, typed_by_look
from understudy.errors import UserError
from understudy.methods.loading import is_own
from understudy.studies.rows import DEFAULT, NONE, StudyRow, faults_of_rows, read_row
from understudy.text import shown
from understudy.training.assembly import resolve_config

OWN_KEYS = {"run": "below its folder", "seed": "by --seeds", "teacher": "by --teacher or the key teacher"}
"""Keys of the config that the study sets itself, and how."""

MADE_UP = "runs"
"""A run folder for configs that are only checked."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A study.

    Attributes:
        config: what all runs share, without :data:`OWN_KEYS`, as plain values; ``methods``,
            if the user gave some, holds options for all rows.
        rows: the plain student first.
        seeds: of the runs.
        teachers: by the name of the folder, which must be unique.
        steps: of each run; None: ``schedule.epochs`` decides.
        minutes: of each run, instead of steps.
        longer: whether there is a row of the plain student trained for as long as the slowest distilled one.
    """

    config: Mapping[str, Any]
    rows: tuple[StudyRow, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    teachers: tuple[Path, ...] = ()
    steps: int | None = None
    minutes: float | None = None
    longer: bool = True

    @classmethod
    def of(
        cls,
        source: Source = None,
        overrides: Sequence[str] | Mapping[str, Any] = (),
        *,
        rows: Sequence[str] = (),
        seeds: Sequence[int] = (0, 1, 2),
        teachers: Sequence[Path] = (),
        steps: int | None = None,
        minutes: float | None = None,
        longer: bool = True,
    ) -> Self:
        """Check the parts of a study, and resolve its paths.

        Args:
            source: a config as for :func:`understudy.distill`, without a run folder.
            overrides: likewise.
            rows: texts, see :func:`.rows.read_row`; empty: the methods of the config, or
                ``default``. The plain student is added.
            seeds: different non-negative integers.
            teachers: run folders or checkpoints; empty: the key ``teacher``.
            steps: see the attributes.
            minutes: likewise.
            longer: likewise.

        Raises:
            UserError: with all faults.
        """
        faults: list[str] = []
        if teachers and _gives(overrides, "teacher"):
            faults.append("teacher: give it once, as teacher=PATH, or several as --teacher PATH")
        given = [{"run": MADE_UP}, *([{"teacher": teachers[0]}] if teachers else [])]
        base = None
        try:
            base = _loaded(source, overrides, given)
        except UserError as error:
            faults += [line.removeprefix("  - ") for line in str(error).splitlines()[1:]] or [str(error)]
        read = list(_read(rows or [_row_of(base)], faults))
        if not any(not row.methods and not row.overrides for row in read):
            read = [read_row(NONE), *read]
        read.sort(key=lambda row: bool(row.methods or row.overrides))
        faults += faults_of_rows(read)
        faults += _faults_of_numbers(seeds, steps, minutes)
        if base is None:
            raise UserError.listing("Invalid study:", faults)
        named = tuple(path.expanduser().resolve() for path in teachers) or (base.teacher.resolve(),)
        if len({path.name for path in named}) < len(named):
            faults.append(f"teachers: two have the same name: {', '.join(path.name for path in named)}")
        faults += [f"teacher: {path} does not exist" for path in named if not path.exists()]
        if faults:
            raise UserError.listing("Invalid study:", faults)
        resolved = resolve_config(base).model_copy(update={"optimizer": base.optimizer})
        longer = longer and minutes is None
        plan = cls(_shared(resolved), tuple(read), tuple(seeds), named, steps, minutes, longer)
        for row in plan.rows:
            plan.check(row, faults)
        if faults:
            raise UserError.listing("Invalid study:", dict.fromkeys(faults))
        return plan

    def check(self, row: StudyRow, faults: list[str]) -> None:
        """Append the faults of a row: keys that the study sets, images that others do not have, and its config."""
        given = [key for key in OWN_KEYS if _gives(row.overrides, key)]
        faults += [f'row "{row.name}": {key}: a study sets it itself, {OWN_KEYS[key]}' for key in given]
        try:
            config = self.config_of(row, 0, self.teachers[0], Path(MADE_UP), 1)
        except UserError as error:
            faults += [f'row "{row.name}": {line.removeprefix("  - ")}' for line in str(error).splitlines()[1:]]
            return
        data = config.model_dump(mode="json")["data"]
        faults += [
            f'row "{row.name}": data.{key}: all rows of a study are evaluated on the same images, which their '
            f"differences are taken on. Set it for the whole study: data.{key}={shown(data[key])}"
            for key in ("path", "val")
            if data[key] != self.config["data"][key]
        ]

    def config_of(self, row: StudyRow, seed: int, teacher: Path, run: Path, epochs: int | None = None) -> TrainConfig:
        """Return the config of a run.

        Raises:
            UserError: the row has options that its methods or the config do not know.
        """
        own: dict[str, Any] = {"run": run, "seed": seed}
        values = dict(self.config)
        names = [name for name in row.methods if name != DEFAULT]
        if not names:
            values.pop("methods", None)
        if row.methods:
            config: TrainConfig = load_config(DistillConfig, values | own | {"teacher": teacher}, row.overrides, names)
        else:
            values = {key: value for key, value in values.items() if key in TrainConfig.model_fields}
            values["data"] = values["data"] | {"unlabelled": None, "unlabelled_batch": None}
            config = load_config(TrainConfig, values | own, row.overrides)
        if epochs is not None and not any(word.startswith("schedule.epochs=") for word in row.overrides):
            config = config.model_copy(update={"schedule": config.schedule.model_copy(update={"epochs": epochs})})
        return config

    def with_more(self, rows: Sequence[StudyRow], seeds: Sequence[int]) -> Self:
        """Return the plan with further rows and seeds.

        Raises:
            UserError: a row has the name of another one.
        """
        old = {row.name: row for row in self.rows}
        added = [row for row in rows if row.name not in old]
        faults = [
            f'row "{row.name}" is {old[row.name].text} in this study; name the new one: --row "NAME: {row.text}"'
            for row in rows
            if row.name in old and old[row.name].text != row.text
        ]
        faults += [*faults_of_rows([*self.rows, *added]), *_faults_of_numbers(seeds or [0], None, None)]
        for row in added:
            self.check(row, faults)
        if faults:
            raise UserError.listing("The study cannot be extended:", faults)
        more = tuple(seed for seed in seeds if seed not in self.seeds)
        return replace(self, rows=(*self.rows, *added), seeds=(*self.seeds, *more))

    def with_free_keys_of(self, other: Self) -> Self:
        """Return the plan with another one's values of the keys that may change between two calls."""
        config = {**self.config, "data": dict(self.config["data"])}
        for key in _FREE:
            *section, name = key.split(".")
            (config["data"] if section else config)[name] = (other.config["data"] if section else other.config)[name]
        return replace(self, config=config)

    def differences(self, other: Self) -> list[str]:
        """Return the settings in which another plan differs, apart from rows and seeds, as lines."""
        found = []
        mine, theirs = flat(self.config), flat(other.config)
        for key in sorted({*mine, *theirs}):
            if key not in _FREE and mine.get(key) != theirs.get(key):
                found.append(f"{key}: {shown(mine.get(key))} in the study, {shown(theirs.get(key))} now")
        for name in ("teachers", "steps", "minutes", "longer"):
            if getattr(self, name) != getattr(other, name):
                one, two = (_text(getattr(plan, name)) for plan in (self, other))
                found.append(f"{name}: {one} in the study, {two} now")
        return found

    @property
    def own_methods(self) -> list[str]:
        """Methods that are imported from modules, and so run their code."""
        return sorted({name for row in self.rows for name in row.methods if is_own(name)})

    def dump(self) -> str:
        """Return the plan as YAML."""
        values = {
            "rows": {row.name: row.text for row in self.rows},
            "seeds": list(self.seeds),
            "teachers": [str(path) for path in self.teachers],
            "steps": self.steps,
            "minutes": self.minutes,
            "longer": self.longer,
            "config": self.config,
        }
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read a plan that :meth:`dump` wrote.

        Raises:
            UserError: the file is not one.
        """
        values = read_config(file)
        try:
            rows = tuple(replace(read_row(text, named=False), name=name) for name, text in values["rows"].items())
            own = {"run": MADE_UP, "teacher": values["teachers"][0]}
            config = _shared(load_config(DistillConfig, values["config"], own))
            return cls(
                config,
                rows,
                tuple(int(seed) for seed in values["seeds"]),
                tuple(map(Path, values["teachers"])),
                int(values["steps"]) if values["steps"] else None,
                float(values["minutes"]) if values["minutes"] else None,
                values["longer"] == "true",
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise UserError(f"{file} is not the plan of a study, or it is damaged: {error}") from error


_FREE = {"data.workers", "log_every", "accelerator", "threads"}
"""Keys that may change between two calls of a study."""


def _loaded(source: Source, overrides: Any, given: Sequence[Mapping[str, Any]]) -> DistillConfig:
    """Load the shared config; what the study sets itself replaces nothing of the user's."""
    faults = [f"{key}: a study sets it itself, {OWN_KEYS[key]}" for key in ("run", "seed") if _gives(overrides, key)]
    if _gives(overrides, "methods"):
        faults.append('methods: a study sets it itself, by --row "METHOD OPTION=VALUE"')
    if faults:
        raise UserError.listing("Invalid study:", faults)
    own = {key: value for each in given for key, value in each.items()}
    if not _gives(overrides, "teacher_cache") and not _mentions_cache(source):
        own["teacher_cache"] = "auto"  # a study repeats the teacher's passes more often than a run
    if isinstance(overrides, Mapping):
        return load_config(DistillConfig, source, {**overrides, **own})
    return load_config(DistillConfig, source, [*overrides, *(f"{key}={value}" for key, value in own.items())])


def _gives(overrides: Sequence[str] | Mapping[str, Any], key: str) -> bool:
    """Return whether the user's arguments give a key."""
    return key in overrides if isinstance(overrides, Mapping) else any(text.startswith(f"{key}=") for text in overrides)


def _row_of(config: DistillConfig | None) -> str:
    """Return the row of a study for which none is given: the methods of its config or recipe."""
    return DEFAULT if config is None or config.methods == DEFAULT_METHODS else " + ".join(config.methods)


def _shared(config: TrainConfig) -> dict[str, Any]:
    """Return what all runs of a study share, as plain values."""
    values = {key: value for key, value in config.model_dump(mode="json").items() if key not in OWN_KEYS}
    methods = typed_by_look(values.pop("methods"))  # a file has their options as text
    return values if methods == DEFAULT_METHODS else values | {"methods": methods}


def _mentions_cache(source: Source) -> bool:
    if isinstance(source, str | Path):
        return "teacher_cache" in read_config(Path(source))
    return isinstance(source, TrainConfig) or "teacher_cache" in (source or {})


def _read(rows: Sequence[str], faults: list[str]) -> Any:
    for text in rows:
        try:
            yield read_row(text)
        except UserError as error:
            faults.append(str(error))


def _faults_of_numbers(seeds: Sequence[int], steps: int | None, minutes: float | None) -> list[str]:
    faults = []
    if not seeds:
        faults.append("seeds: expected at least one")
    if twice := sorted({seed for seed in seeds if list(seeds).count(seed) > 1}):
        faults.append(f"seeds: {', '.join(map(str, twice))} given twice")
    if any(seed < 0 for seed in seeds):
        faults.append("seeds: expected integers from 0 on")
    if steps is not None and minutes is not None:
        faults.append("give steps or minutes, not both")
    if steps is not None and steps < 1:
        faults.append(f"steps: expected a positive integer, got {steps}")
    if minutes is not None and not 0 < minutes < 1e6:
        faults.append(f"minutes: expected a positive number, got {minutes:g}")
    return faults


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else "none" if value is None else str(value)
