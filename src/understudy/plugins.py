"""Detector families and methods of other installed packages, found by their entry points."""

import warnings
from importlib.metadata import entry_points
from typing import Any


def load_plugins(group: str, taken: dict[str, Any]) -> dict[str, Any]:
    """Load the objects that installed packages register under an entry point group, by name.

    A plugin that cannot be loaded, or whose name is taken, is left out with a warning: the rest must stay usable.

    Args:
        group: ``"understudy.detectors"`` (of :class:`~understudy.detectors.families.Family`) or
            ``"understudy.methods"`` (of subclasses of :class:`~understudy.methods.Method`).
        taken: names that exist already.
    """
    found: dict[str, Any] = {}
    for entry in entry_points(group=group):
        where = f"The plugin {entry.name} = {entry.value} ({group}"
        where += f", of the package {entry.dist.name})" if entry.dist else ")"
        if entry.name in taken or entry.name in found:
            warnings.warn(f"{where} is left out: the name {entry.name!r} is taken.", stacklevel=2)
            continue
        try:
            found[entry.name] = entry.load()
        except Exception as error:  # another package can raise anything while it is imported
            warnings.warn(f"{where} cannot be loaded: {type(error).__name__}: {error}", stacklevel=2)
    return found
