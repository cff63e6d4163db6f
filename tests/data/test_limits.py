"""Limits of a data set that are raised on purpose: files outside its folder, and large images."""

from pathlib import Path

import pytest
from data_sets import LAYOUTS, make, write_image
from PIL import Image

from understudy.data import LIMITS, Limits, check_data, load_image, open_data
from understudy.data.images import UnreadableImage
from understudy.errors import UserError

OUTSIDE = Limits(allow_outside=True)


@pytest.mark.parametrize("layout", ["coco flat", "voc", "yolo folders"])
def test_a_linked_folder_of_images_is_used_on_purpose_only(layout: str, tmp_path: Path) -> None:
    make(layout, tmp_path / "data")
    name = "JPEGImages" if layout == "voc" else "images"
    (tmp_path / "data" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"data\.allow_outside=true"):
        open_data(tmp_path / "data")
    assert all(record.path.is_file() for record in open_data(tmp_path / "data", limits=OUTSIDE).records)
    assert not check_data(tmp_path / "data").ok
    assert check_data(tmp_path / "data", limits=OUTSIDE).ok


def test_absolute_names_are_used_on_purpose_only(tmp_path: Path) -> None:
    write_image(tmp_path / "elsewhere" / "a.jpg")
    (tmp_path / "elsewhere" / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.txt").write_text(f"{tmp_path}/elsewhere/a.jpg\n")
    with pytest.raises(UserError, match=r"data\.allow_outside=true"):
        open_data(tmp_path / "data")
    assert len(open_data(tmp_path / "data", limits=OUTSIDE).records[0].labels) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_data_set_may_be_a_link_itself(layout: str, tmp_path: Path) -> None:
    path, split = make(layout, tmp_path / "data")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert len(open_data(tmp_path / "link" / path.relative_to(tmp_path / "data"), split)) == 3


def test_a_large_image_is_loaded_if_the_limit_is_raised(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    write_image(file, (40, 30))
    with pytest.raises(UnreadableImage, match=r"the limit of 1199: .* --max-pixels 1200 .*data.max_pixels=1200"):
        load_image(file, max_pixels=1199)
    assert load_image(file, max_pixels=1200).shape == (3, 30, 40)
    assert Image.MAX_IMAGE_PIXELS is not None  # Pillow's own limit, for the user's other code
    assert LIMITS.max_pixels == 100_000_000
