"""Lists of all keys, for messages, docs and ``understudy config``."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from understudy.config.keys import Section, TrainConfig
from understudy.config.paths import as_section, expected_of
from understudy.text import as_yaml


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a config.

    Attributes:
        name: dotted, e.g. ``data.flip``.
        expected: the allowed values in words.
        default: the default as YAML; None for a required key.
        description: one sentence.
        example: a value as YAML.
    """

    name: str
    expected: str
    default: str | None
    description: str
    example: str


def all_keys(cls: type[Section], prefix: str = "") -> Iterator[Key]:
    """Yield every key of a config, including those of its sections, in the order of the file."""
    for name, field in cls.model_fields.items():
        if section := as_section(field.annotation):
            yield from all_keys(section, f"{prefix}{name}.")
            continue
        default = None if field.is_required() else as_yaml(field.default)
        example = as_yaml(field.examples[0] if field.examples else field.default)
        yield Key(f"{prefix}{name}", expected_of(field), default, field.description or "", example)


def commented_yaml(cls: type[TrainConfig]) -> str:
    """Write a config file with every key, its description and its default; examples stand for required keys."""
    required = ", ".join(key.name for key in all_keys(cls) if key.default is None)
    lines = [
        f"# All keys with their defaults. Required: {required}.",
        "# On the command line, write the same keys with dots: data.flip=0",
        "",
    ]
    section = ""
    for key in all_keys(cls):
        parent, _, name = key.name.rpartition(".")
        indent = "  " if parent else ""
        if parent != section:
            section = parent
            lines += ["", *([f"# {cls.model_fields[parent].description}", f"{parent}:"] if parent else [])]
        meaning = f"{key.description} ({key.expected})"
        lines += textwrap.wrap(meaning, 100, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        value = f"{indent}{name}: {key.example if key.default is None else key.default}"
        words = textwrap.TextWrapper(100, break_long_words=False, break_on_hyphens=False)
        words.subsequent_indent = f"{indent}  "
        lines += words.wrap(value)
    return "\n".join(lines) + "\n"
