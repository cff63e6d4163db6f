"""Image files as tensors: grey, palette, alpha and 16-bit images are converted to RGB."""

import stat
import threading
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from understudy.data.limits import LIMITS

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})


class UnreadableImage(OSError):
    """An image file is missing, truncated, or has pixels of an unknown kind."""


def image_size(path: Path, max_pixels: int | None = None) -> tuple[int, int]:
    """Return the stored width and height in pixels, reading only the file's header.

    Raises:
        UnreadableImage: the file is missing or not an image.
    """
    with open_image(path, max_pixels) as image:
        return image.size


def shown_size(path: Path, max_pixels: int | None = None) -> tuple[int, int]:
    """Return width and height in pixels as viewers show the image, rotated by its EXIF orientation.

    Raises:
        UnreadableImage: the file is missing or not an image.
    """
    with open_image(path, max_pixels) as image:
        quarter_turn = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (image.height, image.width) if quarter_turn else image.size


def load_image(
    path: Path, size: tuple[int, int] | None = None, max_pixels: int | None = None, upright: bool = False
) -> Tensor:
    """Load an image file as (3, H, W) float32 in 0..1; arguments and errors are those of `load_pixels`."""
    return as_floats(load_pixels(path, size, max_pixels, upright))


def as_floats(pixels: Tensor) -> Tensor:
    """Convert the result of `load_pixels` to (3, H, W) float32 in 0..1, on its device."""
    image = pixels.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)
    return image.div_(255) if pixels.dtype == torch.uint8 else image.expand(3, -1, -1).contiguous()


def load_pixels(
    path: Path, size: tuple[int, int] | None = None, max_pixels: int | None = None, upright: bool = False
) -> Tensor:
    """Load an image file as its pixels: (H, W, 3) uint8, or (H, W, 1) float32 in 0..1 if it is grey of 16 bits.

    Pixels are used as stored. The image is turned by its EXIF orientation only if `size` is the turned size and not
    the stored one, since the boxes were then drawn on the turned image, or if `upright` asks for it.

    Args:
        path: the file.
        size: (width, height) of the annotation; None accepts any size.
        max_pixels: as in `open_image`.
        upright: whether to turn the image as viewers show it in any case.

    Raises:
        UnreadableImage: the file is missing, truncated or not an image, has floating-point pixels, has another size
            than annotated, or has too many pixels.
    """
    with open_image(path, max_pixels) as image:
        try:
            pixels = _oriented(image, size, upright)
            if size is not None and pixels.size != size:
                raise UnreadableImage(
                    f"{path} has {image.width}x{image.height} pixels; its annotation states {size[0]}x{size[1]}"
                )
            return _pixels(pixels, path)
        except UnreadableImage:
            raise
        except Exception as error:  # decoders raise many types: OSError, SyntaxError, struct.error, zlib.error
            raise UnreadableImage(f"{path} is truncated or damaged ({error})") from None


def open_image(path: Path, max_pixels: int | None = None) -> Image.Image:
    """Open an image file without decoding it.

    Args:
        path: the file.
        max_pixels: most pixels; None: the default of `data.max_pixels`.

    Raises:
        UnreadableImage: the file is missing, not a regular file, not an image, or has too many pixels.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe would wait for its other end
            raise UnreadableImage(f"{path} is not a regular file")
        with _ANY_SIZE:
            image = Image.open(path)
    except FileNotFoundError:
        raise UnreadableImage(f"{path} does not exist") from None
    except UnreadableImage:
        raise
    except Exception as error:  # see load_image
        reason = "unknown image format" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise UnreadableImage(f"{path} cannot be read as an image ({reason})") from None
    most = LIMITS.max_pixels if max_pixels is None else max_pixels
    if image.width * image.height > most:
        image.close()
        needed = image.width * image.height
        raise UnreadableImage(
            f"{path} has {image.width}x{image.height} pixels, more than the limit of {most}: scale it down, or use "
            f"--max-pixels {needed} (of a run: data.max_pixels={needed})"
        )
    return image


class _AnySize:
    """Suspends Pillow's own limit on pixels within a block, in all threads; `open_image` checks ours instead."""

    def __init__(self) -> None:
        self.lock, self.before = threading.Lock(), None

    def __enter__(self) -> None:
        self.lock.acquire()
        self.before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None

    def __exit__(self, *_: object) -> None:
        Image.MAX_IMAGE_PIXELS = self.before
        self.lock.release()


_ANY_SIZE = _AnySize()


def is_rotated(image: Image.Image) -> bool:
    """Return whether the EXIF orientation rotates or mirrors the stored pixels."""
    return image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)


def _oriented(image: Image.Image, size: tuple[int, int] | None, upright: bool) -> Image.Image:
    as_stored = size is None or image.size == size
    if not is_rotated(image) or (as_stored and not upright):
        return image
    return ImageOps.exif_transpose(image)


def _pixels(image: Image.Image, path: Path) -> Tensor:
    if image.mode == "F":
        raise UnreadableImage(f"{path} has floating-point pixels of unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return _deep_grey(np.asarray(image), path)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns if such an image is converted to RGB directly
    return torch.from_numpy(np.array(image if image.mode == "RGB" else image.convert("RGB")))


def _deep_grey(array: np.ndarray, path: Path) -> Tensor:
    """Scale 16-bit grey by its full range; Pillow's own conversion would clip everything above 255."""
    grey = torch.from_numpy(array.astype(np.float32))
    if grey.min() < 0 or grey.max() > 65535:
        raise UnreadableImage(f"{path} has 32-bit pixels of unknown range; save it with 8 or 16 bits")
    return grey.div_(65535)[..., None]
