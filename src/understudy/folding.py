"""What a teacher says on levels that are finer than the student's, in the cells of the student's finest level.

A teacher of larger images assigns small objects to levels that its student lacks. On the level that both have it calls
them background, which would teach the student not to see them.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from understudy.boxes import decode
from understudy.outputs import Outputs, Spec, anchors_per_level


def folded(
    outputs: Outputs, spec: Spec, level: int, finer: Sequence[int], labels: Sequence[int] | None = None
) -> Outputs:
    """Let each cell of a level say what its most confident part says: the cell itself, or one of a finer level in it.

    The part with the highest class score gives class scores, features, further outputs and the decoded box. The raw box
    outputs stay those of the cell, since they are relative to its centre.

    Args:
        outputs: a whole record with class scores; ``features``, ``box_raw`` and ``extra`` may be absent.
        spec: of the detector that computed it.
        level: position of the level.
        finer: positions of levels whose cells are parts of its cells.
        labels: of the classes whose scores decide; None: all.

    Returns:
        The same record, in which the finer levels are as they were.
    """
    parts = [*finer, level]
    size = (outputs.class_logits[level].shape[1], outputs.class_logits[level].shape[2])
    logits = [_in_cells(outputs.class_logits[part], size) for part in parts]
    deciding = logits if labels is None else [each[..., list(labels)] for each in logits]
    most = torch.cat([each.flatten(4).amax(-1) for each in deciding], dim=1).argmax(1, keepdim=True)

    def chosen(levels: Sequence[Tensor]) -> Tensor:
        return _gathered(torch.cat([_in_cells(each, size) for each in levels], dim=1), most)

    def with_level(levels: list[Tensor], value: Tensor) -> list[Tensor]:
        return [value if place == level else each for place, each in enumerate(levels)]

    features, boxes = outputs.features, decode(outputs, spec) if outputs.box_raw else []
    if features:
        features = with_level(features, chosen([features[part].movedim(1, -1) for part in parts]).movedim(-1, 1))
    if boxes:
        boxes = with_level(boxes, chosen([boxes[part] for part in parts]))
    counts, extra = anchors_per_level(outputs), dict(outputs.extra)
    for name, value in extra.items():
        if value.shape[1:2] == (sum(counts),):
            flat = list(value.split(counts, dim=1))
            cells = [flat[part].unflatten(1, outputs.anchors[part].shape[:3]) for part in parts]
            extra[name] = torch.cat(with_level(flat, chosen(cells).flatten(1, 3)), dim=1)
    class_logits = with_level(outputs.class_logits, _gathered(torch.cat(logits, dim=1), most))
    return replace(outputs, class_logits=class_logits, features=features, boxes=boxes, extra=extra)


def _in_cells(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Sort what a level says (N, h, w, ...) by the cells of another one: (N, parts, H, W, ...).

    Parts beyond the level's own border repeat its last row and column.
    """
    rows, columns = (-(-have // want) for have, want in zip(values.shape[1:3], size, strict=True))
    row, column = (
        torch.arange(count * want, device=values.device).clamp(max=have - 1)
        for count, want, have in zip((rows, columns), size, values.shape[1:3], strict=True)
    )
    values = values[:, row][:, :, column] if (len(row), len(column)) != values.shape[1:3] else values
    cells = values.unflatten(2, (size[1], columns)).unflatten(1, (size[0], rows))
    return cells.movedim((2, 4), (1, 2)).flatten(1, 2)


def _gathered(parts: Tensor, most: Tensor) -> Tensor:
    """Select a part (N, parts, H, W, ...) of each cell by its number (N, 1, H, W): (N, H, W, ...)."""
    number = most.view(*most.shape, *[1] * (parts.dim() - 4)).expand(-1, -1, -1, -1, *parts.shape[4:])
    return parts.gather(1, number).squeeze(1)
