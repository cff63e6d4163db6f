"""Random views of training images, by colour and scale: the same pixels for teacher and student, and boxes to match."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from understudy.data import transforms
from understudy.data.images import as_floats

GROUND = 0.5
"""What surrounds an image that is reduced: grey, near the mean of photos."""

RANGES = {"brightness": 0.125, "contrast": 0.5, "saturation": 0.5, "hue": 0.05}
"""Largest changes of colour at strength 1, those of SSD: of the first three relative, of the hue in turns."""

Colours = tuple[float, float, float, float]
"""Factors of brightness, contrast and saturation, and the turn of the hue."""


@dataclass(frozen=True, slots=True)
class View:
    """What of an image is shown, and how.

    Attributes:
        size: (h, w) of the result.
        flipped: whether it is mirrored, after everything else.
        window: (top, left, height, width) of what is shown, in pixels of the file; it may go beyond the image. None:
            the image.
        colours: None: as they are.
    """

    size: tuple[int, int]
    flipped: bool = False
    window: tuple[int, int, int, int] | None = None
    colours: Colours | None = None

    def enlarged(self, scale: int) -> "View":
        """Return the same view of a size that is so many times as large."""
        return replace(self, size=(self.size[0] * scale, self.size[1] * scale)) if scale > 1 else self

    def image(self, values: Tensor) -> Tensor:
        """Return the image (3, h, w) float32 in 0..1 from decoded pixels, on their device."""
        (top, bottom), (left, right) = self._shown(values.shape[:2])
        (begin, end), (start, stop) = self._placed(values.shape[:2])
        shown = transforms.resize(as_floats(values[top:bottom, left:right]), (end - begin, stop - start))
        if self.colours:
            shown = _recoloured(shown, self.colours)
        if shown.shape[1:] != self.size:
            ground = shown.new_full((3, *self.size), GROUND)
            ground[:, begin:end, start:stop] = shown
            shown = ground
        return shown.flip(-1) if self.flipped else shown

    def boxes(self, boxes: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the boxes (M, 4) xyxy of an image where they are shown, clipped, and which are (M,).

        An object is shown if its centre is.
        """
        (top, bottom), (left, right) = self._shown(image_size)
        x, y = (boxes[:, :2] + boxes[:, 2:]).unbind(1)
        shown = (x >= 2 * left) & (x <= 2 * right) & (y >= 2 * top) & (y <= 2 * bottom)
        boxes = transforms.clip_boxes(boxes - boxes.new_tensor([left, top, left, top]), (bottom - top, right - left))
        (begin, end), (start, stop) = self._placed(image_size)
        boxes = transforms.scale_boxes(boxes, (bottom - top, right - left), (end - begin, stop - start))
        boxes = boxes + boxes.new_tensor([start, begin, start, begin])
        return transforms.flip_boxes(boxes, self.size[1]) if self.flipped else boxes, shown

    def _shown(self, image_size: Sequence[int]) -> list[tuple[int, int]]:
        """Return the rows and the columns of the file that are shown."""
        if self.window is None:
            return [(0, image_size[0]), (0, image_size[1])]
        offsets, lengths = self.window[:2], self.window[2:]
        parts = zip(offsets, lengths, image_size, strict=True)
        return [(max(0, offset), min(side, offset + length)) for offset, length, side in parts]

    def _placed(self, image_size: Sequence[int]) -> list[tuple[int, int]]:
        """Return the rows and the columns of the result at which they are shown; at least one of each."""
        if self.window is None:
            return [(0, self.size[0]), (0, self.size[1])]
        found = []
        for axis, (begin, end) in enumerate(self._shown(image_size)):
            offset, factor = self.window[axis], self.size[axis] / self.window[axis + 2]
            first = min(round((begin - offset) * factor), self.size[axis] - 1)
            found.append((first, max(round((end - offset) * factor), first + 1)))
        return found


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How the views of training images vary, apart from their size and the flip.

    Attributes:
        colour: strength of the changes of colour, 0..1; each of them has a probability of 0.5.
        scale: largest enlargement and reduction of an image; factors between them are drawn evenly on a logarithmic
            scale. 1: none.
        variants: number of views of an image, which are shown one epoch after the other; None: always new ones.
    """

    colour: float = 0.0
    scale: float = 1.0
    variants: int | None = None

    def turn(self, epoch: int) -> int:
        """Return the number of the view of an epoch."""
        return epoch % self.variants if self.variants else epoch

    def window(self, size: tuple[int, int], boxes: Tensor, random: torch.Generator) -> tuple[int, int, int, int] | None:
        """Draw what is shown of an image of a size (h, w): if it is enlarged, with the centre of one of the boxes."""
        if self.scale == 1:
            return None
        factor = self.scale ** float(2 * torch.rand((), generator=random) - 1)
        height, width = (max(1, round(side / factor)) for side in size)
        number = int(torch.randint(max(1, len(boxes)), (), generator=random))
        centre = ((boxes[number, :2] + boxes[number, 2:]) / 2).flip(0).tolist() if len(boxes) else None
        offsets = []
        for axis, length in enumerate((height, width)):
            low, high = sorted((0, size[axis] - length))
            if centre and factor > 1:
                low = max(low, math.ceil(centre[axis]) - length)
                high = max(low, min(high, math.floor(centre[axis])))
            offsets.append(int(torch.randint(low, high + 1, (), generator=random)))
        return offsets[0], offsets[1], height, width

    def colours(self, random: torch.Generator) -> Colours | None:
        """Draw changes of colour."""
        if not self.colour:
            return None
        drawn = torch.rand(2, len(RANGES), generator=random)
        changed = (2 * drawn[0] - 1) * (drawn[1] < 0.5) * self.colour * torch.tensor(list(RANGES.values()))
        brightness, contrast, saturation, hue = changed.tolist()
        return 1 + brightness, 1 + contrast, 1 + saturation, hue


PLAIN = Augmentation()


def _recoloured(image: Tensor, colours: Colours) -> Tensor:
    from torchvision.transforms.v2 import functional  # imports much, which a run without it does not need

    changes = functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation
    for change, factor in zip(changes, colours, strict=False):
        image = change(image, factor) if factor != 1 else image
    return functional.adjust_hue(image, colours[3]) if colours[3] else image
