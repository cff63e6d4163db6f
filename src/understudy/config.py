"""The one typed config of a run: a YAML file, ``key=value`` arguments and Python keywords, spelled the same.

The models below are the only list of keys: defaults, limits and descriptions are written once and serve the checks, the
messages, ``understudy config`` and the docs. No other module of the package is needed to read a config, and no torch.
"""

import copy
import difflib
import re
import textwrap
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import core_schema

from understudy.errors import UserError
from understudy.wording import expected, mismatch, shown

T = TypeVar("T")


# --------------------------------------------------------------------------------------------------------- value types


class _Nullable:
    """Lets a value be null in what a user writes, although it is always filled in once the config is made."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.nullable_schema(handler(source))


def _number_as_text(value: Any) -> Any:
    """Take ``precision=32`` from Python for the name ``"32"``."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _not_empty(value: Any) -> Any:
    """Refuse an empty path, which would silently mean the current folder."""
    if value == "":
        raise ValueError("empty")
    return value


Auto = Annotated[T, _Nullable()]
_FILLED_IN: Any = None  # the default of an Auto field: typed as its value, because no finished config holds the null

Text = Annotated[str, StringConstraints(min_length=1), BeforeValidator(_number_as_text)]
FilePath = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(Path.expanduser)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Pixels = Annotated[int, Field(ge=32)]
ThreeNumbers = tuple[float, float, float]
ThreePositive = tuple[PositiveFloat, PositiveFloat, PositiveFloat]


def _one_as_list(value: Any) -> Any:
    """Take one size for a list of one."""
    return [value] if isinstance(value, int | str) else value


def _repeated(names: Sequence[str]) -> list[str]:
    """The names that are there more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def _names_as_options(value: Any) -> Any:
    """Take the name of a method, or a list of names, for these methods with their defaults."""
    if isinstance(value, str):
        return {value: {}}
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return value if _repeated(value) else {name: {} for name in value}
    if isinstance(value, Mapping):
        return {name: {} if options is None else options for name, options in value.items()}
    return value


# ------------------------------------------------------------------------------------------------------------ the keys


class Section(BaseModel):
    """A group of keys. A single value given for a section is the value of its first key: ``data=photos``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        values = cls.expand(values)
        return cls.filled(values) if isinstance(values, dict) else values

    @classmethod
    def expand(cls, value: Any) -> Any:
        """A single value as a dict with the section's first key; anything else as it is."""
        return {next(iter(cls.model_fields)): value} if isinstance(value, str | int | float | Path) else value

    @classmethod
    def filled(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The values with those filled in that depend on others."""
        return values


class DataConfig(Section):
    """The photos and how they are fed to the networks."""

    path: FilePath = Field(
        description="The data set: a folder (COCO, VOC or YOLO, recognised by itself) or a COCO JSON file.",
        examples=["path/to/photos"],
    )
    train: Text = Field("train", description="The split to train on.")
    val: Text = Field("val", description="The split to evaluate on.")
    shorter_side: Annotated[list[Pixels], Field(min_length=1), BeforeValidator(_one_as_list)] = Field(
        [800],
        description="Pixels of an image's shorter side; of several sizes each training image draws one, "
        "and evaluation uses the last.",
    )
    longer_side: Pixels = Field(1333, description="The most pixels an image's longer side may have.")
    flip: Fraction = Field(0.5, description="The probability that a training image is mirrored left to right.")
    workers: NonNegativeInt = Field(2, description="Processes that load images; 0 loads them in the training process.")
    unlabelled: FilePath | None = Field(
        None,
        description="Images that take part in the distillation alone: a folder of images, or a data set whose `train` "
        "split is taken without its labels.",
    )
    unlabelled_batch: NonNegativeInt | None = Field(
        None,
        description="Unlabelled images of one step, in each process, beside the `batch_size` labelled ones; null: as "
        "many as those.",
    )


class DetectorConfig(Section):
    """The detector that is trained."""

    name: Text = Field("retinanet_resnet50", description="Family and backbone, as `understudy detectors` lists them.")
    neck_channels: PositiveInt = Field(256, description="Channels of the feature pyramid and of the heads.")
    width_mult: PositiveFloat = Field(1.0, description="Width of the backbone; 1 is the published one.")
    backbone_weights: Text | None = Field(
        None,
        description="Weights of the backbone to start from: a torchvision name or a file; null starts from chance.",
    )
    norm: Literal["auto", "batch", "sync", "eval", "frozen"] = Field(
        "auto",
        description="Batch normalisation of the backbone: trained (batch), trained over all processes together (sync), "
        "weights trained on fixed statistics (eval), or frozen; auto freezes it where backbone_weights are given.",
    )
    head_norm: Literal["group"] | None = Field(
        None, description="Normalisation inside the head; null keeps the family's own."
    )
    frozen_stages: Annotated[int, Field(ge=0, le=4)] = Field(
        0, description="How many of the backbone's first stages are not trained."
    )
    anchor_scale: PositiveFloat | None = Field(
        None,
        description="Side of the smallest anchor in strides of its level, less for small objects; null: RetinaNet 4, "
        "GFL and Faster R-CNN 8.",
    )
    image_mean: ThreeNumbers = Field(
        (0.485, 0.456, 0.406), description="Mean of red, green and blue (0 to 1) that is subtracted from the pixels."
    )
    image_std: ThreePositive = Field(
        (0.229, 0.224, 0.225), description="Deviation of red, green and blue that the pixels are divided by."
    )
    conventions: Literal["torchvision", "mmdet"] = Field(
        "torchvision",
        description="Whose details the detector follows (anchors, coarse levels, heads, losses); take mmdet for the "
        "papers' own detectors.",
    )
    settings: dict[str, Any] = Field(
        {}, description="What only this family in these conventions has; `understudy detectors NAME` lists it."
    )

    @classmethod
    def filled(cls, values: dict[str, Any]) -> dict[str, Any]:
        """`norm` decided by whether the backbone starts from weights."""
        if values.get("norm", "auto") == "auto":
            return values | {"norm": "frozen" if values.get("backbone_weights") else "batch"}
        return values


class OptimizerConfig(Section):
    """How the weights are changed."""

    DEFAULTS: ClassVar[dict[str, dict[str, float]]] = {
        "sgd": {"lr": 0.01, "weight_decay": 1e-4},
        "adamw": {"lr": 1e-4, "weight_decay": 0.05},
    }

    name: Literal["sgd", "adamw"] = Field("sgd", description="The optimizer.")
    lr: Auto[PositiveFloat] = Field(
        _FILLED_IN,
        description="Learning rate for `reference_batch` images a step; null: sgd 0.01, adamw 0.0001.",
        examples=[0.01],
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="Momentum of sgd.")
    weight_decay: Auto[NonNegativeFloat] = Field(_FILLED_IN, description="Weight decay; null: sgd 0.0001, adamw 0.05.")
    scale_lr: bool = Field(
        True, description="Multiply the learning rate by (images a step over all processes) / `reference_batch`."
    )
    reference_batch: PositiveInt = Field(16, description="Images a step that `lr` is meant for.")
    clip_norm: PositiveFloat | None = Field(
        None, description="Largest norm of the gradient, longer ones are shortened to it; null: no limit."
    )

    @classmethod
    def filled(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The learning rate and weight decay that suit the optimizer, where they are null."""
        return _where_null(values, cls.DEFAULTS.get(values.get("name", "sgd"), {}))


class ScheduleConfig(Section):
    """How long the run is, and how the learning rate falls."""

    EPOCHS: ClassVar[dict[str, int]] = {"1x": 12, "2x": 24, "cosine": 12}

    name: Literal["1x", "2x", "cosine"] = Field(
        "1x", description="1x and 2x divide the learning rate by 10 at 2/3 and 11/12 of the run; cosine falls smoothly."
    )
    epochs: Auto[PositiveInt] = Field(
        _FILLED_IN, description="Passes over the training images; null: 1x 12, 2x 24, cosine 12.", examples=[12]
    )
    warmup_steps: NonNegativeInt = Field(
        500, description="Steps in which the learning rate rises at the start; at most a tenth of the run."
    )
    warmup_factor: Annotated[float, Field(gt=0, le=1)] = Field(
        0.001, description="Share of the learning rate that the warm-up starts from."
    )

    @classmethod
    def filled(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The number of epochs of the named schedule, where it is null."""
        name = values.get("name", "1x")
        return _where_null(values, {"epochs": cls.EPOCHS[name]} if name in cls.EPOCHS else {})


class TrainConfig(Section):
    """Everything that decides a training run."""

    run: FilePath = Field(
        description="The folder that the run is written to; it must be new or empty.", examples=["runs/first"]
    )
    data: DataConfig = Field(description="The photos and how they are fed to the networks.")
    detector: DetectorConfig = Field(default_factory=DetectorConfig, description="The detector that is trained.")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="How the weights are changed.")
    schedule: ScheduleConfig = Field(
        default_factory=ScheduleConfig, description="How long the run is, and how the learning rate falls."
    )
    batch_size: PositiveInt = Field(16, description="Images of one step, in each process.")
    precision: Annotated[Literal["32", "bf16", "16"], BeforeValidator(_number_as_text)] = Field(
        "32", description="Bits of the arithmetic: 32, or mixed with bf16 or 16 (faster where the hardware has them)."
    )
    seed: NonNegativeInt = Field(0, description="Decides the first weights, the order of images and the augmentation.")
    accelerator: Text = Field("auto", description="Kind of device: auto, cpu, gpu (or another that Lightning knows).")
    devices: PositiveInt | Literal["auto"] = Field(1, description="Devices, that is processes, of each machine.")
    num_nodes: PositiveInt = Field(1, description="Machines.")
    strategy: Text = Field(
        "auto", description="How several devices work together: auto, ddp (or another of Lightning)."
    )
    evaluate_every: PositiveInt = Field(1, description="Epochs between two evaluations on `data.val`.")
    log_every: PositiveInt = Field(10, description="Steps between two rows of losses.csv.")


class DistillConfig(TrainConfig):
    """Everything that decides a distillation run: a training run with a teacher and methods."""

    teacher: FilePath = Field(description="The teacher: a run folder or a checkpoint.", examples=["runs/teacher"])
    methods: Annotated[dict[str, dict[str, Any]], Field(min_length=1), BeforeValidator(_names_as_options)] = Field(
        {"frs": {}},
        description="The distillation methods, each with its options; `understudy methods NAME` lists them.",
    )
    inherit: bool = Field(
        False,
        description="The student's neck and head start as the teacher's, layer by layer where names and shapes agree; "
        "beside any method.",
    )


def _where_null(values: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the defaults in place of what is absent or None."""
    return values | {key: default for key, default in defaults.items() if values.get(key) is None}


# ---------------------------------------------------------------------------------------------------- reading, writing

Config = TypeVar("Config", bound=TrainConfig)
Source = Path | str | Mapping[str, Any] | TrainConfig | None


def load_config(
    cls: type[Config],
    source: Source = None,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    methods: Sequence[str] = (),
) -> Config:
    """Make a config from a file and overrides, or say everything that is wrong with them.

    Args:
        cls: :class:`TrainConfig` or :class:`DistillConfig`.
        source: a YAML file, a mapping or a finished config to start from; None starts from the defaults.
        overrides: what replaces it: ``["data.flip=0", ...]`` or a mapping. Keys may be dotted; a number in them is the
            place in a list; a mapping given for a section is merged, every other value replaces; a single value for
            a section is the value of its first key. The order does not matter.
        methods: names of those methods of the source that are kept, with their options, and of new ones; the overrides
            may then name no others. None: all of the source.

    Raises:
        UserError: the file cannot be read, or lists every fault of the config at once.
    """
    draft = _Draft(cls)
    if isinstance(source, str | Path):
        draft.add(_read_yaml(Path(source)), written=True)
    elif source is not None:
        draft.add(source.model_dump() if isinstance(source, TrainConfig) else source)
    if methods:
        draft.keep_methods(methods)
    if isinstance(overrides, Mapping):
        draft.add(overrides)
    else:
        draft.add_arguments(overrides)
    if methods:
        draft.check_methods(methods)
    where = f" ({source})" if isinstance(source, str | Path) else ""
    return draft.finish(f"This config cannot be used{where}:")


def dump_config(config: TrainConfig) -> str:
    """YAML that :func:`load_config` turns into an equal config, with every value that was filled in."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Draft:
    """A config while it is put together: nested values, and the faults found so far."""

    def __init__(self, cls: type[TrainConfig]) -> None:
        self.cls = cls
        self.values: dict[str, Any] = {}
        self.faults: list[str] = []

    def add(self, mapping: Mapping[str, Any], *, written: bool = False) -> None:
        """Put the values of a mapping in; `written` ones come from YAML, where every scalar is still text."""
        self._put_all(_assignments(self.cls, mapping, ()), written)

    def add_arguments(self, arguments: Iterable[str]) -> None:
        """Put ``key=value`` arguments in; only the first ``=`` splits."""
        assignments: list[Assignment] = []
        for argument in arguments:
            key, equals, text = argument.partition("=")
            path = _parts(key)
            if not text.startswith("{"):
                path = _first_key(self.cls, path)
            if not equals or not re.fullmatch(r"\w[\w.:]*", key):
                self.faults.append(_not_key_value(self.cls, argument))
            elif _is_text(_type_at(self.cls, path)):
                assignments.append((path, None if _NULL.match(text) else text))
            else:
                try:
                    value = yaml.load(text, _TextLoader)
                except _GivenTwice as error:
                    self.faults.append(f"{key}: {error.problem}")
                    continue
                except yaml.YAMLError as error:
                    reason = getattr(error, "problem", None) or "it is not well-formed"
                    self.faults.append(f"{key}: {text} cannot be read as a YAML value: {reason}")
                    continue
                assignments += _assignments(self.cls, {key: value}, ())
        self._put_all(assignments, written=True)

    def keep_methods(self, names: Sequence[str]) -> None:
        """Leave of the methods, and their options, only those of these names; such as are not there are added."""
        present = _names_as_options(self.values.get("methods"))
        options = present if isinstance(present, dict) else {}
        self.values["methods"] = {name: options.get(name, {}) for name in names}
        self.faults += [f"--method {name} is given twice: once is enough" for name in _repeated(names)]

    def check_methods(self, names: Sequence[str]) -> None:
        """Refuse methods that are named by keys beside those named by ``--method``, and such that keys left out."""
        present = _names_as_options(self.values["methods"])
        found, chosen = list(present) if isinstance(present, dict) else [], f"--method {' --method '.join(names)}"
        if set(names) - set(found):
            given = shown(self.values["methods"])
            self.faults.append(f"methods={given} takes the place of {chosen}: name the methods by one of the two")
            return
        self.faults += [
            f"methods.{name}: {name} is not among {chosen}; add --method {name}, or leave its keys out"
            for name in found
            if name not in names
        ]

    def finish(self, summary: str) -> Any:
        """The config, or one error with every fault."""
        try:
            config = self.cls.model_validate(self.values)
        except ValidationError as error:
            self.faults += _in_plain_words(self.cls, self.values, error)
        else:
            if not self.faults:
                return config
        raise UserError.listing(summary, dict.fromkeys(self.faults)) from None

    def _put_all(self, assignments: Iterable["Assignment"], written: bool) -> None:
        """Put values in, wholes before their parts, so that the order they came in does not matter."""
        for path, value in sorted(assignments, key=lambda assignment: len(assignment[0])):
            owners = (path[:depth] for depth in range(1, len(path) + 1))
            free = any(get_origin(_bare(_type_at(self.cls, owner))) is dict for owner in owners)
            self._put(path, _free_values(value) if written and free else copy.deepcopy(value))

    def _put(self, path: tuple[str, ...], value: Any) -> None:
        node: Any = self.values
        for depth, key in enumerate(path):
            place = _place(node, key)
            if place is None:
                owner = path[:depth]
                self.faults.append(
                    f"{'.'.join(path)}: no such place; {'.'.join(owner)} is {_expected_at(self.cls, owner)}"
                )
                return
            if depth == len(path) - 1:
                node[place] = value
            else:
                present = node[place] if isinstance(node, list) else node.get(place)
                node[place] = _container(self.cls, path[: depth + 1], present)
                node = node[place]


Assignment = tuple[tuple[str, ...], Any]  # the path of a key, and its value


def _assignments(cls: type[Section], mapping: Mapping[str, Any], prefix: tuple[str, ...]) -> list[Assignment]:
    """The values of a mapping with their full paths; only sections are opened, everything else is one value."""
    found: list[Assignment] = []
    for key, value in mapping.items():
        path = (*prefix, *_parts(str(key)))
        if not _section(_type_at(cls, path)):
            found.append((path, value))
        elif isinstance(value, Mapping | Section):
            found += _assignments(cls, value if isinstance(value, Mapping) else value.model_dump(), path)
        elif value is not None:  # a section with nothing below it changes nothing
            found.append((_first_key(cls, path), value))
    return found


def _parts(key: str) -> tuple[str, ...]:
    """The parts of a dotted key; the dots in a method of one's own, ``methods.package.module:Class``, belong to it."""
    own = re.fullmatch(r"methods\.([^:]+:[^.]+)(.*)", key)
    return ("methods", own[1], *own[2].split(".")[1:]) if own else tuple(key.split("."))


def _place(node: Any, key: str) -> str | int | None:
    """Where a part of a dotted key lies in a container; None where there is no such place."""
    if isinstance(node, dict):
        return key
    if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
        return int(key)
    return None


def _container(cls: type[Section], path: tuple[str, ...], present: Any) -> Any:
    """What a dotted key goes into: what is there already, else a copy of the default list, else an empty section."""
    annotation = _bare(_type_at(cls, path))
    if get_origin(annotation) in (list, tuple):
        field = _field_at(cls, path)
        found = field.default if present is None and field else _one_as_list(present)
        return list(found) if isinstance(found, list | tuple) else found
    if get_origin(annotation) is dict:
        return _names_as_options(present or {})
    return {} if present is None else present


# -------------------------------------------------------------------------------------------------------- YAML as text

_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")


class _GivenTwice(yaml.MarkedYAMLError):
    """A key that a mapping has twice: YAML all right, but one of the two would be lost."""


class _TextLoader(yaml.BaseLoader):
    """Reads every scalar as text, apart from null: what it means is decided by the type of its key.

    So ``no`` stays the name of a folder and ``1e-3`` is a number, which YAML 1.1, that PyYAML follows, has otherwise.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping, refused where a key comes twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise _GivenTwice(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_TextLoader.add_implicit_resolver("tag:yaml.org,2002:null", _NULL, [*"~nN", ""])
_TextLoader.add_constructor("tag:yaml.org,2002:null", lambda loader, node: None)


def _read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file, its scalars as text."""
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), _TextLoader)
    except FileNotFoundError:
        raise UserError(f"the config file {file} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the config file {file} cannot be read: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark, fault = error.problem_mark, "" if isinstance(error, _GivenTwice) else " is not YAML"
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"the config file {file}{fault}{line}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"the config file {file} is not YAML: {error}") from None
    if not isinstance(values, dict | None):
        raise UserError(f"the config file {file} must hold `key: value` lines, not {shown(values)}")
    return values or {}


def _free_values(value: Any) -> Any:
    """Give written values a type by their look (YAML 1.2), where no key of ours says what they are."""
    if isinstance(value, dict):
        return {key: _free_values(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_free_values(item) for item in value]
    if value in ("true", "false"):
        return value == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except (TypeError, ValueError):
            pass
    return value


# ------------------------------------------------------------------------------------------------------ keys, in words


@dataclass(frozen=True, slots=True)
class Key:
    """One key, as messages and docs show it.

    Attributes:
        name: dotted, e.g. ``data.flip``.
        expected: what a value must be, in words.
        default: the default as YAML; None where the key must be given.
        description: one sentence.
        example: a value, as YAML.
    """

    name: str
    expected: str
    default: str | None
    description: str
    example: str


def keys(cls: type[Section], prefix: str = "") -> Iterator[Key]:
    """Every key of a config in the order of the file, sections opened."""
    for name, field in cls.model_fields.items():
        if section := _section(field.annotation):
            yield from keys(section, f"{prefix}{name}.")
            continue
        default = None if field.is_required() else _as_yaml(field.default)
        example = _as_yaml(field.examples[0] if field.examples else field.default)
        yield Key(f"{prefix}{name}", _expected(field), default, field.description or "", example)


def commented_yaml(cls: type[TrainConfig]) -> str:
    """A file with every key, its meaning and its default; it loads as it is."""
    required = ", ".join(key.name for key in keys(cls) if key.default is None)
    lines = [
        f"# Every key and its default; set at least {required}.",
        "# The command line takes the same keys, dotted: data.flip=0",
        "",
    ]
    section = ""
    for key in keys(cls):
        parent, _, name = key.name.rpartition(".")
        indent = "  " if parent else ""
        if parent != section:
            section = parent
            lines += ["", *([f"# {cls.model_fields[parent].description}", f"{parent}:"] if parent else [])]
        meaning = f"{key.description} ({key.expected})"
        lines += textwrap.wrap(meaning, 100, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        lines += [f"{indent}{name}: {key.example if key.default is None else key.default}"]
    return "\n".join(lines) + "\n"


def _as_yaml(value: Any) -> str:
    """A value in one line of YAML."""
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


def _field_at(cls: type[Section], path: Sequence[str | int]) -> FieldInfo | None:
    """The field that a path leads to, or None where it leads below a field, or nowhere."""
    section: type[Section] | None = cls
    field = None
    for key in path:
        field = section.model_fields.get(str(key)) if section else None
        section = _section(field.annotation) if field else None
    return field


def _type_at(cls: type[Section], path: Sequence[str | int]) -> Any:
    """The type that is declared for a path; None where it leads nowhere."""
    field = _field_at(cls, path)
    return field.annotation if field else None


def _section(annotation: Any) -> type[Section] | None:
    """The type, if it is a section."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _first_key(cls: type[Section], path: tuple[str, ...]) -> tuple[str, ...]:
    """The path, or of a section the path of its first key."""
    section = _section(_type_at(cls, path))
    return (*path, next(iter(section.model_fields))) if section else path


def _expected(field: FieldInfo) -> str:
    """What the value of a key must be, in words."""
    limits = [mark for mark in field.metadata if not isinstance(mark, _Nullable)]
    return expected(field.annotation, limits) + (" or null" if len(limits) < len(field.metadata) else "")


def _is_text(annotation: Any) -> bool:
    """Whether a value of this type is taken to the letter."""
    if get_origin(annotation) in (Union, types.UnionType):
        return all(_is_text(part) or part is types.NoneType for part in get_args(annotation))
    if get_origin(annotation) is Literal:
        return all(isinstance(name, str) for name in get_args(annotation))
    if get_origin(annotation) is Annotated:
        return _is_text(get_args(annotation)[0])
    return annotation in (str, Path)


# ---------------------------------------------------------------------------------------------------- faults, in words


def _in_plain_words(cls: type[Section], values: dict[str, Any], error: ValidationError) -> list[str]:
    """One sentence for every key that is at fault."""
    faults = {}
    for detail in error.errors(include_url=False):
        location = detail["loc"]
        if detail["type"] == "extra_forbidden":
            faults[location] = _unknown(cls, [str(part) for part in location])
        elif detail["type"] == "missing":
            for key in _missing(cls, ".".join(map(str, location))):
                faults[key.name] = f"{key.name}: missing; expected {key.expected}, e.g. {key.name}={key.example}"
        else:
            path = _up_to_a_key(cls, location)
            about = ".".join(path), _expected_at(cls, path), _value_at(values, path), _type_at(cls, path)
            faults[path] = mismatch(*about) + _not_one_each(cls, path, values)
    return list(faults.values())


def _missing(cls: type[Section], name: str) -> list[Key]:
    """The required keys at or below a name."""
    return [key for key in keys(cls) if key.default is None and (key.name == name or key.name.startswith(f"{name}."))]


def _up_to_a_key(cls: type[Section], location: tuple[str | int, ...]) -> tuple[str, ...]:
    """The key that pydantic's location lies in or below: without list places and the branches of a choice of types."""
    depth = 1
    while depth < len(location) and _section(_type_at(cls, location[:depth])):
        depth += 1
    if get_origin(_bare(_type_at(cls, location[:depth]))) is dict and location[-1] != "[key]":
        depth += 1  # the entry that is at fault
    return tuple(map(str, location[:depth]))


def _expected_at(cls: type[Section], path: Sequence[str]) -> str:
    field, owner = _field_at(cls, path), _bare(_type_at(cls, path[:-1]))
    if field is None:
        return expected(get_args(owner)[1]) if get_origin(owner) is dict else "a single value"
    if section := _section(field.annotation):
        return f"a section with the keys {', '.join(section.model_fields)}"
    return _expected(field)


def _value_at(values: Any, path: Sequence[str]) -> Any:
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _not_one_each(cls: type[Section], path: Sequence[str], values: dict[str, Any]) -> str:
    """What is no name in a list of names, or is there twice, where each may have one set of options."""
    value = _value_at(values, path)
    if get_origin(_bare(_type_at(cls, path))) is not dict or not isinstance(value, list | tuple):
        return ""
    if others := [entry for entry in value if not isinstance(entry, str)]:
        return f"; {shown(others[0])} is no name; options are given by {path[0]}={{NAME: {{OPTION: VALUE}}, ...}}"
    twice = _repeated(value)
    return f"; {', '.join(twice)} is given twice: once is enough, with {path[0]}.{twice[0]}.OPTION=..." if twice else ""


def _unknown(cls: type[Section], path: Sequence[str]) -> str:
    """An unknown key, and what it may have been."""
    name = ".".join(path)
    close = closest_key(cls, name)
    if close:
        return f"{name}: no such key; did you mean {close}?"
    if path[0] in DistillConfig.model_fields.keys() - cls.model_fields.keys():
        return f"{name}: a key of `understudy distill`, not of `understudy train`"
    owner = _type_at(cls, path[:-1]) if len(path) > 1 else cls
    where = f"the keys of {'.'.join(path[:-1])}" if len(path) > 1 else "the keys"
    return f"{name}: no such key; {where} are {', '.join(owner.model_fields)}"


def closest_key(cls: type[Section], name: str) -> str | None:
    """The key that a wrong one was probably meant to be: the same section first, then the same last part anywhere."""
    names = [key.name for key in keys(cls)] + [
        name for name, field in cls.model_fields.items() if _section(field.annotation)
    ]
    by_last_part = {known.rpartition(".")[2]: known for known in reversed(names)}
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
    if close:
        return close[0]
    close = difflib.get_close_matches(name.rpartition(".")[2], by_last_part, n=1, cutoff=0.75)
    return by_last_part[close[0]] if close else None


def _not_key_value(cls: type[Section], argument: str) -> str:
    """A word on the command line that is no override, and what it may have been."""
    word = re.split(r"[=:\s]", argument.lstrip("-").strip(), maxsplit=1)[0]
    close = closest_key(cls, word)
    key = next(key for key in keys(cls) if key.name.startswith(close or "data.flip"))
    if argument.startswith("-"):
        return f'"{argument}": no such option (see --help); keys have no dashes, e.g. {key.name}={key.example}'
    return f'"{argument}": expected key=value, e.g. {key.name}={key.example}'


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
