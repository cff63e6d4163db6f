"""What a run would choose for data, teacher and machine, with reasons and without running anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from understudy.config import (
    LEFT_OPEN,
    DistillConfig,
    Source,
    TrainConfig,
    has,
    load_config,
    value_of,
)
from understudy.config.describing import all_keys
from understudy.config.yaml_text import read_config
from understudy.data import shown_location
from understudy.errors import UserError
from understudy.text import as_yaml, wrapped
from understudy.training.assembly import resolve_config
from understudy.training.cost import Cost
from understudy.training.defaults import Derived, derive
from understudy.training.run import using_threads
from understudy.training.sources import Sources
from understudy.training.trainer import make_trainer

NO_RUN = "run"
"""A run folder for a config that is not run."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """The complete config of a run, and why its values are what they are.

    Attributes:
        config: the config, without a run folder of its own.
        reasons: by key, for all keys that can be left open and have a meaning here.
        cost: what the run takes; None: it could not be estimated.
        warning: of a run that does not fit into the memory, or why there is no estimate; else empty.
        advice: how a run of many hours takes less time; else empty.
    """

    config: TrainConfig
    reasons: Mapping[str, str]
    cost: Cost | None
    warning: str
    advice: str = ""

    @classmethod
    def of(cls, config: TrainConfig, derived: Derived) -> "Suggestion":
        """Describe how a config was completed."""
        chosen = {choice.key: choice.reason for choice in derived.choices}
        keys = {key: mark for key, mark in LEFT_OPEN.items() if has(config, key)}
        given = [key for key, mark in keys.items() if key not in chosen and value_of(config, key) != mark]
        reasons = {key: "given" if key in given else chosen.get(key, "") for key in keys}
        reasons = {key: reason for key, reason in reasons.items() if reason}
        return cls(derived.config, reasons, derived.cost, derived.warning or derived.why_not, derived.advice)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        config = self.config.model_dump(mode="json", exclude={"run"})
        rows = {key: {"value": value_of(self.config, key), "reason": reason} for key, reason in self.reasons.items()}
        return {
            "chosen": rows,
            "cost": self.cost.to_dict() if self.cost else None,
            "warning": self.warning or None,
            "advice": self.advice or None,
            "config": config,
        }

    def to_yaml(self) -> str:
        """Return the config as a file, with the reasons as comments; it lacks ``run``, and keys with their defaults."""
        kind = "distill" if isinstance(self.config, DistillConfig) else "train"
        lines, section = [f"# understudy {kind} --config FILE run=FOLDER"], ""
        for key, value in self._stated().items():
            parent, _, name = key.rpartition(".")
            lines += [f"{parent}:"] if parent and parent != section else []
            section, reason = parent, self.reasons.get(key, "given")
            comment = f"  # {reason}" if reason != "given" else ""
            lines.append(f"{'  ' if parent else ''}{name}: {value}{comment}")
        return "\n".join(lines) + "\n"

    def _stated(self) -> dict[str, str]:
        """Return the values, as YAML, without which a config file would describe another run, by dotted key."""
        values, found = self.config.model_dump(mode="json"), {}
        for key in all_keys(type(self.config)):
            section, _, name = key.name.rpartition(".")
            value = as_yaml((values[section] if section else values)[name])
            told = key.name in self.reasons or key.name == "detector.name"
            # A recipe in the file would replace defaults, so beside one all keys are stated.
            if key.name != "run" and (told or self.config.recipe or value != key.default):
                found[key.name] = value
        return found

    def __rich__(self) -> Group:
        """Return a row for each key, then the estimate."""
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("Value", overflow="fold")
        table.add_column("Reason", overflow="fold", min_width=30)
        for key, reason in self.reasons.items():
            table.add_row(Text(f"{key}={as_yaml(value_of(self.config, key))}"), Text(reason))
        estimate = f"Estimate: {self.cost}" if self.cost else ""
        lines = [line for line in (estimate, self.warning, self.advice) if line]
        title = f"{self.config.detector.name} on {self._where()}. To change a value, add it: KEY=VALUE"
        return Group(Text(wrapped(title)), "", table, "", *(Text(wrapped(line)) for line in lines))

    def _where(self) -> str:
        teacher = f", teacher {self.config.teacher}" if isinstance(self.config, DistillConfig) else ""
        return f"{shown_location(self.config.data.path)}{teacher}"


def suggest(source: Source, overrides: Sequence[str] | Mapping[str, Any]) -> Suggestion:
    """Return what a run with these values would choose; it has a teacher if they name one.

    Args:
        source: as of :func:`.load_config`; ``run`` is not needed.
        overrides: likewise.

    Raises:
        UserError: as the run itself would, apart from weights that cannot be downloaded: nothing is downloaded.
    """
    keys = set(overrides) if isinstance(overrides, Mapping) else {text.partition("=")[0] for text in overrides}
    kind = DistillConfig if "teacher" in keys | _keys(source) else TrainConfig
    given = overrides
    if "run" not in keys:
        given = {"run": NO_RUN, **overrides} if isinstance(overrides, Mapping) else [f"run={NO_RUN}", *overrides]
    config = resolve_config(load_config(kind, source, given))
    with using_threads(config.threads):
        derived = derive(config, Sources.of(config), make_trainer(config, Path(NO_RUN)))
    if isinstance(derived.failure, UserError):
        raise derived.failure
    return Suggestion.of(config, derived)


def _keys(source: Source) -> set[str]:
    if isinstance(source, TrainConfig):
        return set(type(source).model_fields)
    return set(read_config(Path(source)) if isinstance(source, str | Path) else source or {})
