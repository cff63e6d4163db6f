"""The recipes: the authors' settings for the rows of their tables, one YAML file per row.

``<name>.yaml`` in this folder is a row. ``extends`` names a file in ``base/``, whose values it starts from; a base may
extend another. ``facts/`` has what several rows share: papers, teachers and measured times of a step. A recipe is the
start of a config (the key ``recipe``); the data and the teacher's checkpoint are the user's.

Reading recipes imports neither torch nor the config.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from understudy.errors import UserError
from understudy.text import closest

FOLDER = Path(__file__).parent


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Paper(_Facts):
    """A paper, and those of its inconsistencies that concern no single recipe."""

    title: str
    inconsistencies: list[str] = []


class Published(_Facts):
    """COCO's AP, or the metric that ``data`` names, in percent as printed; None: not printed, or not available."""

    data: str = "COCO val2017"
    plain: float | None = None
    teacher: float | None = None
    distilled: float | None = None


class Teacher(_Facts):
    """A teacher.

    Attributes:
        title: as texts write it.
        detector: the ``detector`` section of a config that builds it.
        classes: number of its classes.
        url: its checkpoint in mmdet's model zoo; None: it has to be trained.
        style: ``--style`` of `understudy import`; None: as the file states.
        ap: AP in percent, as the zoo prints it.
        training: command that trains it.
        timed_as: detector of about the same cost, with which steps were measured; None: itself.
    """

    title: str
    detector: dict[str, Any]
    classes: int = 80
    url: str | None = None
    style: str | None = None
    ap: float | None = None
    training: str | None = None
    timed_as: str | None = None


class Measured(_Facts):
    """AP that we measured, in percent, and where it is described."""

    ap: float
    where: str


class Recipe(_Facts):
    """A row of a table.

    Attributes:
        name: of the file.
        title: student, teacher and method in words.
        paper: a key of ``facts/papers.yaml``.
        table: the table or figure, or the source of the recipe.
        published: AP as printed.
        teacher: a key of ``facts/teachers.yaml``; None for a plain student.
        hardware: the authors', where known.
        images: training images of an epoch.
        layout: the data that it needs, in words.
        sources: where the settings come from.
        needs: files to download, apart from data and teacher.
        inconsistencies: contradictions and gaps of the sources, and what the recipe does about them.
        deviations: settings of the sources that cannot be expressed here.
        measured: our own AP.
        config: keys of a config, without the user's.
    """

    name: str
    title: str
    paper: str
    table: str
    published: Published = Published()
    teacher: str | None = None
    hardware: str
    images: int
    layout: str
    sources: list[str]
    needs: list[str] = []
    inconsistencies: list[str] = []
    deviations: list[str] = []
    measured: Measured | None = None
    config: dict[str, Any] = Field(min_length=1)

    @property
    def methods(self) -> dict[str, Any]:
        """The methods with their options; empty for a plain student."""
        return self.config.get("methods", {})

    @property
    def timed_pair(self) -> str:
        """The detectors whose step is measured for it, e.g. ``retinanet_resnet50 from retinanet_resnet101``."""
        student = self.config["detector"]["name"]
        if self.teacher is None:
            return student
        teacher = teachers()[self.teacher]
        return f"{student} from {teacher.timed_as or teacher.detector['name']}"

    @property
    def timed_methods(self) -> str:
        """Its methods in words, e.g. ``dist2 N2N``, or ``no method``."""
        words = [f"{name} {options.get('strategies', '')}".strip() for name, options in self.methods.items()]
        return " + ".join(words) or "no method"

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config["schedule"]["epochs"] * (self.images // self.config["batch_size"])


def recipe_names() -> list[str]:
    """Return the names of all recipes, sorted."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


@cache
def read_recipe(name: str) -> Recipe:
    """Return a recipe with the values of the files that it extends.

    Raises:
        UserError: there is no such recipe.

    Examples:
        >>> read_recipe("frs-retinanet-r50").config["detector"]["name"]
        'retinanet_resnet50'
    """
    if name not in recipe_names():
        close = closest(name, recipe_names())
        hint = f"did you mean {close}?" if close else "`understudy recipes` lists them"
        raise UserError(f"there is no recipe {name}; {hint}")
    return Recipe.model_validate({"name": name, **_extended(FOLDER / f"{name}.yaml")})


@cache
def papers() -> dict[str, Paper]:
    """Return the papers by key, in the order of the listing."""
    return {key: Paper.model_validate(facts) for key, facts in _read(FOLDER / "facts" / "papers.yaml").items()}


@cache
def teachers() -> dict[str, Teacher]:
    """Return the teachers by key."""
    found = _read(FOLDER / "facts" / "teachers.yaml")
    return {key: Teacher.model_validate(facts) for key, facts in found.items()}


@cache
def step_seconds() -> dict[str, dict[str, dict[str, float]]]:
    """Return measured seconds of a step of 16 images, by :attr:`Recipe.timed_pair`, by methods, by device."""
    return _read(FOLDER / "facts" / "step_seconds.yaml")


def _extended(file: Path) -> dict[str, Any]:
    values = dict(_read(file))
    base = values.pop("extends", None)
    return _merged(_extended(FOLDER / "base" / f"{base}.yaml"), values) if base else values


def _merged(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace values of a base, mapping by mapping; lists are replaced as a whole."""
    merged = dict(base)
    for key, value in values.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


@cache
def _read(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8")) or {}
