"""Unique names of the rows of a comparison: what tells rows of the same name apart is added to it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from understudy.compare.runs import Run
from understudy.config import DistillConfig, flat
from understudy.text import as_yaml

LONGEST = 24
"""Most characters of a value in a name."""

_NEVER = ("run", "seed", "data.path", "data.workers", "accelerator", "log_every", "teacher_check")


def distinct_names(names: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """Return unique names of rows.

    Rows of one name are told apart by the detector, the teacher's name, one key of the config, or two, whichever is the
    first that has another value in each of them; otherwise by their folders.

    Args:
        names: of the rows.
        runs: the first run of each row.
    """
    unique = list(names)
    for name in {name for name in names if names.count(name) > 1}:
        places = [place for place, other in enumerate(names) if other == name]
        added = _told_apart([runs[place] for place in places])
        for place, words in zip(places, added, strict=True):
            unique[place] = f"{name}{words}"
    return unique


def _told_apart(runs: Sequence[Run]) -> list[str]:
    """Return what is added to the name of each run."""
    settings = [_settings(run) for run in runs]
    keys = [
        key
        for key in dict.fromkeys(key for each in settings for key in each)
        if len({str(each.get(key)) for each in settings}) > 1
    ]
    words = {key: [_words(key, each, keys) for each in settings] for key in keys}
    short = [key for key in keys if all(len(word) <= LONGEST + len(key) for word in words[key])]
    choices = [[key] for key in short] + [[one, other] for one in short for other in short if one != other]
    for chosen in choices:
        added = [", ".join(["", *parts]) for parts in zip(*(words[key] for key in chosen), strict=True)]
        if len(set(added)) == len(runs):
            return added
    folders = [run.folder.resolve() for run in runs]
    by_name = len({folder.name for folder in folders}) == len(folders)
    return [f": {folder.name if by_name else folder}" for folder in folders]


def _settings(run: Run) -> dict[str, Any]:
    """Return the keys of a run that may stand in its name, in the order in which they are tried."""
    values = flat(run.config.model_dump(mode="json", exclude={"detector": {"name"}, "teacher": True}))
    if run.kind != "run":
        values = {}  # a checkpoint's name says more
    teacher = {"teacher": _name_of(run.config.teacher)} if isinstance(run.config, DistillConfig) else {}
    return {"detector": run.config.detector.name, **teacher, **{k: v for k, v in values.items() if k not in _NEVER}}


def _name_of(teacher: Path) -> str:
    return teacher.parent.name if teacher.name in ("best.ckpt", "last.ckpt") else teacher.name


def _words(key: str, settings: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Write a key and its value: the key without its section if no other of these keys ends like it."""
    if key == "detector":
        return settings[key]
    section, _, last = key.rpartition(".")
    shown = key if sum(other.rpartition(".")[2] == last for other in keys) > 1 else section if last == "name" else last
    return f"{shown}={as_yaml(settings.get(key))}"
