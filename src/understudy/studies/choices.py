"""What a study leaves open and its runs must agree on: chosen once, with the data, a row and its teacher."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from understudy.config import TrainConfig, open_keys, value_of, with_values
from understudy.errors import UserError
from understudy.studies.rows import StudyRow
from understudy.training.assembly import resolve_config
from understudy.training.defaults import SHARED_CHOICES, derive
from understudy.training.sources import Sources
from understudy.training.trainer import make_trainer

ANCHORS = "detector.anchor_scale"
"""Shared by the rows with the detector of the study: with other anchors, they would train another detector."""


def deciding_row(rows: Sequence[tuple[str, StudyRow, Path]]) -> tuple[str, StudyRow, Path]:
    """Return the row whose values all rows get: the last that needs the anchors of its teacher, or else the last."""
    alike = [each for each in rows if not each[1].own_detector] or rows
    return ([each for each in alike if not each[1].any_anchors] or alike)[-1]


def chosen_for(
    config: TrainConfig, steps: int | None, epochs: int | None, known: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Return what is chosen for all runs, by key; None if nothing is left open, or the row cannot be trained.

    Args:
        config: of the deciding row.
        steps: of each run; None: the config decides.
        epochs: of a budget in time; None: the config decides.
        known: what was chosen before. Its anchors are kept, since runs were trained with them.
    """
    keys = {*SHARED_CHOICES} if known is not None else {*SHARED_CHOICES, ANCHORS}
    if not keys.intersection(open_keys(config)):
        return None
    with contextlib.suppress(UserError):  # each row raises it again
        config = resolve_config(config)
        sources, trainer = Sources.of(config), make_trainer(config, config.run)
        derived = derive(config, sources, trainer, measure=False)
        if steps is not None:
            epochs = max(1, round(steps * derived.config.batch_size / len(sources.train)))
        if epochs is not None:  # they decide how often an image is seen
            derived = derive(with_values(config, {"schedule.epochs": epochs}), sources, trainer, measure=False)
        kept = {key: value for key, value in (known or {}).items() if key == ANCHORS}
        return {key: value_of(derived.config, key) for key in sorted(keys)} | kept
    return None


def shared_with(row: StudyRow, chosen: dict[str, Any], teachers: int) -> dict[str, Any]:
    """Return what a row gets of it; with several teachers, a row that needs its own one's anchors has those."""
    with_anchors = not row.own_detector and (row.any_anchors or teachers == 1)
    return {key: value for key, value in chosen.items() if key != ANCHORS or with_anchors}
