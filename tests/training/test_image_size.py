"""The size of images in training: their own, unless they are large."""

import pytest
from data_sets import squares

from understudy.training.image_size import ImageSize, longest


@pytest.mark.parametrize(
    ("size", "box", "device", "side"),
    [
        ((320, 240), 50.0, "cpu", 240),  # never enlarged
        ((320, 240), 5.0, "cuda", 240),
        ((240, 320), 50.0, "cuda", 240),
        ((4000, 3000), 1000.0, "cuda", 800),
        ((4000, 3000), 1000.0, "cpu", 320),
        ((4000, 3000), 120.0, "cpu", 400),  # 12.8 pixels at 320
        ((4000, 3000), 20.0, "cpu", 480),  # not more than half as large again
        ((4000, 3000), 20.0, "cuda", 1200),
        ((500, 375), 12.0, "cpu", 375),  # nor than the images
        ((40, 30), 9.0, "cpu", 64),
    ],
)
def test_the_size_and_its_reason(size, box, device, side):
    found = ImageSize.of(squares(box, count=3, size=size), device)
    assert found.shorter_side == side
    assert f"{size[0]} x {size[1]} pixels" in found.reason


def test_images_without_boxes_have_a_size_too():
    data = squares(8.0, count=1, size=(4000, 3000))
    data.records.ignore.fill_(True)
    assert ImageSize.of(data, "cpu").shorter_side == 320


def test_the_longer_side_is_the_usual_ratio():
    assert [longest(side) for side in (800, 480, 240)] == [1333, 800, 400]
