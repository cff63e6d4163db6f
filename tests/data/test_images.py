"""Image files of every kind, as RGB in 0..1."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from understudy.data import load_image
from understudy.data.images import UnreadableImage


def save(file: Path, array: np.ndarray, mode: str, **options) -> None:
    Image.fromarray(array).convert(mode).save(file, **options)


def test_every_kind_of_pixels_becomes_rgb(tmp_path: Path) -> None:
    grey = np.linspace(0, 255, 48, dtype=np.uint8).reshape(6, 8)
    expected = (torch.from_numpy(grey).float() / 255).expand(3, -1, -1)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    save(tmp_path / "RGB.png", rgb, "RGB")
    save(tmp_path / "RGBA.png", rgb, "RGBA")
    save(tmp_path / "L.png", grey, "L")
    save(tmp_path / "LA.png", rgb, "LA")
    save(tmp_path / "P.png", grey, "P")
    save(tmp_path / "Pt.png", grey, "P", transparency=bytes(range(256)))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.tif")
    for file in sorted(tmp_path.iterdir()):
        image = load_image(file)
        assert image.shape == (3, 6, 8), file
        assert image.dtype == torch.float32, file
        torch.testing.assert_close(image, expected, atol=1e-6, rtol=0, msg=str(file))
    save(tmp_path / "1.png", grey > 99, "1")
    assert load_image(tmp_path / "1.png").unique().tolist() == [0, 1]
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(UnreadableImage, match="floating-point"):
        load_image(tmp_path / "float.tif")


def test_pixels_are_read_as_stored_unless_the_annotation_states_the_turned_size(tmp_path: Path) -> None:
    array = np.zeros((4, 6, 3), dtype=np.uint8)
    array[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # viewers turn it by a quarter, clockwise
    Image.fromarray(array).save(tmp_path / "a.png", exif=exif)
    assert load_image(tmp_path / "a.png", (6, 4))[0, 0, 0] == 1
    turned = load_image(tmp_path / "a.png", (4, 6))
    assert turned.shape == (3, 6, 4)
    assert turned[0, 0, 3] == 1
    with pytest.raises(UnreadableImage, match="6x4 pixels; its annotation states 6x5"):
        load_image(tmp_path / "a.png", (6, 5))
    exif[0x0112] = 3  # by half, so that the size says nothing
    Image.fromarray(array).save(tmp_path / "a.png", exif=exif)
    assert load_image(tmp_path / "a.png", (6, 4))[0, 0, 0] == 1
    assert load_image(tmp_path / "a.png", (6, 4), upright=True)[0, 3, 5] == 1
