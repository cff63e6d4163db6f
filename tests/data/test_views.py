"""Random views: pixels and boxes agree, the seed alone decides, and a number of variants repeats them."""

from dataclasses import replace

import pytest
import torch
from torchvision.transforms.v2 import functional

from understudy.data import Augmentation, DetectionData, Record, training_loader
from understudy.data.views import GROUND, View

OPTIONS = {"batch_size": 2, "shorter_side": [48], "longer_side": 70, "flip": 0.5, "seed": 3}


def picture(*boxes: tuple[int, int, int, int], size=(60, 80)) -> torch.Tensor:
    """A black image with white boxes."""
    values = torch.zeros(*size, 3, dtype=torch.uint8)
    for x1, y1, x2, y2 in boxes:
        values[y1:y2, x1:x2] = 255
    return values


def seen(image: torch.Tensor) -> list[int]:
    """The box of what is white."""
    ys, xs = (image.mean(0) > 0.75).nonzero().unbind(1)
    return [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("window", [None, (10, 20, 30, 40), (-30, -20, 120, 160), (-40, 10, 120, 160)])
def test_boxes_are_where_the_object_is(window, flipped):
    """The window is enlarged, reduced, and beyond two or four borders of the image."""
    view = View((120, 160), flipped, window)
    image = view.image(picture((30, 20, 44, 34)))
    boxes, shown = view.boxes(torch.tensor([[30.0, 20, 44, 34]]), (60, 80))
    assert image.shape == (3, 120, 160)
    assert shown.tolist() == [True]
    assert seen(image) == pytest.approx(boxes[0].tolist(), abs=1.5)
    larger = view.enlarged(2).image(picture((30, 20, 44, 34)))
    assert seen(larger) == pytest.approx((2 * boxes[0]).tolist(), abs=2.5)


def test_boxes_of_a_window_by_hand():
    """Twice as large; one object is cut, one has its centre on the border, one outside."""
    view = View((60, 80), window=(10, 20, 30, 40))
    boxes = torch.tensor([[30.0, 15, 40, 25], [55, 20, 62, 30], [15, 20, 25, 30], [0, 0, 30, 12]])
    found, shown = view.boxes(boxes, (60, 80))
    assert shown.tolist() == [True, True, True, False]
    assert found[:3].tolist() == [[20, 10, 40, 30], [70, 20, 80, 40], [0, 20, 10, 40]]


def test_what_is_beyond_the_image_is_grey():
    view = View((60, 80), window=(-30, 0, 120, 160))  # the image at half its size, at the left, in the middle
    image = view.image(picture(size=(60, 80)))
    assert image[:, 15:45, :40].abs().max() == 0
    assert (image[:, :15] == GROUND).all()
    assert (image[:, 45:] == GROUND).all()
    assert (image[:, :, 40:] == GROUND).all()


def test_colours_change_as_torchvision_changes_them():
    values = torch.randint(0, 256, (20, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = View((20, 30)).image(values)
    expected = functional.adjust_contrast(functional.adjust_brightness(image, 1.1), 0.6)
    expected = functional.adjust_hue(functional.adjust_saturation(expected, 1.4), -0.03)
    torch.testing.assert_close(View((20, 30), colours=(1.1, 0.6, 1.4, -0.03)).image(values), expected)
    assert torch.equal(View((20, 30), colours=(1.0, 1.0, 1.0, 0.0)).image(values), image)


def test_draws_stay_in_their_ranges_and_keep_an_object():
    random, boxes = torch.Generator().manual_seed(0), torch.tensor([[2.0, 3, 6, 9], [70, 50, 78, 58]])
    augmentation = Augmentation(colour=0.5, scale=3.0)
    factors, corners = [], set()
    for _ in range(300):
        window = augmentation.window((60, 80), boxes, random)
        top, left, height, width = window
        factors.append(60 / height)
        assert width == round(80 / (60 / height)) or abs(width * 60 - height * 80) <= 80
        if height < 60:
            assert 0 <= top <= 60 - height
            assert 0 <= left <= 80 - width
            shown = View((60, 80), window=window).boxes(boxes, (60, 80))[1]
            assert shown.any()
            corners.add(tuple(shown.tolist()))
        elif height > 60:
            assert 60 - height <= top <= 0
        colours = augmentation.colours(random)
        assert all(abs(value - 1) <= most for value, most in zip(colours, (0.0625, 0.25, 0.25), strict=False))
        assert abs(colours[3]) <= 0.025
    assert 1 / 3.2 < min(factors) < 0.4
    assert 2.5 < max(factors) < 3.2
    assert 0.4 < sum(factor > 1 for factor in factors) / 300 < 0.6
    assert {(True, False), (False, True)} <= corners


def views(data: DetectionData, epoch: int, **options) -> dict[int, View]:
    """The view of each image of an epoch, which leaves out one of the seven."""
    loader = training_loader(data, **OPTIONS, **options)
    loader.sampler.set_epoch(epoch)
    return {
        number: pixels.view for batch in loader for number, pixels in zip(batch.image_ids, batch.drawn, strict=True)
    }


def agree(one: dict[int, View], other: dict[int, View]) -> bool:
    return all(one[key] == other[key] for key in one.keys() & other.keys())


def test_without_augmentation_views_are_flips_alone(data):
    assert all(view == replace(view, window=None, colours=None) for view in views(data, 0).values())


def test_the_seed_and_the_epoch_decide_the_views(data):
    strong = {"augmentation": Augmentation(colour=1.0, scale=2.0)}
    assert views(data, 1, **strong) == views(data, 1, **strong) == views(data, 1, **strong, workers=1)
    assert views(data, 1, **strong) != views(data, 2, **strong)
    plain, varied = views(data, 1), views(data, 1, **strong)
    assert all((varied[key].size, varied[key].flipped) == (view.size, view.flipped) for key, view in plain.items())


def test_variants_come_again(data):
    few = {"augmentation": Augmentation(colour=1.0, scale=2.0, variants=3)}
    assert not agree(views(data, 0, **few), views(data, 1, **few))
    assert agree(views(data, 1, **few), views(data, 4, **few))
    assert views(data, 1, **few) == views(data, 1, augmentation=Augmentation(1.0, 2.0))


def test_an_image_without_objects_has_views_too(data):
    records = [Record.without_objects(each.image_id, each.path, (each.width, each.height)) for each in data.records]
    found = views(replace(data, records=records), 0, augmentation=Augmentation(scale=2.0))
    assert len({view.window for view in found.values()}) == len(found)


def test_a_teacher_sees_the_same_views_in_a_larger_size(data):
    """The student's images are what they are without such a teacher."""
    strong = {"augmentation": Augmentation(colour=1.0, scale=2.0)}
    loaders = (training_loader(data, **OPTIONS, **strong, teacher_scale=scale) for scale in (1, 2))
    for plain, batch in zip(*loaders, strict=True):
        moved = batch.to("cpu")
        height, width = plain.images.shape[-2:]
        for each in (batch, moved):
            assert torch.equal(each.images, plain.images)
            assert each.images_of_teacher().shape == (2, 3, 2 * height, 2 * width)
            assert each.sizes_of_teacher() == [(2 * high, 2 * wide) for high, wide in plain.image_sizes]
            assert torch.equal(each.images_of_teacher([1]), moved.images_of_teacher()[1:])
        assert torch.equal(plain.images_of_teacher([1]), plain.images[1:])
