"""A batch of images with their objects, resized and padded on the device that reads it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from understudy.data import transforms
from understudy.data.views import View


@dataclass(slots=True)
class Pixels:
    """An image as it was decoded, and what is still to be done with it.

    Attributes:
        values: as from `load_pixels`.
        view: what is shown of it, and how.
    """

    values: Tensor
    view: View

    def to_image(self, scale: int = 1) -> Tensor:
        """Return the image (3, h, w) float32 in 0..1, or one so many times as large, on the device of the pixels."""
        return self.view.enlarged(scale).image(self.values)


@dataclass(slots=True)
class Batch:
    """N images of one step with their objects.

    A loader decodes images, and leaves the rest to the device that the batch is moved to: the bytes of an image file of
    640 x 480 pixels are an eleventh of the floats of the image resized to 800.

    Attributes:
        drawn: the images, or what they are made from; see `images`.
        targets: for each image "boxes" (M, 4) float32, xyxy in pixels of the padded batch, clipped to the image, and
            "labels" (M,) int64; without objects to ignore.
        image_sizes: (h, w) of each image in the batch, without the padding.
        original_sizes: (h, w) of each image file.
        image_ids: the data set's own ids.
        labelled: which images have ground truth. These come first; the targets of the others are empty.
        keys: of the images in a cache of the teacher's outputs; empty without one.
        teacher_scale: how many times as large the teacher sees the images.
        undrawn: what the teacher's images are made from, if it sees larger ones.
    """

    drawn: Tensor | list[Pixels]
    targets: list[dict[str, Tensor]]
    image_sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]
    image_ids: list[int]
    labelled: list[bool]
    keys: tuple[str, ...] = ()
    teacher_scale: int = 1
    undrawn: list[Pixels] = field(default_factory=list)

    @property
    def images(self) -> Tensor:
        """(N, 3, H, W) float32 in 0..1, padded with zeros at the bottom and right to a multiple of 32."""
        if not isinstance(self.drawn, Tensor):
            self.drawn = transforms.pad_to_batch([pixels.to_image() for pixels in self.drawn])
        return self.drawn

    def images_of_teacher(self, chosen: Sequence[int] | None = None) -> Tensor:
        """Return the images as the teacher sees them, all or some: (N, 3, H, W), or as many times as large."""
        if self.teacher_scale == 1:
            return self.images if chosen is None else self.images[chosen]
        sources = self.undrawn if chosen is None else [self.undrawn[number] for number in chosen]
        height, width = (side * self.teacher_scale for side in self.images.shape[-2:])
        return transforms.pad_to([pixels.to_image(self.teacher_scale) for pixels in sources], (height, width))

    def sizes_of_teacher(self, chosen: Sequence[int] | None = None) -> list[tuple[int, int]]:
        """Return the height and width of these images without the padding."""
        sizes = self.image_sizes if chosen is None else [self.image_sizes[number] for number in chosen]
        return [(height * self.teacher_scale, width * self.teacher_scale) for height, width in sizes]

    def to(self, device: torch.device | str) -> Self:
        """Return the batch with its tensors on another device, where its images are resized."""
        device = torch.device(device)
        # A copy to the host without waiting would return tensors that are not filled yet.
        wait_free = device.type == "cuda"
        moved = self._replaced(lambda tensor: tensor.to(device, non_blocking=wait_free))
        moved.drawn = moved.images
        return moved

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory; the loader calls this if there is a GPU."""
        return self._replaced(Tensor.pin_memory)

    def _replaced(self, change) -> Self:
        targets = [{name: change(value) for name, value in target.items()} for target in self.targets]
        undrawn = [replace(pixels, values=change(pixels.values)) for pixels in self.undrawn]
        if isinstance(self.drawn, Tensor):
            return replace(self, drawn=change(self.drawn), targets=targets, undrawn=undrawn)
        drawn = undrawn or [replace(pixels, values=change(pixels.values)) for pixels in self.drawn]  # the same values
        return replace(self, drawn=drawn, targets=targets, undrawn=undrawn)
