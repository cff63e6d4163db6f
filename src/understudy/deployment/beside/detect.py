"""Detect objects in photos with the ONNX file beside this program. Needs onnxruntime, numpy and pillow alone.

    pip install onnxruntime numpy pillow
    python detect.py photo.jpg another.jpg --score 0.3 --output found

From Python::

    from detect import Detector
    detector = Detector("student.onnx")
    detector(Image.open("photo.jpg"))  # [{"box": [x1, y1, x2, y2], "label": "cat", "score": 0.9}, ...]
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError

HERE = Path(__file__).resolve().parent
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
FAULTS = {
    FileNotFoundError: "does not exist",
    IsADirectoryError: "is a folder; name the photos in it",
    UnidentifiedImageError: "is not an image, or of a format that Pillow does not know",
}


class Detector:
    """A detector from an ONNX file of ``understudy export``.

    Args:
        file: the file.
        threads: of the arithmetic; 0: as many as there are cores.
    """

    def __init__(self, file, threads=0):
        if not Path(file).is_file():
            raise FileNotFoundError(f"there is no file {file}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        facts = self.session.get_modelmeta().custom_metadata_map.get("understudy")
        if facts is None:
            raise ValueError("it was not written by `understudy export`")
        self.facts = json.loads(facts)
        if self.facts["raw"]:
            raise ValueError("it was exported with --raw, so it does not choose detections")

    def __call__(self, photo, score=0.0):
        """Return the detections of a photo, best first, with boxes in its upright pixels; `score` is the lowest one."""
        photo = upright(photo)
        pixels, scale = self.prepared(np.asarray(photo, np.float32) / 255)
        outputs = [np.asarray(each)[0] for each in self.session.run(None, {"image": pixels})]
        boxes, scores, labels = (each[: outputs[3]] for each in outputs[:3])
        boxes = np.minimum(boxes * [*scale, *scale], [photo.width, photo.height] * 2)
        names = [self.facts["classes"][label] for label in labels]
        found = zip(boxes.tolist(), names, scores.tolist(), strict=True)
        return [{"box": box, "label": name, "score": one} for box, name, one in found if one >= score]

    def prepared(self, image):
        """Resize (h, w, 3) in 0..1 for the network: its input (N, 3, H, W), and photo pixels per pixel, x and y."""
        height, width = image.shape[:2]
        rule, canvas = self.facts["resize"], self.facts["size"]
        new = scaled(
            (height, width), rule["shorter_side"] / min(height, width), rule["longer_side"] / max(height, width)
        )
        small = resized(image, *new)
        if canvas:
            if new[0] > canvas[0] or new[1] > canvas[1]:  # in a second step, as `understudy evaluate` does
                new = scaled(new, canvas[0] / new[0], canvas[1] / new[1])
                small = resized(small, *new)
            # Filled up with the mean colour at the right and the bottom.
            filled = np.empty((*canvas, 3), np.float32)
            filled[:] = self.facts["mean"]
            filled[: new[0], : new[1]] = small
            small = filled
        small = small.transpose(2, 0, 1)[None].repeat(self.facts["batch"] or 1, axis=0)
        pixels = (small * 255).round().astype(np.uint8) if self.facts["input"] == "uint8" else small
        return np.ascontiguousarray(pixels), (width / new[1], height / new[0])


def upright(photo):
    """Return a photo as RGB, turned by its EXIF orientation; grey of 16 bits is rounded to 8."""
    photo = ImageOps.exif_transpose(photo)
    if photo.mode == "F" or photo.mode.startswith("I"):  # Pillow's own conversion clips at 255
        values = np.asarray(photo)
        if photo.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError("its pixels have an unknown range; save it with 8 or 16 bits")
        photo = Image.fromarray((values / 257).round().astype(np.uint8))
    return (photo.convert("RGBA") if photo.mode == "P" else photo).convert("RGB")  # else Pillow warns of transparency


def scaled(size, *scales):
    """Return height and width times the smallest of some scales."""
    return [max(1, int(side * min(scales))) for side in size]


def resized(image, height, width):
    """Resize (h, w, 3) bilinearly without antialiasing, as in training: cells are sampled at their centres."""
    half = np.float32(0.5)
    for axis, size in ((1, width), (0, height)):  # in PyTorch's order and precision
        old = image.shape[axis]
        places = np.maximum((np.arange(size, dtype=np.float32) + half) * np.float32(old / size) - half, 0)
        below = np.minimum(places.astype(int), old - 1)
        above = np.minimum(below + 1, old - 1)
        share = np.expand_dims(places - below.astype(np.float32), [each for each in range(3) if each != axis])
        image = np.take(image, below, axis) * (1 - share) + np.take(image, above, axis) * share
    return image


def drawn(photo, found, classes):
    """Draw detections on a photo."""
    photo = photo.copy()
    draw, line = ImageDraw.Draw(photo), max(2, round(max(photo.size) / 400))
    for each in reversed(found):  # the best on top
        colour = COLOURS[classes.index(each["label"]) % len(COLOURS)]
        draw.rectangle(each["box"], outline=colour, width=line)
        text = f"{each['label']} {each['score']:.2f}"
        width, height = (side + 2 * line for side in draw.textbbox((0, 0), text, font_size=6 * line)[2:])
        left, top = max(0, min(each["box"][0], photo.width - width)), max(0, each["box"][1] - height)
        draw.rectangle((left, top, left + width, top + height), fill=colour)
        draw.text((left + line, top + line), text, fill="white", font_size=6 * line)
    return photo


def main():
    """Detect objects in the photos that are named on the command line."""
    parser = argparse.ArgumentParser(description="Detect objects in photos.")
    parser.add_argument("photos", nargs="+", type=Path, help="image files")
    parser.add_argument("--score", type=float, default=0.3, help="lowest score, 0 to 1 (default 0.3)")
    parser.add_argument("--output", type=Path, help="folder for the photos with their boxes")
    parser.add_argument("--model", type=Path, default=HERE / "student.onnx", help="ONNX file (default: beside this)")
    options = parser.parse_args()
    if not 0 <= options.score <= 1:
        parser.error(f"--score {options.score:g}: expected a number from 0 to 1")
    try:
        detector = Detector(options.model)
    except Exception as error:  # onnxruntime's exceptions have no common class
        wanted = "expected a file of `understudy export --format onnx`, without --raw"
        sys.exit(f"Error: {options.model} cannot be loaded: {' '.join(str(error).split())[:300]}; {wanted}")
    try:
        if options.output:
            options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"Error: the folder {options.output} cannot be made: {error.strerror}")
    warnings.simplefilter("error", Image.DecompressionBombWarning)  # a small file can fill the memory
    failed = False
    for number, file in enumerate(options.photos):
        try:
            with Image.open(file) as opened:
                photo = upright(opened)
        except Exception as error:  # decoders raise many types
            fault = FAULTS.get(type(error), f"cannot be read as an image: {error}")
            print(f"Error: {file} {fault}", file=sys.stderr)
            failed = True
            continue
        found = detector(photo, options.score)
        print(file)
        for each in found:
            print(f"  {each['label']:20} {each['score']:.2f}  " + " ".join(f"{side:.1f}" for side in each["box"]))
        if options.output:
            target = options.output / f"{file.stem}.png"
            target = options.output / f"{file.stem}-{number}.png" if target.exists() else target
            if target.exists():
                sys.exit(f"Error: {target} exists already; choose another --output")
            try:
                drawn(photo, found, detector.facts["classes"]).save(target)
            except OSError as error:
                sys.exit(f"Error: {target} cannot be written: {error.strerror or error}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
