"""Images that two splits share: the same pixels in another file, and nearly the same picture."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from understudy.data.duplicates import look_of, shared_looks


def picture(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A smooth picture, as a photo is."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def look(image: Image.Image):
    return look_of(torch.from_numpy(np.array(image)))


def recompressed(image: Image.Image) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=60)
    return Image.open(content).convert("RGB")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda image: image, "same image"),
        (recompressed, "nearly the same image"),
        (lambda image: image.resize((100, 75)), "nearly the same image"),
        (lambda image: image.point(lambda value: value * 0.97), "nearly the same image"),
        (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), None),
        (lambda image: image.rotate(90), None),
    ],
)
def test_a_changed_copy_in_another_split(change, kind):
    train = {f"train/{seed}.png": look(picture(seed)) for seed in range(40)}
    val = {f"val/{seed}.png": look(picture(seed)) for seed in range(100, 140)}
    assert list(shared_looks({"train": train, "val": val})) == []
    found = list(shared_looks({"train": train, "val": val | {"val/copy.png": look(change(picture(7)))}}))
    if kind is None:
        assert found == []
    else:
        assert [tuple(fault) for fault in found] == [
            (f"{kind} in two splits", "train and val", "1, e.g. 7.png and copy.png")
        ]


def test_empty_images_share_their_look_only_if_they_are_the_same():
    white, black = (Image.new("RGB", (50, 40), colour) for colour in ("white", "black"))
    found = list(shared_looks({"train": {"a": look(white)}, "val": {"b": look(black), "c": look(white)}}))
    assert [fault.what for fault in found] == ["1, e.g. a and c"]


def test_one_file_in_two_splits_and_trainval_are_no_copies():
    looks = {"a": look(picture(1))}
    assert list(shared_looks({"train": looks, "val": dict(looks)})) == []
    assert list(shared_looks({"train": looks, "trainval": {"b": look(picture(1))}})) == []


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 500, 3), (500, 3, 3)])
def test_strips_have_a_look(shape):
    assert look_of(torch.zeros(shape, dtype=torch.uint8)).thumbnail.shape == (8, 9)


def test_deep_grey_is_on_the_same_scale():
    ramp = torch.linspace(0, 1, 90).expand(60, 90)
    deep, flat = look_of(ramp[..., None]), look_of((ramp * 255).byte()[..., None].expand(60, 90, 3))
    assert np.abs(deep.thumbnail.astype(int) - flat.thumbnail).max() <= 1
    assert deep.hash == flat.hash
